"""Sources for a codec: open them, check them against the model, read them in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stochcl.compress.header import Embedder
from stochcl.data import ImageSource, MatrixSource, StreamSource, TarStream, VectorSource, open_arrow, open_sources
from stochcl.data.arrow import MemoryTable, is_table
from stochcl.data.folder import open_url
from stochcl.data.names import DEFAULTS
from stochcl.data.open import expand
from stochcl.errors import ImageError, SourceError, UsageError
from stochcl.files import PathLike, check_exists
from stochcl.messages import escape_name, plural
from stochcl.remote import is_url

if TYPE_CHECKING:
    from stochcl.api.encode import CodecBase
    from stochcl.data import Failure, ImageBatch, Preprocess, SourceOptions
    from stochcl.data.array import MatrixBatch

    Source = ImageSource | MatrixSource | StreamSource
    Given = PathLike | Sequence[PathLike] | IO[bytes] | Source


_MATRIX_ROWS = 4096  # read at a time
_MATRIX_BYTES = 32 << 20  # or fewer rows, if they are wide


def open_given(given: Given, options: SourceOptions = DEFAULTS, takes: int | None = None) -> Source:
    """Open a source for :meth:`stochcl.Codec.compress`, or return it if it is already open.

    ``takes`` is the model's input: the width of vectors, 0 for images, None if unknown.
    """
    if isinstance(given, ImageSource | MatrixSource | StreamSource):
        if options.any_name or options.label_files or options.column or options.id_column:
            raise UsageError(
                "--any-name, --label-files, --column and --id-column do not apply to a source that is already listed "
                "(--files-from?); omit them."
            )
        return given
    table = MemoryTable(given) if is_table(given) else None
    columns = open_arrow([table] if table else given_paths(given), options, takes)
    if columns is not None:  # not its truth value: a length may be unknown and so 0
        return columns
    if not isinstance(given, str | os.PathLike | Sequence):
        return TarStream(given, options=options)
    asked = [f"--{name.replace('_', '-')}" for name in ("column", "id_column") if getattr(options, name) is not None]
    if options.label_column is not None and options.label_files != "json":
        asked.append("--label-column")
    if asked:
        raise UsageError(
            f"{' and '.join(asked)}: only .parquet and .arrow files have columns, and this is neither; omit it."
        )
    named = _named(given)
    if len(named) == 1 and is_url(named[0]) and len(expand(named[0])) == 1:
        return open_url(str(named[0]), options)
    return open_sources(named, options)


def given_paths(given: Given) -> list[Path]:
    """Return the local files and folders that a source was named by."""
    if not isinstance(given, str | os.PathLike | Sequence):
        return []
    return [path for one in _named(given) for path in expand(one) if isinstance(path, Path)]


def _named(given: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return [given] if isinstance(given, str | os.PathLike) else given


def check_paths_exist(given: Given) -> None:
    """Raise SourceError for a missing path, before a model is loaded."""
    for path in given_paths(given):
        check_exists(path)


def check_source_fits_model(source: Source, codec: CodecBase) -> Source:
    """Return a source if it suits the model (images, or rows of its width); else raise UsageError."""
    model, columns = escape_name(codec.model.name), codec.columns
    shown = escape_name(source.path)
    training = f"`stochcl train {shown} -o head.safetensors --rate 64`"
    if not isinstance(source, VectorSource):
        if columns is None:
            return source
        raise UsageError(
            f"{shown}: these are images, and the model {model} takes rows of {columns:,} numbers; give a model of "
            "images with -m, or omit -m for the default one."
        )
    found = f"{shown}: these are embeddings ({len(source):,} x {source.dim:,})"
    if columns is None:
        raise UsageError(
            f"{found}, and the model {model} takes images; train one on them with {training}, and give it with -m."
        )
    if columns != source.dim:
        raise UsageError(
            f"{found}, and the model {model} takes rows of {columns:,} numbers; give the model of such rows "
            f"with -m, or train one with {training}."
        )
    return source


_LOOKED_AT = 1024  # rows whose lengths are checked
_NEAR_ONE = 0.01


def embedder_of(source: Source, named: str | None = None) -> Embedder | None:
    """Return the embedder of a source's vectors: ``named``, or from its metadata, or None.

    Raises
    ------
    UsageError
        If one is named for images.
    """
    if not isinstance(source, VectorSource):
        if named is not None:
            raise UsageError("--embedder names what made embeddings, and these are images; omit it.")
        return None
    text = named or source.embedder
    if not text:
        return None
    lengths = np.concatenate([np.linalg.norm(one.vectors, axis=1) for one in islice(source.batches(_LOOKED_AT), 1)])
    normalised = bool((np.abs(lengths - 1) < _NEAR_ONE).all()) if len(lengths) else None
    return replace(Embedder.parse(text), width=source.dim, normalised=normalised)


def read_batches(
    source: Source, preprocess: Preprocess, batch_size: int, workers: int | None, start: int
) -> Iterator[ImageBatch | MatrixBatch]:
    """Read a source from a position on; the batch size applies to images only."""
    if isinstance(source, VectorSource):
        return source.batches(max(1, min(_MATRIX_ROWS, _MATRIX_BYTES // (4 * source.dim))), start)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    return source.batches(preprocess, batch_size=batch_size, workers=workers, start=start)


def source_warnings(source: Source, damaged: Sequence[Failure] = ()) -> list[str]:
    """Return warnings about a source, and about damaged but readable images."""
    lines = source.remarks()
    if damaged:
        first, count = damaged[0], len(damaged)
        lines.append(
            f"{plural(count, 'image')} {'is' if count == 1 else 'are'} damaged and could be read all the same, the "
            f"first {escape_name(first.name)}: {first.reason}; --strict stops at such images"
        )
    return [f"warning: {line}" for line in lines]


def strict_error(source: Source, failure: Failure) -> ImageError:
    """Return the error for an image that --strict stops at."""
    return ImageError(
        f"{escape_name(source.path)}: {escape_name(failure.name)}: {failure.reason}; --strict stops at "
        f"{source.unit}s that are damaged or cannot be read."
    )


def no_readable_error(source: Source, first: tuple[str, str]) -> SourceError:
    """Return the error for a source without readable images; ``first`` is the first failure."""
    name, reason = first
    return SourceError(
        f"{escape_name(source.path)}: none of its {source.unit}s can be read; the first is "
        f"{escape_name(name)}: {reason}."
    )
