"""Answers of a saved probe for the images of an archive."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl import downstream
from stochcl.codes import folder_label
from stochcl.compress import open_archive
from stochcl.data import read_labels
from stochcl.downstream import load
from stochcl.errors import LabelsError, ModelMismatch, OutputError, UsageError
from stochcl.files import check_output, replacing
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import ArchiveBase, Header
    from stochcl.downstream import Evaluation, Fitted, SavedProbe, Task
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]

_SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"])


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put the file that labels came from before what is wrong with them."""
    try:
        yield
    except LabelsError as exc:
        raise LabelsError(f"{escape_name(path)}: {exc}") from exc


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


def labels_of(
    archive: ArchiveBase,
    path: PathLike,
    labels: PathLike | None,
    column: str | None = None,
    level: int | None = None,
    *,
    partial: bool = False,
) -> tuple[str, ...]:
    """Return a label for every row: from the CSV, from a folder of its name, or as the archive has it.

    Raises
    ------
    LabelsError
        If there are none, or a row has none in the CSV (with ``partial``, most rows).
    """
    shown = escape_name(path)
    by_name = labels is not None or level is not None
    if archive.names is None and (by_name or archive.labels is None):
        raise LabelsError(f"{shown}: its rows have no names to find labels by (--no-names?); compress with names.")
    if labels is not None and archive.names is not None:
        return read_labels(labels).match(archive.names, column, partial=partial)
    if level is not None and archive.names is not None:
        found = tuple(folder_label(name, level) for name in archive.names)
        if not any(found):
            raise LabelsError(f"{shown}: no name has a folder at --label-level {level}; its images lie less deep.")
        return found
    if archive.labels is None:
        raise LabelsError(f"{shown}: it has no labels, for its images lie in no folders; give them with --labels.")
    return tuple(archive.labels)


def check_label_options(labels: PathLike | None, columns: Iterable[str | None], level: int | None) -> None:
    """Refuse options that say two things of where labels come from.

    Raises
    ------
    UsageError
    """
    if labels is None and any(column is not None for column in columns):
        raise UsageError("--label-column says which column of a CSV file; give that file with --labels.")
    if labels is not None and level is not None:
        raise UsageError("--labels and --label-level both say what the label is; give one of them.")
    if level == 0:
        raise UsageError("--label-level counts folders from 1, the outermost, or from -1, the innermost; not 0.")


def told_source(labels: PathLike | None, column: str | None, level: int | None, archive: ArchiveBase) -> str:
    """Say where labels come from, for people."""
    if labels is not None:
        which = f"column {escape_name(column)}" if column else f"column {escape_name(read_labels(labels).columns[0])}"
        return f"{which} of {escape_name(labels)}"
    if level is None and archive._stored("labels"):
        return "stored in the archive"
    return f"folder {level or 1} of each name"


def split_warning(classes: Iterable[object]) -> str | None:
    """Return a warning where classes are the names of splits, as in ``train/cat``, ``val/cat``."""
    found = sorted({str(c) for c in classes if c is not None and str(c)})
    if len(found) < 2 or not all(name.lower() in _SPLITS for name in found):
        return None
    return (
        f"the classes are {', '.join(found)}, which are names of splits; if the class is the next folder, "
        "pass --label-level 2"
    )


def labels_of_test(
    train: Iterable[str] | None, test: Iterable[str] | None, labels: PathLike | None, test_labels: PathLike | None
) -> PathLike | None:
    """Return the CSV of the test rows: the one given for them, else the common one, if it tells the rows apart.

    Raises
    ------
    UsageError
        If one CSV is for both, and a name in it is that of a training row and of a test row.
    """
    if test_labels is not None or labels is None:
        return test_labels or labels
    both = sorted(set(train or ()) & set(test or ()))
    if both:
        raise UsageError(
            f"{escape_name(labels)}: {len(both):,} names, such as {escape_name(both[0])}, are those of training and of "
            "test images, so that one file cannot label both; give the labels of the test images with --test-labels."
        )
    return labels


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


def groups_of(archive: ArchiveBase, path: PathLike, groups: str, labels: PathLike | None) -> tuple[str, ...]:
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


def predict(
    path: PathLike,
    probe: PathLike,
    output: PathLike,
    *,
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Write what a saved probe answers for each image to a CSV file.

    Its columns are ``name`` (the row's number, where an archive has no names), one a target, and after each target of
    classes, where the estimator has them, their probabilities, ``p(class)``; of several targets ``target p(class)``.

    Parameters
    ----------
    path : path-like
        An archive of the model that the probe was fitted on, of as many latents or more.
    probe : path-like
        What ``stochcl evaluate --save`` wrote.
    output : path-like
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archive.
    force : bool
        Replace an existing output.

    Raises
    ------
    ModelMismatch
        If the archive is of another model, or holds other latents of it.
    SourceError, FormatError, UsageError, OutputError
    """
    output = Path(output)
    check_output(output, Path(path), force=force)
    saved = load(probe)
    with open_archive(path, tables=tables) as archive:
        _check_suits(archive.header, saved, path, probe)
        x = rows_of(archive, saved.given, saved.latents)
        names = archive.names or [str(i) for i in range(len(archive))]
    if x.dtype.kind != "f":
        x = x.astype(np.float32)  # as in training
    columns: dict[str, Any] = {"name": names}
    for target in saved.targets:
        columns |= _answers(target, x, alone=len(saved.targets) == 1)
    _write(output, columns)
    return {
        "schema": "stochcl.predict/0",
        "path": escape_name(path),
        "probe": escape_name(probe),
        "output": escape_name(output),
        "images": len(x),
        "targets": [_said(target) for target in saved.targets],
        "columns": [escape_name(name) for name in columns],
    }


def _said(target: Fitted) -> dict[str, Any]:
    return {
        "target": target.target,
        "task": target.task,
        "estimator": target.estimator,
        "trained_on": target.rows,
        "classes": [escape_name(name) for name in target.classes],
    }


def _check_suits(header: Header, saved: SavedProbe, path: PathLike, probe: PathLike) -> None:
    """Refuse an archive whose rows are not what the probe was fitted on."""
    shown, of = escape_name(path), escape_name(probe)
    if header.model_sha256 != saved.model_sha256:
        raise ModelMismatch(
            f"{shown}: it was made by the model {escape_name(header.model)} ({header.model_sha256[:12]}), and {of} was "
            f"fitted on codes of {escape_name(saved.model)} ({saved.model_sha256[:12]}); fit it on codes of this model."
        )
    if saved.given == "vectors" and saved.tables_sha256 not in (None, header.tables_sha256):
        raise ModelMismatch(
            f"{shown}: its vectors are decoded by other tables ({header.tables_sha256[:12]}) than those that {of} "
            f"was fitted on ({str(saved.tables_sha256)[:12]}); fit it on such vectors, or on symbols."
        )
    there = None if header.selection is None else tuple(header.selection)
    if header.latents < saved.latents:
        raise UsageError(f"{shown}: it has {header.latents:,} latents, and {of} was fitted on {saved.latents:,}.")
    if (None if there is None else there[: saved.latents]) != saved.selection:
        raise ModelMismatch(f"{shown}: it holds other latents than those that {of} was fitted on.")


def _answers(target: Fitted, x: NDArray[Any], *, alone: bool) -> dict[str, Any]:
    if not len(x):
        return {target.target: []}
    columns: dict[str, Any] = {target.target: target.predict(x).tolist()}
    shares = target.probabilities(x)
    if shares is not None:
        start = "" if alone else f"{target.target} "
        columns |= {f"{start}p({name})": shares[:, i].tolist() for i, name in enumerate(target.classes)}
    return columns


def _write(output: Path, columns: dict[str, Any]) -> None:
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    for cells in zip(*columns.values(), strict=True):
        out.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])
    try:
        with replacing(output) as file:
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as exc:
        raise OutputError(f"{escape_name(output)}: the predictions cannot be written: {os_reason(exc)}.") from exc


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
    from stochcl.downstream.evaluation import labelled

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
    given: str = "auto",
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
    _check_request(test, labels, test_labels, columns, level, groups, test_size)
    if save is not None:
        downstream.check_savable(estimator, task)
    with open_archive(path, tables=tables) as archive:
        used = input_of(archive, given)
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
                f"{len(names):,} classes of fewer than {least} images were left out, such as {escape_name(min(names))}"
                for names in rare.values()
                if names
            ]
        told = [told_source(labels, column, level, archive) for column in columns or (None,)]
    facts = {
        "schema": "stochcl.evaluate/0",
        "path": escape_name(path),
        "images": len(part.x),
        "input": used,
        "latents": width,
        "model": escape_name(header.model),
        "labels_from": ", ".join(told),
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
