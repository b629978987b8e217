"""Fitted probes and their file, which is read without pickle and executes no code."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stochcl.errors import SourceError, UsageError
from stochcl.files import PathLike, reading, refuse_pointer, write_file
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike


Task = Literal["classification", "regression"]

_ROWS_AT_ONE = 500  # rows at which C is 1
_NEIGHBOURS = 20

TASKS: tuple[Task, ...] = ("classification", "regression")


def _scaled(estimator: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def _logistic(rows: int, seed: int, metric: str) -> Any:
    from sklearn.linear_model import LogisticRegression

    # scikit-learn's C weighs a sum over rows, so a constant C would regularise less with more rows.
    return _scaled(LogisticRegression(C=min(1.0, _ROWS_AT_ONE / rows), max_iter=500, tol=1e-3))


def _svm(rows: int, seed: int, metric: str) -> Any:
    from sklearn.svm import LinearSVC

    return _scaled(LinearSVC(C=0.001, dual="auto", random_state=seed, max_iter=2000))


def _ridge(rows: int, seed: int, metric: str) -> Any:
    import numpy as np
    from sklearn.linear_model import RidgeCV

    return _scaled(RidgeCV(alphas=np.logspace(0, 5, 11)))


def _knn(rows: int, seed: int, metric: str, kind: str = "Classifier") -> Any:
    """Return a nearest-neighbour estimator: ours for packed bits, else scikit-learn's."""
    from sklearn import neighbors as others

    from stochcl.downstream import neighbors as ours

    count = min(_NEIGHBOURS, rows)
    if metric == "bits":
        return getattr(ours, f"HammingKNeighbors{kind}")(count)
    return getattr(others, f"KNeighbors{kind}")(count, metric=metric, algorithm="brute")


def _boosting(rows: int, seed: int, metric: str, kind: str = "Classifier") -> Any:
    from sklearn import ensemble

    return getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=seed)


ESTIMATORS: dict[Task, dict[str, Callable[[int, int, str], Any]]] = {
    "classification": {"logistic": _logistic, "svm": _svm, "knn": _knn, "boosting": _boosting},
    "regression": {
        "ridge": _ridge,
        "knn": partial(_knn, kind="Regressor"),
        "boosting": partial(_boosting, kind="Regressor"),
    },
}
"""Probe factories by task and name, taking the number of rows, seed and metric; the first is the default."""


def make_estimator(
    name: str, task: Task, *, rows: int = 1000, seed: int = 0, symbols: bool = False, binary: bool = False
) -> tuple[str, Any]:
    """Return a probe's name and a fresh estimator."""
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    known = ESTIMATORS[task]
    if name == "auto":
        name = next(iter(known))
    if name in known:
        return name, known[name](rows, seed, "bits" if symbols and binary else "hamming" if symbols else "cosine")
    if "." not in name:
        there = ", ".join(known)
        raise UsageError(f"there is no {task} estimator {name!r}; there are {there}, or name a class by its path.")
    return name, _imported(name, task, seed)


def _imported(path: str, task: Task, seed: int) -> Any:
    """Instantiate a class by its path with its defaults, and with the seed if it takes one."""
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as exc:  # importing a module can raise anything
        raise UsageError(f"{path!r}: there is no such class ({exc}); name a scikit-learn class by its path.") from exc
    if not (isinstance(found, type) and issubclass(found, BaseEstimator)):
        raise UsageError(f"{path!r}: this is not a scikit-learn estimator; name a class by its path.")
    try:
        estimator = found()
    except TypeError as exc:
        raise UsageError(f"{path!r}: it cannot be made without parameters ({exc}); take another.") from exc
    if not (is_classifier(estimator) if task == "classification" else is_regressor(estimator)):
        raise UsageError(f"{path!r}: this is not an estimator for {task}.")
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=seed)
    return estimator


SCHEMA = "stochcl.probe/0"

TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "stochcl.downstream.neighbors.HammingKNeighborsClassifier",
    "stochcl.downstream.neighbors.HammingKNeighborsRegressor",
    "stochcl.downstream.selection.LatentSelector",
)
"""Types allowed in a probe's file besides skops's own: arrays of trees, and ours."""


@dataclass(frozen=True)
class Fitted:
    """A probe of one target (``label`` or a CSV column) fitted on ``rows`` rows."""

    target: str
    task: Task
    estimator: str
    probe: Any
    rows: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes in the column order of :meth:`probabilities`; empty for a regression."""
        return tuple(map(str, self.probe.classes_)) if self.task == "classification" else ()

    def predict(self, x: ArrayLike) -> Any:
        """Return a class or a number for each row, shape (N,)."""
        return self.probe.predict(x)

    def probabilities(self, x: ArrayLike) -> Any:
        """Return probabilities, shape (N, C), or None if the estimator has none."""
        return self.probe.predict_proba(x) if hasattr(self.probe, "predict_proba") else None


@dataclass(frozen=True)
class SavedProbe:
    """Fitted probes, and the facts that decide which archives they apply to.

    ``output`` is the kind of rows, ``symbols`` or ``vectors``; ``selection`` the model's latents in use if they are
    not the first ones. If known, ``tables_sha256`` names the decoding tables that made the vectors, ``precision`` and
    ``runtime`` the encoder's arithmetic, and ``size`` the side of its images.
    """

    model: str
    model_sha256: str
    output: str
    latents: int
    selection: tuple[int, ...] | None
    targets: tuple[Fitted, ...]
    tables_sha256: str | None = None
    precision: str = ""
    runtime: str = ""
    size: int | None = None

    def save(self, path: PathLike) -> None:
        """Write a ``.skops`` file, replacing an existing one."""
        import skops.io

        content = {
            "schema": SCHEMA, "model": self.model, "model_sha256": self.model_sha256, "input": self.output,
            "latents": self.latents, "selection": None if self.selection is None else list(self.selection),
            "tables_sha256": self.tables_sha256, "precision": self.precision, "runtime": self.runtime,
            "size": self.size, "targets": [vars(target) for target in self.targets],
        }  # fmt: skip
        data = skops.io.dumps(content)
        _check_trusted(data, ", ".join(sorted({target.estimator for target in self.targets})))
        write_file(path, data, "the probe")


def load(path: PathLike) -> SavedProbe:
    """Read a file of :meth:`SavedProbe.save`; a file with other types than the allowed ones is refused unread."""
    import skops.io

    shown = escape_name(path)
    with reading(path, "the probe"):
        data = Path(path).read_bytes()
    refuse_pointer(path, data, "a probe")
    wrong = f"{shown}: this is not a probe, or it is damaged; give a file that `stochcl evaluate --save` wrote"
    try:
        if refused := _untrusted(data):
            raise SourceError(f"{shown}: it holds {refused[0]!r}, which is not part of a probe; it was not loaded.")
        content = skops.io.loads(data, trusted=list(TRUSTED))
    except SourceError:
        raise
    except Exception as exc:  # a damaged zip or schema raises almost anything
        raise SourceError(f"{wrong}.") from exc
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise SourceError(f"{wrong}.")
    try:
        return _checked(content)
    except (KeyError, TypeError, ValueError) as exc:
        raise SourceError(f"{wrong} ({type(exc).__name__}: {exc}).") from exc


def _checked(content: dict[str, Any]) -> SavedProbe:
    """Make a probe from a file's content, checking the types."""
    selection, tables = content["selection"], content.get("tables_sha256")  # the first files did not name tables
    saved = SavedProbe(
        content["model"], content["model_sha256"], content["input"], content["latents"],
        None if selection is None else tuple(selection), tuple(Fitted(**target) for target in content["targets"]),
        tables, content.get("precision", ""), content.get("runtime", ""), content.get("size"),
    )  # fmt: skip
    texts = saved.model, saved.model_sha256, saved.precision, saved.runtime, "" if tables is None else tables
    if not all(isinstance(text, str) for text in texts) or saved.output not in ("symbols", "vectors"):
        raise ValueError("its model, tables and input are texts")
    whole = isinstance(saved.latents, int) and isinstance(saved.size, int | None)
    if not whole or saved.latents < 1 or not saved.targets:
        raise ValueError("it has latents, a size and targets")
    if not all(hasattr(target.probe, "predict") for target in saved.targets):
        raise ValueError("its targets predict")
    return saved


def check_savable(estimator: str, task: Task) -> None:
    """Refuse an estimator whose file would hold types that :func:`load` refuses, by fitting it to a few rows."""
    import numpy as np
    import skops.io

    rows = np.random.default_rng(0).random((60, 20)).astype(np.float32)
    labels = np.array(["a", "b"])[np.arange(60) % 2] if task == "classification" else rows[:, 0]
    name, probe = make_estimator(estimator, task, rows=len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            probe.fit(rows, labels)
        except (ValueError, TypeError, ArithmeticError):
            return
    _check_trusted(skops.io.dumps(probe), name)


def _check_trusted(data: bytes, estimators: str) -> None:
    if refused := _untrusted(data):
        raise UsageError(f"{estimators}: it cannot be saved, for its file would hold {refused[0]}; take another.")


def _untrusted(data: bytes) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
