"""Parquet and Arrow files: what they are known by, their columns, and their rows a few at a time."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stochcl.data.names import printable
from stochcl.errors import MissingExtraError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGICS = {b"PAR1": "parquet", b"ARRO": "file", b"\xff\xff\xff\xff": "stream"}
_ENDINGS = (".parquet", ".arrow", ".feather")


def is_arrow(path: Path, head: bytes) -> bool:
    """Tell by its first bytes whether a file is Parquet or Arrow; an Arrow stream has to be called so, too."""
    kind = _MAGICS.get(head[:4])
    return kind in ("parquet", "file") or (kind == "stream" and path.suffix.lower() in _ENDINGS)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Make Arrow's errors ours."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as exc:
        raise SourceError(f"{printable(path)}: there is no such file.") from exc
    except (pa.ArrowException, OSError, ValueError, KeyError) as exc:
        reason = printable(str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__)
        raise SourceError(f"{printable(path)}: it cannot be read as Parquet or Arrow ({reason}).") from exc


def _need() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as exc:
        msg = "a Parquet or Arrow file needs pyarrow, which is not installed; run: pip install 'stochcl[arrow]'."
        raise MissingExtraError(msg) from exc


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        return _MAGICS.get(file.read(4), "")


def schema_of(path: Path) -> Any:
    """Return a file's columns; MissingExtraError where pyarrow is not installed."""
    _need()
    import pyarrow as pa
    from pyarrow import ipc, parquet

    with explained(path):
        kind = _kind(path)
        if kind == "parquet":
            return parquet.read_schema(path)
        with pa.OSFile(str(path)) as file:
            return (ipc.open_file if kind == "file" else ipc.open_stream)(file).schema


def rows_in(path: Path) -> int:
    """Return how many rows a file has, 0 where it does not say."""
    from pyarrow import parquet

    with explained(path):
        return int(parquet.read_metadata(path).num_rows) if _kind(path) == "parquet" else 0


def record_batches(path: Path, columns: list[str], rows: int) -> Iterator[Any]:
    """Yield record batches of at most so many rows."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    kind = _kind(path)
    if kind == "parquet":
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(rows, columns=columns, use_threads=False)
        return
    with pa.OSFile(str(path)) as file:
        reader = ipc.open_file(file) if kind == "file" else ipc.open_stream(file)
        whole = (reader.get_batch(i) for i in range(reader.num_record_batches)) if kind == "file" else reader
        for batch in whole:
            for start in range(0, len(batch), rows):
                yield batch.select(columns).slice(start, rows)


# Columns


def choose_column(schema: Any, asked: str | None, shown: str) -> str:
    """Return which column holds images or vectors, see :func:`stochcl.data.arrow.open_arrow`."""

    def fits(kind: Any) -> bool:
        return is_image_type(kind) or _is_vector(kind)

    if asked is not None:
        if asked not in schema.names:
            raise UsageError(f"{shown}: it has no column {asked!r}; there are {', '.join(schema.names)}.")
        if not fits(schema.field(asked).type):
            raise UsageError(f"{shown}: its column {asked} holds {schema.field(asked).type}: no images or vectors.")
        return asked
    for test in (is_image_type, _is_vector):
        found = [field.name for field in schema if test(field.type)]
        if len(found) > 1:
            raise UsageError(
                f"{shown}: its columns {', '.join(found)} could all be meant; write a file that has one of them, or "
                "name it: `open_arrow(paths, column)` in stochcl.data."
            )
        if found:
            return str(found[0])
    raise SourceError(
        f"{shown}: none of its columns ({', '.join(schema.names)}) holds images (binary, or a struct with bytes) or "
        "vectors (lists of floats)."
    )


def is_image_type(kind: Any) -> bool:
    """Tell whether a column of this type can hold image files."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and types.is_floating(kind.value_type))


def class_names(schema: Any, label: str | None) -> list[str]:
    """Return the names that Hugging Face's features give the numbers of labels; none where they do not."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (ValueError, KeyError, TypeError):
        return []
