"""What is learned from decoded codes: probes with scikit-learn."""

from __future__ import annotations

from stochcl.downstream.estimators import ESTIMATORS, TASKS, Task, make_estimator
from stochcl.downstream.evaluation import evaluate, evaluate_split
from stochcl.downstream.metrics import wilson
from stochcl.downstream.result import Evaluation

__all__ = ["ESTIMATORS", "TASKS", "Evaluation", "Task", "evaluate", "evaluate_split", "make_estimator", "wilson"]
