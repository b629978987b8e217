"""Unpack loads of pack.py: install the wheels into a folder of their own, and lay data and checkpoints out.

    python tools/gpu/unpack.py LOAD... -o WORK [--results RESULTS]

Wheels go to WORK/site, which PYTHONPATH is to name; the system's own packages are left as they are. Data go to
WORK/data, checkpoints and results of an earlier lease to RESULTS.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from parts import PartsError, join_parts


def install(wheels: list[Path], site: Path) -> None:
    """Install wheels without dependencies, with pip or else by unpacking them."""
    if not wheels:
        return
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
    done = subprocess.run([*command, "--target", site, *wheels], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"pip did not ({done.stderr.strip()[-300:]}); unpacking wheels", flush=True)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    joined = options.output / "joined"
    try:
        written = join_parts(options.loads, joined)
    except PartsError as exc:
        sys.exit(str(exc))
    install([path for path in written if path.suffix == ".whl"], options.output / "site")
    for path in written:
        name = path.relative_to(joined)
        if name.parts[0] == "data":
            target = options.output / "data" / name.relative_to("data").with_suffix("")
            target.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
        elif name.parts[0] == "results":
            target = (options.results or options.output / "results") / name.relative_to("results")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # newer work here takes precedence
                continue
            shutil.copyfile(path, target)
            if target.suffix == ".checkpoint":
                from shrinking import grow

                grow(target)
        elif name.name == "checkout.tar.gz":
            with tarfile.open(path) as archive:
                archive.extractall(options.output / "checkout", filter="data")
    shutil.rmtree(joined)
    print(f"{len(written)} files unpacked to {options.output}")


if __name__ == "__main__":
    main()
