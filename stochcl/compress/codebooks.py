"""Codebooks: the numbers that stand for each symbol of a categorical code in the vector decoder."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import MAX_ALPHABET
from stochcl.compress.framing import check_limit
from stochcl.compress.independent import MAX_DECISIONS
from stochcl.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_WIDTH = 1 << 16
"""Most numbers that a layer of a vector decoder takes or gives, and so that all symbols of a row stand for."""

_HEAD = struct.Struct("<III")


@dataclass(frozen=True, eq=False)
class Codebooks:
    """One table of embeddings a latent, centred: a latent that a code does not have counts as zeros.

    Parameters
    ----------
    embeddings : ndarray of float16, shape (D, K, e)

    Raises
    ------
    FormatError
        If the shape makes no sense or a number is not finite.
    """

    embeddings: NDArray[np.float16]

    kind = "codebooks"

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3:
            raise FormatError(f"codebooks have three dimensions, not {self.embeddings.ndim}")
        _check_shape(*self.embeddings.shape)
        if not np.isfinite(self.embeddings).all():
            raise FormatError("a codebook holds numbers that are not finite")

    @property
    def latents(self) -> int:
        """D, the number of latents."""
        return self.embeddings.shape[0]

    @property
    def alphabet(self) -> int:
        """K, the number of values of a latent."""
        return self.embeddings.shape[1]

    @property
    def width(self) -> int:
        """e, how many numbers stand for a symbol."""
        return self.embeddings.shape[2]

    def select(self, latents: Sequence[int]) -> Codebooks:
        """Return the codebooks of these latents."""
        return Codebooks(self.embeddings[list(latents)])

    def look_up(self, symbols: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return the embeddings of symbols, shape (N, k), k <= D, side by side: shape (N, k * e)."""
        rows, latents = symbols.shape
        places = symbols + np.arange(latents, dtype=np.intp) * self.alphabet
        found: NDArray[Any] = self.embeddings.reshape(-1, self.width)[places]
        return found.reshape(rows, latents * self.width)

    def to_bytes(self) -> bytes:
        """Write D, K and e (uint32), then the embeddings (float16), latent after latent, symbol after symbol."""
        return _HEAD.pack(*self.embeddings.shape) + self.embeddings.astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebooks:
        """Read what :meth:`to_bytes` wrote.

        Raises
        ------
        FormatError
            If it is not that.
        """
        if len(data) < _HEAD.size:
            raise FormatError("codebooks end too early")
        latents, alphabet, width = _HEAD.unpack_from(data)
        _check_shape(latents, alphabet, width)
        needed = _HEAD.size + 2 * latents * alphabet * width
        if len(data) != needed:
            raise FormatError(f"codebooks have {len(data):,} bytes, not {needed:,}")
        numbers = np.frombuffer(data, "<f2", offset=_HEAD.size).astype(np.float16)
        return cls(numbers.reshape(latents, alphabet, width))


def _check_shape(latents: int, alphabet: int, width: int) -> None:
    check_limit(latents, MAX_DECISIONS, "the number of codebooks")
    check_limit(alphabet, MAX_ALPHABET, "the number of a codebook's symbols")
    check_limit(latents * width, MAX_WIDTH, "the width of all embeddings")
    if not latents or alphabet < 2 or not width:
        raise FormatError(f"codebooks of {latents} latents with {alphabet} symbols of {width} numbers make no sense")
