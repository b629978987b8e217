"""Decoders from symbols to vectors, in numpy: perceptrons with or without codebooks, and residual decoders."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import MAX_ALPHABET
from stochcl.entropy.independent import MAX_DECISIONS
from stochcl.errors import FormatError
from stochcl.framing import ArrayReader, check_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


MAX_WIDTH = 1 << 16
"""Maximum width of a vector decoder's layer, including its inputs."""

_CODEBOOKS_HEAD = struct.Struct("<III")


@dataclass(frozen=True, eq=False)
class Codebooks:
    """One embedding table per latent, float16, shape (D, K, e), centred: a missing latent counts as zeros."""

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
        """K, the number of values per latent."""
        return self.embeddings.shape[1]

    @property
    def width(self) -> int:
        """e, the numbers per symbol."""
        return self.embeddings.shape[2]

    def select(self, latents: Sequence[int]) -> Codebooks:
        """Return the codebooks of these latents."""
        return Codebooks(self.embeddings[list(latents)])

    def look_up(self, symbols: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return the embeddings of symbols, shape (N, k) with k <= D, concatenated: shape (N, k * e)."""
        return self.embeddings[np.arange(symbols.shape[1]), symbols].reshape(len(symbols), -1)

    def to_bytes(self) -> bytes:
        """Write D, K and e (uint32), then the embeddings (float16) in C order."""
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
_CHUNK = 1024  # rows, so that a chunk's activations stay in the cache
_MOST_VALUES = 1 << 22  # activations of a layer, for files with very wide layers


@dataclass(frozen=True, eq=False)
class VectorDecoder:
    """A small perceptron from symbols to a float vector.

    The input of latent i is ``(symbol - centre[i]) * scale[i]``; a latent that a code lacks counts as its centre,
    the prior's mean. With codebooks each latent has e inputs, its symbol's embedding. Layers are separated by ReLUs.
    Weights are stored as float16 and evaluated in float32, so vectors agree across machines up to rounding; symbols
    agree exactly.

    ``centre`` and ``scale`` are float32, shape (D,), or (D * e,) with codebooks. ``layers`` are weights and biases,
    float16, shapes (out, in) and (out,); the first ``in`` is the length of ``centre``.
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
        """Round arrays of any float type to the stored types."""
        with np.errstate(over="ignore"):  # overflow gives inf, which is refused
            rounded = tuple((w.astype(np.float16), b.astype(np.float16)) for w, b in layers)
            books = None if codebooks is None else Codebooks(codebooks.astype(np.float16))
        return cls(centre.astype(np.float32), scale.astype(np.float32), rounded, books)

    @property
    def latents(self) -> int:
        """D, the number of input latents."""
        return len(self.centre) if self.codebooks is None else self.codebooks.latents

    @property
    def _inputs_per_latent(self) -> int:
        return 1 if self.codebooks is None else self.codebooks.width

    @property
    def dim(self) -> int:
        """V, the width of the output vectors."""
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
        """Return vectors, shape (N, V), of symbols, shape (N, k) with k <= D: the first k latents.

        They are computed in ``dtype``. The last digits differ between processors, which sum in different orders.
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
            # Weights of a foreign file may overflow and give vectors that are not finite, without a warning.
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

        Codebooks have a section of their own.
        """
        parts = [_DECODER_HEAD.pack(len(self.centre), len(self.layers))]
        parts += [struct.pack("<I", len(bias)) for _, bias in self.layers]
        parts += [self.centre.astype("<f4").tobytes(), self.scale.astype("<f4").tobytes()]
        for weight, bias in self.layers:
            parts += [weight.astype("<f2").tobytes(), bias.astype("<f2").tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, codebooks: Codebooks | None = None) -> VectorDecoder:
        """Read what :meth:`to_bytes` wrote; ``codebooks`` come from their own section."""
        reader = ArrayReader(data, "a vector decoder")
        inputs, count = reader.take("<u4", 2).tolist()
        check_limit(count, _MAX_LAYERS, "the number of a vector decoder's layers")
        widths = [inputs, *reader.take("<u4", count).tolist()]
        check_limit(max(widths), MAX_WIDTH, "the width of a vector decoder's layer")
        centre, scale = reader.take("<f4", inputs), reader.take("<f4", inputs)
        layers = tuple((reader.take("<f2", o, i), reader.take("<f2", o)) for i, o in pairwise(widths))
        reader.end()
        return cls(centre, scale, layers, codebooks)


MAX_STAGE_BITS = 8
"""Maximum bits per stage: a stage has at most 256 words."""

MAX_NUMBERS = 1 << 26
"""Maximum integers of a residual decoder: a small file may inflate to more, at four bytes or more each."""

MAX_RESIDUAL = 512
"""Maximum bits of a residual code trained here; a file may have more."""

_RESIDUAL_HEAD = struct.Struct("<III")  # width of the words, width of the output (0: none), stages
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class ResidualDecoder:
    """Sums one word per stage, and maps the sum to the input's space if the tables have a map.

        y = sum_s scale_s * words_s[name_s]        v = y, or (y @ output) * output_scale + centre

    ``name_s`` is the integer in the stage's bits, most significant first. A stage with none of its bits adds nothing:
    words are centred over the training rows. A stage with some of its bits adds the mean of the matching words, so
    any prefix or subset of the bits is a code.

    Parameters
    ----------
    columns : tuple of ndarray of intp, one per stage
        The latents that name its word; each latent is in exactly one stage.
    words : tuple of ndarray, one per stage, shape (2**bits, m)
        int8 in tables; float32 where bits of the name were dropped.
    scale : ndarray of float32, shape (S,)
    output : ndarray of int8, shape (m, V), optional
    output_scale, centre : ndarray of float32, shape (V,), optional

    Raises
    ------
    FormatError
        If shapes do not fit together or a number is not finite.
    """

    columns: tuple[NDArray[np.intp], ...]
    words: tuple[NDArray[Any], ...]
    scale: NDArray[np.float32]
    output: NDArray[np.int8] | None = None
    output_scale: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None

    kind = "residual"
    codebooks = None

    def __post_init__(self) -> None:
        stages = len(self.columns)
        if not stages or len(self.words) != stages or self.scale.shape != (stages,):
            raise FormatError(f"a residual decoder of {stages} stages has {len(self.words)} lists of words")
        named = np.concatenate(self.columns)
        if not np.array_equal(np.sort(named), np.arange(len(named))):
            raise FormatError("the stages of a residual decoder do not share out its latents")
        for names, words in zip(self.columns, self.words, strict=True):
            if words.ndim != 2 or len(words) != 1 << len(names) or words.shape[1] != self.words[0].shape[1]:
                raise FormatError(f"a stage of {len(names)} bits has words of shape {words.shape}")
        numbers = [self.scale, *(w for w in self.words if w.dtype.kind == "f")]
        if self.output is not None:
            if self.output_scale is None or self.centre is None:
                raise FormatError("a residual decoder's output has no scale or no centre")
            shape = (self._width, len(self.centre))
            if self.output.shape != shape or self.output_scale.shape != self.centre.shape:
                raise FormatError(f"a residual decoder's output of shape {self.output.shape} is not {shape}")
            numbers += [self.output_scale, self.centre]
        if not all(np.isfinite(array).all() for array in numbers):
            raise FormatError("a residual decoder holds numbers that are not finite")

    @classmethod
    def of_stages(
        cls, words: Sequence[NDArray[np.floating]], output: NDArray[np.floating] | None = None,
        centre: NDArray[np.floating] | None = None,
    ) -> ResidualDecoder:  # fmt: skip
        """Round words, shape (2**bits, m) per stage, and a map, shape (m, V), to the stored integers."""
        integers, scales = zip(*(_rounded(stage, axis=None) for stage in words), strict=True)
        columns = _columns(int(stage.shape[0] - 1).bit_length() for stage in words)
        scale = np.array(scales, np.float32)
        if output is None:
            return cls(columns, integers, scale)
        mapped, output_scale = _rounded(output, axis=0)
        middle = np.zeros(output.shape[1]) if centre is None else centre
        return cls(columns, integers, scale, mapped, output_scale.astype(np.float32), middle.astype(np.float32))

    @property
    def latents(self) -> int:
        """D, the number of input bits."""
        return sum(map(len, self.columns))

    @property
    def dim(self) -> int:
        """V, the width of the output vectors."""
        return self._width if self.centre is None else len(self.centre)

    @property
    def stages(self) -> tuple[int, ...]:
        """The bits of each stage."""
        return tuple(map(len, self.columns))

    def select(self, latents: Sequence[int]) -> ResidualDecoder:
        """Return the decoder that takes only these bits; a stage that lost bits decodes to means of its words."""
        place = {int(latent): i for i, latent in enumerate(latents)}
        columns, words, scale = [], [], []
        for names, stage, s in zip(self.columns, self.words, self.scale, strict=True):
            kept = [j for j, latent in enumerate(names) if int(latent) in place]
            if not kept:
                continue
            columns.append(np.array([place[int(names[j])] for j in kept], np.intp))
            words.append(stage if len(kept) == len(names) else _means(stage, kept, len(names)))
            scale.append(s)
        return ResidualDecoder(
            tuple(columns), tuple(words), np.array(scale, np.float32), self.output, self.output_scale, self.centre
        )

    def decode(
        self, symbols: NDArray[np.integer], dtype: type[np.float32] | type[np.float64] = np.float32
    ) -> NDArray[Any]:
        """Return vectors, shape (N, V), of bits, shape (N, k) with k <= D: the first k latents."""
        rows, k = symbols.shape
        if not 1 <= k <= self.latents:
            raise ValueError(f"this decoder takes 1 to {self.latents} latents, not {k}")
        if k < self.latents:
            return self.select(range(k)).decode(symbols, dtype)
        out = np.empty((rows, self.dim), dtype)
        words: list[NDArray[Any]] = [
            np.multiply(stage, s, dtype=dtype) for stage, s in zip(self.words, self.scale, strict=True)
        ]
        single = [s for s, names in enumerate(self.columns) if len(names) == 1]
        named = [s for s, names in enumerate(self.columns) if len(names) > 1]
        steps: NDArray[Any] = np.array([words[s][1] - words[s][0] for s in single], dtype).reshape(
            len(single), self._width
        )
        lowest: NDArray[Any] = np.array([words[s][0] for s in single], dtype).reshape(len(single), self._width).sum(0)
        bits = np.array([self.columns[s][0] for s in single], np.intp)
        for start in range(0, rows, _ROWS):
            part = symbols[start : start + _ROWS]
            y: NDArray[Any] = part[:, bits].astype(dtype) @ steps + lowest
            for s in named:
                name = np.zeros(len(part), np.intp)
                for column in self.columns[s]:
                    name = 2 * name + part[:, column]
                y += words[s][name]
            out[start : start + _ROWS] = self._mapped(y)
        return out

    @property
    def _width(self) -> int:
        return int(self.words[0].shape[1])

    def _mapped(self, y: NDArray[Any]) -> NDArray[Any]:
        """Map sums of words, shape (B, m), to the output's space, shape (B, V)."""
        if self.output is None or self.output_scale is None or self.centre is None:
            return y
        v: NDArray[Any] = y @ (self.output.astype(y.dtype) * self.output_scale.astype(y.dtype))
        return v + self.centre.astype(y.dtype)

    def to_bytes(self) -> bytes:
        """Write widths and stages (uint32), bits per stage (uint8), scales (float32), words (int8), then the output.

        The output, if any, is its map (int8), scale and centre (float32).
        """
        parts = [_RESIDUAL_HEAD.pack(self._width, 0 if self.output is None else self.dim, len(self.words))]
        parts += [bytes(self.stages), self.scale.astype("<f4").tobytes()]
        parts += [stage.astype(np.int8).tobytes() for stage in self.words]
        if self.output is not None and self.output_scale is not None and self.centre is not None:
            parts += [self.output.tobytes(), self.output_scale.astype("<f4").tobytes()]
            parts.append(self.centre.astype("<f4").tobytes())
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> ResidualDecoder:
        """Read what :meth:`to_bytes` wrote."""
        reader = ArrayReader(data, "a residual decoder")
        width, dim, stages = reader.take("<u4", 3).tolist()
        check_limit(max(width, dim), MAX_WIDTH, "the width of a residual decoder")
        check_limit(stages, MAX_DECISIONS, "the number of a residual decoder's stages")
        bits = reader.take("u1", stages).tolist()
        if not bits or not width or min(bits) < 1 or max(bits) > MAX_STAGE_BITS:
            raise FormatError(f"the stages of a residual decoder have 1 to {MAX_STAGE_BITS} bits each")
        numbers = sum(width << b for b in bits) + dim * width
        check_limit(numbers, MAX_NUMBERS, "the number of a residual decoder's integers")
        scale = reader.take("<f4", stages)
        words = tuple(reader.take("i1", 1 << b, width) for b in bits)
        mapped = (reader.take("i1", width, dim), reader.take("<f4", dim), reader.take("<f4", dim)) if dim else ()
        reader.end()
        return cls(_columns(bits), words, scale, *mapped)


def _columns(bits: Iterable[int]) -> tuple[NDArray[np.intp], ...]:
    """Return the latents of consecutive stages of these many bits."""
    return tuple(np.arange(a, b, dtype=np.intp) for a, b in pairwise(accumulate(bits, initial=0)))


def _means(words: NDArray[Any], kept: list[int], bits: int) -> NDArray[np.float32]:
    """Return words averaged over the bits not kept, shape (2**len(kept), m)."""
    cube = words.astype(np.float32).reshape(*[2] * bits, -1)
    lost = tuple(j for j in range(bits) if j not in kept)
    return cube.mean(axis=lost).reshape(1 << len(kept), -1)


def _rounded(numbers: NDArray[np.floating], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """Return integers -127..127 and the scale that restores them, over all or along an axis."""
    largest = np.abs(numbers).max(axis=axis)
    scale = np.where(largest > 0, largest / 127, 1.0)
    return np.rint(numbers / scale).astype(np.int8), scale
