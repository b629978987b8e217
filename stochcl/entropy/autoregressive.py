"""The autoregressive entropy model: each decision's probability given the earlier ones, in integers only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.entropy.independent import DENOMINATOR, check_sizes, nodes_per_symbol
from stochcl.errors import FormatError
from stochcl.framing import ArrayReader
from stochcl.lazy import cached_property

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


MAX_HIDDEN = 4096
"""Maximum hidden units of a network."""

MAX_LEVELS = 256
"""Maximum probability levels of a model."""

MAX_BIAS = 1 << 24
"""Maximum absolute bias of a hidden unit."""

MAX_MULTIPLIER = 65535
"""Maximum multiplier of a row of weights."""

SIGN = 128
"""Weight of a decision relative to a hidden unit, whose values are 0..127."""

FULL = 127
"""Maximum value of a hidden unit, and maximum absolute weight."""

HIDDEN_SHIFT, SHIFT, BIAS_SHIFT = 14, 24, 16
"""Right shifts of a hidden unit and of a level, and the left shift of a bias."""

_HEAD = struct.Struct("<IIII")  # latents, alphabet, hidden units, levels

# A float32 product of integer matrices is exact in any order of summation while every partial sum stays below 2**24.
# Decisions: 127 * 4096 < 2**19. Hidden units: 127 * 127 * 1024 < 2**24, hence this many at a time.
_EXACT_UNITS = 1024

_COLUMNS = 256  # of the triangular matrix multiplied at a time when all decisions are known
_ROWS = 1024  # at a time, so that memory does not grow with a block
_CHUNK = 32  # decisions decoded between two products with all that is known

LEVEL_STEP = 0.2
"""Step between adjacent levels, in log-odds."""


def logistic_levels(step: float = LEVEL_STEP, reach: float = 8.0) -> NDArray[np.uint16]:
    """Return numerators of the probabilities whose log-odds are the multiples of ``step`` within +-``reach``.

    A decision coded at the nearest level costs less than ``step**2 / 96`` nats more than at its own probability.

    Examples
    --------
    >>> logistic_levels(4.0).tolist()
    [1, 74, 2048, 4022, 4095]
    """
    count = int(reach / step)
    odds = np.arange(-count, count + 1) * step
    return np.clip(np.rint(DENOMINATOR / (1 + np.exp(-odds))), 1, DENOMINATOR - 1).astype(np.uint16)


def array_types(
    latents: int, hidden: int, alphabet: int, *, levels: int
) -> dict[str, tuple[type[np.integer], tuple[int, ...]]]:
    """Return the dtype and shape of each array of a model."""
    nodes = nodes_per_symbol(alphabet)
    t = latents * bits_per_symbol(alphabet)
    return {
        "levels": (np.uint16, (levels,)),
        "degrees": (np.int32, (hidden,)),
        "hidden_weights": (np.int8, (hidden, t)),
        "hidden_bias": (np.int32, (hidden,)),
        "hidden_multiplier": (np.uint16, (hidden,)),
        "direct": (np.int8, (t, t)),
        "output": (np.int8, (t, hidden)),
        "multiplier": (np.uint16, (t,)),
        "bias": (np.int32, (latents, nodes)),
    }


@dataclass(frozen=True, eq=False)
class AutoregressiveModel:
    """An integer network: linear, or with one masked hidden layer (as MADE, arXiv 1502.03509).

    A row is T = D * bits decisions d in order; the network sees them as signs s = 2 d - 1. A right shift rounds
    down. ::

        u[h]  = hidden_bias[h] + sum(hidden_weights[h, i] * s[i] for i < degrees[h])
        a[h]  = min(127, max(0, u[h] * hidden_multiplier[h] >> 14))
        z[j]  = 128 * sum(direct[j, i] * s[i] for i < j) + sum(output[j, h] * a[h] for h with degrees[h] <= j)
        level = min(n - 1, max(0, z[j] * multiplier[j] + (bias[j's latent, node] << 16) >> 24))

    and decision j is 1 with probability levels[level] / 4096. The arithmetic is exact on every machine.

    Parameters
    ----------
    latents : int
        D.
    alphabet : int
        K; bits = ceil(log2 K).
    levels : ndarray of uint16, shape (n,), 2 <= n <= 256
        Numerators, 1..4095.
    degrees : ndarray of integers, shape (H,)
        Number of decisions each hidden unit sees, ascending, 1..T-1. H = 0 makes the model linear.
    hidden_weights : ndarray of int8, shape (H, T)
        0 where i >= degrees[h].
    hidden_bias : ndarray of int32, shape (H,)
        At most 2**24 in absolute value.
    hidden_multiplier : ndarray of uint16, shape (H,)
    direct : ndarray of int8, shape (T, T)
        0 where i >= j.
    output : ndarray of int8, shape (T, H)
        0 where degrees[h] > j.
    multiplier : ndarray of uint16, shape (T,)
    bias : ndarray of int32, shape (D, 2**bits - 1)
        One per node of a symbol's tree (see ``IndependentModel``), in 1/256 of a level.

    Raises
    ------
    FormatError
        If shapes, dtypes or ranges are wrong.
    """

    latents: int
    alphabet: int
    levels: NDArray[np.uint16]
    degrees: NDArray[np.integer]
    hidden_weights: NDArray[np.int8]
    hidden_bias: NDArray[np.int32]
    hidden_multiplier: NDArray[np.uint16]
    direct: NDArray[np.int8]
    output: NDArray[np.int8]
    multiplier: NDArray[np.uint16]
    bias: NDArray[np.int32]

    kind = "autoregressive"

    def __post_init__(self) -> None:
        _check_sizes(self.latents, self.alphabet, self.hidden, len(self.levels))
        t = self.decisions_per_row
        shapes = array_types(self.latents, self.hidden, self.alphabet, levels=len(self.levels))
        del shapes["degrees"]  # any integers
        for name, (dtype, shape) in shapes.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                msg = f"an autoregressive model's {name} is {np.dtype(dtype)} of shape {shape}"
                raise FormatError(f"{msg}, not {array.dtype} of shape {array.shape}")
        if self.levels.min() < 1 or self.levels.max() >= DENOMINATOR:
            raise FormatError(f"probabilities are k/{DENOMINATOR} with k in 1..{DENOMINATOR - 1}")
        if np.abs(self.hidden_bias.astype(np.int64)).max(initial=0) > MAX_BIAS:
            raise FormatError("the bias of a hidden unit is too large")
        # Files omit masked weights, so a nonzero one would count in encoding and not in decoding.
        masks = _known(self.degrees, t)
        for weights, known in zip((self.hidden_weights, self.direct, self.output), masks, strict=True):
            if weights.any(where=~known):
                raise FormatError("an autoregressive model looks at decisions that are not known yet")

    @property
    def bits(self) -> int:
        """Decisions per symbol."""
        return bits_per_symbol(self.alphabet)

    @property
    def decisions_per_row(self) -> int:
        """T, binary decisions per row: latents times bits per symbol."""
        return self.latents * self.bits

    @cached_property
    def floats(self) -> _Floats:
        """The same numbers as floats, whose products are exact."""
        return _Floats(self)

    def prefix(self, latents: int) -> AutoregressiveModel:
        """Return the model of the first latents, which do not depend on later ones."""
        if latents == self.latents:
            return self
        t = latents * self.bits
        h = int(np.searchsorted(self.degrees, t))
        return replace(
            self, latents=latents, degrees=self.degrees[:h], hidden_weights=self.hidden_weights[:h, :t],
            hidden_bias=self.hidden_bias[:h], hidden_multiplier=self.hidden_multiplier[:h],
            direct=self.direct[:t, :t], output=self.output[:t, :h], multiplier=self.multiplier[:t],
            bias=self.bias[:latents],
        )  # fmt: skip

    @property
    def hidden(self) -> int:
        """H, the number of hidden units."""
        return len(self.degrees)

    def arrays(self) -> dict[str, NDArray[np.integer]]:
        """Return the arrays by name."""
        names = array_types(self.latents, self.hidden, self.alphabet, levels=len(self.levels))
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.integer]], *, latents: int, alphabet: int
    ) -> AutoregressiveModel:
        """Make a model from arrays of any integer dtype."""
        typed = {}
        for name, (dtype, _) in array_types(
            latents, len(arrays["degrees"]), alphabet, levels=len(arrays["levels"])
        ).items():
            array, limits = np.asarray(arrays[name]).astype(np.int64), np.iinfo(dtype)
            if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
                raise FormatError(f"{name} of an autoregressive model exceeds {limits.min}..{limits.max}")
            typed[name] = array.astype(dtype)
        return cls(latents, alphabet, **typed)

    def level_indices(self, decisions: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the level index of every decision, uint8, shape (T, N), from decisions, shape (N, T)."""
        f, t = self.floats, self.decisions_per_row
        out = np.empty((t, len(decisions)), np.uint8)
        for start in range(0, len(decisions), _ROWS):
            part = np.ascontiguousarray(decisions[start : start + _ROWS].T)
            signs = part.astype(np.float32) * 2 - 1
            active = np.empty((len(self.degrees), signs.shape[1]), np.float32)
            for low in range(0, len(active), _COLUMNS):
                units = slice(low, min(low + _COLUMNS, len(active)))
                seen = int(self.degrees[units.stop - 1])
                active[units] = f.activate(_product(_float(self.hidden_weights[units, :seen]), signs[:seen]), units)
            for low in range(0, t, _COLUMNS):
                high = min(low + _COLUMNS, t)
                z = _product(_float(self.direct[low:high, :high]), signs[:high]).astype(np.float64)
                f.add_output(z, self.output[low:high], active, int(np.searchsorted(self.degrees, high)))
                bias = self._bias(part, low, high)
                out[low:high, start : start + _ROWS] = f.quantise(z, f.multiplier[low:high, None], bias)
        return out

    def _bias(self, decisions: NDArray[np.uint8], low: int, high: int) -> NDArray[np.float64]:
        """Return the biases, in levels, of decisions low..high-1; shape (high - low, N) or (high - low, 1)."""
        f, bits = self.floats, self.bits
        if bits == 1:
            return f.bias[low:high]
        out = np.empty((high - low, decisions.shape[1]))
        for j in range(low, high):
            latent, level = divmod(j, bits)
            prefix = np.zeros(decisions.shape[1], np.intp)
            for row in decisions[j - level : j]:
                prefix = prefix * 2 + row
            out[j - low] = f.bias[latent, (1 << level) - 1 + prefix]
        return out

    def bits_of(self, decisions: NDArray[np.uint8], indices: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the bits of decisions, shape (N, T), at levels, shape (T, N), summed over rows: shape (T,)."""
        n = len(self.levels)
        p = self.levels.astype(np.float64) / DENOMINATOR
        cost = np.stack([-np.log2(1 - p), -np.log2(p)], axis=1).reshape(-1)
        total = np.empty(len(indices))
        for j, row in enumerate(indices):
            counts = np.bincount(row.astype(np.uint16) * 2 + decisions[:, j], minlength=2 * n)
            total[j] = counts @ cost
        return total

    def bits_by_decision(self, codes: Codes) -> NDArray[np.float64]:
        """Return the bits of these codes under the model, summed over rows, shape (T,)."""
        total = np.zeros(self.decisions_per_row)
        for start in range(0, len(codes), 8 * _ROWS):
            decisions = codes[start : start + 8 * _ROWS].decisions()
            total += self.bits_of(decisions, self.level_indices(decisions))
        return total

    def bits_by_latent(self, codes: Codes) -> NDArray[np.float64]:
        """Return the bits of each latent given earlier latents, summed over rows, shape (D,)."""
        return self.bits_by_decision(codes).reshape(self.latents, -1).sum(axis=1)

    def ideal_bits(self, codes: Codes) -> float:
        """Return the total bits of these codes under the model: the lower bound for a coder."""
        return float(self.bits_by_decision(codes).sum())

    # Bytes

    def to_bytes(self) -> bytes:
        """Write the model, little-endian, as docs/FORMAT.md says; masked weights are left out."""
        hidden, direct, output = _known(self.degrees, self.decisions_per_row)
        parts = [
            self.levels.astype("<u2"), self.degrees.astype("<u2"), self.hidden_bias.astype("<i4"),
            self.hidden_multiplier.astype("<u2"), self.multiplier.astype("<u2"), self.bias.astype("<i4"),
            self.hidden_weights[hidden], self.direct[direct], self.output[output],
        ]  # fmt: skip
        head = _HEAD.pack(self.latents, self.alphabet, self.hidden, len(self.levels))
        return head + b"".join(part.tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> AutoregressiveModel:
        """Read what :meth:`to_bytes` wrote."""
        reader = ArrayReader(data, "an autoregressive model")
        latents, alphabet, h, n = reader.take("<u4", 4).tolist()
        _check_sizes(latents, alphabet, h, n)
        t = latents * bits_per_symbol(alphabet)
        levels, degrees, hidden_bias = reader.take("<u2", n), reader.take("<u2", h), reader.take("<i4", h)
        hidden_multiplier, multiplier = reader.take("<u2", h), reader.take("<u2", t)
        bias = reader.take("<i4", latents, nodes_per_symbol(alphabet))
        weights = []
        for known in _known(degrees, t):
            full = np.zeros(known.shape, np.int8)
            full[known] = reader.take("i1", int(np.count_nonzero(known)))
            weights.append(full)
        reader.end()
        return cls(
            latents, alphabet, levels, degrees, weights[0], hidden_bias, hidden_multiplier, weights[1], weights[2],
            multiplier, bias,
        )  # fmt: skip


class _Floats:
    """A model's arithmetic in floats, in which every value is an integer or an exact binary fraction."""

    def __init__(self, model: AutoregressiveModel) -> None:
        # Powers of two scale without rounding: a right shift by 24 is a factor of 2**-24, and z is kept in units of
        # SIGN, so the decisions' part needs no scaling.
        self.hidden_bias = model.hidden_bias.astype(np.float64)[:, None]
        self.hidden_multiplier = model.hidden_multiplier.astype(np.float64)[:, None] / (1 << HIDDEN_SHIFT)
        self.multiplier = model.multiplier.astype(np.float64) * SIGN / (1 << SHIFT)
        self.bias = model.bias.astype(np.float64) / (1 << (SHIFT - BIAS_SHIFT))
        self.top = float(len(model.levels) - 1)

    def activate(self, u: NDArray[np.float32], units: slice) -> NDArray[np.float32]:
        """Return the hidden units' values, 0..127, from their sums without bias; shape (units, N)."""
        scaled = (u + self.hidden_bias[units]) * self.hidden_multiplier[units]
        np.maximum(scaled, 0, out=scaled)
        np.minimum(scaled, FULL, out=scaled)
        return np.floor(scaled, out=scaled).astype(np.float32)

    @staticmethod
    def add_output(
        z: NDArray[np.float64], output: NDArray[np.int8], active: NDArray[np.float32], units: int, first: int = 0
    ) -> None:
        """Add the outputs of hidden units first..units-1 to ``z``, shape (decisions, N), in units of SIGN."""
        for low in range(first, units, _EXACT_UNITS):
            high = min(low + _EXACT_UNITS, units)
            z += _product(_float(output[:, low:high]) * np.float32(1 / SIGN), active[low:high])

    def quantise(self, z: NDArray[np.float64], multiplier: Any, bias: Any) -> NDArray[np.uint8]:
        """Return the level index, clipped at 0 first so that truncation rounds down."""
        z = z * multiplier
        z += bias
        np.maximum(z, 0, out=z)  # half the time of np.clip for few rows
        np.minimum(z, self.top, out=z)
        return z.astype(np.uint8)


def _product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply matrices of finite numbers without numpy's warnings.

    BLAS may compute with garbage in the unused lanes of a vector register, which sets the invalid-operation flag.
    """
    with np.errstate(invalid="ignore"):
        return left @ right


class Stepper:
    """Decodes many rows decision by decision: yields the levels of the next decision, then takes its values.

    ``for indices in stepper: ...; stepper.tell(decisions)``. The rows may belong to several blocks.

    ``decisions``, uint8, shape (T, rows), holds the values decoded so far.
    """

    def __init__(self, model: AutoregressiveModel, rows: int) -> None:
        t = model.decisions_per_row
        self.decisions = np.empty((t, rows), np.uint8)
        self._model, self._floats = model, model.floats
        self._signs = np.empty((t, rows), np.float32)
        self._active = np.empty((len(model.degrees), rows), np.float32)
        self._bits = model.bits
        self._prefix = np.zeros(rows, np.intp)
        self._done = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the level indices of each decision in turn, uint8, shape (rows,)."""
        model, f, signs, active = self._model, self._floats, self._signs, self._active
        t, bits = model.decisions_per_row, self._bits
        multiplier, roots = f.multiplier.tolist(), f.bias[:, 0].tolist()
        # Number of hidden units known before each decision.
        known = np.searchsorted(model.degrees, np.arange(t), side="right").tolist()
        units = 0
        for low in range(0, t, _CHUNK):
            high = min(low + _CHUNK, t)
            output = model.output[low:high]
            # Multiply once per chunk by everything known before it, then add the chunk's own decisions one by one.
            direct = _float(model.direct[low:high, :high])
            z = _product(direct[:, :low], signs[:low]).astype(np.float64)
            f.add_output(z, output, active, units)
            coming = slice(units, known[high - 1])
            hidden = _float(model.hidden_weights[coming, :high])
            sums = _product(hidden[:, :low], signs[:low])
            for j in range(low, high):
                if known[j] > units:
                    new = slice(units - coming.start, known[j] - coming.start)
                    u = sums[new] + _product(hidden[new, low:j], signs[low:j])
                    active[units : known[j]] = f.activate(u, slice(units, known[j]))
                    f.add_output(z[j - low :], output[j - low :], active, known[j], units)
                    units = known[j]
                row = z[j - low]
                if j > low:
                    row += _product(direct[j - low, low:j], signs[low:j])
                latent, level = divmod(j, bits)
                bias = f.bias[latent, (1 << level) - 1 + self._prefix] if level else roots[latent]
                yield f.quantise(row, multiplier[j], bias)

    def tell(self, decisions: NDArray[np.uint8]) -> None:
        """Set the values of the decision that was yielded last, uint8, shape (rows,)."""
        j = self._done
        self.decisions[j] = decisions
        signs = self._signs[j]
        np.multiply(decisions, np.float32(2), out=signs)
        signs -= 1
        self._done = j + 1
        if self._bits > 1:
            self._prefix = self._prefix * 2 + decisions if (j + 1) % self._bits else np.zeros_like(self._prefix)


def _float(weights: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return weights as floats, converted when needed: all at once would take four times the memory."""
    return weights.astype(np.float32)


def _known(degrees: NDArray[np.integer], decisions: int) -> tuple[NDArray[np.bool_], ...]:
    """Return masks of the hidden, direct and output weights that may be nonzero."""
    seen = np.arange(decisions, dtype=np.int32)
    ends = degrees.astype(np.int32)
    if ends.ndim != 1 or (len(ends) and (np.diff(ends, prepend=1, append=decisions - 1) < 0).any()):
        raise FormatError(f"the degrees of hidden units do not ascend from 1 to at most {decisions - 1}")
    return seen < ends[:, None], seen < seen[:, None], ends <= seen[:, None]


def _check_sizes(latents: int, alphabet: int, hidden: int, levels: int) -> None:
    check_sizes(latents, alphabet, "an autoregressive model")
    if not 2 <= levels <= MAX_LEVELS or hidden > MAX_HIDDEN:
        raise FormatError(f"an autoregressive model cannot have {levels:,} levels and {hidden:,} hidden units")
