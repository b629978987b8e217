"""The vector decoder: symbols to the features that they stand for, in numpy."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import MAX_ALPHABET
from stochcl.entropy.independent import MAX_DECISIONS
from stochcl.errors import FormatError
from stochcl.framing import ArrayReader, check_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


MAX_WIDTH = 1 << 16
"""Most numbers that a layer of a vector decoder takes or gives, and so that all symbols of a row stand for."""

_CODEBOOKS_HEAD = struct.Struct("<III")


@dataclass(frozen=True, eq=False)
class Codebooks:
    """One table of embeddings a latent, float16, shape (D, K, e), centred: a missing latent counts as zeros."""

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
        return _CODEBOOKS_HEAD.pack(*self.embeddings.shape) + self.embeddings.astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebooks:
        """Read what :meth:`to_bytes` wrote."""
        reader = ArrayReader(data, "a set of codebooks")
        latents, alphabet, width = reader.take("<u4", 3).tolist()
        _check_shape(latents, alphabet, width)
        embeddings = reader.take("<f2", latents, alphabet, width)
        reader.end()
        return cls(embeddings)


def _check_shape(latents: int, alphabet: int, width: int) -> None:
    check_limit(latents, MAX_DECISIONS, "the number of codebooks")
    check_limit(alphabet, MAX_ALPHABET, "the number of a codebook's symbols")
    check_limit(latents * width, MAX_WIDTH, "the width of all embeddings")
    if not latents or alphabet < 2 or not width:
        raise FormatError(f"codebooks of {latents} latents with {alphabet} symbols of {width} numbers make no sense")


_DECODER_HEAD = struct.Struct("<II")
_MAX_LAYERS = 16
_CHUNK = 1024  # rows; the layers' activations of a chunk stay in the cache
_MOST_VALUES = 1 << 22  # of a layer's activations, however wide a foreign file makes it


@dataclass(frozen=True, eq=False)
class VectorDecoder:
    """A small perceptron from symbols to a float vector.

    The input of latent i is ``(symbol - centre[i]) * scale[i]``; a latent that a code does not have counts as
    its centre, the prior's mean. With codebooks, where symbols are not numbers, each latent has e inputs, and its
    symbol's embedding stands for the symbol. Between layers stands a ReLU. Weights are stored as float16 and
    evaluated in float32, so vectors agree across machines to rounding; symbols, unlike them, agree exactly.

    ``centre`` and ``scale`` are float32, of shape (D,), or (D * e,) with codebooks; ``layers`` are weights and
    biases, float16, of shape (out, in) and (out,), whose first ``in`` is as long as ``centre``.
    """

    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    layers: tuple[tuple[NDArray[np.float16], NDArray[np.float16]], ...]
    codebooks: Codebooks | None = None

    kind = "mlp"

    def __post_init__(self) -> None:
        width = len(self.centre)
        if self.centre.shape != self.scale.shape or not self.layers:
            raise FormatError("a vector decoder needs a centre and a scale for each latent, and layers")
        if self.codebooks is not None and self.codebooks.latents * self.codebooks.width != width:
            books = f"{self.codebooks.latents} codebooks of {self.codebooks.width} numbers a symbol"
            raise FormatError(f"a vector decoder with {width} inputs does not fit {books}")
        arrays: list[NDArray[np.floating]] = [self.centre, self.scale]
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise FormatError(f"a layer of a vector decoder has shape {weight.shape} after width {width}")
            width = len(weight)
            arrays += [weight, bias]
        if not all(np.isfinite(array).all() for array in arrays):
            raise FormatError("a vector decoder holds numbers that are not finite")

    @classmethod
    def from_arrays(
        cls, centre: NDArray[np.floating], scale: NDArray[np.floating],
        layers: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
        codebooks: NDArray[np.floating] | None = None,
    ) -> VectorDecoder:  # fmt: skip
        """Round arrays of any float type to the types that are stored."""
        with np.errstate(over="ignore"):  # what overflows is not finite, and refused
            rounded = tuple((w.astype(np.float16), b.astype(np.float16)) for w, b in layers)
            books = None if codebooks is None else Codebooks(codebooks.astype(np.float16))
        return cls(centre.astype(np.float32), scale.astype(np.float32), rounded, books)

    @property
    def latents(self) -> int:
        """D, the number of latents that it takes."""
        return len(self.centre) if self.codebooks is None else self.codebooks.latents

    @property
    def _inputs_per_latent(self) -> int:
        return 1 if self.codebooks is None else self.codebooks.width

    @property
    def dim(self) -> int:
        """V, the width of its vectors."""
        return len(self.layers[-1][1])

    def select(self, latents: Sequence[int]) -> VectorDecoder:
        """Return the decoder that takes only these latents; all others count as their centres."""
        e = self._inputs_per_latent
        kept = (np.asarray(latents, np.intp)[:, None] * e + np.arange(e)).reshape(-1)
        (weight, bias), *rest = self.layers
        books = None if self.codebooks is None else self.codebooks.select(latents)
        return VectorDecoder(self.centre[kept], self.scale[kept], ((weight[:, kept], bias), *rest), books)

    def decode(
        self, symbols: NDArray[np.integer], dtype: type[np.float32] | type[np.float64] = np.float32
    ) -> NDArray[Any]:
        """Return vectors, shape (N, V), of symbols, shape (N, k), k <= D: the first k latents.

        They are evaluated in ``dtype``. Processors sum in different orders, so the last digits differ between them.
        """
        rows, k = symbols.shape
        if k > self.latents:
            raise ValueError(f"this decoder takes {self.latents} latents, not {k}")
        layers = [(w.astype(dtype), b.astype(dtype)) for w, b in self.layers]
        inputs = k * self._inputs_per_latent
        centre: NDArray[Any] = self.centre[:inputs].astype(dtype)
        scale: NDArray[Any] = self.scale[:inputs].astype(dtype)
        layers[0] = (layers[0][0][:, :inputs], layers[0][1])
        out = np.empty((rows, self.dim), dtype)
        widest = max(inputs, *(len(bias) for _, bias in layers))
        chunk = max(1, min(_CHUNK, _MOST_VALUES // widest))
        for start in range(0, rows, chunk):
            # Weights of a foreign file may overflow; its vectors are then not finite, which is no one's warning.
            with np.errstate(over="ignore", invalid="ignore"):
                part = symbols[start : start + chunk]
                values = part if self.codebooks is None else self.codebooks.look_up(part)
                x = (values.astype(dtype) - centre) * scale
                for i, (weight, bias) in enumerate(layers):
                    if i:
                        np.maximum(x, 0, out=x)
                    x = x @ weight.T
                    x += bias
            out[start : start + chunk] = x
        return out

    def to_bytes(self) -> bytes:
        """Write inputs, layers, their widths (uint32), centre, scale (float32), weights, biases (float16).

        Codebooks are not among them: they have a section of their own.
        """
        parts = [_DECODER_HEAD.pack(len(self.centre), len(self.layers))]
        parts += [struct.pack("<I", len(bias)) for _, bias in self.layers]
        parts += [self.centre.astype("<f4").tobytes(), self.scale.astype("<f4").tobytes()]
        for weight, bias in self.layers:
            parts += [weight.astype("<f2").tobytes(), bias.astype("<f2").tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, codebooks: Codebooks | None = None) -> VectorDecoder:
        """Read what :meth:`to_bytes` wrote, beside the codebooks that it was written with."""
        reader = ArrayReader(data, "a vector decoder")
        inputs, count = reader.take("<u4", 2).tolist()
        check_limit(count, _MAX_LAYERS, "the number of a vector decoder's layers")
        widths = [inputs, *reader.take("<u4", count).tolist()]
        check_limit(max(widths), MAX_WIDTH, "the width of a vector decoder's layer")
        centre, scale = reader.take("<f4", inputs), reader.take("<f4", inputs)
        layers = tuple((reader.take("<f2", o, i), reader.take("<f2", o)) for i, o in pairwise(widths))
        reader.end()
        return cls(centre, scale, layers, codebooks)
