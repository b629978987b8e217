"""Answers of a saved probe for the images of an archive."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compression import check_output
from stochcl.api.targets import rows_of
from stochcl.atomic import replacing
from stochcl.compress import open_archive
from stochcl.data import printable
from stochcl.data.files import why
from stochcl.downstream import load
from stochcl.errors import ModelMismatch, OutputError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from stochcl.compress import Header, Tables
    from stochcl.downstream import Fitted, SavedProbe

    PathLike = str | os.PathLike[str]


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
        "path": printable(path),
        "probe": printable(probe),
        "output": printable(output),
        "images": len(x),
        "targets": [_said(target) for target in saved.targets],
        "columns": [printable(name) for name in columns],
    }


def _said(target: Fitted) -> dict[str, Any]:
    return {
        "target": target.target,
        "task": target.task,
        "estimator": target.estimator,
        "trained_on": target.rows,
        "classes": [printable(name) for name in target.classes],
    }


def _check_suits(header: Header, saved: SavedProbe, path: PathLike, probe: PathLike) -> None:
    """Refuse an archive whose rows are not what the probe was fitted on."""
    shown, of = printable(path), printable(probe)
    if header.model_sha256 != saved.model_sha256:
        raise ModelMismatch(
            f"{shown}: it was made by the model {printable(header.model)} ({header.model_sha256[:12]}), and {of} was "
            f"fitted on codes of {printable(saved.model)} ({saved.model_sha256[:12]}); fit it on codes of this model."
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
        raise OutputError(f"{printable(output)}: the predictions cannot be written: {why(exc)}.") from exc
