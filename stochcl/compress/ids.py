"""Ids as a table had them: a column of its own type, from the names that an archive keeps."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.compress.header import Header

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


def _read(kind: str) -> Callable[[str], Any] | None:
    """Return the function from a name to a value of an Arrow type, or None for types that stay text."""
    if kind in _INTEGERS:
        bounds = np.iinfo(kind)
        return lambda name: value if bounds.min <= (value := _whole(name)) <= bounds.max else None
    found = [read for pattern, read in _WITH_NUMBERS.items() if re.fullmatch(pattern, kind)]
    return _SIMPLE.get(kind) or (found[0] if found else None)


def _whole(name: str) -> int:
    if not name.removeprefix("-").isdecimal():
        raise ValueError(name)
    return int(name)


def ids_of(header: Header) -> tuple[str, str] | None:
    """Return the column that the names came from and its Arrow type, or None if the ids stay text."""
    column, kind = ((header.ids or {}).get(key) for key in ("column", "type"))
    known = isinstance(kind, str) and _read(kind) is not None
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
    read = _read(kind)
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
