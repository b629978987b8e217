"""Names, ids, labels and uncertainty of an archive's rows; texts are read on demand, segment by segment."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

import numpy as np

from stochcl.compress.bytes import Cache
from stochcl.errors import FormatError, Truncated
from stochcl.framing import MAX_TEXT, check_limit, inflate, pack_texts, pack_varints, unpack_texts, unpack_varints

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.compress.header import Header


_CACHED_BYTES = 32 << 20  # texts: the names of about a million rows
_PART = 8192  # texts decoded at a time in iteration
_SHOWN = 8


def by_part(
    starts: NDArray[np.integer], rows: NDArray[np.integer]
) -> Iterator[tuple[int, NDArray[np.integer], NDArray[np.integer]]]:
    """Yield each part with some of these rows, the rows' positions, and their numbers in it; a part has a start."""
    numbers = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        yield number, places, rows[places] - starts[number]


class PackedTexts:
    """The texts of one segment in one byte string, which saves 50 bytes of object overhead per text."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._data = b"".join(encoded)
        self._ends = np.zeros(len(encoded) + 1, np.uint32)
        np.cumsum([len(text) for text in encoded], out=self._ends[1:])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self._data) + self._ends.nbytes

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """Return the texts of these rows."""
        starts, ends = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        data = self._data
        return [data[a:b].decode("utf-8", "surrogateescape") for a, b in zip(starts, ends, strict=True)]


class StringColumn:
    """All names or labels of an archive, read a segment at a time; ``starts`` are the segments' first rows."""

    def __init__(self, starts: NDArray[np.integer], read: Callable[[int], Sequence[str]]) -> None:
        self._starts, self._read = starts, read
        self._change: Callable[[str], str] | None = None
        self._cache: Cache[PackedTexts] = Cache(_CACHED_BYTES)

    def changed(self, change: Callable[[str], str]) -> StringColumn:
        """Return a column with ``change`` applied to each text, which shares this one's cache."""
        column = StringColumn(self._starts, self._read)
        column._change, column._cache = change, self._cache
        return column

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """Return the texts of these rows; each segment is read once."""
        found: list[str] = [""] * len(rows)
        for segment, places, own in by_part(self._starts, rows):
            for place, text in zip(places.tolist(), self._segment(segment).take(own), strict=True):
                found[place] = text
        return found if self._change is None else [self._change(text) for text in found]

    def _segment(self, segment: int) -> PackedTexts:
        packed = self._cache.get(segment)
        if packed is None:
            packed = PackedTexts(self._read(segment))
            self._cache.put(segment, packed, packed.nbytes)
        return packed


class LazyStrings(Sequence[str]):
    """Names or labels of some rows, read on demand; equal to the tuple of them, and pickled as one.

    They stay readable after the archive is closed if it was opened by path.
    """

    __slots__ = ("_column", "_rows")

    def __init__(self, column: StringColumn, rows: range | NDArray[np.integer]) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> LazyStrings: ...
    def __getitem__(self, index: int | slice) -> str | LazyStrings:
        """Return one text, or a view for a slice."""
        if isinstance(index, slice):
            return LazyStrings(self._column, self._rows[index])
        return self._column.take(np.array([self._rows[index]], np.int64))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PART):
            yield from self._column.take(np.asarray(self._rows[start : start + _PART], np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | LazyStrings):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        if len(self) <= _SHOWN:
            return repr(tuple(self))
        return f"({', '.join(map(repr, self[:_SHOWN]))}, ... {len(self):,} in all)"

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def to_unicode(text: str) -> str:
    r"""Return text that any program reads: bytes that are not UTF-8 as ``\xNN``.

    Examples
    --------
    >>> to_unicode("caf\udce9")
    'caf\\xe9'
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, in labels made by a program
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


# Ids as a table had them: a column of its own type, from the names.

_OURS = ("name", "label", "uncertainty", "symbols", "vector")
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_SIMPLE: dict[str, Callable[[str], Any]] = {
    "float": float, "double": float, "bool": {"True": True, "False": False}.__getitem__,
    "date32[day]": date.fromisoformat, "date64[ms]": date.fromisoformat,
    "extension<arrow.uuid>": lambda name: UUID(name).bytes,
}  # fmt: skip
_WITH_NUMBERS: dict[str, Callable[[str], Any]] = {
    r"timestamp\[(s|ms|us)\]": datetime.fromisoformat,
    r"timestamp\[(s|ms|us), tz=([\w/+:-]+)\]": datetime.fromisoformat,
    r"decimal128\(([1-9]|[12]\d|3[0-8]), (\d{1,2})\)": Decimal,
    r"fixed_size_binary\[([1-9]\d{0,3})\]": bytes.fromhex,
}


def _id_reader(kind: str) -> Callable[[str], Any] | None:
    """Return the function from a name to a value of an Arrow type, or None for types that stay text."""
    if kind in _INTEGERS:
        bounds = np.iinfo(kind)
        return lambda name: value if bounds.min <= (value := _whole_number(name)) <= bounds.max else None
    found = [read for pattern, read in _WITH_NUMBERS.items() if re.fullmatch(pattern, kind)]
    return _SIMPLE.get(kind) or (found[0] if found else None)


def _whole_number(name: str) -> int:
    if not name.removeprefix("-").isdecimal():
        raise ValueError(name)
    return int(name)


def ids_of(header: Header) -> tuple[str, str] | None:
    """Return the column that the names came from and its Arrow type, or None if the ids stay text."""
    column, kind = ((header.ids or {}).get(key) for key in ("column", "type"))
    known = isinstance(kind, str) and _id_reader(kind) is not None
    return (str(column), str(kind)) if known and isinstance(column, str) and column not in _OURS else None


def id_values(names: Sequence[str], kind: str) -> list[Any]:
    """Return the ids that names stand for, None for names that are no such id.

    Examples
    --------
    >>> id_values(["7", "row 8", "300"], "uint8")
    [7, None, None]
    >>> id_values(["2026-11-29", "row 1"], "date32[day]")
    [datetime.date(2026, 11, 29), None]
    """
    read = _id_reader(kind)
    out: list[Any] = []
    for name in names:
        value = None
        with suppress(ValueError, KeyError, InvalidOperation):
            value = None if read is None else read(name)
        out.append(value)
    return out


def id_type(kind: str) -> Any:
    """Return pyarrow's type of this name, one that :func:`ids_of` gives."""
    import pyarrow as pa

    if kind == "extension<arrow.uuid>":
        return pa.uuid() if hasattr(pa, "uuid") else pa.binary(16)  # pyarrow has it since version 18
    for make, pattern in zip((pa.timestamp, pa.timestamp, pa.decimal128, pa.binary), _WITH_NUMBERS, strict=True):
        if found := re.fullmatch(pattern, kind):
            return make(*(int(part) if part.isdecimal() else part for part in found.groups()))
    return pa.type_for_alias(kind)


def id_array(names: Sequence[str], kind: str) -> Any:
    """Return the ids that names stand for as an Arrow array, with nulls for those that the type cannot hold."""
    import pyarrow as pa

    wanted, values = id_type(kind), id_values(names, kind)
    with suppress(ValueError, TypeError, OverflowError):  # pyarrow's own errors are of these
        return pa.array(values, wanted)
    for i, value in enumerate(values):
        try:
            pa.array([value], wanted)
        except (ValueError, TypeError, OverflowError):
            values[i] = None
    return pa.array(values, wanted)


NUMBERED = 4
"""First format version that stores labels as numbers into a list."""

_MOST_LABELS = 1 << 16


def pack_labels(labels: Sequence[str], version: int) -> bytes:
    """Write the labels of a segment's rows: from version 4 on, each distinct label once and a number per row.

    If that is longer, or before version 4, they are written as texts.
    """
    if version < NUMBERED:
        return pack_texts(labels)
    distinct = {label: number for number, label in enumerate(sorted(set(labels)))}
    found = []
    if len(distinct) <= _MOST_LABELS:
        texts = pack_texts(list(distinct))
        numbers = np.fromiter((distinct[label] for label in labels), np.uint16, len(labels))
        check_limit(_total(list(distinct), numbers), MAX_TEXT, "the length of all labels")
        bits = numbers[:, None] >> np.arange(_width(len(distinct)), dtype=np.uint16)[::-1] & 1
        packed = _deflated(np.packbits(bits.astype(np.uint8)).tobytes())
        found.append(pack_varints([len(distinct), len(texts)]) + texts + packed)
    if 2 * len(distinct) > len(labels):  # otherwise numbers are shorter
        found.append(pack_varints([0]) + pack_texts(labels))
    return min(found, key=len)


def unpack_labels(data: bytes, rows: int, version: int, what: str = "the labels") -> tuple[str, ...]:
    """Read what :func:`pack_labels` wrote."""
    if version < NUMBERED:
        return unpack_texts(data, rows, what)
    (count,), start = unpack_varints(data, 1)
    if not count:
        return unpack_texts(data[start:], rows, what)
    check_limit(count, min(rows, _MOST_LABELS), f"the number of {what}")
    (size,), start = unpack_varints(data, 1, start)
    texts = unpack_texts(data[start : start + size], count, what)
    width = _width(count)
    packed = np.frombuffer(inflate(data[start + size :], -(-width * rows // 8), what), np.uint8)
    bits = np.unpackbits(packed, count=width * rows).reshape(rows, width)
    numbers = bits @ (1 << np.arange(width, dtype=np.int64)[::-1])
    if int(numbers.max()) >= count:
        raise FormatError(f"{what}: a row has number {int(numbers.max()):,} of {count:,} labels")
    check_limit(_total(texts, numbers), MAX_TEXT, f"the length of {what}")
    return tuple(texts[number] for number in numbers.tolist())


def _width(count: int) -> int:
    """Return the bits of a row's number: 1, 2, 4 or 8, so that bytes hold whole numbers, or more if needed."""
    least = max(1, (count - 1).bit_length())
    return 1 << (least - 1).bit_length() if least <= 8 else least


def _total(texts: Sequence[str], numbers: NDArray[np.integer]) -> int:
    """Return the total bytes of all rows' texts."""
    sizes = np.array([len(text.encode("utf-8", "surrogateescape")) for text in texts], np.int64)
    return int(sizes[numbers].sum())


_EXPONENT = struct.Struct("<b")
_FINEST, _COARSEST = -8, 12  # exponents of a step; 1/256 bit is finer than half precision at 64 bits
_MOST = 65_504  # bits: the largest half-precision number, more than a row can have
_LEVELS = 255


def pack_uncertainty(values: NDArray[np.floating], version: int) -> bytes:
    """Write the entropies of a segment's rows.

    From version 2 on, each is the minimum plus 0 to 255 whole steps; the step is the smallest power of two for which
    255 are enough. So values read from one archive, or any subset of them, go to another without further loss.
    """
    exact = np.asarray(values, np.float64)
    if not _are_entropies(exact):
        raise ValueError(f"an uncertainty is an entropy in bits: 0 to {_MOST:,}")
    if version == 1:
        return exact.astype("<f2").tobytes()
    low, high = float(exact.min()), float(exact.max())
    exponent = _FINEST
    while _whole(high, exponent) - _whole(low, exponent) > _LEVELS:
        exponent += 1
    steps = np.rint(np.ldexp(exact, -exponent)).astype(np.int64)
    while exponent < _COARSEST and not (steps & 1).any():  # coarser steps with equal values deflate better
        exponent, steps = exponent + 1, steps >> 1
    least = int(steps.min())
    return _EXPONENT.pack(exponent) + pack_varints([least]) + _deflated((steps - least).astype(np.uint8).tobytes())


def _whole(value: float, exponent: int) -> int:
    return int(np.rint(np.ldexp(value, -exponent)))


def _deflated(data: bytes) -> bytes:
    """Deflate with Huffman codes only, which suits unordered numbers, or as usual, whichever is shorter."""
    by_frequency = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return min(by_frequency.compress(data) + by_frequency.flush(), zlib.compress(data, 9), key=len)


def unpack_uncertainty(data: bytes, rows: int, version: int, what: str = "the uncertainty") -> NDArray[np.float32]:
    """Read what :func:`pack_uncertainty` wrote, float32, shape (rows,)."""
    if version == 1:
        if len(data) != 2 * rows:
            raise FormatError(f"{what} of {rows} rows has {len(data)} bytes, not two a row")
        halves = np.frombuffer(data, "<f2").astype(np.float32)
        if not _are_entropies(halves):
            raise FormatError(f"{what} has a value that is not 0 to {_MOST:,} bits")
        return halves
    if not data:
        raise Truncated(f"{what} has no bytes")
    (exponent,) = _EXPONENT.unpack_from(data)
    (least,), start = unpack_varints(data, 1, _EXPONENT.size)
    if not _FINEST <= exponent <= _COARSEST or np.ldexp(float(least), exponent) > _MOST:
        raise FormatError(f"{what} begins at {least:,} steps of 2^{exponent} bits, which makes no sense")
    steps = np.frombuffer(inflate(data[start:], rows, what), np.uint8)
    found = np.ldexp((least + steps.astype(np.int64)).astype(np.float64), exponent).astype(np.float32)
    if not _are_entropies(found):
        raise FormatError(f"{what} has a value of more than {_MOST:,} bits")
    return found


def _are_entropies(values: NDArray[np.floating]) -> bool:
    return bool(((values >= 0) & (values <= _MOST)).all())
