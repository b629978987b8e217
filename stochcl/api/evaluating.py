"""Probes on archives: scored on images that they have not seen, and saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stochcl import downstream
from stochcl.api.targets import groups_of, input_of, labels_of, naming, rows_of
from stochcl.compress import open_archive
from stochcl.data import printable
from stochcl.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import Rows, Tables
    from stochcl.downstream import Evaluation, Task

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]


@dataclass(frozen=True)
class _Part:
    """An archive's rows: what a probe is given, their symbols, and labels by target."""

    x: NDArray[Any]
    symbols: NDArray[Any]
    labels: dict[str, tuple[str, ...]]
    names: Sequence[str] | None
    groups: tuple[str, ...] | None


def evaluate(path: PathLike, *, column: str | None = None, **options: Any) -> tuple[Evaluation, dict[str, Any]]:
    """Train a probe on an archive's decoded codes and score it, for one target.

    Returns
    -------
    Evaluation, dict
        The dict says what went in: archive, input, latents. All else as :func:`evaluate_targets`.
    """
    found, facts = evaluate_targets(path, columns=() if column is None else (column,), **options)
    return next(iter(found.values())), facts


def evaluate_targets(
    path: PathLike,
    *,
    test: PathLike | None = None,
    labels: PathLike | None = None,
    columns: Sequence[str] = (),
    groups: str | None = None,
    task: Task = "classification",
    estimator: str = "auto",
    given: str = "auto",
    latents: int | None = None,
    folds: int = 5,
    test_size: float | None = None,
    seed: int = 0,
    save: PathLike | None = None,
    tables: Where = (),
) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """Train a probe for each target on an archive's decoded codes, and score them.

    Parameters
    ----------
    path : path-like
        The archive; cross-validated, or split, or the training rows where ``test`` is given.
    test : path-like, optional
        An archive of the same model to score on.
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    columns : sequence of str
        Which columns of the CSV, a target each; by default the first.
    groups : str, optional
        A CSV file ``name,group``, or a column of ``labels``; rows of a group are never both trained and scored on.
    task, estimator, folds, test_size, seed
        See :func:`stochcl.downstream.evaluate`.
    given : str
        symbols, vectors, or auto: vectors where the model has a vector decoder.
    latents : int, optional
        Use this prefix of the codes.
    save : path-like, optional
        Train on all rows (with ``test``, on those of ``path``) and write the probes there, for ``stochcl predict``.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archives.

    Returns
    -------
    dict of str to Evaluation, dict
        By target; and what went in: archive, input, latents.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    _check_request(test, labels, columns, groups, test_size)
    if save is not None:
        downstream.check_savable(estimator, task)
    with open_archive(path, tables=tables) as archive:
        used = input_of(archive, given)
        part = _part(archive, path, labels, columns, used, latents, groups)
        header = archive.header
    facts = {
        "schema": "stochcl.evaluate/0",
        "path": printable(path),
        "images": len(part.x),
        "input": used,
        "latents": latents or header.latents,
        "model": printable(header.model),
    }
    how: dict[str, Any] = {"task": task, "estimator": estimator, "seed": seed}
    found: dict[str, Evaluation] = {}
    if test is None:
        for target, y in part.labels.items():
            with naming(labels or path):
                found[target] = downstream.evaluate(
                    part.x, y, folds=folds, test_size=test_size, groups=part.groups, names=part.names,
                    symbols=part.symbols, **how,
                )  # fmt: skip
    else:
        other = _test_part(test, path, header.model_sha256, labels, columns, used, latents, tables)
        for target, y in part.labels.items():
            with naming(labels or path):
                both = None if part.symbols.shape[1] != other.symbols.shape[1] else (part.symbols, other.symbols)
                found[target] = downstream.evaluate_split(
                    part.x, y, other.x, other.labels[target], symbols=both, **how
                )
    if save is not None:
        with naming(labels or path):
            fitted = tuple(
                downstream.fit(part.x, y, target=target, names=part.names, **how) for target, y in part.labels.items()
            )
        selection = None if header.selection is None else tuple(header.selection)[: latents or None]
        probe = downstream.SavedProbe(
            header.model, header.model_sha256, used, latents or header.latents, selection, fitted,
            header.tables_sha256,
        )  # fmt: skip
        probe.save(save)
        facts["saved"] = printable(save)
    return found, facts


def _check_request(
    test: PathLike | None,
    labels: PathLike | None,
    columns: Sequence[str],
    groups: str | None,
    test_size: float | None,
) -> None:
    """Refuse options that contradict each other."""
    if columns and labels is None:
        raise UsageError("--column says which column of a CSV file; give that file with --labels.")
    if len(set(columns)) != len(columns):
        raise UsageError("a column is named twice by --column; name each once.")
    if test is not None and test_size is not None:
        raise UsageError("--test and --test-size both say what to score on; give one of them.")
    if test is not None and groups is not None:
        raise UsageError("--groups says how one file of codes is split, and --test that another is scored on.")


def _part(
    archive: Rows,
    path: PathLike,
    labels: PathLike | None,
    columns: Sequence[str],
    used: str,
    latents: int | None,
    groups: str | None = None,
) -> _Part:
    by_target = {column: labels_of(archive, path, labels, column) for column in columns} or {
        "label": labels_of(archive, path, labels)
    }
    x = rows_of(archive, used, latents)
    symbols = x if used == "symbols" else archive.to_numpy(latents)
    of_groups = None if groups is None else groups_of(archive, path, groups, labels)
    return _Part(x, symbols, by_target, archive.names, of_groups)


def _test_part(
    test: PathLike,
    path: PathLike,
    model_sha256: str,
    labels: PathLike | None,
    columns: Sequence[str],
    used: str,
    latents: int | None,
    tables: Where,
) -> _Part:
    with open_archive(test, tables=tables) as archive:
        if archive.header.model_sha256 != model_sha256:
            raise ModelMismatch(f"{printable(test)}: this archive was made by another model than {printable(path)}.")
        return _part(archive, test, labels, columns, used, latents)
