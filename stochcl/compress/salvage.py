"""Recover the intact parts of a damaged or unfinished archive into a new one."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stochcl import framing
from stochcl.compress.bytes import ArchiveErrors, ByteReader, Cache
from stochcl.compress.columns import pack_labels, unpack_labels, unpack_uncertainty
from stochcl.compress.header import read_header
from stochcl.compress.index import Index, has_trailer, iterate_skipped, read_index, version_of
from stochcl.compress.segment import PARTS, RawSegment, SegmentHead, StoredSegment, read_blocks, read_head
from stochcl.compress.segment_writer import StreamWriter
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN, EntropyModel, unpack_model
from stochcl.entropy.tables import AnyTables, Tables, find_tables
from stochcl.errors import BadMagic, FormatError, ModelMismatch, UnsupportedVersion
from stochcl.files import PathLike, WriteLock, check_output, replacing, writing
from stochcl.framing import BLOCK, CHUNK, HEAD, MAX_SEGMENT_ROWS, TRAILER, crc, pack_texts, unpack_texts
from stochcl.messages import Progress, escape_name, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes


_LOCKSTEP = 1 << 20  # decisions decoded together
_MODELS = 4  # cached
_TRIES = 64  # fitted models to try for a segment if the index is lost, as a damaged one shifts the numbers


@dataclass
class Salvaged:
    """What :func:`salvage` wrote to ``path``, and what was lost.

    ``segments``, ``rows`` and ``bytes`` are of the new file. Of its rows, ``recoded`` come from partly damaged
    segments, ``unnamed`` and ``unlabelled`` have lost their names or labels, and ``unchecked`` could not be decoded
    because the tables are lost. ``uncertainty_lost`` says whether the uncertainty was dropped because some of it is
    damaged. ``lost`` are the damaged byte ranges of the old file. ``rows_lost`` is None if the index is lost too.
    ``tables`` are ``"intact"``, ``"elsewhere"`` (damaged or not in the archive, but found) or ``"lost"``.
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
        """Whether nothing was lost."""
        return not self.lost and not self.uncertainty_lost and not self.rows_lost and self.tables != "lost"


def salvage(
    path: PathLike, output: PathLike, *, tables: Iterable[AnyTables] = (), force: bool = False,
    progress: Progress = silent,
) -> Salvaged:  # fmt: skip
    """Write all intact parts of a damaged or unfinished archive as a new, complete one.

    A segment is copied unchanged if its head, parts and blocks match their checksums and decode to the checksum of
    the rows. If only some blocks are intact, their rows are coded again, with their names. If names or labels of a
    segment are damaged, its rows get empty ones; if the uncertainty of any segment is, the new archive has none. A
    segment with a damaged table is lost. Without the decoding tables, segments that need them are copied if their
    checksums match. Rows that the damage duplicated stay duplicated.
    """
    output = Path(output)
    check_output(output, Path(path), force=force)
    errors = ArchiveErrors(escape_name(path))
    with errors:
        reader = ByteReader(path)
    with closing(reader):
        with errors:
            old = _DamagedArchive(reader, tuple(tables), beside=(Path(path).parent, Path()))
        return _write(old, errors, output, progress)


def _write(old: _DamagedArchive, errors: ArchiveErrors, output: Path, progress: Progress) -> Salvaged:
    result = Salvaged(output, tables=old.tables_are)
    result.uncertainty_lost = old.lacks_uncertainty()
    chunks = (old.reader.read(offset, old.sizes[offset]) for offset in old.fitted)
    with writing(output), WriteLock(output, escape_name(output)), replacing(output) as file:
        new = StreamWriter(
            file, old.header, old.tables, embed_tables=old.embed, chunks=chunks, segment_rows=MAX_SEGMENT_ROWS
        )
        for found in old.chunks:
            progress(found.offset, old.reader.size)
            if found.kind == b"INDX" or found.offset in old.fitted:  # the new archive has its own index
                old.keep(found.offset, found.offset + found.size)
            elif found.head is not None:
                with errors:
                    _save(old, new, StoredSegment(old.reader, found.offset, found.head), result)
        with errors:
            if not new.rows and not (old.index is not None and not old.index.rows):
                raise FormatError("nothing behind its header is intact, so nothing was written")
        new.skipped = old.skipped
        new.source_bytes = old.index.source_bytes if old.index is not None else 0
        new.finish()
    progress(old.reader.size, old.reader.size)
    result.segments, result.bytes, result.lost = len(new.segments), output.stat().st_size, old.lost()
    if old.index is not None:
        result.rows_lost = max(0, old.index.rows - result.rows)
    return result


def _save(old: _DamagedArchive, new: StreamWriter, segment: StoredSegment, result: Salvaged) -> None:
    """Copy a segment, or its intact blocks."""
    head = segment.head
    parts, damaged = old.parts(segment)
    if result.uncertainty_lost:
        parts["entropy"] = b""
    if "table" in damaged or new.has not in (None, tuple(bool(parts[which]) for which in PARTS[1:])):
        return
    number, checked, blocks = old.decode(segment, parts["table"])
    saved = [n for n, block in enumerate(blocks) if block is not None]
    if len(saved) == len(blocks):
        raw = RawSegment(head, (b"", b"", b"", b""), b"".join(segment.block(n) for n in saved))
        new.add_segment(raw.having(number=number, **parts))
        rows = head.rows
        result.unchecked += 0 if checked else rows
    elif saved and checked:
        codes = _intact(old, segment, parts, blocks)
        new.add(codes)
        new.flush()
        rows = len(codes)
        result.recoded += rows
    else:
        return
    result.rows += rows
    result.unnamed += rows if "names" in damaged else 0
    result.unlabelled += rows if "labels" in damaged else 0
    old.keep(segment.offset, segment.offset + head.parts_at)
    for which in PARTS:
        if which not in damaged:
            old.keep(*segment.range_of(which))
    for n in saved:
        start = segment.offset + int(head.block_offsets[n])
        old.keep(start, start + BLOCK.size + 4 * head.words[n])


def _intact(
    old: _DamagedArchive, segment: StoredSegment, parts: dict[str, bytes], blocks: list[NDArray[np.uint8] | None]
) -> Codes:
    """Return the rows of the intact blocks, with their names, labels and uncertainty."""
    head = segment.head
    rows = np.concatenate(
        [n * head.rows_per_block + np.arange(head.rows_of(n)) for n, block in enumerate(blocks) if block is not None]
    )
    packed = np.concatenate([block for block in blocks if block is not None])
    names = unpack_texts(parts["names"], head.rows, "texts") if parts["names"] else None
    labels = unpack_labels(parts["labels"], head.rows, head.version) if parts["labels"] else None
    uncertainty = unpack_uncertainty(parts["entropy"], head.rows, head.version) if parts["entropy"] else None
    return old.header.codes(
        packed, names and [names[row] for row in rows], labels and [labels[row] for row in rows],
        None if uncertainty is None else uncertainty[rows],
    )  # fmt: skip


class _DamagedArchive:
    """The damaged archive: what is known of it, and which bytes are kept."""

    def __init__(self, reader: ByteReader, extra: tuple[AnyTables, ...], beside: tuple[Path, ...]) -> None:
        self.reader, self._beside = reader, beside
        try:
            self.header, size = read_header(reader)
        except (BadMagic, UnsupportedVersion):
            raise
        except FormatError as exc:
            raise type(exc)(f"{exc}; without its header nothing of an archive can be salvaged") from exc
        self._kept = [(0, size)]
        self._width = width = self.header.decisions_per_row
        self.index: Index | None = None
        self.skipped: list[tuple[str, str]] = []
        with suppress(FormatError):  # without it, there are no copies of heads, and no count of rows
            self.index = read_index(reader, size, width)
            self.skipped = list(iterate_skipped(self.index.skipped))
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
        self.sizes = {found.offset: found.size for found in self.chunks}

    def keep(self, start: int, end: int) -> None:
        """Mark these bytes as kept."""
        self._kept.append((start, end))

    def lost(self) -> list[tuple[int, int]]:
        """Return the byte ranges that are not kept."""
        ranges, end = [], 0
        for start, stop in [*sorted(self._kept), (self.reader.size, self.reader.size)]:
            if start > end:
                ranges.append((end, start))
            end = max(end, stop)
        return ranges

    # Tables

    def _find_tables(self, scanner: Scanner, extra: tuple[AnyTables, ...]) -> Tables | None:
        start = self._kept[0][1]
        self.embed = start < self.reader.size and scanner.at(start) is None
        found, end = scanner.tables(start, self.header.tables_sha256) if self.embed else (None, start)
        self.keep(start, end)
        if found is None:
            self.tables_are = "elsewhere"
            try:
                found = find_tables(self.header.tables_sha256, extra, beside=self._beside)
            except ModelMismatch:
                self.tables_are = "lost"
        if found is not None and (found.latents, found.alphabet) != (self.header.model_latents, self.header.alphabet):
            raise FormatError("the tables are for other latents than the header says")
        return found

    # Segments

    @staticmethod
    def parts(segment: StoredSegment) -> tuple[dict[str, bytes], set[str]]:
        """Return a segment's parts, and the set of damaged ones, which are replaced by empty ones."""
        found, damaged = {}, set()
        for which in PARTS:
            try:
                found[which] = segment.part(which)
                if which in ("names", "labels"):
                    segment.texts(which)
                elif which == "entropy":
                    segment.uncertainty()
            except FormatError:
                empty = [""] * segment.head.rows
                texts = {"names": pack_texts(empty), "labels": pack_labels(empty, segment.head.version)}
                found[which] = texts.get(which, b"")
                damaged.add(which)
        return found, damaged

    def lacks_uncertainty(self) -> bool:
        """Return whether any rows that can be saved have damaged uncertainty; segments have it all or none."""
        for found in self.chunks:
            if found.head is None or not found.head.entropy.size:
                continue
            segment = StoredSegment(self.reader, found.offset, found.head)
            damaged = self.parts(segment)[1]
            if "entropy" in damaged and "table" not in damaged and self._sound_blocks(segment):
                return True
        return False

    @staticmethod
    def _sound_blocks(segment: StoredSegment) -> list[int]:
        """Return the numbers of the blocks that match their checksums."""
        sound = []
        for number in range(len(segment.head.words)):
            with suppress(FormatError):
                segment.block(number)
                sound.append(number)
        return sound

    def decode(self, segment: StoredSegment, table: bytes) -> tuple[int, bool, list[NDArray[np.uint8] | None]]:
        """Decode a segment's blocks; None stands for a damaged one."""
        head, sound = segment.head, self._sound_blocks(segment)
        blocks: list[NDArray[np.uint8] | None] = [None] * len(head.words)
        models = self._models_of(head, table)
        together = max(1, _LOCKSTEP // (head.rows_per_block * self._width))
        for number, model in models:
            for start in range(0, len(sound), together):
                group = sound[start : start + together]
                for block, packed in zip(group, _decode_together(segment, group, model), strict=True):
                    blocks[block] = packed
            if any(block is not None for block in blocks):
                return number, True, blocks
        if not models and head.model in (INDEPENDENT, NETWORK) and self.tables is None:
            for number in sound:
                blocks[number] = np.empty((0, 0), np.uint8)
            return 0, False, blocks
        return 0, True, blocks

    def _models_of(self, head: SegmentHead, table: bytes) -> list[tuple[int, EntropyModel]]:
        """Return the models that may decode a segment, each with its number in the new archive."""
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
        else:  # the numbers are unknown if an earlier model is lost; only the right model decodes
            offsets = sorted(self.fitted, key=lambda offset: self.fitted[offset] != head.number)[:_TRIES]
        return [(self.fitted[offset], self._fitted_model(offset, self.sizes[offset])) for offset in offsets]

    def _fitted_model(self, offset: int, size: int) -> EntropyModel:
        model = self._models.get(offset)
        if model is None:
            data = self.reader.read(offset + CHUNK.size + 4, size - CHUNK.size - 4)
            model = unpack_model(data, self.header.latents, self.header.alphabet)
            self._models.put(offset, model, 1)
        return model


def _decode_together(
    segment: StoredSegment, numbers: Sequence[int], model: EntropyModel
) -> list[NDArray[np.uint8] | None]:
    """Decode blocks together, or each on its own if that fails."""
    try:
        return list(read_blocks([(segment, number) for number in numbers], model))
    except FormatError:
        if len(numbers) == 1:
            return [None]
        return [_decode_together(segment, [number], model)[0] for number in numbers]


_WINDOW = 1 << 20  # bytes searched at a time
_KINDS = re.compile(rb"SEGM|FITT|INDX")
_MOST_OF_HEAD = 13 * (MAX_SEGMENT_ROWS + 5)  # per block a varint of nine bytes and a checksum


@dataclass(frozen=True)
class Found:
    """A chunk with a sound start: its offset, its bytes with its trailer, and the head of a segment."""

    offset: int
    size: int
    kind: bytes
    head: SegmentHead | None = None


class Scanner:
    """Finds intact chunks in a damaged file by their checksums.

    ``known`` maps offsets to heads from an intact index; they replace damaged ones.
    """

    def __init__(self, reader: ByteReader, decisions_per_row: int, known: Mapping[int, SegmentHead]) -> None:
        self._reader, self._width, self._known = reader, decisions_per_row, known
        self._version = version_of(reader)

    def chunks(self, start: int) -> Iterator[Found]:
        """Yield all chunks from here to the end of the file, in order; a segment may be damaged after its head."""
        at = start
        while at < self._reader.size:
            found = self.at(at)
            if found is None:
                at = self.next(at + 1)
                continue
            yield found
            end = at + found.size
            # If no chunk begins at the end, bytes may be missing in this one, and the next begins earlier.
            at = end if end == self._reader.size or self.at(end) is not None else self.next(at + 1)

    def next(self, start: int) -> int:
        """Return the start of the next chunk, or the end of the file."""
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
        """Return the sound chunk that begins here, or None."""
        if (head := self._head(offset)) is not None:
            return Found(offset, head.size, b"SEGM", head)
        if offset + CHUNK.size > self._reader.size:
            return None
        kind, length = CHUNK.unpack(self._reader.read(offset, CHUNK.size))
        size: int = CHUNK.size + length
        if offset + size > self._reader.size:
            return None
        if kind == b"FITT" and CHUNK.size + 4 <= size <= framing.MAX_TABLE:
            data = self._reader.read(offset + CHUNK.size, length)
            return Found(offset, size, kind) if crc(data[4:]) == int.from_bytes(data[:4], "little") else None
        if kind == b"INDX" and offset + size + TRAILER.size <= self._reader.size:  # also a retired one
            trailed = has_trailer(self._reader, offset, size)
            return Found(offset, size + TRAILER.size, kind) if trailed else None
        return None

    def tables(self, start: int, sha256: str) -> tuple[Tables | None, int]:
        """Return the tables of the chunk that begins here, if they have this hash, and the chunk's end."""
        ends = [self.next(start)]  # or the end that the chunk states
        if self._reader.size - start >= CHUNK.size:
            kind, length = CHUNK.unpack(self._reader.read(start, CHUNK.size))
            ends = [start + CHUNK.size + length, *ends] if kind == b"TABL" else ends
        for end in ends:
            if start + CHUNK.size < end <= min(self._reader.size, start + CHUNK.size + framing.MAX_TABLES):
                with suppress(FormatError):
                    found = Tables.from_bytes(self._reader.read(start + CHUNK.size, end - start - CHUNK.size))
                    if found.sha256 == sha256:
                        return found, end
        return None, start

    def _head(self, at: int) -> SegmentHead | None:
        fixed = CHUNK.size + HEAD.size
        room = self._reader.size - at - fixed
        if room > 0:
            data = self._reader.read(at, fixed)
            size = HEAD.unpack_from(data, CHUNK.size)[0]
            if data.startswith(b"SEGM") and size <= min(room, _MOST_OF_HEAD):
                with suppress(FormatError):
                    return read_head(data + self._reader.read(at + fixed, size), self._width, self._version)
        return self._known.get(at)
