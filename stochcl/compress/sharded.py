"""A folder of archives, the shards that many workers wrote, read as one archive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np

from stochcl.compress.archive import Archive
from stochcl.compress.bytes import ArchiveErrors, Cache
from stochcl.compress.limits import Limits
from stochcl.compress.manifest import read_manifest, sha256_of
from stochcl.compress.rows import ArchiveBase
from stochcl.errors import ChecksumMismatch, FormatError
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Tables


_OPEN = 64  # archives that are open at a time, a descriptor each
_CACHED_BYTES = 64 << 20  # of packed rows, of all shards together


def open_archive(
    path: str | os.PathLike[str] | IO[bytes],
    *,
    tables: Iterable[Tables | str | os.PathLike[str]] = (),
    trusted: bool | None = None,
) -> Archive | FolderArchive:
    """Open an archive, or a folder of them that is one."""
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises at long names
        return FolderArchive(path, tables=tables, trusted=trusted)
    return Archive(path, tables=tables, trusted=trusted)


class FolderArchive(ArchiveBase):
    """The codes in a folder of archives, its shards, which a manifest makes one: rows count through all of them.

    Shards are opened when their rows are used, up to 64 at a time, and checked against the manifest. It
    may be used from several threads, after a fork, and pickled (by its path).

    Parameters
    ----------
    path : path-like
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the folder.
    trusted : bool, optional
        As of :class:`Archive`.

    Raises
    ------
    SourceError
        If there is no manifest, or a shard is missing.
    FormatError
        If something is damaged, or is not what the manifest says.

    Examples
    --------
    >>> archive = FolderArchive("codes/")  # doctest: +SKIP
    >>> archive[1_000_000].symbols()  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Iterable[Tables | str | os.PathLike[str]] = (),
        trusted: bool | None = None,
    ) -> None:
        self.path, self._shown, self._given = Path(path), escape_name(path), tuple(tables)
        self._trusted, self._errors = trusted, ArchiveErrors(self._shown)
        self.manifest, self._manifest_bytes = read_manifest(self.path)
        own = () if self.manifest.tables is None else (self.path / self.manifest.tables,)
        self._extra: tuple[Any, ...] = (*self._given, *own)
        entries = self.manifest.shards
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
        """The archives, in order, each opened when it is looked at."""
        return LazyArchives([partial(self._shard, number) for number in range(len(self.manifest.shards))])

    def _open(self, number: int) -> Archive:
        """Open a shard and hold it against the manifest."""
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
        """Return a shard; of those opened lately it is still open, and one that is dropped closes when unused."""
        archive = self._opened.get(number)
        if archive is None:
            archive = self._open(number)
            archive._cache, archive._cache_key = self._cache, number
            self._opened.put(number, archive, 1)
        return archive

    def _by_shard(self, rows: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.integer]]]:
        """Yield shards that have some of these rows, and where among them these are."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            yield number, np.flatnonzero(numbers == number)

    @cached_property
    def _filled(self) -> int:
        """A shard that has rows, or the first."""
        return next((i for i, entry in enumerate(self.manifest.shards) if entry.images), 0)

    # What it holds

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that could not be read when the folder was made."""
        return list(self.manifest.skipped)

    @property
    def source_bytes(self) -> int:
        """Bytes of the images in their source."""
        return sum(entry.source_bytes for entry in self.manifest.shards)

    @cached_property
    def tables(self) -> Tables:
        """The decoding tables; from the shards, the folder, the places given, the package or ``$STOCHCL_MODELS``."""
        tables = self._shard(0).tables
        self._extra = (tables, *self._extra)  # found at once by shards that are opened later
        return tables

    @property
    def _tables_bytes(self) -> int:
        """Bytes of the tables that lie in the folder as a file."""
        return 0 if self.manifest.tables is None else len(self.tables.data)

    @property
    def external_bytes(self) -> int:
        """Bytes of the tables that the folder leans on outside itself."""
        return 0 if self._tables_bytes else self._shard(0).external_bytes

    @property
    def own_table_rows(self) -> int:
        """Rows of segments that are coded with a table of their own, for which the model's were no better."""
        return sum(archive.own_table_rows for archive in self.shards)

    @property
    def main_model(self) -> EntropyModel:
        """The entropy model that most rows of the largest shard are coded with."""
        images = [entry.images for entry in self.manifest.shards]
        return self._shard(images.index(max(images))).main_model

    @property
    def size(self) -> int:
        """Bytes of the shards, the manifest, and the tables beside them."""
        return sum(entry.bytes for entry in self.manifest.shards) + self._manifest_bytes + self._tables_bytes

    def parts(self) -> dict[str, int]:
        """Return the folder's bytes by what they are for; the manifest counts as index. They add up to its size."""
        total = {"codes": 0, "tables": self._tables_bytes, "names": 0, "index": self._manifest_bytes, "header": 0}
        for archive in self.shards:
            for name, size in archive.parts().items():
                total[name] = total.get(name, 0) + size  # also those that few archives have: uncertainty
        return total

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read and check every shard, against the manifest and by itself.

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
        for number, places in self._by_shard(index):
            packed[places] = self._shard(number)._packed(index[places] - self._starts[number])
        return packed

    def _uncertainty(self, rows: NDArray[np.integer]) -> NDArray[np.float32] | None:
        if not self._stored("entropy"):
            return None
        found = np.empty(len(rows), np.float32)
        for number, places in self._by_shard(rows):
            found[places] = self._shard(number)._uncertainty(rows[places] - self._starts[number])
        return found

    def _rows_of_blocks(self, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
        shards = np.searchsorted(self._first_blocks, numbers, side="right") - 1
        return np.concatenate(
            [
                self._shard(number)._rows_of_blocks(numbers[shards == number] - self._first_blocks[number])
                + self._starts[number]
                for number in np.unique(shards).tolist()
            ]
        )

    def _stored(self, which: str) -> bool:
        return self._shard(self._filled)._stored(which)

    def _texts_of(self, which: str) -> Callable[[int], Sequence[str]]:
        def read(number: int) -> Sequence[str]:  # also when the folder has been closed
            with self._open(number) as archive:
                return tuple(getattr(archive, which))

        return read

    # Closing, pickling

    def close(self) -> None:
        """Close the shards that are open."""
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
    """Archives that are opened when they are used, each by a function."""

    def __init__(self, openers: Sequence[Callable[[], Archive]]) -> None:
        self._openers = openers

    def __len__(self) -> int:
        return len(self._openers)

    @overload
    def __getitem__(self, index: int) -> Archive: ...
    @overload
    def __getitem__(self, index: slice) -> LazyArchives: ...
    def __getitem__(self, index: int | slice) -> Archive | LazyArchives:
        chosen = self._openers[index]
        return LazyArchives(chosen) if isinstance(chosen, Sequence) else chosen()


def join(opened: Sequence[Archive | FolderArchive]) -> tuple[LazyArchives, list[str], bool]:
    """Put archives and the shards of folders one after the other.

    Also return what messages call them, and whether a folder has decoding tables as a file, which none of them need
    have then.
    """
    openers: list[Callable[[], Archive]] = []
    names = []
    for one in opened:
        if isinstance(one, FolderArchive):
            openers += [partial(one._shard, number) for number in range(len(one.manifest.shards))]
            names += [escape_name(one.path / entry.file) for entry in one.manifest.shards]
        else:
            openers.append(partial(_itself, one))
            names.append(one._shown)
    tables = any(isinstance(one, FolderArchive) and one.manifest.tables is not None for one in opened)
    return LazyArchives(openers), names, tables


def _itself(archive: Archive) -> Archive:
    return archive


def _reopen(path: Path, tables: tuple[Any, ...], trusted: bool | None, identity: str) -> FolderArchive:
    folder = FolderArchive(path, tables=tables, trusted=trusted)
    if folder._identity != identity:
        raise FormatError(
            f"{folder._shown}: this is another folder than the one that was pickled; open it anew by its path."
        )
    return folder
