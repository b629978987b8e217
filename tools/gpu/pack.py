"""Pack what a machine with PyTorch and without a network needs: wheels, data, checkpoints, in loads of limited size.

    python tools/gpu/pack.py -o gpu-loads --data cifar10-train.zip cifar10-test.zip [--python-version 3.12]
        [--checkpoints RESULTS] [--checkout] [--limit-mib 60] [--no-wheels]

Wheels are those of the package's own dependencies in the versions that are installed here, less PyTorch and what
comes with it. Data are compressed: archives of small JPEG files shrink to a third, as their headers repeat. Each load
is a folder of parts with checksums, which unpack.py reads; several are carried one after another.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from parts import LIMIT, write_manifest, write_parts
from shrinking import shrink

ROOT = Path(__file__).parent.parent.parent
_COMES_WITH_TORCH = ("torch",)
_PLATFORMS = [f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_24", "_2_17", "2014")]
_LEFT_OUT = ("tests", "examples", "benchmarks/results", "stochcl/models/*.safetensors")


def wanted(name: str = "stochcl") -> dict[str, str]:
    """Return names and versions of a distribution's requirements, without itself and PyTorch's own."""
    ours, torch = _closure(name, skip=_COMES_WITH_TORCH), _closure("torch", skip=())
    del ours[_normal(name)]
    return {k: v for k, v in ours.items() if k not in torch or k in ("numpy", "typing-extensions")}


def _closure(name: str, skip: tuple[str, ...]) -> dict[str, str]:
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    todo = [_normal(name)]
    while todo:
        name = todo.pop()
        if name in found or name in skip:
            continue
        found[name] = metadata.version(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(_normal(requirement.name))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch_wheels(folder: Path, python_version: str | None, platforms: list[str]) -> None:
    """Download wheels from pip's configured index."""
    pins = [f"{name}=={version}" for name, version in sorted(wanted().items())]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), "-q"]
    if python_version:
        command += ["--python-version", python_version, "--implementation", "cp"]
        command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *pins], check=True)


def checkout(path: Path) -> None:
    """Write the committed files, without tests, results and models."""
    excluded = [f":(exclude){part}" for part in _LEFT_OUT]
    subprocess.run(["git", "-C", ROOT, "archive", "-o", path, "HEAD", "--", ".", *excluded], check=True)


def gather(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Return all files to carry, by the name they are unpacked to."""
    files = {}
    if not options.no_wheels:
        wheels = folder / "wheels"
        fetch_wheels(wheels, options.python_version, options.platform)
        files |= {f"wheels/{path.name}": path for path in sorted(wheels.glob("*.whl"))}
    if options.checkout:
        checkout(folder / "checkout.tar.gz")
        files["checkout.tar.gz"] = folder / "checkout.tar.gz"
    for path in options.data:
        shrunk = folder / f"{path.name}.gz"
        with path.open("rb") as source, gzip.GzipFile(shrunk, "wb", compresslevel=9, mtime=0) as target:
            shutil.copyfileobj(source, target)
        files[f"data/{path.name}.gz"] = shrunk
    for root in options.checkpoints:
        for path in sorted(root.rglob("*")):
            name = f"results/{path.relative_to(root).as_posix()}"
            if path.suffix == ".checkpoint":
                small = folder / f"{len(files)}.checkpoint"
                shrink(path, small, options.moments)
                files[name] = small
            elif path.suffix in (".json", ".safetensors", ".csv"):
                files[name] = path
    return files


def distribute(entries: list[dict[str, Any]], limit: float) -> list[tuple[list[dict[str, Any]], list[str]]]:
    """Distribute files over loads of at most ``limit`` bytes; return each load's manifest entries and parts.

    A file larger than a load is spread over several, and listed in the one with its last part.
    """
    found: list[tuple[list[dict[str, Any]], list[str]]] = []
    room = -1.0
    for entry in sorted(entries, key=lambda entry: (not entry["name"].startswith("wheels"), entry["name"])):
        together = entry["bytes"] <= limit
        for i, part in enumerate(entry["parts"]):
            size = entry["bytes"] if together else part["bytes"]
            if size > room and not (together and i):
                found.append(([], []))
                room = limit
            found[-1][1].append(part["name"])
            room -= part["bytes"]
        found[-1][0].append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="results of an earlier lease")
    parser.add_argument("--moments", default="second", help="of checkpoints' optimizers: none, second, all")
    parser.add_argument("--python-version", help="of the machine's Python, where it is not this one's: 3.12")
    parser.add_argument("--platform", nargs="+", default=_PLATFORMS, help="of the machine, as wheels name it")
    parser.add_argument("--checkout", action="store_true", help="take the committed files along")
    parser.add_argument("--no-wheels", action="store_true")
    parser.add_argument("--limit-mib", type=float, default=60.0, help="of a load; 60 by default")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    limit = options.limit_mib * 2**20
    with tempfile.TemporaryDirectory() as name:
        staged = options.output / "staged"
        manifest = write_parts(gather(options, Path(name)), staged, min(LIMIT, options.limit_mib))
    for i, (entries, parts) in enumerate(distribute(manifest["files"], limit), start=1):
        folder = options.output / f"load-{i}"
        folder.mkdir()
        for part in parts:
            (staged / part).rename(folder / part)
        write_manifest(entries, folder)
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 2**20:.1f} MiB")
        for entry in entries:
            print(f"  {entry['bytes'] / 2**20:7.2f} MiB {entry['name']}")
    shutil.rmtree(staged)


if __name__ == "__main__":
    main()
