"""Logs of a run: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Protocol

from stochcl.errors import MissingExtraError
from stochcl.files import writing

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import DataclassInstance


class Log(Protocol):
    """A sink for the figures of a run."""

    def write(self, progress: DataclassInstance) -> None:
        """Write the figures of a step; what was not measured is left out."""


class FileLog:
    """A file that figures are appended to: a table if its name ends in .csv, else one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, progress: DataclassInstance) -> None:
        """Append a line; a new table begins with the names of its columns, one for each figure there can be."""
        with writing(self.path, "the log"), self.path.open("a", encoding="utf-8", newline="") as file:
            if self.path.suffix.lower() != ".csv":
                file.write(json.dumps(_finite(progress)) + "\n")
                return
            table = csv.DictWriter(file, [f.name for f in fields(progress)], lineterminator="\n")
            if not file.tell():
                table.writeheader()
            table.writerow(_finite(progress))


class TensorBoardLog:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            msg = "logs for TensorBoard need its package; install it with: pip install 'stochcl[tensorboard]'."
            raise MissingExtraError(msg) from exc
        with writing(folder, "the log"):
            self._writer: Any = SummaryWriter(str(folder))

    def write(self, progress: DataclassInstance) -> None:
        """Add the figures at their step."""
        figures = _finite(progress)
        step = figures.pop("step")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _finite(progress: DataclassInstance) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(progress).items() if math.isfinite(value)}
