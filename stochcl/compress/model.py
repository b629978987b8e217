"""What all entropy models share: their bytes under a permanent name, and which of them a segment is coded with."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.compress.autoregressive import AutoregressiveModel
from stochcl.compress.framing import MAX_TABLE, inflate_any
from stochcl.compress.independent import IndependentModel
from stochcl.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.compress.coder import EntropyModel

INDEPENDENT, OWN, NETWORK, FITTED = 0, 1, 2, 3
"""A segment's entropy model: the tables' independent symbols, a table in the segment, the tables' autoregressive
network, or one of the models that were fitted to this archive.
"""

_NAME = struct.Struct("<16s")
_KINDS: dict[str, type[IndependentModel] | type[AutoregressiveModel]] = {
    IndependentModel.kind: IndependentModel,
    AutoregressiveModel.kind: AutoregressiveModel,
}


@dataclass(frozen=True)
class Candidate:
    """An entropy model that is already paid for, and how a segment's head names it.

    Parameters
    ----------
    model : IndependentModel or AutoregressiveModel
        Of the archive's latents.
    kind : int
        INDEPENDENT, NETWORK or FITTED.
    number : int
        Which of the fitted models.
    """

    model: EntropyModel
    kind: int = INDEPENDENT
    number: int = 0

    def cost(self, codes: Codes) -> tuple[float, NDArray[np.uint8] | None]:
        """Return what codes cost in bits, and a network's levels of every decision, uint8, shape (T, N)."""
        if isinstance(self.model, IndependentModel):
            return self.model.ideal_bits(codes), None
        indices = self.model.level_indices(codes.decisions())
        return float(self.model.bits_of(codes.decisions(), indices).sum()), indices


def pack_model(model: EntropyModel) -> bytes:
    """Write a model that an archive holds for itself: its name in 16 bytes and its own bytes, deflated."""
    return zlib.compress(_NAME.pack(model.kind.encode()) + model.to_bytes(), 9)


def unpack_model(data: bytes, latents: int, alphabet: int) -> EntropyModel:
    """Read what :func:`pack_model` wrote.

    Raises
    ------
    FormatError
        If it is not that, or for codes of another shape.
    """
    raw = inflate_any(data, MAX_TABLE, "an entropy model")
    name = raw[: _NAME.size].rstrip(b"\0").decode("ascii", "replace")
    if len(raw) < _NAME.size or name not in _KINDS:
        raise FormatError(f"there is no kind of entropy model called {name[:16]!r}")
    model = _KINDS[name].from_bytes(raw[_NAME.size :])
    if (model.latents, model.alphabet) != (latents, alphabet):
        raise FormatError("an entropy model of the archive is for other latents")
    return model
