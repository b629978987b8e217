"""Train and score probes on an archive's codes, and select latents for a task."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl import downstream
from stochcl.api.labels import LabelSource, groups_of, labels_of_test, naming, split_warning
from stochcl.compress import ArchiveBase, Header, open_archive
from stochcl.compress.header import Embedder, check_embedder
from stochcl.entropy.model import code_lengths
from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import LabelsError, ModelMismatch, UsageError, option_name
from stochcl.files import PathLike, check_output, is_same_file, write_file
from stochcl.messages import Progress, escape_name, plural
from stochcl.options import Options, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.downstream import Evaluation, Task
    from stochcl.entropy.tables import Where


TASKS = ("classification", "regression")
OUTPUTS = ("auto", "symbols", "vectors")


@dataclass(frozen=True)
class SelectOptions(Options):
    """Which latents to choose."""

    latents: int = option(None, "How many latents to choose.", at_least=1, unit="K", required=True)
    task: Task = option("classification", "What the labels are.", choices=TASKS)


@dataclass(frozen=True)
class ProbeOptions(Options):
    """The input of a probe, and its scoring."""

    estimator: str = option(
        "auto", "logistic, svm, knn or boosting; ridge, knn or boosting for regression; or a scikit-learn class's "
        "path.", unit="NAME",
    )  # fmt: skip
    output: str = option(
        "auto", "What the estimator reads; auto: vectors if the model has a decoder.", choices=OUTPUTS,
        flags=("--input",),
    )  # fmt: skip
    latents: int | None = option(None, "Use the first K latents.", at_least=1, unit="K", shown="all")
    folds: int = option(5, "Folds of the cross-validation.", at_least=2)
    seed: int = option(0, "Random seed.", at_least=0)


@dataclass(frozen=True)
class EvaluateOptions(ProbeOptions):
    """How to train and score a probe."""

    task: Task = option("classification", "What the labels are.", choices=TASKS)
    test_size: float | None = option(None, "Hold out this fraction, in place of folds.", more_than=0, less_than=1)
    min_class: int | None = option(
        None, "Leave out classes of fewer than N rows.", at_least=1, unit="N", shown="2 in a cross-validation"
    )


def rows_of(archive: ArchiveBase, used: str, latents: int | None) -> NDArray[Any]:
    """Return vectors or symbols, shape (N, V) or (N, D)."""
    return archive.to_vectors(latents) if used == "vectors" else archive.to_numpy(latents)


def has_categories(archive: ArchiveBase) -> bool:
    """Return whether symbols are categories rather than quantities: the model decodes them with codebooks."""
    return archive.header.alphabet > 2 and archive.decoder is not None and archive.decoder.codebooks is not None


def kind_of(archive: ArchiveBase) -> str:
    """Return the kind of symbols: ``bits``, ``categories``, or ``levels``, which are ordered numbers."""
    if archive.header.alphabet == 2:
        return "bits"
    return "categories" if has_categories(archive) else "levels"


@dataclass(frozen=True, eq=False)
class ProbeRows:
    """An archive's rows: the probe's input, the symbols, and labels by target.

    ``lengths`` are the bits of each row under the model, if asked for.
    """

    path: PathLike
    x: NDArray[Any]
    symbols: NDArray[Any]
    names: Sequence[str] | None
    uncertainty: NDArray[np.float32] | None
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[str, ...] | None = None
    lengths: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, archive: ArchiveBase, path: PathLike, used: str, latents: int, labels: LabelSource | None = None,
        groups: str | None = None, *, lengths: bool = False,
    ) -> ProbeRows:  # fmt: skip
        """Read the first latents of an open archive's rows."""
        by_target = {} if labels is None else labels.read(archive, path)
        of_groups = None if labels is None or groups is None else groups_of(archive, path, groups, labels.path)
        x = rows_of(archive, used, latents)
        symbols = x if used == "symbols" else archive.to_numpy(latents)
        bits = code_bits(archive, latents) if lengths else None
        return cls(path, x, symbols, archive.names, archive.uncertainty, by_target, of_groups, bits)

    def without(self, rare: dict[str, set[str]]) -> ProbeRows:
        """Remove the labels of rare classes."""
        labels = {
            target: tuple("" if label in rare[target] else label for label in y) if rare[target] else y
            for target, y in self.labels.items()
        }
        return replace(self, labels=labels)


def code_bits(archive: ArchiveBase, latents: int) -> NDArray[np.float32]:
    """Return the bits of the first latents of each row under the model, shape (N,)."""
    selection = archive.header.selection and archive.header.selection[:latents]
    # Always the tables' model, not the segments' own, so that rows of different archives compare.
    model = archive.tables.candidates(latents, selection)[-1].model
    parts = [code_lengths(codes.prefix(latents), model) for codes in archive.iter_codes()]
    return np.concatenate([np.zeros(0, np.float32), *parts])


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Data for training and scoring: rows of one archive, and of ``test`` if that is scored on."""

    header: Header
    used: str
    width: int
    train: ProbeRows
    test: ProbeRows | None
    labels: LabelSource
    origin: str
    notes: list[str]


def read_data(
    path: PathLike, test: PathLike | None, labels: LabelSource, test_labels: PathLike | None, asked: ProbeOptions,
    tables: Where, *, groups: str | None = None, task: Task = "classification", min_class: int | None = None,
    lengths: bool = False,
) -> ProbeData:  # fmt: skip
    """Read the rows and labels of one archive, or of two on their common latents."""
    if test_labels is not None and (test is None or labels.path is None):
        raise UsageError("--test-labels needs --test and --labels; give all three.")
    notes, other = list[str](), None
    with open_archive(path, tables=tables) as archive:
        used = ("vectors" if archive.has_decoder else "symbols") if asked.output == "auto" else asked.output
        header, origin = archive.header, labels.origin(archive)
        if test is None:
            width = asked.latents or header.latents
            rows = ProbeRows.of(archive, path, used, width, labels, groups, lengths=lengths)
        else:
            with open_archive(test, tables=tables) as unseen:
                width = common_width(header, unseen.header, (escape_name(path), escape_name(test)), asked.latents)
                scored = replace(labels, path=labels_of_test(archive.names, unseen.names, labels.path, test_labels))
                rows = ProbeRows.of(archive, path, used, width, labels, lengths=lengths)
                other = ProbeRows.of(unseen, test, used, width, scored, lengths=lengths)
                if is_same_file(path, test):
                    notes.append("the rows scored on are the training rows, so the score is too high")
                notes += arithmetic_notes(unseen.header, test, header, path)
                if asked.latents is None and header.latents != unseen.header.latents:
                    widths = f"{header.latents:,} and {unseen.header.latents:,}"
                    notes.append(f"the archives have {widths} latents; the first {width:,} of both are used")
    if task == "classification":
        least = min_class or (2 if test is None else 1)
        with naming(labels.path or path):
            rare = {target: rare_classes(y, least) for target, y in rows.labels.items()}
        rows, other = rows.without(rare), other and other.without(rare)
        notes += [
            f"classes of fewer than {least} rows count as unlabelled: {len(names):,} of them, such as "
            f"{escape_name(min(names))}"
            for names in rare.values() if names
        ]  # fmt: skip
    return ProbeData(header, used, width, rows, other, labels, origin, notes)


def arithmetic_notes(
    header: Header, path: PathLike, fitted: Header | downstream.SavedProbe, than: PathLike
) -> list[str]:
    """Return a warning if rows were encoded at another precision, runtime or size than those of ``than``."""
    sizes = tuple(f"{one.size} pixels" if one.size else "" for one in (header, fitted))
    pairs = (header.precision, fitted.precision), (header.runtime, fitted.runtime), sizes
    # Old files do not say.
    differ = [pair for pair in pairs if all(pair) and "mixed" not in pair and len(set(pair)) > 1]
    if not differ:
        return []
    here, there = (escape_name(" ".join(values)) for values in zip(*differ, strict=True))
    shown, whole = escape_name(path), escape_name(than)
    note = f"{shown} was encoded with {here}, and the training rows of {whole} with {there}, so their bits differ"
    return [f"{note}; encode both alike for scores that compare"]


def rare_classes(labels: Sequence[str], least: int) -> set[str]:
    """Return the classes with fewer than ``least`` rows; raise LabelsError if all are."""
    counts = {label: count for label, count in Counter(labels).items() if label.strip()}
    rare = {label for label, count in counts.items() if count < least}
    if rare and len(rare) == len(counts):
        raise LabelsError(f"none of the {len(counts):,} classes has {least} rows or more; give other labels.")
    return rare


def common_width(header: Header, test: Header, shown: Sequence[str], latents: int | None) -> int:
    """Return the number of latents on which two archives are compared: the smaller one, or ``latents``.

    Raises
    ------
    ModelMismatch
        If they are of different models.
    UsageError
        If one has other latents than the other, or fewer than ``latents``.
    """
    if test.model_sha256 != header.model_sha256:
        raise ModelMismatch(
            f"{shown[1]}: it was made by another model than {shown[0]}; compress both with one model."
        )
    check_embedder(shown[1], Embedder.of(test.embedder), Embedder.of(header.embedder), shown[0])
    width = latents or min(header.latents, test.latents)
    for one, name in zip((header, test), shown, strict=True):
        if one.latents < width:
            raise UsageError(f"{name}: it has {one.latents:,} latents; ask for 1 to {one.latents:,}, not {width:,}.")
    ours, theirs = ((one.selection or tuple(range(one.latents)))[:width] for one in (header, test))
    if tuple(ours) != tuple(theirs):
        raise UsageError(f"{shown[1]}: it holds other latents than {shown[0]}; make both with the same --select.")
    return width


def latents_of_task(
    archive: ArchiveBase, symbols: NDArray[Any], y: NDArray[Any], count: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return columns of an archive, the best for a task first, and the gain of each over those before it."""
    from stochcl.downstream.selection import LatentSelector, order_of_words

    decoder = archive.decoder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many classes with few rows
        if isinstance(decoder, ResidualDecoder):
            return order_of_words(symbols.astype(np.intp), y, decoder, count)
        found = LatentSelector(count, categorical=has_categories(archive)).fit(symbols, y)
        return found.order_, found.gains_


def select(
    path: PathLike, output: PathLike, *, labels: PathLike | None = None, column: str | None = None,
    level: int | None = None, tables: Where = (), force: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Choose latents for a task with :class:`stochcl.downstream.LatentSelector`, and write them as JSON.

    In residual codes, names of words are kept whole and come first; signs are chosen after them.

    The labels of all rows are used: to score the selection, keep rows for scoring in another archive.

    Parameters
    ----------
    path, output : path-like
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    column : str, optional
        Column of that file.
    level : int, optional
        Folder of a name to use as its label.
    tables : iterable of Tables or path-like
    force : bool
        Replace an existing output.
    **options
        Fields of :class:`~stochcl.api.evaluate.SelectOptions`: ``latents``, how many, and ``task``.

    Returns
    -------
    dict
        The written values: ``latents``, the model's latent numbers, from 0, ascending; and ``order``, best first.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, OutputError
    """
    from stochcl.downstream.metrics import labelled

    asked, source = SelectOptions(**options), LabelSource(labels, () if column is None else (column,), level)
    output = Path(output)
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if asked.latents > header.latents:
            shown = plural(header.latents, "latent")
            raise UsageError(f"{escape_name(path)}: it has {shown}; {asked.latents:,} cannot be chosen.")
        (y,) = source.read(archive, path).values()
        with naming(labels or path):
            rows = labelled(archive.to_numpy(), y, asked.task, archive.names)
            rows.check_learnable()
        chosen, gains = latents_of_task(archive, rows.x, rows.y, asked.latents)
    numbers = range(header.latents) if header.selection is None else header.selection
    order = [int(numbers[column]) for column in chosen]
    result = {
        "schema": "stochcl.select/0", "path": escape_name(path), "images": len(rows.y), "left_out": rows.left_out,
        "task": asked.task, "model": escape_name(header.model), "model_sha256": header.model_sha256,
        "latents": sorted(order), "order": order, "gains": [round(float(gain), 6) for gain in gains],
    }  # fmt: skip
    write_file(output, json.dumps(result).encode(), "the selection")
    return result


def evaluate(path: PathLike, *, column: str | None = None, **options: Any) -> tuple[Evaluation, dict[str, Any]]:
    """Train a probe on an archive's decoded codes and score it, for one target.

    Returns
    -------
    Evaluation, dict
        The dict describes the input: archive, input, latents. Everything else as :func:`evaluate_targets`.
    """
    found, facts = evaluate_targets(path, columns=() if column is None else (column,), **options)
    return next(iter(found.values())), facts


def evaluate_targets(
    path: PathLike, *, test: PathLike | None = None, labels: PathLike | None = None,
    test_labels: PathLike | None = None, columns: Sequence[str] = (), level: int | None = None,
    groups: str | None = None, save: PathLike | None = None, tables: Where = (),
    progress: Progress = lambda done, total: None, **options: Any,
) -> tuple[dict[str, Evaluation], dict[str, Any]]:  # fmt: skip
    """Train a probe for each target on an archive's decoded codes, and score them.

    Parameters
    ----------
    path : path-like
        The archive; cross-validated or split, or only trained on if ``test`` is given.
    test : path-like, optional
        An archive of the same model to score on.
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name.
    test_labels : path-like, optional
        The same for the rows of ``test``; by default ``labels``, if no name is in both archives.
    columns : sequence of str
        Columns of the CSV, one per target; by default the first.
    level : int, optional
        Folder of a name to use as its label: 1 the first, -1 the innermost.
    groups : str, optional
        A CSV file ``name,group``, or a column of ``labels``; rows of a group are never both trained and scored on.
    save : path-like, optional
        Train on all rows (with ``test``, on those of ``path``) and write the probes here, for ``stochcl predict``.
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archives.
    progress : callable
        Called with the number of probes trained and the total: one per fold and target, plus the saved ones.
    **options
        Fields of :class:`~stochcl.api.evaluate.EvaluateOptions`: task, estimator, output, latents, folds, test_size,
        min_class, seed.

    Returns
    -------
    dict of str to Evaluation, dict
        By target; and a description of the input: archive, input, latents.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    asked, source = EvaluateOptions(**options), LabelSource(labels, tuple(columns), level)
    _check_request(test, source, groups, asked.test_size)
    if save is not None:
        downstream.check_savable(asked.estimator, asked.task)
    data = read_data(
        path, test, source, test_labels, asked, tables, groups=groups, task=asked.task, min_class=asked.min_class
    )
    facts = {
        "schema": "stochcl.evaluate/0", "path": escape_name(path), "images": len(data.train.x), "input": data.used,
        "latents": data.width, "model": escape_name(data.header.model), "labels_from": data.origin,
    }  # fmt: skip
    found: dict[str, Evaluation] = {}
    folds = 1 if test is not None or asked.test_size is not None else asked.folds
    probes = len(data.train.labels) * (folds + (save is not None))
    with naming(labels or path):
        for target in data.train.labels:
            before = len(found) * folds

            def trained(done: int, total: int, before: int = before) -> None:
                progress(before + done, probes - folds + total)

            found[target] = _score(data, target, asked, trained, split_names=labels is None)
        if save is not None:
            _fit_all(data, asked).save(save)
            facts["saved"] = escape_name(save)
    progress(probes, probes)
    return found, facts


def _score(
    data: ProbeData, target: str, asked: EvaluateOptions, progress: Progress, *, split_names: bool
) -> Evaluation:
    train, test, y = data.train, data.test, data.train.labels[target]
    how: dict[str, Any] = {"task": asked.task, "estimator": asked.estimator, "seed": asked.seed}
    if test is None:
        scores = downstream.evaluate(
            train.x, y, folds=asked.folds, test_size=asked.test_size, groups=train.groups, names=train.names,
            symbols=train.symbols, progress=progress, **how,
        )  # fmt: skip
    else:
        symbols = train.symbols, test.symbols
        scores = downstream.evaluate_split(train.x, y, test.x, test.labels[target], symbols=symbols, **how)
    warning = split_warning(y) if split_names and asked.task == "classification" else None
    return replace(scores, notes=(*scores.notes, *data.notes, *([warning] if warning else [])))


def _fit_all(data: ProbeData, asked: EvaluateOptions) -> downstream.SavedProbe:
    header, train = data.header, data.train
    how: dict[str, Any] = {"task": asked.task, "estimator": asked.estimator, "seed": asked.seed}
    fitted = tuple(
        downstream.fit(train.x, y, target=target, names=train.names, **how) for target, y in train.labels.items()
    )
    selection = None if header.selection is None else tuple(header.selection)[: data.width]
    return downstream.SavedProbe(
        header.model, header.model_sha256, data.used, data.width, selection, fitted, header.tables_sha256,
        header.precision, header.runtime, header.size,
    )  # fmt: skip


def _check_request(test: PathLike | None, labels: LabelSource, groups: str | None, test_size: float | None) -> None:
    """Refuse options that contradict each other."""
    if len(set(labels.columns)) != len(labels.columns):
        raise UsageError(f"a column is named twice by {option_name('--label-column', 'columns')}; name each once.")
    if test is not None and test_size is not None:
        raise UsageError("--test and --test-size both name what to score on; give one of them.")
    if test is not None and groups is not None:
        raise UsageError("--groups splits one archive, and --test scores another; give one of them.")
