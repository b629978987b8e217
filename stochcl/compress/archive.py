"""Reading an archive: any row or range of it, from header, index, tables and the blocks it lies in."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.codes import Codes, bits_per_symbol, symbol_dtype
from stochcl.compress import framing
from stochcl.compress.framing import BLOCK, CHUNK, PROLOGUE, check_crc, check_limit, unpack_texts
from stochcl.compress.header import Header
from stochcl.compress.index import Index, read_index
from stochcl.compress.model import FITTED, OWN, unpack_model
from stochcl.compress.reader import ByteReader
from stochcl.compress.segment import SegmentHead, read_blocks
from stochcl.compress.tables import Tables, find_tables
from stochcl.data import folder_label, printable
from stochcl.errors import BadMagic, ChecksumMismatch, FormatError, SourceError, Truncated, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray

    from stochcl.compress.coder import EntropyModel
    from stochcl.compress.decoder import VectorDecoder

_CACHED_BYTES = 64 << 20  # of packed rows: reading a million codes of 512 bits in any order decodes them once
_ROWS = 8192  # decoded at a time
_LOCKSTEP = 1 << 22  # decisions of the blocks that are decoded together, which take five bytes each
_CACHED_TABLES = 8
_MOST_BLOCKS = 256  # that are decoded together


class Archive:
    """The codes in a file.

    Rows are read when they are asked for: ``archive[i]`` decodes one block. Everything that is read is checked:
    the index against its checksum, every block against the index, its payload and what it decodes to against
    theirs. An archive may be used from several threads, after a fork, and pickled (by its path).

    Parameters
    ----------
    source : path-like or binary file object
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archive.

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
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        tables: Iterable[Tables | str | os.PathLike[str]] = (),
    ) -> None:
        self._shown = printable(source) if isinstance(source, str | os.PathLike) else "the archive"
        self._extra = tuple(tables)
        with self._named():
            self._reader = ByteReader(source)
            prologue = self._reader.read(0, min(PROLOGUE.size, self._reader.size))
            self._header_size = PROLOGUE.size + Header.size_of(prologue)
            text = self._reader.read(PROLOGUE.size, self._header_size - PROLOGUE.size)
            self.header = Header.from_bytes(prologue, text)
            self._width = self.header.latents * bits_per_symbol(self.header.alphabet)
            self._index: Index = read_index(self._reader, self._header_size, self._width)
        self._starts = np.cumsum([0] + [head.rows for _, head in self._index.segments])
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached = 0  # bytes
        self._own: OrderedDict[int, EntropyModel] = OrderedDict()  # tables of segments
        self._lock = threading.Lock()

    def _named(self) -> _Named:
        return _Named(self._shown)

    # What it holds

    def __len__(self) -> int:
        return self._index.rows

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that could not be read when the archive was made."""
        return list(self._index.skipped)

    @property
    def source_bytes(self) -> int:
        """Bytes of the images in their source."""
        return self._index.source_bytes

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The rows' names, or None if they were left out."""
        return self._texts("names")

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The rows' labels: those stored, else the first folder of each name; None if there are neither."""
        stored = self._texts("labels")
        if stored is not None or self.names is None:
            return stored
        labels = tuple(folder_label(name) for name in self.names)
        return labels if any(labels) else None

    @cached_property
    def tables(self) -> Tables:
        """The decoding tables; from the archive, the places given, the package or ``$STOCHCL_MODELS``."""
        with self._named():
            offset, size = self._index.tables
            if size:
                kind, length = CHUNK.unpack(self._reader.read(offset, CHUNK.size))
                if kind != b"TABL" or length != size - CHUNK.size:
                    raise FormatError("the tables are not where the index says")
                check_limit(length, framing.MAX_TABLES, "the size of the tables")
                tables = Tables.from_bytes(self._reader.read(offset + CHUNK.size, length))
                if tables.sha256 != self.header.tables_sha256:
                    raise FormatError("the embedded tables are not those that the header names")
            else:
                tables = find_tables(self.header.tables_sha256, self._extra)
            if (tables.latents, tables.alphabet) != (self.header.model_latents, self.header.alphabet):
                raise FormatError("the tables are for other latents than the header says")
        return tables

    @property
    def has_decoder(self) -> bool:
        """Whether codes can be decoded to vectors."""
        return self.tables.decoder is not None

    @cached_property
    def decoder(self) -> VectorDecoder | None:
        """What makes vectors of this archive's latents, if its model has that."""
        decoder, selection = self.tables.decoder, self.header.selection
        return decoder if decoder is None or selection is None else decoder.select(selection)

    @property
    def external_bytes(self) -> int:
        """Bytes of the tables that the archive leans on outside itself."""
        return 0 if self._index.tables[1] else len(self.tables.data)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._reader.size

    def parts(self) -> dict[str, int]:
        """Return the file's bytes by what they are for; they add up to its size."""
        heads = [head for _, head in self._index.segments]
        codes = sum(head.payload + head.entropy.size for head in heads)
        tables = self._index.tables[1] + sum(size for _, size in self._index.fitted)
        tables += sum(head.table.size for head in heads)
        names = sum(head.names.size + head.labels.size for head in heads)
        index = self.size - self._header_size - codes - tables - names
        return {"codes": codes, "tables": tables, "names": names, "index": index, "header": self._header_size}

    # Rows

    def __getitem__(self, rows: int | slice | ArrayLike) -> Codes:
        """Return rows as codes, with their names and labels; an integer gives one row."""
        index = _indices(rows, len(self))
        return self._codes(self._packed(index), index)

    def _packed(self, index: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Decode the rows of these numbers, each block once."""
        packed = np.empty((len(index), -(-self._width // 8)), np.uint8)
        with self._named():
            segments = np.searchsorted(self._starts, index, side="right") - 1
            wanted: list[tuple[int, int, NDArray[np.intp], NDArray[np.integer]]] = []
            for segment in np.unique(segments).tolist():
                chosen = np.flatnonzero(segments == segment)
                blocks, rows = np.divmod(
                    index[chosen] - self._starts[segment], self._index.segments[segment][1].rows_per_block
                )
                for block in np.unique(blocks).tolist():
                    here = blocks == block
                    wanted.append((segment, block, chosen[here], rows[here]))
            for group in self._groups([(segment, block) for segment, block, *_ in wanted]):
                for (_, _, places, rows), decoded in zip(wanted, self._blocks(group), strict=False):
                    packed[places] = decoded[rows]
                del wanted[: len(group)]
        return packed

    def iter_codes(self, rows: int = _ROWS) -> Iterator[Codes]:
        """Yield all rows in order, so many at a time; memory does not grow with the archive."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def to_numpy(self, latents: int | None = None) -> NDArray[np.uint8 | np.uint16]:
        """Return symbols, uint8 (uint16 beyond 256 values), shape (N, D), or the first ``latents`` of them.

        Raises
        ------
        UsageError
            If the archive has fewer latents.
        """
        k = self._check_latents(latents)
        out = np.empty((len(self), k), symbol_dtype(self.header.alphabet))
        for rows, symbols in self._symbols(k):
            out[rows] = symbols
        return out

    def to_vectors(self, latents: int | None = None) -> NDArray[np.float32]:
        """Return decoded vectors, float32, shape (N, V), from all or the first ``latents`` latents.

        Raises
        ------
        UsageError
            If the archive has fewer latents, or its model no vector decoder.
        """
        k = self._check_latents(latents)
        decoder = self.decoder
        if decoder is None:
            raise UsageError(f"{self._shown}: its model has no vector decoder; use the symbols.")
        out = np.empty((len(self), decoder.dim), np.float32)
        for rows, symbols in self._symbols(k):
            out[rows] = decoder.decode(symbols)
        return out

    def _symbols(self, latents: int) -> Iterator[tuple[slice, NDArray[np.uint8 | np.uint16]]]:
        """Yield all rows' first latents, part by part, without their names."""
        for start in range(0, len(self), _ROWS):
            rows = slice(start, min(start + _ROWS, len(self)))
            codes = Codes(self._packed(_indices(rows, len(self))), self.header.latents, self.header.alphabet)
            yield rows, codes.prefix(latents).symbols()

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read and check everything: tables, names, labels, every block.

        Raises
        ------
        FormatError
            If anything is damaged.
        """
        with self._named():
            self._index.check_layout(self._header_size)
        _ = self.tables, self.names, self.labels, self._uncertainty
        with self._named():
            for offset, size, checksum in self._index.retired:
                check_crc(checksum, f"an earlier index, at byte {offset:,},", self._reader.read(offset, size))
            _ = self._fitted
            for i, (_, head) in enumerate(self._index.segments):
                self._segment_head(i)
                _ = self._part(i, "table")
                for group in self._groups([(i, block) for block in range(len(head.words))]):
                    self._decode(group)
                progress(int(self._starts[i + 1]), len(self))

    def _check_latents(self, latents: int | None) -> int:
        if latents is None:
            return self.header.latents
        if not 1 <= latents <= self.header.latents:
            raise UsageError(f"{self._shown}: it has {self.header.latents} latents, not {latents}.")
        return latents

    def _codes(self, packed: NDArray[np.uint8], index: NDArray[np.integer]) -> Codes:
        def take(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if texts is None else tuple(texts[i] for i in index)

        entropy = self._uncertainty
        return Codes(
            packed,
            self.header.latents,
            self.header.alphabet,
            names=take(self.names),
            labels=take(self.labels),
            uncertainty=None if entropy is None else entropy[index],
        )

    # Segments and blocks

    def _segment_head(self, segment: int) -> SegmentHead:
        """Return a segment's head, after the file's own copy has been found equal to the index's."""
        offset, head = self._index.segments[segment]
        start = head.start
        if self._reader.read(offset, len(start)) != start:
            raise FormatError(f"the segment at byte {offset:,} is not what the index says")
        return head

    def _part(self, segment: int, which: str) -> bytes:
        """Read and check one of the parts between a segment's head and its blocks."""
        head = self._segment_head(segment)
        offset = self._index.segments[segment][0] + head.parts_at
        for name in ("table", "names", "labels", "entropy"):
            part = getattr(head, name)
            if name == which:
                data = self._reader.read(offset, part.size)
                check_crc(part.crc, f"the {which} of segment {segment}", data)
                return data
            offset += part.size
        raise KeyError(which)

    @cached_property
    def _fitted(self) -> list[EntropyModel]:
        """The models that were fitted to this archive."""
        models = []
        for offset, size in self._index.fitted:
            chunk = self._reader.read(offset, size)
            kind, length = CHUNK.unpack_from(chunk) if len(chunk) >= CHUNK.size + 4 else (b"", 0)
            if kind != b"FITT" or length != size - CHUNK.size:
                raise FormatError(f"the fitted model at byte {offset:,} is not what the index says")
            data = chunk[CHUNK.size + 4 :]
            check_crc(int.from_bytes(chunk[CHUNK.size : CHUNK.size + 4], "little"), "a fitted model", data)
            models.append(unpack_model(data, self.header.latents, self.header.alphabet))
        return models

    @cached_property
    def _of_tables(self) -> dict[int, EntropyModel]:
        """The tables' models, cut to the archive's latents, by how a segment names them."""
        found = self.tables.candidates(self.header.latents, self.header.selection)
        return {candidate.kind: candidate.model for candidate in found}

    def _model(self, segment: int) -> EntropyModel:
        """Return the entropy model of a segment."""
        head = self._index.segments[segment][1]
        if head.model == OWN:
            with self._lock:
                if segment in self._own:
                    return self._own[segment]
            model = unpack_model(self._part(segment, "table"), self.header.latents, self.header.alphabet)
            with self._lock:
                self._own[segment] = model
                while len(self._own) > _CACHED_TABLES:
                    self._own.popitem(last=False)
            return model
        if head.model == FITTED:
            return self._fitted[head.number]
        if head.model not in self._of_tables:
            raise FormatError(f"segment {segment} is coded with a network that the tables do not have")
        return self._of_tables[head.model]

    def _groups(self, blocks: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Yield blocks, each a segment and its number there, in groups of one model and bounded size."""
        group: list[tuple[int, int]] = []
        size, before = 0, None
        for segment, block in blocks:
            head = self._index.segments[segment][1]
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
        """Return decoded blocks; those that were decoded lately are still there."""
        found: dict[tuple[int, int], NDArray[np.uint8]] = {}
        with self._lock:
            for key in group:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    found[key] = self._cache[key]
        missing = [key for key in group if key not in found]
        if missing:
            decoded = dict(zip(missing, self._decode(missing), strict=True))
            found |= decoded
            with self._lock:
                for key, packed in decoded.items():
                    if key not in self._cache:
                        self._cached += packed.nbytes
                    self._cache[key] = packed
                while self._cached > _CACHED_BYTES and len(self._cache) > 1:
                    self._cached -= self._cache.popitem(last=False)[1].nbytes
        return [found[key] for key in group]

    def _decode(self, group: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Read and decode blocks of one model together; if that fails, one by one, to say which is damaged."""
        data, heads = [], []
        for segment, block in group:
            offset, head = self._index.segments[segment]
            size = BLOCK.size + 4 * head.words[block]
            data.append(self._reader.read(offset + int(head.block_offsets[block]), size))
            heads.append((head, block))
        model = self._model(group[0][0])
        try:
            return read_blocks(data, heads, model)
        except FormatError as exc:
            if len(group) > 1:
                return [self._decode([key])[0] for key in group]
            segment, block = group[0]
            head = heads[0][0]
            first = int(self._starts[segment]) + block * head.rows_per_block
            raise type(exc)(f"rows {first:,} to {first + head.rows_of(block) - 1:,}: {exc}") from exc

    def _texts(self, which: str) -> tuple[str, ...] | None:
        """Return names or labels of all rows, or None where there are none."""
        heads = [head for _, head in self._index.segments]
        if not heads or not getattr(heads[0], which).size:
            return None
        with self._named():
            texts: list[str] = []
            for i, head in enumerate(heads):
                texts += unpack_texts(self._part(i, which), head.rows, f"the {which} of segment {i}")
        return tuple(texts)

    @cached_property
    def _uncertainty(self) -> NDArray[np.float32] | None:
        heads = [head for _, head in self._index.segments]
        if not heads or not heads[0].entropy.size:
            return None
        with self._named():
            parts = [self._part(i, "entropy") for i in range(len(heads))]
        return np.frombuffer(b"".join(parts), "<f2").astype(np.float32)

    # Closing, pickling

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._reader.__getstate__()["path"], self._extra)


def _indices(rows: int | slice | ArrayLike, count: int) -> NDArray[np.integer]:
    """Return row numbers, none negative; their cost does not depend on how many rows there are."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    index = np.asarray([rows] if isinstance(rows, int | np.integer) else rows)
    if index.dtype == bool and index.shape == (count,):
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise IndexError("rows are chosen by an integer, a slice, a list of integers, or a mask of all rows")
    index = index.astype(np.int64)
    outside = index[(index < -count) | (index >= count)]
    if len(outside):
        raise IndexError(f"there is no row {outside[0]:,} in an archive of {count:,}")
    return np.where(index < 0, index + count, index)


_ADVICE = {
    BadMagic: "give a file that `stochcl compress` wrote",
    Truncated: "copy it again from where it is whole, or compress again",
    ChecksumMismatch: "copy it again from where it is whole, or compress again",
}


class _Named:
    """Puts the archive's name before the message of a FormatError; makes a SourceError of a failing disk."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, FormatError) and not str(exc).startswith(f"{self._shown}: "):
            advice = f"; {_ADVICE[type(exc)]}" if type(exc) in _ADVICE else ""
            raise type(exc)(f"{self._shown}: {exc}{advice}.") from exc
        if isinstance(exc, FileNotFoundError):
            raise SourceError(f"{self._shown}: there is no such file.") from exc
        if isinstance(exc, OSError):
            raise SourceError(f"{self._shown}: it cannot be read: {(exc.strerror or str(exc)).lower()}.") from exc


def _reopen(path: os.PathLike[str], extra: tuple[Any, ...]) -> Archive:
    return Archive(path, tables=extra)
