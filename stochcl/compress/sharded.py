"""A folder of archives (shards), and the manifest that makes it one archive."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.compress.archive import Archive
from stochcl.compress.bytes import ArchiveErrors, Cache
from stochcl.compress.columns import by_part
from stochcl.compress.rows import ArchiveBase
from stochcl.compress.segment import Limits
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, SourceError, UnsupportedVersion
from stochcl.files import PathLike, reading, write_file
from stochcl.lazy import cached_property
from stochcl.messages import Progress, escape_name, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import AnyTables, Tables


MANIFEST = "manifest.json"
"""The file that makes a folder of shards one archive; written last, as the commit."""

SCHEMA = "stochcl.folder/1"

_MAX_BYTES = 1 << 31  # a thousand shards take 200 kB; the rest is for names of skipped images
_MAX_COUNT = 1 << 48  # images, blocks or bytes of a shard


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
        """Raise FormatError if this cannot be a file of the folder."""
        if Path(self.file).name != self.file or self.file in ("", ".", "..") or "\0" in self.file:
            raise FormatError(f"it names {self.file!r}, which is not a file of the folder")
        for name in ("images", "blocks", "bytes", "source_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
                raise FormatError(f"its {name} of {self.file} are {value!r}, not a number of them")


@dataclass(frozen=True)
class Manifest:
    """Contents of a folder of shards: the shards in row order, and the model that made them.

    ``tables`` is the file with the decoding tables, if neither the shards nor the package have them. ``facts``
    describe how the folder was made: the source's listing, the options, the images per shard.
    """

    shards: tuple[Shard, ...]
    model: str
    model_sha256: str
    tables: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """Total rows."""
        return sum(shard.images for shard in self.shards)

    def to_bytes(self) -> bytes:
        """Return the manifest as ASCII JSON."""
        values = {"schema": SCHEMA, "images": self.images} | asdict(self)
        return (json.dumps(values, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse a manifest."""
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
    """Return the manifest of a folder, and its size on disk."""
    path = folder / MANIFEST
    with reading(path):
        if not path.is_file():
            raise SourceError(
                f"{escape_name(folder)}: this folder has no {MANIFEST}: it is not a folder of shards, or compressing "
                "to it was not finished; run the command that began it again."
            )
        if path.stat().st_size > _MAX_BYTES:
            raise LimitExceeded(f"{escape_name(path)}: a manifest has no more than {_MAX_BYTES:,} bytes.")
        data = path.read_bytes()
    try:
        return Manifest.from_bytes(data), len(data)
    except FormatError as exc:
        raise type(exc)(f"{escape_name(path)}: {exc}; compress again, or restore it from a copy.") from exc


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest to a folder, which makes it an archive."""
    write_file(folder / MANIFEST, manifest.to_bytes())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    try:
        with reading(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except SourceError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise SourceError(f"{escape_name(path)}: this shard is missing; compress again.") from exc
        raise


_OPEN = 64  # archives open at a time, with a descriptor each
_CACHED_BYTES = 64 << 20  # packed rows, of all shards together


def open_archive(
    path: PathLike | IO[bytes], *, tables: Iterable[AnyTables] = (), trusted: bool | None = None
) -> Archive | FolderArchive:
    """Open an archive, or a folder of shards as one archive."""
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises at long names
        return FolderArchive(path, tables=tables, trusted=trusted)
    return Archive(path, tables=tables, trusted=trusted)


class FolderArchive(ArchiveBase):
    """The codes in a folder of shards, which a manifest makes one archive; rows count through all shards.

    Shards are opened when their rows are used, up to 64 at a time, and checked against the manifest. The archive may
    be used from several threads, after a fork, and pickled (by its path).

    Parameters
    ----------
    path : path-like
    tables : iterable of Tables or path-like
        Searched first for decoding tables that are not in the folder.
    trusted : bool, optional
        As in :class:`Archive`.

    Raises
    ------
    SourceError
        If there is no manifest, or a shard is missing.
    FormatError
        If something is damaged or does not match the manifest.

    Examples
    --------
    >>> archive = FolderArchive("codes/")  # doctest: +SKIP
    >>> archive[1_000_000].symbols()  # doctest: +SKIP
    """

    def __init__(self, path: PathLike, *, tables: Iterable[AnyTables] = (), trusted: bool | None = None) -> None:
        self.path, self._shown, self._given = Path(path), escape_name(path), tuple(tables)
        self._trusted, self._errors = trusted, ArchiveErrors(self._shown)
        self.manifest, self._manifest_bytes = read_manifest(self.path)
        own = () if self.manifest.tables is None else (self.path / self.manifest.tables,)
        self._extra: tuple[Any, ...] = (*self._given, *own)
        entries = self.manifest.shards
        self.source_bytes = sum(entry.source_bytes for entry in entries)
        self._limits = Limits(sum(entry.bytes for entry in entries), trusted)
        self._starts = np.cumsum([0] + [entry.images for entry in entries])
        self._first_blocks = np.cumsum([0] + [entry.blocks for entry in entries])
        self._opened: Cache[Archive] = Cache(_OPEN)
        self._cache: Cache[NDArray[np.uint8]] = Cache(_CACHED_BYTES)
        with self._open(0) as first:
            self.header = first.header
        if self.header.model_sha256 != self.manifest.model_sha256:
            raise FormatError(f"{self._shown}: its shards were made by another model than its manifest says.")
        self._width = self.header.decisions_per_row

    # Shards

    @property
    def shards(self) -> Sequence[Archive]:
        """The shards in order, each opened on access."""
        return LazyArchives([partial(self._shard, number) for number in range(len(self.manifest.shards))])

    def _open(self, number: int) -> Archive:
        entry = self.manifest.shards[number]
        archive = Archive(self.path / entry.file, tables=self._extra, trusted=self._trusted)
        archive._limits.share(len(self.manifest.shards))
        found = {"images": len(archive), "blocks": int(archive._first_blocks[-1]), "bytes": archive.size}
        for name, value in found.items():
            if value != (said := getattr(entry, name)):
                archive.close()
                shown = escape_name(self.path / entry.file)
                raise FormatError(f"{shown}: it has {value:,} {name}, and the folder's manifest says {said:,}.")
        if number and archive.header != self.header:
            archive.close()
            raise FormatError(
                f"{escape_name(self.path / entry.file)}: its codes are not of the same kind as those of "
                f"{self.manifest.shards[0].file}."
            )
        return archive

    def _shard(self, number: int) -> Archive:
        """Return a shard, from the recently opened ones if possible; a dropped one closes when unused."""
        archive = self._opened.get(number)
        if archive is None:
            archive = self._open(number)
            archive._cache, archive._cache_key = self._cache, number
            self._opened.put(number, archive, 1)
        return archive

    # Contents

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that could not be read when the folder was made."""
        return list(self.manifest.skipped)

    @cached_property
    def tables(self) -> Tables:
        """The decoding tables: from the shards, the folder, ``tables``, the package or ``$STOCHCL_MODELS``."""
        tables = self._shard(0).tables
        self._extra = (tables, *self._extra)  # so that shards opened later find them at once
        return tables

    @property
    def _tables_bytes(self) -> int:
        return 0 if self.manifest.tables is None else len(self.tables.data)

    @property
    def external_bytes(self) -> int:
        """Bytes of the decoder if it is not stored in the folder, else 0."""
        return 0 if self._tables_bytes else self._shard(0).external_bytes

    @property
    def own_table_rows(self) -> int:
        """Rows in segments with a table of their own, which beat the shared models there."""
        return sum(archive.own_table_rows for archive in self.shards)

    @property
    def main_model(self) -> EntropyModel:
        """The entropy model that codes most rows of the largest shard."""
        images = [entry.images for entry in self.manifest.shards]
        return self._shard(images.index(max(images))).main_model

    @property
    def size(self) -> int:
        """Bytes of the shards, the manifest, and the tables' file."""
        return sum(entry.bytes for entry in self.manifest.shards) + self._manifest_bytes + self._tables_bytes

    def parts(self) -> dict[str, int]:
        """Return the folder's bytes by purpose; the manifest counts as index. They sum to its size."""
        total = {"codes": 0, "tables": self._tables_bytes, "names": 0, "index": self._manifest_bytes, "header": 0}
        for archive in self.shards:
            for name, size in archive.parts().items():
                total[name] = total.get(name, 0) + size  # some archives have more, such as uncertainty
        return total

    def verify(self, progress: Progress = silent) -> None:
        """Read and check every shard, also against the manifest.

        Raises
        ------
        SourceError
            If a shard is missing.
        FormatError
            If anything is damaged.
        """
        skipped: list[tuple[str, str]] = []
        for number, entry in enumerate(self.manifest.shards):
            path = self.path / entry.file
            if (found := sha256_of(path)) != entry.sha256:
                raise ChecksumMismatch(
                    f"{escape_name(path)}: its SHA-256 is {found[:16]}..., and the folder's manifest says "
                    f"{entry.sha256[:16]}...; copy it again from where it is whole, or compress again."
                )
            start = int(self._starts[number])
            archive = self._shard(number)
            archive.verify(lambda done, _, start=start: progress(start + done, len(self)))  # type: ignore[misc]
            skipped += archive.skipped
        if tuple(skipped) != self.manifest.skipped:
            raise FormatError(f"{self._shown}: the manifest's list of skipped images is not that of its shards.")

    # Rows

    def _packed(self, index: NDArray[np.integer]) -> NDArray[np.uint8]:
        packed = np.empty((len(index), -(-self._width // 8)), np.uint8)
        for number, places, own in by_part(self._starts, index):
            packed[places] = self._shard(number)._packed(own)
        return packed

    def _uncertainty(self, rows: NDArray[np.integer]) -> NDArray[np.float32] | None:
        if not self._stored("entropy"):
            return None
        found = np.empty(len(rows), np.float32)
        for number, places, own in by_part(self._starts, rows):
            found[places] = self._shard(number)._uncertainty(own)
        return found

    def _rows_of_blocks(self, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
        shards = by_part(self._first_blocks, numbers)
        return np.concatenate([self._shard(n)._rows_of_blocks(own) + self._starts[n] for n, _, own in shards])

    def _stored(self, which: str) -> bool:
        filled = next((i for i, entry in enumerate(self.manifest.shards) if entry.images), 0)
        return self._shard(filled)._stored(which)

    def _texts_of(self, which: str) -> Callable[[int], Sequence[str]]:
        def read(number: int) -> Sequence[str]:  # works after the folder is closed
            with self._open(number) as archive:
                return tuple(getattr(archive, which))

        return read

    # Closing, pickling

    def close(self) -> None:
        """Close all open shards."""
        for number in range(len(self.manifest.shards)):
            if (archive := self._opened.get(number)) is not None:
                archive.close()
        self._opened = Cache(_OPEN)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._given, self._trusted, self._identity)

    @property
    def _identity(self) -> str:
        return hashlib.sha256(self.manifest.to_bytes()).hexdigest()


class LazyArchives(Sequence[Archive]):
    """Archives that are opened on access, each by a function."""

    def __init__(self, openers: Sequence[Callable[[], Archive]]) -> None:
        self._openers = openers

    def __len__(self) -> int:
        return len(self._openers)

    def __getitem__(self, index: int) -> Archive:  # type: ignore[override]
        return self._openers[index]()


def join(opened: Sequence[Archive | FolderArchive]) -> tuple[LazyArchives, list[str], bool]:
    """Concatenate archives and the shards of folders.

    Also return their names for messages, and whether a folder has a file of decoding tables, which the archives then
    need not have.
    """
    openers: list[Callable[[], Archive]] = []
    names = []
    for one in opened:
        if isinstance(one, FolderArchive):
            openers += [partial(one._shard, number) for number in range(len(one.manifest.shards))]
            names += [escape_name(one.path / entry.file) for entry in one.manifest.shards]
        else:
            openers.append(one.__enter__)
            names.append(one._shown)
    tables = any(isinstance(one, FolderArchive) and one.manifest.tables is not None for one in opened)
    return LazyArchives(openers), names, tables


def _reopen(path: Path, tables: tuple[Any, ...], trusted: bool | None, identity: str) -> FolderArchive:
    folder = FolderArchive(path, tables=tables, trusted=trusted)
    if folder._identity != identity:
        raise FormatError(f"{folder._shown}: this is another folder than the one that was pickled; open it again.")
    return folder
