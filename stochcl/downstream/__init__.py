"""Probes on decoded codes, with scikit-learn."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "distances": ("ArchiveIndex",),
    "evaluation": ("Evaluation", "evaluate", "evaluate_split", "fit"),
    "metrics": ("wilson",),
    "neighbors": ("CodeIndex", "HammingKNeighborsClassifier", "HammingKNeighborsRegressor"),
    "probes": ("ESTIMATORS", "TASKS", "Fitted", "SavedProbe", "Task", "check_savable", "load", "make_estimator"),
    "selection": ("LatentSelector",),
}
__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a name on first use, because scikit-learn takes a second."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
