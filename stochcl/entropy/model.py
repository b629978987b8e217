"""What all entropy models share: their bytes under a permanent name, and which of them a segment is coded with."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import bits_per_symbol
from stochcl.entropy.autoregressive import MAX_HIDDEN, MAX_LEVELS, AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.errors import FormatError
from stochcl.framing import MAX_TABLE, inflate_any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.codes import Codes


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
    """An entropy model that is already paid for, of the archive's latents, and how a segment's head names it.

    ``kind`` is INDEPENDENT, NETWORK or FITTED; ``number`` says which of the fitted models.
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


def _most_bytes(latents: int, alphabet: int) -> int:
    """Return how long a model of such codes can be, so that no other is inflated: a network with all its units."""
    bits = bits_per_symbol(alphabet)
    t, nodes = latents * bits, latents * ((1 << bits) - 1)
    return 256 + 2 * MAX_LEVELS + MAX_HIDDEN * (8 + 2 * t) + 2 * t + 4 * nodes + t * t


def size_in_memory(model: EntropyModel) -> int:
    """Return the bytes that a model's numbers take."""
    return sum(array.nbytes for array in vars(model).values() if isinstance(array, np.ndarray))


def unpack_model(data: bytes, latents: int, alphabet: int) -> EntropyModel:
    """Read what :func:`pack_model` wrote."""
    raw = inflate_any(data, min(MAX_TABLE, _most_bytes(latents, alphabet)), "an entropy model")
    name = raw[: _NAME.size].rstrip(b"\0").decode("ascii", "replace")
    if len(raw) < _NAME.size or name not in _KINDS:
        raise FormatError(f"there is no kind of entropy model called {name[:16]!r}")
    model = _KINDS[name].from_bytes(raw[_NAME.size :])
    if (model.latents, model.alphabet) != (latents, alphabet):
        raise FormatError("an entropy model of the archive is for other latents")
    return model


EntropyModel = IndependentModel | AutoregressiveModel
"""What codes can be coded with."""
