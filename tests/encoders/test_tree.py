"""Symbols as binary trees of decisions: probabilities at the nodes, in torch."""

import numpy as np
import pytest
import torch

from stochcl.codes import Codes
from stochcl.encoders.priors import decision_nodes, node_probabilities, symbol_bits
from stochcl.entropy.independent import nodes_per_symbol, places

ALPHABETS = [2, 3, 4, 5, 8, 300]


def make_codes(alphabet, rows=50, latents=3, seed=0) -> Codes:
    symbols = np.random.default_rng(seed).integers(0, alphabet, (rows, latents))
    return Codes.from_symbols(symbols, alphabet=alphabet)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_symbol_s_probability_is_the_product_along_its_path(alphabet):
    p = torch.softmax(torch.randn(2, alphabet, generator=torch.Generator().manual_seed(0)).double(), 1)
    nodes = node_probabilities(p)
    assert nodes.shape == (2, nodes_per_symbol(alphabet))
    every = Codes.from_symbols(np.repeat(np.arange(alphabet)[:, None], 2, 1), alphabet=alphabet)
    latent, node = places(every)
    node = np.broadcast_to(node, (alphabet, len(latent)))
    one = nodes.numpy()[latent, node]
    taken = np.where(every.decisions() == 1, one, 1 - one).reshape(alphabet, 2, -1).prod(axis=2)
    np.testing.assert_allclose(taken, p.T.numpy(), rtol=1e-9)


def test_nodes_that_are_never_reached_are_even_and_break_no_gradient():
    p = torch.tensor([[1.0, 0.0, 0.0, 1e-30]], requires_grad=True)
    nodes = node_probabilities(p)
    assert nodes.tolist()[0] == pytest.approx([0, 0, 0.5])
    nodes.sum().backward()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_decisions_and_nodes_are_those_of_the_codes(alphabet):
    codes = make_codes(alphabet)
    decisions = torch.from_numpy(codes.decisions()).float()
    bits = symbol_bits(alphabet)[torch.from_numpy(codes.symbols().astype(int))]
    assert torch.equal(bits.flatten(1), decisions)
    latent, node = places(codes)
    for given in (decisions, decisions * 0.9 + 0.05):
        found_latent, found_node = decision_nodes(given, alphabet)
        assert found_latent.tolist() == latent.tolist()
        np.testing.assert_array_equal(found_node.numpy(), np.broadcast_to(node, decisions.shape))
