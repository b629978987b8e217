"""Which latents of an archive a task needs, as a file that transcoding takes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.compression import check_output
from stochcl.api.targets import has_categories, labels_of, naming
from stochcl.atomic import replacing
from stochcl.compress import open_archive
from stochcl.data import printable
from stochcl.data.files import why
from stochcl.errors import OutputError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from stochcl.compress import Tables
    from stochcl.downstream import Task

    PathLike = str | os.PathLike[str]


def select(
    path: PathLike,
    output: PathLike,
    *,
    latents: int,
    labels: PathLike | None = None,
    column: str | None = None,
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
    from stochcl.downstream.rows import labelled

    if column is not None and labels is None:
        raise UsageError("--column says which column of a CSV file; give that file with --labels.")
    output = Path(output)
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if not 1 <= latents <= header.latents:
            raise UsageError(f"{printable(path)}: it has {header.latents:,} latents; {latents:,} cannot be chosen.")
        y = labels_of(archive, path, labels, column)
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
        "path": printable(path),
        "images": len(rows.y),
        "left_out": rows.left_out,
        "task": task,
        "model": printable(header.model),
        "model_sha256": header.model_sha256,
        "latents": sorted(order),
        "order": order,
        "gains": [round(float(gain), 6) for gain in found.gains_],
    }
    try:
        with replacing(output) as file:
            file.write(json.dumps(result).encode())
    except OSError as exc:
        raise OutputError(f"{printable(output)}: the selection cannot be written: {why(exc)}.") from exc
    return result
