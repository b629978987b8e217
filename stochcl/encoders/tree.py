"""The binary tree of a symbol: a K-ary symbol is coded as ceil(log2 K) decisions, most significant first.

The node after the decisions d1..dl is number 2**l - 1 + (d1..dl as an integer); a table has a probability of a one
for each node, of which there are 2**bits - 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from stochcl.codes import bits_per_symbol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.codes import Codes

DENOMINATOR = 4096
"""Probabilities of the coder's tables are multiples of 1/4096."""

_ROWS = 2048  # of codes at a time
_REACHED = 1e-18  # a probability whose square, by which its gradient is divided, float32 still holds


def nodes_per_symbol(alphabet: int) -> int:
    """Return how many nodes the tree of an alphabet has, ``2**bits - 1``.

    Examples
    --------
    >>> [nodes_per_symbol(k) for k in (2, 3, 4, 256)]
    [1, 3, 3, 255]
    """
    return (1 << bits_per_symbol(alphabet)) - 1


def places(codes: Codes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return latent, shape (T,), and node of the symbol's tree, shape (N, T), of every decision."""
    bits = bits_per_symbol(codes.alphabet)
    latent = np.repeat(np.arange(codes.latents), bits)
    if bits == 1:
        return latent, np.zeros((1, codes.latents), np.intp)
    symbols = codes.symbols().astype(np.intp)
    nodes = [(1 << level) - 1 + (symbols >> (bits - level)) for level in range(bits)]
    return latent, np.stack(nodes, axis=2).reshape(len(codes), -1)


def node_counts(codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count ones and visits at every node of every latent's tree, each shape (D, 2**bits - 1)."""
    ones = np.zeros((codes.latents, nodes_per_symbol(codes.alphabet)))
    visits = np.zeros_like(ones)
    for start in range(0, len(codes), _ROWS):
        part = codes[start : start + _ROWS]
        latent, node = places(part)
        decisions = part.decisions()
        at = np.broadcast_to(latent * ones.shape[1] + node, decisions.shape).reshape(-1)
        flat = decisions.reshape(-1)
        ones += np.bincount(at, flat, ones.size).reshape(ones.shape)
        visits += np.bincount(at, minlength=ones.size).reshape(ones.shape)
    return ones, visits


def quantised(probabilities: NDArray[np.floating]) -> NDArray[np.int32]:
    """Round probabilities to multiples of 1/4096 that leave nothing impossible: numerators of 1..4095."""
    rounded = np.rint(np.asarray(probabilities, np.float64) * DENOMINATOR)
    numerators: NDArray[np.int32] = np.clip(rounded, 1, DENOMINATOR - 1).astype(np.int32)
    return numerators


def node_probabilities(probabilities: Tensor) -> Tensor:
    """Return the probability of a one at every node, shape (..., 2**bits - 1), of symbols' own, shape (..., K).

    It is 1/2 at a node that is hardly ever reached.
    """
    bits = bits_per_symbol(probabilities.shape[-1])
    leaves = functional.pad(probabilities, (0, (1 << bits) - probabilities.shape[-1]))
    levels = []
    for level in range(bits):
        children = leaves.reshape(*leaves.shape[:-1], 1 << level, 2, -1).sum(-1)
        total = children.sum(-1)
        reached = total > _REACHED
        levels.append(torch.where(reached, children[..., 1] / torch.where(reached, total, 1), 0.5))
    return torch.cat(levels, dim=-1)


def symbol_bits(alphabet: int, device: torch.device | None = None) -> Tensor:
    """Return the decisions that each symbol is coded as, float32, shape (K, bits), most significant first."""
    bits = bits_per_symbol(alphabet)
    symbols = torch.arange(alphabet, device=device)
    return (symbols[:, None] >> torch.arange(bits - 1, -1, -1, device=device) & 1).float()


def decision_nodes(decisions: Tensor, alphabet: int) -> tuple[Tensor, Tensor]:
    """Return latent, shape (T,), and node, shape (B, T), of every decision, from what comes before it in its symbol.

    Parameters
    ----------
    decisions : Tensor of float, shape (B, T)
        Soft ones count as what they are nearer to.
    alphabet : int
    """
    bits = bits_per_symbol(alphabet)
    latents = decisions.shape[1] // bits
    latent = torch.arange(latents, device=decisions.device).repeat_interleave(bits)
    hard = (decisions.detach() > 0.5).long().reshape(-1, latents, bits)
    node, nodes = torch.zeros_like(hard[..., 0]), []
    for level in range(bits):
        nodes.append(node)
        node = 2 * node + 1 + hard[..., level]
    return latent, torch.stack(nodes, dim=2).reshape(len(decisions), -1)
