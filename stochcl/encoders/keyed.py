"""Random numbers keyed by what they are for, so that no order of work changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift 64-bit words right logically; torch's own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _mix(x: Tensor) -> Tensor:
    """Finalise as SplitMix64 does (Steele, Lea, Flood: Fast splittable pseudorandom generators, 2014)."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def keyed_uniform(keys: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Draw ``count`` numbers for each key.

    Parameters
    ----------
    keys : Tensor of int64, shape (B,)
        What the numbers are for, e.g. an image's index in the data set plus N times the epoch.
    seed : int
        The run's seed.
    stream : int
        Which use of randomness this is; streams are independent of each other.
    count : int
        Numbers a key.

    Returns
    -------
    Tensor of float32, shape (B, count)
        Uniform in [0, 1), a function of (key, seed, stream, column) alone.
    """
    golden = _signed(0x9E3779B97F4A7C15)
    # On the CPU: bringing it to a GPU would wait for all the work that the GPU has.
    start = int(_mix(torch.tensor([seed], dtype=torch.int64) * golden + stream + 1))
    rows = _mix(keys.to(torch.int64) * golden + start)
    columns = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * golden
    return _shift(_mix(rows[:, None] + columns), 40).to(torch.float32) * 2.0**-24


def as_words(uniform: Tensor) -> Tensor:
    """Return what :func:`keyed_uniform` drew as whole numbers, int32, which no mixed precision rounds.

    What wraps a network to train it in bfloat16 rounds the floats that go into it: to 8 bits, some of them to 1.
    """
    return (uniform * 2.0**24).to(torch.int32)


def from_words(words: Tensor) -> Tensor:
    """Invert :func:`as_words`; float32 in [0, 1)."""
    return words.to(torch.float32) * 2.0**-24
