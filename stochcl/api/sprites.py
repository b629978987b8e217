"""Sprites as a folder: images that training and compression take, and the factors that evaluation asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.data.array import row_names
from stochcl.data.sprites import FACTORS, make_sprites
from stochcl.errors import OutputError, UsageError
from stochcl.files import replacing
from stochcl.messages import escape_name as printable
from stochcl.messages import os_reason as why

if TYPE_CHECKING:
    import os

IMAGES, TABLE = "images.npy", "factors.csv"


def write_sprites(
    output: str | os.PathLike[str], *, images: int, size: int = 64, seed: int = 0, colour: bool = False,
    plain: bool = False, force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make sprites and write them to a folder, as ``images.npy`` and ``factors.csv``.

    Parameters
    ----------
    output : path-like
        The folder; made if it is not there.
    images, size, seed, colour, plain
        See :func:`stochcl.data.sprites.make_sprites`.
    force : bool
        Replace such files in it.

    Returns
    -------
    dict
        What was written.

    Raises
    ------
    UsageError, OutputError
    """
    folder = Path(output)
    paths = folder / IMAGES, folder / TABLE
    if not force and (there := [path for path in paths if path.exists()]):
        raise UsageError(f"{printable(there[0])}: this file exists already; pass --force to replace it.")
    made = make_sprites(images, size=size, seed=seed, colour=colour, plain=plain)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0]) as file:
            np.save(file, made.images)
        with replacing(paths[1]) as file:
            file.write(made.table(row_names(range(images), images)).encode())
    except OSError as exc:
        raise OutputError(f"{printable(folder)}: sprites cannot be written there: {why(exc)}.") from exc
    return {
        "schema": "stochcl.sprites/0", "images": images, "size": size, "seed": seed, "colour": colour, "plain": plain,
        "columns": list(FACTORS), "paths": [printable(path) for path in paths],
        "bytes": sum(path.stat().st_size for path in paths),
    }  # fmt: skip
