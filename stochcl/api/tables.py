"""Where to look for decoders that are not in an archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.compress import open_archive
from stochcl.errors import ModelMismatch, ModelNotFound, StochclError
from stochcl.files import is_file
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os

    from stochcl.entropy.tables import Tables


def resolve_tables(
    model: str | os.PathLike[str] | None, path: str | os.PathLike[str] | None = None
) -> tuple[Tables | Path, ...]:
    """Return where to look for a decoder, given a .tables file, a model's name or file, or else the archive.

    An archive whose decoder is nowhere is decoded by its model, if that is found by its hash.

    Raises
    ------
    ModelNotFound
        If there is no such file or model.
    ModelError
        If the model is damaged.
    """
    if model is None:
        return () if path is None else _by_hash(path)
    if Path(model).suffix != ".tables":
        from stochcl.api.codec import Codec

        return (Codec(model, device="cpu").tables,)
    if not is_file(model):
        raise ModelNotFound(f"{escape_name(model)}: there is no such file.")
    return (Path(model),)


def _by_hash(path: str | os.PathLike[str]) -> tuple[Tables, ...]:
    try:
        with open_archive(path) as archive:
            try:
                _ = archive.tables
            except ModelMismatch:
                from stochcl.api.codec import Codec
                from stochcl.api.models import model_of

                return (Codec(model_of(archive.header, path), device="cpu").tables,)
    except StochclError:  # which opening it for its purpose explains
        pass
    return ()
