"""Copy the first images of each folder of a .zip: python tools/first_of_class.py SOURCE.zip COUNT -o OUT.zip"""

from __future__ import annotations

import argparse
import zipfile
from collections import Counter
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    with zipfile.ZipFile(options.source) as given, zipfile.ZipFile(options.output, "w") as kept:
        for member in given.infolist():
            label = member.filename.partition("/")[0]
            if not member.is_dir() and seen[label] < options.count:
                seen[label] += 1
                kept.writestr(member, given.read(member))


if __name__ == "__main__":
    main()
