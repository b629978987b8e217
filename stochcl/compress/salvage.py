"""What a damaged or unfinished archive still holds, as a new archive: found chunk by chunk, copied as it is."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stochcl import framing
from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress.archive import _Named
from stochcl.compress.bytes import ByteReader, Cache
from stochcl.compress.columns import unpack_uncertainty
from stochcl.compress.header import Header
from stochcl.compress.index import Index, header_crc, read_index, version_of
from stochcl.compress.segment import Part, SegmentHead, read_blocks, read_head, write_segment
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN, unpack_model
from stochcl.entropy.tables import Tables, find_tables
from stochcl.errors import BadMagic, FormatError, ModelMismatch, OutputError, UnsupportedVersion, UsageError
from stochcl.files import WriteLock, replacing
from stochcl.framing import (
    BLOCK,
    CHUNK,
    END_MAGIC,
    HEAD,
    MAX_TABLES,
    PROLOGUE,
    SEGMENT,
    TRAILER,
    check_crc,
    crc,
    pack_texts,
    unpack_texts,
)
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from stochcl.entropy.model import EntropyModel


_WINDOW = 1 << 20  # bytes searched at a time
_KINDS = re.compile(rb"SEGM|FITT|INDX")
_MOST_OF_HEAD = SEGMENT.size + 13 * framing.MAX_SEGMENT_ROWS  # for a block, a varint of nine bytes and a checksum


@dataclass(frozen=True)
class Found:
    """A chunk whose beginning is sound: where, its bytes with what belongs to it, and a segment's head."""

    offset: int
    size: int
    kind: bytes
    head: SegmentHead | None = None


class Scanner:
    """Finds chunks that can be told from damage: each has a checksum of its own.

    Parameters
    ----------
    reader : ByteReader
    decisions_per_row : int
    known : mapping of int to SegmentHead
        Heads by their offsets, from an index that is sound; they stand in for those that are damaged.
    """

    def __init__(self, reader: ByteReader, decisions_per_row: int, known: Mapping[int, SegmentHead]) -> None:
        self._reader, self._width, self._known = reader, decisions_per_row, known
        self._version = version_of(reader)

    def chunks(self, start: int) -> Iterator[Found]:
        """Yield all chunks from here to the end of the file, in order; a segment may be damaged behind its head."""
        at = start
        while at < self._reader.size:
            found = self.at(at)
            if found is None:
                at = self.next(at + 1)
                continue
            yield found
            end = at + found.size
            # Where nothing begins behind it, bytes may be missing within it, and the next begins earlier.
            at = end if end == self._reader.size or self.at(end) is not None else self.next(at + 1)

    def next(self, start: int) -> int:
        """Return where the next chunk begins, or the end of the file."""
        size = self._reader.size
        stop = min((offset for offset in self._known if offset >= start), default=size)
        for low in range(start, stop, _WINDOW):
            window = self._reader.read(low, min(_WINDOW + CHUNK.size, size - low))
            for match in _KINDS.finditer(window, 0, _WINDOW + CHUNK.size):
                at = low + match.start()
                if at >= stop:
                    return stop
                if self.at(at) is not None:
                    return at
        return stop

    def at(self, offset: int) -> Found | None:
        """Return the chunk that begins here, or None if none does that is sound."""
        if (head := self._head(offset)) is not None:
            return Found(offset, head.size, b"SEGM", head)
        if (size := self._sealed(offset, b"FITT")) is not None:
            return Found(offset, size, b"FITT")
        if (size := self._index(offset)) is not None:
            return Found(offset, size, b"INDX")
        return None

    def _head(self, at: int) -> SegmentHead | None:
        fixed = CHUNK.size + HEAD.size
        room = self._reader.size - at - fixed
        if room >= SEGMENT.size:
            data = self._reader.read(at, fixed)
            size = HEAD.unpack_from(data, CHUNK.size)[0]
            if data.startswith(b"SEGM") and size <= min(room, _MOST_OF_HEAD):
                with suppress(FormatError):
                    return read_head(data + self._reader.read(at + fixed, size), self._width, self._version)
        return self._known.get(at)

    def _sealed(self, at: int, kind: bytes) -> int | None:
        """Return the bytes of a fitted model's chunk here."""
        size = self._size(at, kind)
        if size is None or not CHUNK.size + 4 <= size <= framing.MAX_TABLE:
            return None
        data = self._reader.read(at + CHUNK.size, size - CHUNK.size)
        return size if crc(data[4:]) == int.from_bytes(data[:4], "little") else None

    def _index(self, at: int) -> int | None:
        """Return the bytes of an index here and its trailer: the last one, or one before an append."""
        size = self._size(at, b"INDX")
        if size is None or at + size + TRAILER.size > self._reader.size:
            return None
        trailer = self._reader.read(at + size, TRAILER.size)
        if trailer[-len(END_MAGIC) :] != END_MAGIC:
            return None
        sound = trailer == TRAILER.pack(
            at, size, crc(self._reader.read(at, size)), header_crc(self._reader), END_MAGIC
        )
        return size + TRAILER.size if sound else None

    def _size(self, at: int, kind: bytes) -> int | None:
        """Return the bytes of the chunk here, if it is of this kind and lies within the file."""
        if at + CHUNK.size > self._reader.size:
            return None
        found, length = CHUNK.unpack(self._reader.read(at, CHUNK.size))
        whole: int = CHUNK.size + length
        return whole if found == kind and at + whole <= self._reader.size else None


_PARTS = ("table", "names", "labels", "entropy")
_LOCKSTEP = 1 << 20  # decisions decoded together
_MODELS = 4  # kept
_TRIES = 64  # fitted models tried for a segment whose own one may be damaged, which changes the others' numbers


@dataclass
class Salvaged:
    """What :func:`salvage` wrote, and what it could not.

    Parameters
    ----------
    path : Path
        The new archive.
    segments, rows, bytes : int
        What is in it; bytes are those of the file.
    recoded : int
        Those of the rows whose segment has damaged blocks beside theirs.
    unnamed, unlabelled : int
        Those of the rows whose names or labels are lost, and empty in the new archive.
    uncertainty_lost : bool
        Whether the uncertainty was left out, because that of some rows is lost.
    unchecked : int
        Those of the rows that could not be decoded to check them, because the tables are lost.
    lost : list of (int, int)
        Where in the old file, from which byte to before which, something is damaged.
    rows_lost : int or None
        None where the index is lost too, which knows how many there were.
    tables : str
        ``"intact"``; ``"elsewhere"``, not in the archive, or damaged there, but found; or ``"lost"``.
    """

    path: Path
    segments: int = 0
    rows: int = 0
    bytes: int = 0
    recoded: int = 0
    unchecked: int = 0
    unnamed: int = 0
    unlabelled: int = 0
    uncertainty_lost: bool = False
    lost: list[tuple[int, int]] = field(default_factory=list)
    rows_lost: int | None = None
    tables: str = "intact"

    @property
    def complete(self) -> bool:
        """Whether all that the file has is in the new one."""
        return not self.lost and not self.uncertainty_lost and not self.rows_lost and self.tables != "lost"


def salvage(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tables: Iterable[Tables | str | os.PathLike[str]] = (),
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Salvaged:
    """Write all that is intact in an archive, damaged or unfinished, as a new and complete one.

    A segment whose head, parts and blocks are what their checksums say, and decode to what was written, is copied as
    it is. Where only some of its blocks are intact their rows are coded again, with their names. Where its names or
    labels are damaged, its rows have empty ones; where the uncertainty of any segment is, the new archive has none.
    Where its table is damaged, nothing of it is kept. Without the decoding tables, what needs them
    is copied if its checksums are right. What the damage put into the file twice is twice in the new one.
    """
    output = Path(output)
    _check_output(Path(path), output, force=force)
    with _Named(escape_name(path)):
        reader = ByteReader(path)
    try:
        with _Named(escape_name(path)):
            old = _Old(reader, tuple(tables))
        return _write(old, path, output, progress)
    finally:
        reader.close()


def _check_output(path: Path, output: Path, *, force: bool) -> None:
    shown = escape_name(output)
    if not output.exists():
        return
    if not output.is_file():
        raise UsageError(f"{shown}: this is {'a folder' if output.is_dir() else 'a device or pipe'}; name a file.")
    if path.exists() and output.samefile(path):
        raise UsageError(f"{shown}: this is the damaged archive itself; name another file.")
    if not force:
        raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")


def _write(old: _Old, path: str | os.PathLike[str], output: Path, progress: Callable[[int, int], None]) -> Salvaged:
    result = Salvaged(output, tables=old.tables_are)
    named = _Named(escape_name(path))
    try:
        with WriteLock(output, escape_name(output)), replacing(output) as file:
            new = _New(file, old)
            result.uncertainty_lost = old.lacks_uncertainty()
            for found in old.chunks:
                progress(found.offset, old.reader.size)
                with named:
                    _save(old, new, found, result)
            with named:
                if not new.segments and not (old.index is not None and not old.index.rows):
                    raise FormatError("nothing behind its header is intact, so nothing was written")
            new.finish()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise OutputError(f"{escape_name(output)}: it cannot be written: {reason}.") from exc
    progress(old.reader.size, old.reader.size)
    result.segments, result.bytes, result.lost = len(new.segments), output.stat().st_size, old.lost()
    if old.index is not None:
        result.rows_lost = max(0, old.index.rows - result.rows)
    return result


def _save(old: _Old, new: _New, found: Found, result: Salvaged) -> None:
    """Copy a chunk, or what is intact of it."""
    if found.kind == b"INDX":  # the new archive has its own
        old.keep(found.offset, found.size)
    elif found.kind == b"FITT":
        if found.offset in old.fitted:
            new.add_fitted(old.reader.read(found.offset, found.size))
            old.keep(found.offset, found.size)
    elif found.head is not None:
        _save_segment(old, new, found.offset, found.head, result)


def _save_segment(old: _Old, new: _New, at: int, head: SegmentHead, result: Salvaged) -> None:
    parts, damaged = old.parts(at, head)
    if damaged[0]:
        return
    if result.uncertainty_lost:
        parts[3] = b""
    table, names, labels, entropy = (Part(len(part), crc(part) if part else 0) for part in parts)
    copied = replace(head, table=table, names=names, labels=labels, entropy=entropy)
    if not new.takes(copied):
        return
    number, checked, blocks = old.decode(at, head, parts[0])
    saved = [block for block in blocks if block is not None]
    if len(saved) == len(head.words):
        blocks_at = at + head.size - head.payload
        new.add(replace(copied, number=number), [*parts, old.reader.read(blocks_at, head.payload)])
        old.keep(blocks_at, head.payload)
        result.rows += (rows := head.rows)
        result.unchecked += 0 if checked else head.rows
    elif saved and checked:
        codes = _intact(old, head, parts, blocks)
        again, chunk = write_segment(codes, old.candidates, old.header.version)
        new.add(again, [chunk[again.parts_at :]])
        for block, offset, words in zip(blocks, head.block_offsets.tolist(), head.words, strict=True):
            if block is not None:
                old.keep(at + offset, BLOCK.size + 4 * words)
        result.rows += (rows := len(codes))
        result.recoded += rows
    else:
        return
    old.keep_parts(at, head, damaged)
    result.unnamed += rows if damaged[1] else 0
    result.unlabelled += rows if damaged[2] else 0


def _intact(old: _Old, head: SegmentHead, parts: list[bytes], blocks: list[NDArray[np.uint8] | None]) -> Codes:
    """Return the rows of the blocks that are intact, with what belongs to them."""
    numbers = [number for number, block in enumerate(blocks) if block is not None]
    size = head.rows_per_block
    rows = np.concatenate([np.arange(n * size, n * size + head.rows_of(n)) for n in numbers])
    names, labels = (
        tuple(texts[row] for row in rows) if (texts := _texts(part, head.rows)) is not None else None
        for part in parts[1:3]
    )
    return Codes(
        np.concatenate([block for block in blocks if block is not None]),
        old.header.latents,
        old.header.alphabet,
        names=names,
        labels=labels,
        uncertainty=unpack_uncertainty(parts[3], head.rows, old.header.version)[rows] if parts[3] else None,
    )


def _texts(data: bytes, rows: int) -> tuple[str, ...] | None:
    return unpack_texts(data, rows, "texts") if data else None


class _New:
    """The new archive: chunks in the order in which they are found."""

    def __init__(self, file: IO[bytes], old: _Old) -> None:
        self._file, self._old, self._at = file, old, 0
        self.segments: list[tuple[int, SegmentHead]] = []
        self._fitted: list[tuple[int, int]] = []
        self._put(old.header_bytes)
        self._tables = 0, 0
        if old.embed and old.tables is not None:
            self._tables = self._at, CHUNK.size + len(old.tables.data)
            self._put(CHUNK.pack(b"TABL", len(old.tables.data)) + old.tables.data)

    def add_fitted(self, chunk: bytes) -> None:
        self._fitted.append((self._at, len(chunk)))
        self._put(chunk)

    def takes(self, head: SegmentHead) -> bool:
        """Whether a segment has names, labels and uncertainty where those before it have them."""
        before = self.segments[0][1] if self.segments else head
        return [part.size > 0 for part in head.parts[1:]] == [part.size > 0 for part in before.parts[1:]]

    def add(self, head: SegmentHead, content: list[bytes]) -> None:
        self.segments.append((self._at, head))
        for data in (head.start, *content):
            self._put(data)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)

    def finish(self) -> None:
        old = self._old.index
        index = Index(
            rows=sum(head.rows for _, head in self.segments),
            source_bytes=old.source_bytes if old is not None else 0,
            tables=self._tables,
            segments=tuple(self.segments),
            skipped=old.skipped if old is not None else (),
            start=self._at,
            header_crc=int.from_bytes(self._old.header_bytes[PROLOGUE.size - 4 : PROLOGUE.size], "little"),
            fitted=tuple(self._fitted),
        )
        self._put(index.to_bytes())


class _Old:
    """The damaged archive: what is known of it, and which of its bytes are kept."""

    def __init__(self, reader: ByteReader, extra: tuple[Tables | str | os.PathLike[str], ...]) -> None:
        self.reader = reader
        prologue = reader.read(0, min(PROLOGUE.size, reader.size))
        try:
            size = PROLOGUE.size + Header.size_of(prologue)
            self.header_bytes = reader.read(0, size)
            self.header = Header.from_bytes(prologue, self.header_bytes[PROLOGUE.size :])
        except (BadMagic, UnsupportedVersion):
            raise
        except FormatError as exc:
            raise type(exc)(f"{exc}; without its header nothing of an archive can be salvaged") from exc
        self._kept = [(0, size)]
        width = self.header.latents * bits_per_symbol(self.header.alphabet)
        self.index: Index | None = None
        with suppress(FormatError):  # else its copies of heads are not there to help, and nobody knows what is lost
            self.index = read_index(reader, size, width)
        self._width = width
        scanner = Scanner(reader, width, dict(self.index.segments) if self.index else {})
        self.embed, self.tables_are = False, "intact"
        self.tables = self._find_tables(scanner, extra)
        self.candidates = (
            self.tables.candidates(self.header.latents, self.header.selection) if self.tables is not None else []
        )
        self.chunks = list(scanner.chunks(self._kept[-1][1]))
        self.fitted: dict[int, int] = {}  # number in the new archive, by its offset here
        self._models: Cache[EntropyModel] = Cache(_MODELS)
        for found in self.chunks:
            if found.kind == b"FITT":
                with suppress(FormatError):
                    self._fitted_model(found.offset, found.size)
                    self.fitted[found.offset] = len(self.fitted)
        self._sizes = {found.offset: found.size for found in self.chunks}

    def keep(self, offset: int, size: int) -> None:
        """Note that these bytes are not lost."""
        self._kept.append((offset, offset + size))

    def lost(self) -> list[tuple[int, int]]:
        """Return where bytes are that are not kept."""
        ranges, end = [], 0
        for start, stop in [*sorted(self._kept), (self.reader.size, self.reader.size)]:
            if start > end:
                ranges.append((end, start))
            end = max(end, stop)
        return ranges

    # Tables

    def _find_tables(self, scanner: Scanner, extra: tuple[Tables | str | os.PathLike[str], ...]) -> Tables | None:
        start, size = self._kept[0][1], self.reader.size
        found, there = None, start < size and scanner.at(start) is None
        if there:  # the chunk's own idea of its end, or else where the next one begins
            ends = [scanner.next(start)]
            if (
                size - start >= CHUNK.size
                and (first := CHUNK.unpack(self.reader.read(start, CHUNK.size)))[0] == b"TABL"
            ):
                ends.insert(0, start + CHUNK.size + first[1])
            for end in ends:
                if found is None and (found := self._tables_until(start + CHUNK.size, end)) is not None:
                    self.keep(start, end - start)
        self.embed = there
        if found is None:
            self.tables_are = "elsewhere"
            try:
                found = find_tables(self.header.tables_sha256, extra)
            except ModelMismatch:
                self.tables_are = "lost"
        if found is not None and (found.latents, found.alphabet) != (self.header.model_latents, self.header.alphabet):
            raise FormatError("the tables are for other latents than the header says")
        return found

    def _tables_until(self, start: int, end: int) -> Tables | None:
        if not start < end <= min(self.reader.size, start + MAX_TABLES):
            return None
        data = self.reader.read(start, end - start)
        return Tables.from_bytes(data) if hashlib.sha256(data).hexdigest() == self.header.tables_sha256 else None

    # Segments

    def parts(self, at: int, head: SegmentHead) -> tuple[list[bytes], list[bool]]:
        """Return a segment's table, names, labels and uncertainty, and which are damaged; those are without texts."""
        found, damaged = [], []
        for (start, end), which in zip(self._ranges(at, head), _PARTS, strict=True):
            try:
                found.append(self._part(start, end, head, which))
                damaged.append(False)
            except FormatError:
                found.append(pack_texts([""] * head.rows) if which in ("names", "labels") else b"")
                damaged.append(True)
        return found, damaged

    @staticmethod
    def _ranges(at: int, head: SegmentHead) -> list[tuple[int, int]]:
        """Return where the parts of a segment begin and end."""
        ends = np.cumsum([at + head.parts_at, *(part.size for part in head.parts)]).tolist()
        return list(pairwise(ends))

    def _part(self, start: int, end: int, head: SegmentHead, which: str) -> bytes:
        data = self.reader.read(start, end - start)
        check_crc(getattr(head, which).crc, f"the {which}", data)
        if which in ("names", "labels"):
            _texts(data, head.rows)
        elif which == "entropy" and data:
            unpack_uncertainty(data, head.rows, self.header.version)
        return data

    def lacks_uncertainty(self) -> bool:
        """Tell whether that of any rows that can be saved is damaged: all segments of an archive have it, or none."""
        for found in self.chunks:
            if (head := found.head) is None or not head.entropy.size:
                continue
            damaged = self.parts(found.offset, head)[1]
            blocks = range(len(head.words))
            if damaged[3] and not damaged[0] and any(self._block(found.offset, head, n) is not None for n in blocks):
                return True
        return False

    def keep_parts(self, at: int, head: SegmentHead, damaged: list[bool]) -> None:
        """Note that a segment's head and those parts that are not damaged are not lost."""
        self.keep(at, head.parts_at)
        for (start, end), lost in zip(self._ranges(at, head), damaged, strict=True):
            if not lost:
                self.keep(start, end - start)

    def decode(self, at: int, head: SegmentHead, table: bytes) -> tuple[int, bool, list[NDArray[np.uint8] | None]]:
        """Decode a segment's blocks; None stands for one that is damaged."""
        raw = [self._block(at, head, number) for number in range(len(head.words))]
        models = self._models_of(head, table)
        best: list[NDArray[np.uint8] | None] = [None] * len(raw)
        for number, model in models:
            blocks = self._decoded(head, raw, model)
            if any(block is not None for block in blocks):
                return number, True, blocks
        if not models and head.model in (INDEPENDENT, NETWORK) and self.tables is None:
            return 0, False, [None if block is None else np.empty((0, 0), np.uint8) for block in raw]
        return 0, True, best

    def _block(self, at: int, head: SegmentHead, number: int) -> bytes | None:
        words = head.words[number]
        try:
            data = self.reader.read(at + int(head.block_offsets[number]), BLOCK.size + 4 * words)
            rows, stated, checksum = BLOCK.unpack_from(data)
            check_crc(checksum, "a block", data[BLOCK.size :])
        except FormatError:
            return None
        return data if (rows, stated) == (head.rows_of(number), words) else None

    def _decoded(
        self, head: SegmentHead, raw: list[bytes | None], model: EntropyModel
    ) -> list[NDArray[np.uint8] | None]:
        blocks: list[NDArray[np.uint8] | None] = [None] * len(raw)
        group: list[int] = []
        for number in [*(n for n, data in enumerate(raw) if data is not None), -1]:
            if group and (number < 0 or len(group) * head.rows_per_block * self._width >= _LOCKSTEP):
                for member, packed in zip(group, self._together(head, raw, group, model), strict=True):
                    blocks[member] = packed
                group = []
            group.append(number)
        return blocks

    def _together(
        self, head: SegmentHead, raw: list[bytes | None], group: list[int], model: EntropyModel
    ) -> list[NDArray[np.uint8] | None]:
        """Decode blocks together, or, if that fails, each on its own."""
        data = [block for number in group if (block := raw[number]) is not None]
        try:
            return list(read_blocks(data, [(head, number) for number in group], model))
        except FormatError:
            if len(group) == 1:
                return [None]
            return [self._together(head, raw, [number], model)[0] for number in group]

    def _models_of(self, head: SegmentHead, table: bytes) -> list[tuple[int, EntropyModel]]:
        """Return the models that a segment may be coded with, each with its number in the new archive."""
        if head.model == OWN:
            try:
                return [(0, unpack_model(table, self.header.latents, self.header.alphabet))]
            except FormatError:
                return []
        if head.model != FITTED:
            return [(0, candidate.model) for candidate in self.candidates if candidate.kind == head.model]
        if self.index is not None:
            offset = self.index.fitted[head.number][0]
            offsets = [offset] if offset in self.fitted else []
        else:  # of what number each was is not known if one before it is lost; only the right one decodes
            offsets = sorted(self.fitted, key=lambda offset: self.fitted[offset] != head.number)[:_TRIES]
        return [(self.fitted[offset], self._fitted_model(offset, self._sizes[offset])) for offset in offsets]

    def _fitted_model(self, offset: int, size: int) -> EntropyModel:
        model = self._models.get(offset)
        if model is None:
            data = self.reader.read(offset + CHUNK.size + 4, size - CHUNK.size - 4)
            model = unpack_model(data, self.header.latents, self.header.alphabet)
            self._models.put(offset, model, 1)
        return model
