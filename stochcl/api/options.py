"""Options of what is learnt from codes: evaluate, uncertainty, search, select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.options import Options, option

if TYPE_CHECKING:
    from stochcl.downstream import Task

TASKS = ("classification", "regression")
OUTPUTS = ("auto", "symbols", "vectors")


@dataclass(frozen=True)
class SelectOptions(Options):
    """Which latents to choose."""

    latents: int = option(None, "How many latents to choose.", at_least=1, unit="K", required=True)
    task: Task = option("classification", "What the labels are.", choices=TASKS)


@dataclass(frozen=True)
class SearchOptions(Options):
    """What to find."""

    count: int = option(10, "How many to find.", at_least=1, unit="K", flags=("-k",))
    output: str = option(
        "auto", "Compare decoded vectors, or the symbols themselves.", choices=OUTPUTS, flags=("--by",)
    )


@dataclass(frozen=True)
class ProbeOptions(Options):
    """What a probe is given, and how it is scored."""

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
    """How to train a probe, and score it."""

    task: Task = option("classification", "What the labels are.", choices=TASKS)
    test_size: float | None = option(
        None, "Hold out this fraction, in place of a cross-validation.", more_than=0, less_than=1
    )
    min_class: int | None = option(
        None, "Leave out classes of fewer than N images.", at_least=1, unit="N", shown="2 in a cross-validation"
    )


@dataclass(frozen=True)
class UncertaintyOptions(ProbeOptions):
    """How to measure what uncertainty is worth."""

    sample: int = option(500, "How many images to corrupt.", at_least=1)
