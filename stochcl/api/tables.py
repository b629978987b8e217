"""Where to look for decoding tables that are not in an archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.errors import UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os

    from stochcl.entropy.tables import Tables


def resolve_tables(model: str | os.PathLike[str] | None) -> tuple[Tables | Path, ...]:
    """Return where to look for decoding tables, given a .tables file, a model's name or file, or nothing.

    Only a model needs torch, which its tables are made with.

    Raises
    ------
    UsageError
        If there is no such file or model.
    ModelError
        If the model is damaged.
    """
    if model is None:
        return ()
    if Path(model).suffix != ".tables":
        from stochcl.api.codec import Codec

        return (Codec(model, device="cpu").tables,)
    if not Path(model).is_file():
        raise UsageError(f"{escape_name(model)}: there is no such file.")
    return (Path(model),)
