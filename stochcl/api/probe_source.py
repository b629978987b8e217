"""Encode embeddings to a temporary archive, where a command expects an archive."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.evaluate import evaluate_targets
from stochcl.data import MatrixSource, open_arrow, open_source
from stochcl.data.array import MAGIC
from stochcl.data.open import expand
from stochcl.errors import StochclError, UsageError
from stochcl.files import is_file
from stochcl.messages import escape_name
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stochcl.downstream import Evaluation
    from stochcl.files import PathLike


def are_embeddings(paths: Sequence[PathLike]) -> bool:
    """Return whether paths are .npy matrices, or Parquet or Arrow files, rather than archives."""
    files = [Path(path) for given in paths for path in expand(given) if not is_url(given)]
    return bool(files) and (_is_matrix(files[0]) or open_arrow(files, takes=1) is not None)


def _is_matrix(path: Path) -> bool:
    if not is_file(path):
        return False
    with path.open("rb") as file:
        found = file.read(len(MAGIC)) == MAGIC
    return found and isinstance(open_source(path), MatrixSource)


@contextmanager
def archive_of(paths: Sequence[PathLike], model: PathLike | None, **options: Any) -> Iterator[Path]:
    """Yield the path of a temporary archive of embeddings, encoded by a model.

    ``options`` are fields of :class:`~stochcl.api.compress.CompressOptions`.

    Raises
    ------
    UsageError
        If no model is named.
    SourceError
    """
    from stochcl.api.codec import Codec

    if model is None:
        raise UsageError(
            f"{escape_name(paths[0])}: these are embeddings; give the model that encodes them with -m, or "
            "compress them first."
        )
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        Codec(model).compress(list(paths), path, **options)
        try:
            yield path
        except StochclError as exc:
            raise type(exc)(str(exc).replace(escape_name(path), escape_name(paths[0]))) from exc


def evaluate_embeddings(
    paths: Sequence[PathLike], *, model: PathLike | None, test: PathLike | None = None,
    labels: PathLike | None = None, columns: Sequence[str] = (), vector_column: str | None = None,
    id_column: str | None = None, **options: Any,
) -> tuple[dict[str, Evaluation], dict[str, Any]]:  # fmt: skip
    """Encode embeddings, and train and score a probe of their codes, see :func:`evaluate_targets`.

    Labels come from ``columns`` of the table itself, or from ``labels``.
    """
    how: dict[str, Any] = {"column": vector_column, "id_column": id_column}
    files = [Path(path) for given in paths for path in expand(given)]
    own = labels is None and open_arrow(files[:1], takes=1) is not None
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
