"""Export what a run made: models, checkpoints, results and logs, in parts of less than 16 MiB with checksums.

    python tools/gpu/export.py RESULTS -o EXPORTED [--moments none|second|all] [--no-checkpoints]

RESULTS is a folder, searched with its folders, or a file. Model files hold float16 weights already; of checkpoints,
weights become float16 and moments of the optimizer bfloat16. join.py puts everything together again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from parts import LIMIT, write_parts
from shrinking import MOMENTS, shrink

_SMALL = (".json", ".csv", ".log", ".txt", ".jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--moments", choices=MOMENTS, default="second", help="of the optimizer; second by default")
    parser.add_argument("--no-checkpoints", action="store_true", help="leave unfinished training out")
    parser.add_argument("--limit-mib", type=float, default=LIMIT, help=f"largest part; {LIMIT} by default")
    options = parser.parse_args()
    export(
        options.results, options.output, moments=None if options.no_checkpoints else options.moments,
        limit_mib=options.limit_mib,
    )  # fmt: skip


def export(results: Path, output: Path, *, moments: str | None = "second", limit_mib: float = LIMIT) -> None:
    """Write the parts of all files, the manifest last, replacing an earlier export."""
    shutil.rmtree(output, ignore_errors=True)
    root = results if results.is_dir() else results.parent
    found = sorted(results.rglob("*")) if results.is_dir() else [results]
    with tempfile.TemporaryDirectory() as name:
        files = {}
        for path in found:
            shown = path.relative_to(root).as_posix()
            if path.suffix == ".checkpoint" and moments is not None:
                small = Path(name, f"{len(files)}.checkpoint")
                shrink(path, small, moments)
                files[shown] = small
            elif path.suffix == ".safetensors" or path.suffix in _SMALL:
                files[shown] = path
        manifest = write_parts(files, output, limit_mib)
    for entry in manifest["files"]:
        count = len(entry["parts"])
        print(f"{entry['bytes'] / 2**20:9.2f} MiB {entry['name']}" + (f", {count} parts" if count > 1 else ""))


if __name__ == "__main__":
    main()
