"""Training probes on an archive's codes and scoring them, and choosing latents for a task."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import downstream
from stochcl.api.labels import (
    check_label_options,
    groups_of,
    label_origin,
    labels_of,
    labels_of_test,
    naming,
    split_warning,
)
from stochcl.compress import open_archive
from stochcl.errors import LabelsError, ModelMismatch, OutputError, UsageError
from stochcl.files import check_output, replacing
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import ArchiveBase, Header
    from stochcl.downstream import Evaluation, Task
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]


def input_of(archive: ArchiveBase, given: str) -> str:
    """Return ``vectors`` or ``symbols``; of auto, vectors where the model has a decoder."""
    if given == "auto":
        return "vectors" if archive.has_decoder else "symbols"
    return given


def rows_of(archive: ArchiveBase, used: str, latents: int | None) -> NDArray[Any]:
    """Return vectors or symbols, shape (N, V) or (N, D)."""
    return archive.to_vectors(latents) if used == "vectors" else archive.to_numpy(latents)


def has_categories(archive: ArchiveBase) -> bool:
    """Tell whether symbols are names rather than quantities: their model decodes them through codebooks."""
    return archive.header.alphabet > 2 and archive.decoder is not None and archive.decoder.codebooks is not None


def kind_of(archive: ArchiveBase) -> str:
    """Return what symbols are: ``bits``, ``categories``, or ``levels``, numbers in order."""
    if archive.header.alphabet == 2:
        return "bits"
    return "categories" if has_categories(archive) else "levels"


def common_width(header: Header, test: Header, shown: Sequence[str], latents: int | None) -> int:
    """Return how many latents two archives of one model are compared on: those of the narrower, or ``latents``.

    Raises
    ------
    UsageError
        If one holds latents that the other lacks, or fewer than ``latents``.
    """
    width = latents or min(header.latents, test.latents)
    for one, name in zip((header, test), shown, strict=True):
        if one.latents < width:
            raise UsageError(f"{name}: it has {one.latents:,} latents, not {width:,}.")
    ours, theirs = ((one.selection or tuple(range(one.latents)))[:width] for one in (header, test))
    if tuple(ours) != tuple(theirs):
        raise UsageError(
            f"{shown[1]}: it holds other latents of the model than {shown[0]}; make both with the same --select."
        )
    return width


def select(
    path: PathLike,
    output: PathLike,
    *,
    latents: int,
    labels: PathLike | None = None,
    column: str | None = None,
    level: int | None = None,
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
    level : int, optional
        Which folder of a name is its label.
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
    from stochcl.downstream.labelled import labelled

    check_label_options(labels, [column], level)
    output = Path(output)
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if not 1 <= latents <= header.latents:
            raise UsageError(f"{escape_name(path)}: it has {header.latents:,} latents; {latents:,} cannot be chosen.")
        y = labels_of(archive, path, labels, column, level, partial=True)
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
    test_labels: PathLike | None = None,
    columns: Sequence[str] = (),
    level: int | None = None,
    groups: str | None = None,
    task: Task = "classification",
    estimator: str = "auto",
    output: str = "auto",
    latents: int | None = None,
    folds: int = 5,
    test_size: float | None = None,
    min_class: int | None = None,
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
    test_labels : path-like, optional
        The same for the rows of ``test``; by default ``labels``, if no name is in both archives.
    columns : sequence of str
        Which columns of the CSV, a target each; by default the first.
    level : int, optional
        Which folder of a name is its label: 1 the first, -1 the one that the image lies in.
    groups : str, optional
        A CSV file ``name,group``, or a column of ``labels``; rows of a group are never both trained and scored on.
    task, estimator, folds, test_size, seed
        See :func:`stochcl.downstream.evaluate`.
    min_class : int, optional
        Leave out classes of fewer images, and say so; 2 in a cross-validation, which can do nothing with one image.
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
    _check_request(test, labels, test_labels, columns, level, groups, test_size)
    if save is not None:
        downstream.check_savable(estimator, task)
    with open_archive(path, tables=tables) as archive:
        used = input_of(archive, output)
        header, notes = archive.header, list[str]()
        from_where = _Labels(labels, tuple(columns), level)
        if test is None:
            width, other = latents or header.latents, None
            part = _part(archive, path, from_where, used, latents, groups)
        else:
            with open_archive(test, tables=tables) as unseen:
                _check_same_model(path, test, header, unseen.header)
                width = common_width(header, unseen.header, (escape_name(path), escape_name(test)), latents)
                scored = replace(from_where, path=labels_of_test(archive.names, unseen.names, labels, test_labels))
                part, other = (
                    _part(archive, path, from_where, used, width),
                    _part(unseen, test, scored, used, width),
                )
                if latents is None and header.latents != unseen.header.latents:
                    widths = f"{header.latents:,} and {unseen.header.latents:,}"
                    notes.append(f"the archives have {widths} latents; the first {width:,} of both are used")
        if task == "classification":
            least = min_class or (2 if test is None else 1)
            with naming(labels or path):
                rare = {target: _rare(y, least) for target, y in part.labels.items()}
            part, other = _without(part, rare), None if other is None else _without(other, rare)
            notes += [
                f"{len(names):,} classes of fewer than {least} images were left out, "
                f"such as {escape_name(min(names))}"
                for names in rare.values()
                if names
            ]
        origins = [label_origin(labels, column, level, archive) for column in columns or (None,)]
    facts = {
        "schema": "stochcl.evaluate/0",
        "path": escape_name(path),
        "images": len(part.x),
        "input": used,
        "latents": width,
        "model": escape_name(header.model),
        "labels_from": ", ".join(origins),
    }
    how: dict[str, Any] = {"task": task, "estimator": estimator, "seed": seed}
    found: dict[str, Evaluation] = {}
    for target, y in part.labels.items():
        with naming(labels or path):
            if other is None:
                scores = downstream.evaluate(
                    part.x, y, folds=folds, test_size=test_size, groups=part.groups, names=part.names,
                    symbols=part.symbols, **how,
                )  # fmt: skip
            else:
                scores = downstream.evaluate_split(
                    part.x, y, other.x, other.labels[target], symbols=(part.symbols, other.symbols), **how
                )
        warning = split_warning(y) if labels is None and task == "classification" else None
        found[target] = replace(scores, notes=(*scores.notes, *notes, *([warning] if warning else [])))
    if save is not None:
        with naming(labels or path):
            fitted = tuple(
                downstream.fit(part.x, y, target=target, names=part.names, **how) for target, y in part.labels.items()
            )
        selection = None if header.selection is None else tuple(header.selection)[:width]
        probe = downstream.SavedProbe(
            header.model, header.model_sha256, used, width, selection, fitted, header.tables_sha256
        )
        probe.save(save)
        facts["saved"] = escape_name(save)
    return found, facts


def _check_request(
    test: PathLike | None,
    labels: PathLike | None,
    test_labels: PathLike | None,
    columns: Sequence[str],
    level: int | None,
    groups: str | None,
    test_size: float | None,
) -> None:
    """Refuse options that contradict each other."""
    check_label_options(labels, columns, level)
    if len(set(columns)) != len(columns):
        raise UsageError("a column is named twice by --label-column; name each once.")
    if test_labels is not None and (test is None or labels is None):
        raise UsageError("--test-labels stands beside --test and --labels; give all three.")
    if test is not None and test_size is not None:
        raise UsageError("--test and --test-size both say what to score on; give one of them.")
    if test is not None and groups is not None:
        raise UsageError("--groups says how one file of codes is split, and --test that another is scored on.")


@dataclass(frozen=True)
class _Labels:
    """Where labels come from: a CSV and its columns, or a folder of the names."""

    path: PathLike | None
    columns: tuple[str, ...]
    level: int | None


def _part(
    archive: ArchiveBase, path: PathLike, labels: _Labels, used: str, latents: int | None, groups: str | None = None
) -> _Part:
    by_target = {
        column: labels_of(archive, path, labels.path, column, partial=True) for column in labels.columns
    } or {"label": labels_of(archive, path, labels.path, level=labels.level, partial=True)}
    x = rows_of(archive, used, latents)
    symbols = x if used == "symbols" else archive.to_numpy(latents)
    of_groups = None if groups is None else groups_of(archive, path, groups, labels.path)
    return _Part(x, symbols, by_target, archive.names, of_groups)


def _rare(labels: Sequence[str], least: int) -> set[str]:
    """Return the classes that fewer images have; LabelsError where all of them are such."""
    counts = {label: count for label, count in Counter(labels).items() if label.strip()}
    rare = {label for label, count in counts.items() if count < least}
    if rare and len(rare) == len(counts):
        raise LabelsError(f"none of the {len(counts):,} classes has {least} images or more; give other labels.")
    return rare


def _without(part: _Part, rare: dict[str, set[str]]) -> _Part:
    """Take the labels of rare classes away."""
    labels = {
        target: tuple("" if label in rare[target] else label for label in y) if rare[target] else y
        for target, y in part.labels.items()
    }
    return replace(part, labels=labels)


def _check_same_model(path: PathLike, test: PathLike, header: Header, other: Header) -> None:
    if other.model_sha256 != header.model_sha256:
        raise ModelMismatch(f"{escape_name(test)}: this archive was made by another model than {escape_name(path)}.")
