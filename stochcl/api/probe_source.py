"""Encode embeddings, or images in a table, to a temporary archive, where a command expects an archive."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.evaluate import evaluate_targets
from stochcl.api.models import DEFAULT, resolve_tables
from stochcl.api.source import given_paths
from stochcl.compress import open_archive
from stochcl.data import ArrowImages, MatrixSource, SourceOptions, open_arrow, open_source
from stochcl.data.array import MAGIC
from stochcl.data.arrow import is_arrow_file
from stochcl.errors import StochclError, UsageError
from stochcl.files import PathLike, begins_with
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stochcl.api.codec import Codec
    from stochcl.downstream import Evaluation


def are_embeddings(paths: Sequence[PathLike]) -> bool:
    """Return whether paths are .npy matrices, or Parquet or Arrow files, rather than archives."""
    for file in given_paths(paths)[:1]:
        is_matrix = begins_with(file, MAGIC) and isinstance(open_source(file), MatrixSource)
        return is_matrix or is_arrow_file(file)
    return False


@contextmanager
def archive_of(
    paths: Sequence[PathLike], model: PathLike | Codec | None, column: str | None = None, **options: Any
) -> Iterator[Path]:
    """Yield the path of a temporary archive of embeddings or of a table's images, encoded by a model.

    ``column`` holds the data; ``options`` are fields of :class:`~stochcl.api.compress.CompressOptions`. Images are
    encoded by the default model if none is named.

    Raises
    ------
    UsageError
        If no model is named for embeddings.
    SourceError
    """
    from stochcl.api.codec import Codec

    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        try:
            codec = model if isinstance(model, Codec) else Codec(model or _default_model(paths, column))
            codec.compress(list(paths), path, column=column, **options)
        except UsageError as exc:  # a probe's columns are those of labels
            raise type(exc)(*(str(arg).replace("--column", "--vector-column") for arg in exc.args)) from exc
        try:
            yield path
        except StochclError as exc:
            raise type(exc)(str(exc).replace(escape_name(path), escape_name(paths[0]))) from exc


def _default_model(paths: Sequence[PathLike], column: str | None) -> PathLike:
    """Return the default model if these are images; raise UsageError for embeddings."""
    if isinstance(open_arrow(given_paths(paths), SourceOptions(column=column), takes=0), ArrowImages):
        return DEFAULT
    raise UsageError(
        f"{escape_name(paths[0])}: these are embeddings; give the model that encodes them with -m, or compress them "
        "first."
    )


def evaluate_embeddings(
    paths: Sequence[PathLike], *, model: PathLike | None, test: PathLike | None = None,
    labels: PathLike | None = None, columns: Sequence[str] = (), vector_column: str | None = None,
    id_column: str | None = None, **options: Any,
) -> tuple[dict[str, Evaluation], dict[str, Any]]:  # fmt: skip
    """Encode embeddings, and train and score a probe of their codes, see :func:`evaluate_targets`.

    Labels come from ``columns`` of the table itself, or from ``labels``.
    """
    how: dict[str, Any] = {"column": vector_column, "id_column": id_column}
    files = given_paths(paths)
    own = labels is None and is_arrow_file(files[0])
    if own and len(files) > 1 and len(columns) > 1:
        raise UsageError("several tables share one column of labels; name one with --label-column, or give --labels.")
    stored = {"label_column": columns[0]} if own and len(columns) == 1 else {}
    by_file = own and len(columns) > 1  # several targets
    with ExitStack() as stack:
        archive = stack.enter_context(archive_of(paths, model, **how, **stored))
        if test is not None and are_embeddings([test]):
            options |= {"test_labels": test} if by_file else {}
            test = stack.enter_context(archive_of([test], model, **how, **stored))
        found, facts = evaluate_targets(
            archive, test=test, labels=files[0] if by_file else labels, columns=() if stored else columns, **options
        )
    return found, facts | {"path": ", ".join(escape_name(path) for path in paths)} | (
        {"labels_from": f"column {escape_name(columns[0])} of {escape_name(paths[0])}"} if stored else {}
    )


def evaluate_codes(
    path: PathLike, *, model: PathLike | None = None, test: PathLike | None = None, labels: PathLike | None = None,
    columns: Sequence[str] = (), vector_column: str | None = None, id_column: str | None = None, **options: Any,
) -> tuple[dict[str, Evaluation], dict[str, Any]]:  # fmt: skip
    """Train and score a probe of an archive's codes, see :func:`evaluate_targets`; ``test`` may be embeddings.

    These are encoded by ``model``, or by the one that made the archive, and labelled by a column unless there are
    ``labels``.
    """
    how: dict[str, Any] = {"column": vector_column, "id_column": id_column}
    tables = resolve_tables(model, path)
    with ExitStack() as stack:
        if test is not None and are_embeddings([test]):
            if labels is None and columns and is_arrow_file(Path(test)):
                if len(columns) > 1:
                    raise UsageError("an archive stores one label a row; name one --label-column, or give --labels.")
                how, columns = how | {"label_column": columns[0]}, ()
            codec, made = _codec_for(path, model)
            test = stack.enter_context(archive_of([test], codec, **how | made))
        elif how != dict.fromkeys(how):
            name = "--vector-column" if vector_column is not None else "--id-column"
            raise UsageError(f"{name}: {escape_name(path)} is not a table; omit it.")
        return evaluate_targets(path, test=test, labels=labels, columns=columns, tables=tables, **options)


def _codec_for(path: PathLike, model: PathLike | None) -> tuple[Codec, dict[str, Any]]:
    """Return the codec that made an archive, and the options of compressing that fit its codes."""
    from stochcl.api.codec import codec_of

    codec = codec_of(path, None if model is None or Path(model).suffix == ".tables" else model)
    with open_archive(path) as archive:
        header = archive.header
    codec.check_made(header, path)
    latents = {} if header.selection is not None else {"latents": header.latents}
    fit = {"fit": header.preprocess["fit"]} if "fit" in header.preprocess else {}
    return codec.for_archive(header), latents | fit
