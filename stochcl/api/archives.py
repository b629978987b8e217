"""Verbs on archives, which need neither encoder nor torch: info, verify, decompress, evaluate."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stochcl import downstream
from stochcl.api.report import Report
from stochcl.compress import Archive
from stochcl.compress.export import export
from stochcl.data import printable, read_labels
from stochcl.errors import LabelsError, ModelMismatch, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from stochcl.compress import Tables
    from stochcl.downstream import Evaluation, Task

    Where = Iterable[Tables | str | os.PathLike[str]]


def info(path: str | os.PathLike[str], *, tables: Where = ()) -> Report:
    """Return the figures of an archive.

    Raises
    ------
    SourceError, FormatError
    """
    with Archive(path, tables=tables) as archive:
        return Report.of(archive, str(path))


def verify(
    path: str | os.PathLike[str],
    *,
    tables: Where = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Check every byte of an archive and return how many images and bytes were found right.

    Raises
    ------
    SourceError
        If it cannot be read.
    FormatError
        If anything is damaged.
    """
    with Archive(path, tables=tables) as archive:
        archive.verify(progress)
        return {
            "schema": "stochcl.verify/0",
            "path": printable(path),
            "images": len(archive),
            "bytes": archive.size,
            "ok": True,
        }


def salvage(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tables: Where = (),
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write what is intact of a damaged archive to another, see :func:`stochcl.compress.salvage.salvage`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.salvage import salvage as write

    done = write(path, output, tables=tables, force=force, progress=progress)
    return {
        "schema": "stochcl.verify/0",
        "path": printable(path),
        "salvaged": printable(done.path),
        "segments": done.segments,
        "images": done.rows,
        "recoded_images": done.recoded,
        "unchecked_images": done.unchecked,
        "bytes": done.bytes,
        "lost_images": done.rows_lost,
        "lost_bytes": [list(place) for place in done.lost],
        "tables": done.tables,
        "ok": done.complete,
    }


def repair(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Undo an interrupted append, see :func:`stochcl.compress.repair.repair`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.repair import repair as cut_back

    done = cut_back(path)
    return {
        "schema": "stochcl.verify/0",
        "path": printable(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "cut_bytes": done.cut,
        "ok": True,
    }


def decompress(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    tables: Where = (),
    force: bool = False,
) -> dict[str, Any]:
    """Decode an archive to a .npz, .npy, .csv or .parquet file, see :func:`stochcl.compress.export.export`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError, LabelsError
    """
    with Archive(path, tables=tables) as archive:
        given = None if labels is None else [str(label) for label in _labels(archive, path, labels)]
        done = export(archive, output, labels=given, force=force)
    return {
        "schema": "stochcl.decompress/0",
        "path": printable(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "holds": list(done.holds),
    }


def evaluate(
    path: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    column: str | None = None,
    task: Task = "classification",
    estimator: str = "auto",
    given: str = "auto",
    latents: int | None = None,
    folds: int = 5,
    test_size: float | None = None,
    seed: int = 0,
    tables: Where = (),
) -> tuple[Evaluation, dict[str, Any]]:
    """Train a probe on an archive's decoded codes and score it.

    Parameters
    ----------
    path : path-like
        The archive; cross-validated, or split, or the training rows where ``test`` is given.
    test : path-like, optional
        An archive of the same model to score on.
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    column : str, optional
        Which column of the CSV, if there are several.
    task, estimator, folds, test_size, seed
        See :func:`stochcl.downstream.evaluate`.
    given : str
        symbols, vectors, or auto: vectors where the model has a vector decoder.
    latents : int, optional
        Use this prefix of the codes.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archives.

    Returns
    -------
    Evaluation, dict
        The dict says what went in: archive, input, latents.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch
    """
    if column is not None and labels is None:
        raise UsageError("--column says which column of a CSV file; give that file with --labels.")
    if test is not None and test_size is not None:
        raise UsageError("--test and --test-size both say what to score on; give one of them.")
    with Archive(path, tables=tables) as archive:
        used = _input(archive, given)
        x, y = _rows(archive, used, latents), _labels(archive, path, labels, column)
        facts = {
            "schema": "stochcl.evaluate/0",
            "path": printable(path),
            "images": len(archive),
            "input": used,
            "latents": latents or archive.header.latents,
            "model": printable(archive.header.model),
        }
        model, names = archive.header.model_sha256, archive.names
    if test is None:
        with _naming(labels or path):
            return downstream.evaluate(
                x, y, task=task, estimator=estimator, seed=seed, folds=folds, test_size=test_size, names=names
            ), facts
    with Archive(test, tables=tables) as archive:
        if archive.header.model_sha256 != model:
            raise ModelMismatch(f"{printable(test)}: this archive was made by another model than {printable(path)}.")
        x_test, y_test = _rows(archive, used, latents), _labels(archive, test, labels, column)
    with _naming(labels or path):
        return downstream.evaluate_split(x, y, x_test, y_test, task=task, estimator=estimator, seed=seed), facts


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file that labels came from before what is wrong with them."""
    try:
        yield
    except LabelsError as exc:
        raise LabelsError(f"{printable(path)}: {exc}") from exc


def _input(archive: Archive, given: str) -> str:
    if given == "auto":
        return "vectors" if archive.has_decoder else "symbols"
    return given


def _rows(archive: Archive, used: str, latents: int | None) -> NDArray[Any]:
    return archive.to_vectors(latents) if used == "vectors" else archive.to_numpy(latents)


def _labels(
    archive: Archive,
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    column: str | None = None,
) -> tuple[str, ...]:
    """Return a label for every row: from the CSV, or from the archive."""
    shown = printable(path)
    if archive.names is None and (labels is not None or archive.labels is None):
        raise LabelsError(f"{shown}: its rows have no names to find labels by (--no-names?); compress with names.")
    if labels is not None and archive.names is not None:
        return read_labels(labels).match(archive.names, column)
    if archive.labels is None:
        raise LabelsError(f"{shown}: it has no labels, for its images lie in no folders; give them with --labels.")
    return tuple(archive.labels)
