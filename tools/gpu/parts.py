"""Split files into parts small enough to travel, with a manifest to check that they arrived whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA = "stochcl.gpu.parts/0"
MANIFEST = "manifest.json"
LIMIT = 15.5  # MiB: a margin below 16


class PartsError(Exception):
    """A part is missing or damaged; the message names it."""


def write_parts(files: dict[str, Path], folder: Path, limit_mib: float = LIMIT) -> dict[str, Any]:
    """Cut files into parts and write the manifest last.

    Parameters
    ----------
    files : dict of str to Path
        By their names when joined; / separates folders.
    folder : Path
        Created if needed; parts of the same name are replaced.
    limit_mib : float
        Largest part in MiB.

    Returns
    -------
    dict
        The manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, path in sorted(files.items()):
        parts, whole = [], hashlib.sha256()
        with path.open("rb") as file:
            while (data := file.read(int(limit_mib * 2**20))) or not parts:
                part = f"{name.replace('/', '__')}.{len(parts):03d}"
                (folder / part).write_bytes(data)
                whole.update(data)
                parts.append({"name": part, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        entries.append({
            "name": name, "bytes": sum(part["bytes"] for part in parts), "sha256": whole.hexdigest(), "parts": parts
        })  # fmt: skip
    return write_manifest(entries, folder)


def write_manifest(entries: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write a folder's manifest atomically, and return it."""
    manifest = {"schema": SCHEMA, "files": entries}
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(folder / MANIFEST)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest.

    Raises
    ------
    PartsError
        If it is missing or invalid.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        known = manifest["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise PartsError(f"{path}: the manifest cannot be read ({exc}); export again.") from exc
    if not known:
        raise PartsError(f"{path}: this is a manifest of another kind ({manifest['schema']!r}, not {SCHEMA!r}).")
    return manifest


def join_parts(folders: list[Path], output: Path) -> list[Path]:
    """Join files from parts, which may be in several folders, each with a manifest.

    Raises
    ------
    PartsError
        If a part is missing or damaged, or a name leads outside the output; that file is not written.
    """
    written = []
    for folder in folders:
        for entry in read_manifest(folder)["files"]:
            target = output / entry["name"]
            if not target.resolve().is_relative_to(output.resolve()):
                raise PartsError(f"{folder / MANIFEST}: {entry['name']!r} does not lie in a folder of the output.")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".joining")
            whole = hashlib.sha256()
            try:
                with partial.open("wb") as file:
                    for part in entry["parts"]:
                        data = _part(folders, part)
                        whole.update(data)
                        file.write(data)
                if whole.hexdigest() != entry["sha256"]:
                    raise PartsError(f"{entry['name']}: its parts are right and their whole is not; export again.")
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            written.append(target)
    return written


def _part(folders: list[Path], part: dict[str, Any]) -> bytes:
    """Return a part's bytes from the folder that has it."""
    if Path(part["name"]).name != part["name"]:
        raise PartsError(f"{part['name']!r} is not the name of a part.")
    for folder in folders:
        path = folder / part["name"]
        if path.exists():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == part["sha256"]:
                return data
            found = f"{len(data):,} bytes of another checksum, not {part['bytes']:,}"
            raise PartsError(f"{path}: this part is damaged ({found}); fetch it again.")
    raise PartsError(f"{part['name']}: this part is missing; fetch it, or name the folder that has it.")
