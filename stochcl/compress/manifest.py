"""The manifest that makes a folder of archives one archive."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stochcl.errors import FormatError, LimitExceeded, SourceError, UnsupportedVersion
from stochcl.files import replacing, writing
from stochcl.messages import escape_name, os_reason

MANIFEST = "manifest.json"
"""The file that makes a folder of archives one archive; written last, so that it is the commit."""

SCHEMA = "stochcl.folder/1"

_MAX_BYTES = 1 << 31  # a thousand shards take 200 kB; the rest is names of skipped images
_MAX_COUNT = 1 << 48  # images, blocks or bytes of a shard
_READ = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One archive of a folder: its name, rows, blocks, bytes and SHA-256, and the bytes of its images' source."""

    file: str
    images: int
    blocks: int
    bytes: int
    sha256: str
    source_bytes: int

    def check(self) -> None:
        """Raise FormatError where this cannot be a file of the folder."""
        if Path(self.file).name != self.file or self.file in ("", ".", "..") or "\0" in self.file:
            raise FormatError(f"it names {self.file!r}, which is not a file of the folder")
        for name in ("images", "blocks", "bytes", "source_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
                raise FormatError(f"its {name} of {self.file} are {value!r}, not a number of them")


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the shards in the order of their rows, and the model that made them.

    ``tables`` is the file with the decoding tables, where neither the shards nor the package hold them; ``facts`` say
    what the folder was made from and how: the source's listing, options, images of a shard.
    """

    shards: tuple[Shard, ...]
    model: str
    model_sha256: str
    tables: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """Rows in all."""
        return sum(shard.images for shard in self.shards)

    def to_bytes(self) -> bytes:
        """Return the file's bytes, JSON in ASCII."""
        values = {"schema": SCHEMA, "images": self.images} | asdict(self)
        return (json.dumps(values, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the file's bytes."""
        try:
            values = json.loads(data)
            schema = values.pop("schema")
            if schema != SCHEMA:
                raise UnsupportedVersion(f"its schema is {schema!r}, and this version reads {SCHEMA}")
            images = values.pop("images")
            values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
            values["skipped"] = tuple((str(name), str(reason)) for name, reason in values["skipped"])
            found = cls(**values)
        except FormatError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise FormatError(f"it is not a manifest of codes ({exc})") from exc
        if not found.shards:
            raise FormatError("it names no shard")
        for shard in found.shards:
            shard.check()
        if found.tables is not None and Path(str(found.tables)).name != found.tables:
            raise FormatError(f"it names {found.tables!r}, which is not a file of the folder")
        if images != found.images:
            raise FormatError(f"it says {images!r} images, and its shards hold {found.images:,}")
        return found


def read_manifest(folder: Path) -> tuple[Manifest, int]:
    """Return the manifest of a folder, and its bytes on disk."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise SourceError(
                f"{escape_name(folder)}: this folder has no {MANIFEST}: it is not a folder of shards, or compressing "
                "to it was not finished; run the command that began it again."
            )
        if path.stat().st_size > _MAX_BYTES:
            raise LimitExceeded(f"{escape_name(path)}: a manifest has no more than {_MAX_BYTES:,} bytes.")
        data = path.read_bytes()
    except OSError as exc:
        raise SourceError(f"{escape_name(path)}: it cannot be read: {os_reason(exc)}.") from exc
    try:
        return Manifest.from_bytes(data), len(data)
    except FormatError as exc:
        raise type(exc)(f"{escape_name(path)}: {exc}; compress again, or mend it from a copy.") from exc


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest into a folder, which makes it an archive."""
    with writing(folder / MANIFEST), replacing(folder / MANIFEST) as file:
        file.write(manifest.to_bytes())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ):
                digest.update(data)
    except FileNotFoundError as exc:
        raise SourceError(
            f"{escape_name(path)}: this shard is missing; compress again, which makes it anew."
        ) from exc
    except OSError as exc:
        raise SourceError(f"{escape_name(path)}: it cannot be read: {os_reason(exc)}.") from exc
    return digest.hexdigest()
