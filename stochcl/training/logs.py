"""Logs of a run: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, fields
from io import StringIO
from typing import TYPE_CHECKING, Any, Protocol

from stochcl.errors import MissingExtraError, OutputError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import DataclassInstance


class Log(Protocol):
    """A sink for progress."""

    def write(self, progress: DataclassInstance) -> None:
        """Write the figures of a step."""

    def close(self) -> None:
        """End."""


def make_log(path: Path) -> Log:
    """Return the log of a file: CSV where its name ends so, JSON lines otherwise."""
    return CsvLog(path) if path.suffix.lower() == ".csv" else JsonLog(path)


class JsonLog:
    """One JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, progress: DataclassInstance) -> None:
        """Append the finite figures."""
        _append(self._path, json.dumps(_finite(progress)) + "\n")

    def close(self) -> None:
        """Do nothing: every line is written as it comes."""


class CsvLog:
    """A table with a column for every field of the progress, appended to.

    Cells of what was not measured are empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, progress: DataclassInstance) -> None:
        """Append a row; a new table begins with the names of the columns."""
        text = StringIO()
        table = csv.DictWriter(text, [f.name for f in fields(progress)], lineterminator="\n")
        try:
            new = not self._path.exists() or self._path.stat().st_size == 0
        except OSError:
            new = True
        if new:
            table.writeheader()
        table.writerow(_finite(progress))
        _append(self._path, text.getvalue())

    def close(self) -> None:
        """Do nothing: every row is written as it comes."""


class TensorBoardLog:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            msg = "logs for TensorBoard need its package; install it with: pip install 'stochcl[tensorboard]'."
            raise MissingExtraError(msg) from exc
        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as exc:
            raise OutputError(f"{escape_name(folder)}: the log cannot be written: {exc.strerror}.") from exc

    def write(self, progress: DataclassInstance) -> None:
        """Add the finite figures at their step."""
        figures = _finite(progress)
        step = figures.pop("step")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def _finite(progress: DataclassInstance) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(progress).items() if math.isfinite(value)}


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as exc:
        raise OutputError(f"{escape_name(path)}: the log cannot be written: {exc.strerror}.") from exc
