import math

import numpy as np
import pytest
import torch

from stochcl.codes import Codes, bits_per_symbol
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.priors import FACTORISED, AutoregressivePrior, LogisticPrior, first_level
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel, nodes_per_symbol
from tests.encoders.posteriors.making import CASES, make_config, make_posterior, make_prior, make_uniform

families = pytest.mark.parametrize(("family", "alphabet"), CASES)


@families
def test_a_factorised_prior_s_table_costs_what_the_prior_says(family, alphabet):
    config = make_config(family, alphabet)
    prior = FACTORISED[family](make_prior(config), config)
    rng = np.random.default_rng(0)
    codes = Codes.from_symbols(rng.integers(0, alphabet, (400, 3)), alphabet=alphabet)
    table = IndependentModel(prior.numerators().astype(np.uint16), alphabet)
    log_p = prior.log_prob()
    expected = -log_p[torch.arange(3), torch.from_numpy(codes.symbols().astype(int))].sum() / math.log(2)
    assert table.ideal_bits(codes) == pytest.approx(float(expected), rel=0.01)


@families
def test_the_mean_is_that_of_the_symbols_in_decoder_form(family, alphabet):
    config = make_config(family, alphabet)
    prior = FACTORISED[family](make_prior(config), config)
    posterior = make_posterior(family, alphabet)
    every = posterior.embed(torch.arange(alphabet)[:, None].expand(-1, 3), posterior.config)
    p = prior.log_prob().exp().T  # (K, D)
    mean = (p[:, :, None] * every).sum(0) if every.ndim == 3 else (p * every).sum(0)
    if family == "gaussian":  # its levels end, and the density does not
        prior = LogisticPrior(torch.tensor([[0.3, -2.0]]).repeat(3, 1), config)
        assert prior.mean().tolist() == pytest.approx([0.3] * 3)
    else:
        torch.testing.assert_close(prior.mean(), mean)


def test_a_logistic_prior_is_symmetric_about_its_mean_and_tells_levels_by_distance():
    config = make_config("gaussian", 9)
    p = LogisticPrior(torch.tensor([[0.0, 0.0]]).repeat(3, 1), config).log_prob()
    torch.testing.assert_close(p, p.flip(1))
    assert p[0].argmax() == -first_level(9)
    steps = p[0, 1:4] - p[0, :3]
    assert (steps[1:] > 0.5).all()
    narrow = LogisticPrior(torch.tensor([[1.0, -30.0]]).repeat(3, 1), config).log_prob().exp()
    assert narrow[0].argmax() == 1 - first_level(9)
    assert narrow[0].max() > 0.999


def test_an_initial_prior_knows_nothing():
    for family, alphabet in CASES:
        config = make_config(family, alphabet)
        prior = FACTORISED[family](FACTORISED[family].initial(config), config)
        assert prior.numerators().shape == (3, nodes_per_symbol(alphabet))
        if family != "gaussian":
            torch.testing.assert_close(prior.log_prob().exp(), torch.full((3, alphabet), 1 / alphabet))


def autoregressive(family, alphabet, hidden=9, deviation=0.3):
    posterior = make_posterior(family, alphabet, rows=60)
    prior = AutoregressivePrior(posterior.config, hidden, seed=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return posterior, prior


def make_decisions(posterior):
    return posterior.decisions(posterior.sample(make_uniform(posterior))).float()


@families
def test_the_autoregressive_prior_is_a_distribution_over_codes(family, alphabet):
    # The probabilities of all codes, those beyond the alphabet among them, add up to one.
    _, prior = autoregressive(family, alphabet)
    t = 3 * bits_per_symbol(alphabet)
    every = torch.from_numpy((np.arange(1 << t)[:, None] >> np.arange(t) & 1).astype(np.float32))
    with torch.no_grad():
        total = (-prior.bits(every).double().sum(1)).exp2().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


@families
def test_no_decision_is_told_of_itself_or_of_later_ones(family, alphabet):
    posterior, prior = autoregressive(family, alphabet)
    decisions = make_decisions(posterior).detach()
    t = decisions.shape[1]
    before = prior.bits(decisions)
    for j in range(t):
        other = decisions.clone()
        other[:, j] = 1 - other[:, j]
        after = prior.bits(other)
        torch.testing.assert_close(after[:, :j], before[:, :j])
        torch.testing.assert_close((-after[:, j]).exp2() + (-before[:, j]).exp2(), torch.ones(60))
    assert not torch.allclose(prior.bits(1 - decisions)[:, -1], before[:, -1])


def test_bits_without_a_network_are_the_factorised_prior_s():
    for family, alphabet in CASES:
        posterior = make_posterior(family, alphabet, rows=40)
        factorised = FACTORISED[family](make_prior(posterior.config), posterior.config)
        prior = AutoregressivePrior(posterior.config, 0, nodes=factorised.nodes())
        draw = posterior.sample(make_uniform(posterior))
        bits = prior.bits(posterior.decisions(draw).float()).view(40, 3, -1).sum(2)
        log_p = factorised.log_prob()[torch.arange(3), posterior.symbols(draw)]
        torch.testing.assert_close(bits.double(), -log_p / math.log(2), rtol=1e-3, atol=1e-3)


@families
def test_gradients_reach_the_posterior_and_lower_the_bits(family, alphabet):
    posterior, prior = autoregressive(family, alphabet, deviation=1.0)
    parameters = posterior.parameters.float().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=0.3)
    cost = []
    for step in range(60):
        q = POSTERIORS[family](parameters, posterior.config)
        uniform = torch.rand(60, q.noise(q.config), generator=torch.Generator().manual_seed(step))
        bits = prior.bits(q.decisions(q.sample(uniform))).sum(1).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
        cost.append(bits.item())
    assert sum(cost[-10:]) < 0.8 * sum(cost[:10])


@families
def test_the_network_for_the_coder_costs_what_the_prior_says(family, alphabet):
    posterior, prior = autoregressive(family, alphabet)
    symbols = posterior.symbols(posterior.sample(make_uniform(posterior))).numpy()
    codes = Codes.from_symbols(symbols, alphabet=alphabet)
    network = prior.quantised()
    assert isinstance(network, AutoregressiveModel)
    assert (network.latents, network.alphabet, network.hidden) == (3, alphabet, 9)
    with torch.no_grad():
        expected = prior.bits(torch.from_numpy(codes.decisions()).float()).mean(0)
    found = network.bits_by_decision(codes) / len(codes)
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=0.03)
