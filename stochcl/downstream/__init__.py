"""What is learned from decoded codes: probes with scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stochcl.downstream.evaluation import Evaluation, evaluate, evaluate_split, fit
from stochcl.downstream.metrics import wilson
from stochcl.downstream.probes import ESTIMATORS, TASKS, Fitted, SavedProbe, Task, check_savable, load, make_estimator

if TYPE_CHECKING:
    from stochcl.downstream.neighbors import CodeIndex, HammingKNeighborsClassifier, HammingKNeighborsRegressor
    from stochcl.downstream.selection import LatentSelector

__all__ = [
    "ESTIMATORS",
    "TASKS",
    "CodeIndex",
    "Evaluation",
    "Fitted",
    "HammingKNeighborsClassifier",
    "HammingKNeighborsRegressor",
    "LatentSelector",
    "SavedProbe",
    "Task",
    "check_savable",
    "evaluate",
    "evaluate_split",
    "fit",
    "load",
    "make_estimator",
    "wilson",
]

_LAZY = {  # their base classes are scikit-learn's, which takes a second to import
    "CodeIndex": "neighbors",
    "HammingKNeighborsClassifier": "neighbors",
    "HammingKNeighborsRegressor": "neighbors",
    "LatentSelector": "selection",
}


def __getattr__(name: str) -> Any:
    """Import these when they are asked for."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
