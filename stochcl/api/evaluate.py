"""Training probes on an archive's codes and scoring them, and choosing latents for a task."""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import downstream
from stochcl.compress import open_archive
from stochcl.data import read_labels
from stochcl.errors import LabelsError, ModelMismatch, OutputError, UsageError
from stochcl.files import check_output, replacing
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import Rows
    from stochcl.downstream import Evaluation, Task
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put the file that labels came from before what is wrong with them."""
    try:
        yield
    except LabelsError as exc:
        raise LabelsError(f"{escape_name(path)}: {exc}") from exc


def input_of(archive: Rows, given: str) -> str:
    """Return ``vectors`` or ``symbols``; of auto, vectors where the model has a decoder."""
    if given == "auto":
        return "vectors" if archive.has_decoder else "symbols"
    return given


def rows_of(archive: Rows, used: str, latents: int | None) -> NDArray[Any]:
    """Return vectors or symbols, shape (N, V) or (N, D)."""
    return archive.to_vectors(latents) if used == "vectors" else archive.to_numpy(latents)


def has_categories(archive: Rows) -> bool:
    """Tell whether symbols are names rather than quantities: their model decodes them through codebooks."""
    return archive.header.alphabet > 2 and archive.decoder is not None and archive.decoder.codebooks is not None


def kind_of(archive: Rows) -> str:
    """Return what symbols are: ``bits``, ``categories``, or ``levels``, numbers in order."""
    if archive.header.alphabet == 2:
        return "bits"
    return "categories" if has_categories(archive) else "levels"


def labels_of(archive: Rows, path: PathLike, labels: PathLike | None, column: str | None = None) -> tuple[str, ...]:
    """Return a label for every row: from the CSV, or from the archive.

    Raises
    ------
    LabelsError
        If there are none, or a row has none in the CSV.
    """
    shown = escape_name(path)
    if archive.names is None and (labels is not None or archive.labels is None):
        raise LabelsError(f"{shown}: its rows have no names to find labels by (--no-names?); compress with names.")
    if labels is not None and archive.names is not None:
        return read_labels(labels).match(archive.names, column)
    if archive.labels is None:
        raise LabelsError(f"{shown}: it has no labels, for its images lie in no folders; give them with --labels.")
    return tuple(archive.labels)


def groups_of(archive: Rows, path: PathLike, groups: str, labels: PathLike | None) -> tuple[str, ...]:
    """Return a group for every row, from a CSV file ``name,group``, or else from a column of the labels' file.

    Raises
    ------
    LabelsError
        If there is neither such a file nor such a column, or a row is not in it, or its group is empty.
    """
    if Path(groups).is_file():
        table, found = groups, labels_of(archive, path, groups)
    elif labels is not None:
        table, found = str(labels), labels_of(archive, path, labels, groups)
    else:
        raise LabelsError(
            f"{escape_name(groups)}: there is no such file of groups; give a CSV file name,group, "
            "or a column of --labels."
        )
    empty = [i for i, group in enumerate(found) if not group.strip()]
    if empty:
        first = escape_name((archive.names or ())[empty[0]])
        raise LabelsError(
            f"{escape_name(table)}: {len(empty):,} of {len(found):,} images have an empty group, the first {first}; "
            "give every image one."
        )
    return found


def select(
    path: PathLike,
    output: PathLike,
    *,
    latents: int,
    labels: PathLike | None = None,
    column: str | None = None,
    task: Task = "classification",
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Choose latents for a task by :class:`stochcl.downstream.LatentSelector`, and write which as JSON.

    The labels of all rows are used: to score what is chosen, keep the images to score on in another archive.

    Parameters
    ----------
    path, output : path-like
    latents : int
        K, how many.
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    column : str, optional
        Which column of it.
    task : str
        classification or regression.
    tables : iterable of Tables or path-like
    force : bool
        Replace an existing output.

    Returns
    -------
    dict
        What was written: ``latents``, numbers of the model's, from 0, ascending; and ``order``, the best first.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, OutputError
    """
    from stochcl.downstream import LatentSelector
    from stochcl.downstream.evaluation import labelled

    if column is not None and labels is None:
        raise UsageError("--column says which column of a CSV file; give that file with --labels.")
    output = Path(output)
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if not 1 <= latents <= header.latents:
            raise UsageError(f"{escape_name(path)}: it has {header.latents:,} latents; {latents:,} cannot be chosen.")
        y = labels_of(archive, path, labels, column)
        with naming(labels or path):
            rows = labelled(archive.to_numpy(), y, task, archive.names)
            rows.check_learnable()
        categorical = has_categories(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many classes with few rows
        found = LatentSelector(latents, categorical=categorical).fit(rows.x, rows.y)
    numbers = range(header.latents) if header.selection is None else header.selection
    order = [int(numbers[column]) for column in found.order_]
    result = {
        "schema": "stochcl.select/0",
        "path": escape_name(path),
        "images": len(rows.y),
        "left_out": rows.left_out,
        "task": task,
        "model": escape_name(header.model),
        "model_sha256": header.model_sha256,
        "latents": sorted(order),
        "order": order,
        "gains": [round(float(gain), 6) for gain in found.gains_],
    }
    try:
        with replacing(output) as file:
            file.write(json.dumps(result).encode())
    except OSError as exc:
        raise OutputError(f"{escape_name(output)}: the selection cannot be written: {os_reason(exc)}.") from exc
    return result


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
    output: str = "auto",
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
    output : str
        What the estimator reads: symbols, vectors, or auto: vectors where the model has a vector decoder.
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
        used = input_of(archive, output)
        part = _part(archive, path, labels, columns, used, latents, groups)
        header = archive.header
    facts = {
        "schema": "stochcl.evaluate/0",
        "path": escape_name(path),
        "images": len(part.x),
        "input": used,
        "latents": latents or header.latents,
        "model": escape_name(header.model),
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
        facts["saved"] = escape_name(save)
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
            raise ModelMismatch(
                f"{escape_name(test)}: this archive was made by another model than {escape_name(path)}."
            )
        return _part(archive, test, labels, columns, used, latents)
