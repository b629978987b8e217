"""Read any rows of an archive from its header, index, tables and blocks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl import framing
from stochcl.compress.bytes import ArchiveErrors, Cache, open_reader
from stochcl.compress.columns import by_part
from stochcl.compress.header import Header, read_header
from stochcl.compress.index import Index, check_earlier, cut_to_end, iterate_skipped, read_index
from stochcl.compress.rows import ArchiveBase
from stochcl.compress.segment import Limits, StoredSegment, read_blocks, values_per_row
from stochcl.entropy.model import FITTED, OWN, EntropyModel, size_in_memory, unpack_model
from stochcl.entropy.tables import AnyTables, Tables, find_tables
from stochcl.errors import FormatError
from stochcl.framing import CHUNK, check_crc, check_limit
from stochcl.lazy import cached_property
from stochcl.messages import Progress, escape_name, silent
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.files import PathLike

_CACHED_BYTES = 64 << 20  # packed rows: a million codes of 512 bits, read in any order, are decoded once
_LOCKSTEP = 1 << 22  # decisions of blocks decoded together, at five bytes each
_VALUES = 1 << 23  # the same with a network's hidden units, at four bytes each
_CACHED_TABLES = 16 << 20  # bytes of models stored in the archive
_MOST_BLOCKS = 256  # decoded together


class Archive(ArchiveBase):
    """The codes in a file.

    Rows are read on demand: ``archive[i]`` decodes one block. Everything read is checked: the index against its
    checksum, each block against the index, and its payload and decoded rows against their checksums. An archive may
    be used from several threads, after a fork, and pickled (by its path, which must name the same archive when
    unpickled, possibly with rows appended since). Recently decoded blocks are cached, up to 64 MB, so a smaller
    archive may be read in any order; use :meth:`iter_shuffled` for a larger one.

    During an append, or after an interrupted one, it shows the archive as it was before.

    Parameters
    ----------
    source : path-like, URL or binary file object
        A URL of any protocol that fsspec supports, such as ``s3://bucket/codes.bin``; it is read in ranges.
    tables : iterable of Tables or path-like
        Searched first for decoding tables that are not in the archive.
    trusted : bool, optional
        Whether a small file may need hours of work or all memory; by default as ``$STOCHCL_TRUSTED`` says.

    Attributes
    ----------
    left_over : int
        Bytes after the archive in its file, from an append that is running or was interrupted.

    Raises
    ------
    SourceError
        If there is no such file or it cannot be read.
    FormatError
        If it is not a complete archive, or is damaged.

    Examples
    --------
    >>> archive = Archive("codes.bin")  # doctest: +SKIP
    >>> archive.to_vectors().shape  # doctest: +SKIP
    (10000, 512)
    """

    def __init__(
        self, source: PathLike | IO[bytes], *, tables: Iterable[AnyTables] = (), trusted: bool | None = None
    ) -> None:
        self._shown = escape_name(source) if isinstance(source, str | os.PathLike) else "the archive"
        self._extra, self._errors = tuple(tables), ArchiveErrors(self._shown)
        self._beside: tuple[Path, ...] = ()  # folders that may also hold tables
        if isinstance(source, str | os.PathLike) and not is_url(source):
            self._beside = (Path(source).parent, Path(os.path.realpath(source)).parent, Path())
        with self._errors:
            self._reader = open_reader(source)
            self.header, self._header_size = read_header(self._reader)
            self._width = self.header.decisions_per_row
            self.left_over = cut_to_end(self._reader, self._header_size)
            self._index: Index = read_index(self._reader, self._header_size, self._width)
            self.source_bytes = self._index.source_bytes
            heads = [head for _, head in self._index.segments]
            self._trusted, self._limits = trusted, Limits(self._reader.size, trusted)
            self._limits.check_heads(heads, self._width)
        self._segments = [StoredSegment(self._reader, offset, head) for offset, head in self._index.segments]
        self._starts = np.cumsum([0] + [head.rows for head in heads])
        self._first_blocks = np.cumsum([0] + [len(head.words) for head in heads])
        self._rows_per_block = np.array([head.rows_per_block for head in heads], np.int64)
        self._cache: Cache[NDArray[np.uint8]] = Cache(_CACHED_BYTES)  # decoded blocks
        self._cache_key = 0  # of this archive in a cache shared by several
        self._entropies: Cache[NDArray[np.float32]] = Cache(_CACHED_BYTES // 16)  # uncertainty of segments
        self._own: Cache[EntropyModel] = Cache(_CACHED_TABLES)  # models of segments, and fitted models

    # Contents

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that could not be read when the archive was made."""
        with self._errors:
            return list(iterate_skipped(self._index.skipped))

    @cached_property
    def tables(self) -> Tables:
        """The decoding tables: from the archive, ``tables``, the package, ``$STOCHCL_MODELS`` or beside it."""
        with self._errors:
            offset, size = self._index.tables
            if size:
                kind, length = CHUNK.unpack(self._reader.read(offset, CHUNK.size))
                if kind != b"TABL" or length != size - CHUNK.size:
                    raise FormatError("the tables are not where the index says")
                check_limit(length, framing.MAX_TABLES, "the size of the tables")
                tables = Tables.from_bytes(self._reader.read(offset + CHUNK.size, length))
                if tables.sha256 != self.header.tables_sha256:
                    raise FormatError("the embedded tables are not the ones that the header names")
            else:
                tables = find_tables(self.header.tables_sha256, self._extra, beside=self._beside)
            if (tables.latents, tables.alphabet) != (self.header.model_latents, self.header.alphabet):
                raise FormatError("the tables are for other latents than the header says")
        return tables

    @property
    def external_bytes(self) -> int:
        """Bytes of the decoder if it is not stored in the archive, else 0."""
        return 0 if self._index.tables[1] else len(self.tables.data)

    @property
    def own_table_rows(self) -> int:
        """Rows in segments with a table of their own, which beat the shared models there."""
        return sum(segment.head.rows for segment in self._segments if segment.head.model == OWN)

    @property
    def main_model(self) -> EntropyModel:
        """The entropy model that codes most rows."""
        rows: dict[tuple[int, ...], list[int]] = {}  # by model: a segment number, and rows
        for number, segment in enumerate(self._segments):
            head = segment.head
            key = (head.model, head.number, number if head.model == OWN else -1)
            rows.setdefault(key, [number, 0])[1] += head.rows
        if not rows:
            return next(reversed(self._of_tables.values()))
        with self._errors:
            return self._read_model(max(rows.values(), key=lambda found: found[1])[0])

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._reader.size

    def parts(self) -> dict[str, int]:
        """Return the file's bytes by purpose; they sum to its size."""
        heads = [segment.head for segment in self._segments]
        codes = sum(head.payload for head in heads)
        uncertainty = sum(head.entropy.size for head in heads)
        tables = self._index.tables[1] + sum(size for _, size in self._index.fitted)
        tables += sum(head.table.size for head in heads)
        names, labels = (sum(getattr(head, part).size for head in heads) for part in ("names", "labels"))
        index = self.size - self._header_size - codes - tables - names - labels - uncertainty
        sizes = {"codes": codes, "tables": tables, "names": names, "index": index, "header": self._header_size}
        optional = {"labels": labels, "uncertainty": uncertainty}
        return sizes | {part: size for part, size in optional.items() if size}

    # Rows

    def _packed(self, index: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Decode rows by number; each block is decoded once."""
        packed = np.empty((len(index), -(-self._width // 8)), np.uint8)
        with self._errors:
            segments = np.searchsorted(self._starts, index, side="right") - 1
            blocks, rows = np.divmod(index - self._starts[segments], self._rows_per_block[segments])
            numbers = self._first_blocks[segments] + blocks
            order = np.argsort(numbers, kind="stable")
            places = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []
            wanted = [(int(segments[where[0]]), int(blocks[where[0]])) for where in places]
            done = 0
            for group in self._groups(wanted):
                for decoded in self._blocks(group):
                    packed[places[done]] = decoded[rows[places[done]]]
                    done += 1
        return packed

    def _rows_of_blocks(self, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the row numbers of blocks; block numbers count through all segments."""
        segments = np.searchsorted(self._first_blocks, numbers, side="right") - 1
        size = self._rows_per_block[segments]
        first = self._starts[segments] + (numbers - self._first_blocks[segments]) * size
        end = np.minimum(first + size, self._starts[segments + 1])
        return np.concatenate([np.arange(a, b) for a, b in zip(first.tolist(), end.tolist(), strict=True)])

    def verify(self, progress: Progress = silent) -> None:
        """Read and check everything: tables, names, labels and all blocks.

        Raises
        ------
        FormatError
            If anything is damaged.
        """
        with self._errors:
            self._index.check_layout(self._header_size)
        _ = self.tables
        with self._errors:
            check_earlier(self._reader, self._index, self._header_size, self._width)
            for stored in (self._fitted, iterate_skipped(self._index.skipped)):
                for _ in stored:
                    pass
            for i, segment in enumerate(self._segments):
                segment.beside()
                segment.part("table")
                for group in self._groups([(i, block) for block in range(len(segment.head.words))]):
                    self._decode(group)
                progress(int(self._starts[i + 1]), len(self))

    # Segments and blocks

    @property
    def _fitted(self) -> Iterator[EntropyModel]:
        return (self._fitted_model(number) for number in range(len(self._index.fitted)))

    def _fitted_model(self, number: int) -> EntropyModel:
        """Return a fitted model; only recent ones are cached, because a small file may hold thousands."""
        found = self._own.get(("fitted", number))
        if found is None:
            offset, size = self._index.fitted[number]
            chunk = self._reader.read(offset, size)
            kind, length = CHUNK.unpack_from(chunk) if len(chunk) >= CHUNK.size + 4 else (b"", 0)
            if kind != b"FITT" or length != size - CHUNK.size:
                raise FormatError(f"the fitted model at byte {offset:,} is not what the index says")
            data = chunk[CHUNK.size + 4 :]
            check_crc(int.from_bytes(chunk[CHUNK.size : CHUNK.size + 4], "little"), "a fitted model", data)
            found = unpack_model(data, self.header.latents, self.header.alphabet)
            self._own.put(("fitted", number), found, size_in_memory(found))
        return found

    @cached_property
    def _of_tables(self) -> dict[int, EntropyModel]:
        """The tables' models, cut to the archive's latents, by their kind in a segment's head."""
        found = self.tables.candidates(self.header.latents, self.header.selection)
        return {candidate.kind: candidate.model for candidate in found}

    def _model(self, segment: int) -> EntropyModel:
        """Return the entropy model for decoding a segment, and count the work."""
        head, model = self._segments[segment].head, self._read_model(segment)
        self._limits.count(segment, head, self._width, model)
        return model

    def _read_model(self, segment: int) -> EntropyModel:
        head = self._segments[segment].head
        if head.model == OWN:
            own = self._own.get(segment)
            if own is None:
                self._segments[segment].check_head()
                table = self._segments[segment].part("table")
                own = unpack_model(table, self.header.latents, self.header.alphabet)
                self._own.put(segment, own, size_in_memory(own))
            return own
        if head.model == FITTED:
            return self._fitted_model(head.number)
        if head.model not in self._of_tables:
            raise FormatError(f"segment {segment} is coded with a network that the tables do not have")
        return self._of_tables[head.model]

    def _groups(self, blocks: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Yield (segment, block) pairs in groups of one model and bounded size."""
        group: list[tuple[int, int]] = []
        size, before = 0, None
        for segment, block in blocks:
            head = self._segments[segment].head
            key = (head.model, head.number, segment if head.model == OWN else -1)
            decisions = head.rows_of(block) * self._width
            if group and (key != before or size + decisions > _LOCKSTEP or len(group) == _MOST_BLOCKS):
                yield group
                group, size = [], 0
            group.append((segment, block))
            size, before = size + decisions, key
        if group:
            yield group

    def _blocks(self, group: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Return decoded blocks, from the cache if possible."""
        found = {key: self._cache.get((self._cache_key, *key)) for key in group}
        missing = [key for key, packed in found.items() if packed is None]
        if missing:
            for key, decoded in zip(missing, self._decode(missing), strict=True):
                found[key] = decoded
                self._cache.put((self._cache_key, *key), decoded, decoded.nbytes)
        return [packed for key in group if (packed := found[key]) is not None]

    def _decode(self, group: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Decode blocks of one model together; if that fails, one by one to find the damaged one."""
        model = self._model(group[0][0])
        heads = [(self._segments[segment].head, block) for segment, block in group]
        most = max(1, _VALUES // (values_per_row(model) * max(head.rows_of(block) for head, block in heads)))
        if len(group) > most:
            return [packed for i in range(0, len(group), most) for packed in self._decode(group[i : i + most])]
        try:
            return read_blocks([(self._segments[segment], block) for segment, block in group], model)
        except FormatError as exc:
            if len(group) > 1:
                return [self._decode([key])[0] for key in group]
            head, block = heads[0]
            first = int(self._starts[group[0][0]]) + block * head.rows_per_block
            raise type(exc)(f"rows {first:,} to {first + head.rows_of(block) - 1:,}: {exc}") from exc

    def _stored(self, which: str) -> bool:
        """Return whether a part is in the file; all segments have it or none."""
        return any(getattr(segment.head, which).size for segment in self._segments[:1])

    def _texts_of(self, which: str) -> Callable[[int], Sequence[str]]:
        # The reader is a copy and the archive is not captured, so that texts can be read after the archive is closed.
        reader, segments, errors = self._reader.again(), self._segments, self._errors

        def read(number: int) -> Sequence[str]:
            with errors:
                segment = replace(segments[number], reader=reader)
                segment.check_head()
                return segment.texts(which) or ()

        return read

    def _uncertainty(self, rows: NDArray[np.integer]) -> NDArray[np.float32] | None:
        """Return the uncertainty of rows, or None if it is not stored."""
        if not self._stored("entropy"):
            return None
        found = np.empty(len(rows), np.float32)
        for segment, places, own in by_part(self._starts, rows):
            values = self._entropies.get(segment)
            if values is None:
                with self._errors:
                    self._segments[segment].check_head()
                    values = self._segments[segment].uncertainty()
                if values is None:
                    return None
                self._entropies.put(segment, values, values.nbytes)
            found[places] = values[own]
        return found

    # Closing, pickling

    def close(self) -> None:
        """Close the file. Codes that were read stay usable, including their names."""
        self._reader.close()
        self.__dict__.pop("_columns", None)  # they have their own descriptor

    @property
    def _end(self) -> tuple[int, int]:
        return self._index.start, self._index.end_crc

    def _is(self, header: Header, end: tuple[int, int]) -> bool:
        """Return whether this is the archive with this header and end, possibly with rows appended since."""
        ends = {(start, checksum) for start, _, checksum in self._index.retired}
        return self.header == header and (end in ends or end == self._end)

    def __reduce__(self) -> tuple[Any, ...]:
        path = self._reader.__getstate__()["path"]
        return _reopen, (path, self._extra, self._trusted, self.header, self._end)


def _reopen(
    path: os.PathLike[str], extra: tuple[Any, ...], trusted: bool | None, header: Header, end: tuple[int, int]
) -> Archive:
    archive = Archive(path, tables=extra, trusted=trusted)
    if not archive._is(header, end):
        archive.close()
        raise FormatError(f"{archive._shown}: this is another file than the one that was pickled; open it again.")
    return archive
