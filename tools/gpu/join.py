"""Put together what export.py wrote; a damaged or missing part is refused.

    python tools/gpu/join.py EXPORTED... -o RESULTS

EXPORTED are folders of parts; a file's parts may be spread over several of them. Checkpoints get their full size
again, so that the command that wrote them goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from parts import PartsError, join_parts
from shrinking import grow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        written = join_parts(options.exported, options.output)
    except PartsError as exc:
        sys.exit(str(exc))
    for path in written:
        grown = path.suffix == ".checkpoint" and grow(path)
        print(f"{path}" + (", at full size again" if grown else ""))


if __name__ == "__main__":
    main()
