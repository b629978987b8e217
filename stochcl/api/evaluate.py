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
from stochcl.api.options import EvaluateOptions, SelectOptions
from stochcl.compress import open_archive
from stochcl.errors import LabelsError, ModelMismatch, UsageError, option_name
from stochcl.files import check_output, replacing, writing
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import ArchiveBase, Header
    from stochcl.downstream import Evaluation
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
    labels: PathLike | None = None,
    column: str | None = None,
    level: int | None = None,
    tables: Where = (),
    force: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Choose latents for a task by :class:`stochcl.downstream.LatentSelector`, and write which as JSON.

    The labels of all rows are used: to score what is chosen, keep the images to score on in another archive.

    Parameters
    ----------
    path, output : path-like
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    column : str, optional
        Which column of it.
    level : int, optional
        Which folder of a name is its label.
    tables : iterable of Tables or path-like
    force : bool
        Replace an existing output.
    **options
        Fields of :class:`~stochcl.api.options.SelectOptions`: ``latents``, how many, and ``task``.

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

    asked = SelectOptions(**options)
    check_label_options(labels, [column], level)
    output = Path(output)
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if asked.latents > header.latents:
            shown = plural(header.latents, "latent")
            raise UsageError(f"{escape_name(path)}: it has {shown}; {asked.latents:,} cannot be chosen.")
        y = labels_of(archive, path, labels, column, level, partial=True)
        with naming(labels or path):
            rows = labelled(archive.to_numpy(), y, asked.task, archive.names)
            rows.check_learnable()
        categorical = has_categories(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many classes with few rows
        found = LatentSelector(asked.latents, categorical=categorical).fit(rows.x, rows.y)
    numbers = range(header.latents) if header.selection is None else header.selection
    order = [int(numbers[column]) for column in found.order_]
    result = {
        "schema": "stochcl.select/0",
        "path": escape_name(path),
        "images": len(rows.y),
        "left_out": rows.left_out,
        "task": asked.task,
        "model": escape_name(header.model),
        "model_sha256": header.model_sha256,
        "latents": sorted(order),
        "order": order,
        "gains": [round(float(gain), 6) for gain in found.gains_],
    }
    with writing(output, "the selection"), replacing(output) as file:
        file.write(json.dumps(result).encode())
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
    save: PathLike | None = None,
    tables: Where = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
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
    save : path-like, optional
        Train on all rows (with ``test``, on those of ``path``) and write the probes there, for ``stochcl predict``.
    tables : iterable of Tables or path-like
        Where to look first for decoders that are not in the archives.
    progress : callable
        Told how many steps of how many are done: reading the archives, and each target.
    **options
        Fields of :class:`~stochcl.api.options.EvaluateOptions`: task, estimator, output, latents, folds, test_size,
        min_class, seed.

    Returns
    -------
    dict of str to Evaluation, dict
        By target; and what went in: archive, input, latents.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    asked, origin = EvaluateOptions(**options), _Labels(labels, tuple(columns), level)
    _check_request(test, origin, test_labels, groups, asked.test_size)
    if save is not None:
        downstream.check_savable(asked.estimator, asked.task)
    steps = max(1, len(columns)) + 1 + (save is not None)
    progress(0, steps)
    data = _read(path, test, origin, test_labels, groups, asked, tables)
    header, part = data.header, data.part
    progress(1, steps)
    facts = {
        "schema": "stochcl.evaluate/0",
        "path": escape_name(path),
        "images": len(part.x),
        "input": data.used,
        "latents": data.width,
        "model": escape_name(header.model),
        "labels_from": ", ".join(data.origins),
    }
    found: dict[str, Evaluation] = {}
    with naming(labels or path):
        for target in part.labels:
            found[target] = _score(data, target, asked, split_names=labels is None)
            progress(len(found) + 1, steps)
        if save is not None:
            _fit_all(data, asked).save(save)
            facts["saved"] = escape_name(save)
            progress(steps, steps)
    return found, facts


@dataclass(frozen=True)
class _Data:
    """What is trained and scored on: rows of one archive, and of ``other`` where that is scored on."""

    header: Header
    used: str
    width: int
    part: _Part
    other: _Part | None
    origins: list[str]
    notes: list[str]


def _read(
    path: PathLike,
    test: PathLike | None,
    labels: _Labels,
    test_labels: PathLike | None,
    groups: str | None,
    asked: EvaluateOptions,
    tables: Where,
) -> _Data:
    """Read the rows and labels of one archive, or of two on the latents that both have."""
    with open_archive(path, tables=tables) as archive:
        used, header, notes = input_of(archive, asked.output), archive.header, list[str]()
        if test is None:
            width, other = asked.latents or header.latents, None
            part = _part(archive, path, labels, used, asked.latents, groups)
        else:
            with open_archive(test, tables=tables) as unseen:
                _check_same_model(path, test, header, unseen.header)
                shown = escape_name(path), escape_name(test)
                width = common_width(header, unseen.header, shown, asked.latents)
                scored = replace(labels, path=labels_of_test(archive.names, unseen.names, labels.path, test_labels))
                part, other = _part(archive, path, labels, used, width), _part(unseen, test, scored, used, width)
                if asked.latents is None and header.latents != unseen.header.latents:
                    widths = f"{header.latents:,} and {unseen.header.latents:,}"
                    notes.append(f"the archives have {widths} latents; the first {width:,} of both are used")
        if asked.task == "classification":
            least = asked.min_class or (2 if test is None else 1)
            with naming(labels.path or path):
                rare = {target: rare_classes(y, least) for target, y in part.labels.items()}
            part, other = _without(part, rare), None if other is None else _without(other, rare)
            notes += [rare_note(names, least) for names in rare.values() if names]
        origins = [label_origin(labels.path, column, labels.level, archive) for column in labels.columns or (None,)]
    return _Data(header, used, width, part, other, origins, notes)


def _score(data: _Data, target: str, asked: EvaluateOptions, *, split_names: bool) -> Evaluation:
    """Train and score the probe of one target."""
    part, other, y = data.part, data.other, data.part.labels[target]
    how: dict[str, Any] = {"task": asked.task, "estimator": asked.estimator, "seed": asked.seed}
    if other is None:
        scores = downstream.evaluate(
            part.x, y, folds=asked.folds, test_size=asked.test_size, groups=part.groups, names=part.names,
            symbols=part.symbols, **how,
        )  # fmt: skip
    else:
        symbols = part.symbols, other.symbols
        scores = downstream.evaluate_split(part.x, y, other.x, other.labels[target], symbols=symbols, **how)
    warning = split_warning(y) if split_names and asked.task == "classification" else None
    return replace(scores, notes=(*scores.notes, *data.notes, *([warning] if warning else [])))


def _fit_all(data: _Data, asked: EvaluateOptions) -> downstream.SavedProbe:
    """Fit the probes of all targets to all rows."""
    header, part = data.header, data.part
    how: dict[str, Any] = {"task": asked.task, "estimator": asked.estimator, "seed": asked.seed}
    fitted = tuple(
        downstream.fit(part.x, y, target=target, names=part.names, **how) for target, y in part.labels.items()
    )
    selection = None if header.selection is None else tuple(header.selection)[: data.width]
    return downstream.SavedProbe(
        header.model, header.model_sha256, data.used, data.width, selection, fitted, header.tables_sha256
    )


def _check_request(
    test: PathLike | None,
    labels: _Labels,
    test_labels: PathLike | None,
    groups: str | None,
    test_size: float | None,
) -> None:
    """Refuse options that contradict each other."""
    check_label_options(labels.path, labels.columns, labels.level)
    if len(set(labels.columns)) != len(labels.columns):
        raise UsageError(f"a column is named twice by {option_name('--label-column', 'columns')}; name each once.")
    if test_labels is not None and (test is None or labels.path is None):
        raise UsageError("--test-labels needs --test and --labels; give all three.")
    if test is not None and test_size is not None:
        raise UsageError("--test and --test-size both say what to score on; give one of them.")
    if test is not None and groups is not None:
        raise UsageError("--groups says how one archive is split, and --test that another is scored on.")


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


def rare_note(names: set[str], least: int) -> str:
    """Say which classes were left out."""
    return f"{len(names):,} classes of fewer than {least} images were left out, such as {escape_name(min(names))}"


def rare_classes(labels: Sequence[str], least: int) -> set[str]:
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
