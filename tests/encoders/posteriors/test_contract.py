"""What holds for the posteriors of all families."""

import math

import pytest
import torch
from torch.distributions import Categorical as Reference
from torch.distributions import kl_divergence

from stochcl.encoders.config import FAMILIES
from stochcl.encoders.posteriors import ESTIMATORS, POSTERIORS, Bernoulli, Categorical, Gaussian
from stochcl.encoders.priors import FACTORISED, symbol_bits
from stochcl.errors import UsageError
from tests.encoders.posteriors.making import (
    CASES,
    make_config,
    make_parameters,
    make_posterior,
    make_prior,
    make_uniform,
)

DRAWS = 40_000

families = pytest.mark.parametrize(("family", "alphabet"), CASES)


def log_probabilities(posterior) -> torch.Tensor:
    """log q of every symbol, shape (B, D, K)."""
    rows, latents = len(posterior.parameters), posterior.config.latents
    every = [torch.full((rows, latents), k) for k in range(posterior.config.alphabet)]
    return torch.stack([posterior.log_prob(symbols) for symbols in every], dim=2)


def many(family, alphabet):
    """The same distributions in very many rows, and one of them."""
    one = make_posterior(family, alphabet, rows=1)
    return POSTERIORS[family](one.parameters.expand(DRAWS, -1), one.config), one


def test_families_have_the_names_that_model_files_hold():
    assert {"bernoulli": Bernoulli, "categorical": Categorical, "gaussian": Gaussian} == POSTERIORS


@families
def test_probabilities_entropy_divergence_and_rate_are_those_of_torch_distributions(family, alphabet):
    posterior = make_posterior(family, alphabet)
    prior = make_prior(posterior.config)
    log_q, log_p = log_probabilities(posterior), FACTORISED[family](prior, posterior.config).log_prob()
    q, p = Reference(probs=log_q.exp()), Reference(probs=log_p.exp().expand_as(log_q))
    ones = torch.ones(4, 3, dtype=torch.float64)
    torch.testing.assert_close(log_q.exp().sum(2), ones)
    torch.testing.assert_close(log_p.exp().sum(1), ones[0])
    torch.testing.assert_close(posterior.entropy(), q.entropy())
    torch.testing.assert_close(posterior.kl(prior), kl_divergence(q, p))
    torch.testing.assert_close(posterior.rate(prior), (q.entropy() + kl_divergence(q, p)) / math.log(2))


@families
def test_draws_have_the_frequencies_and_cost_the_rate(family, alphabet):
    posterior, one = many(family, alphabet)
    symbols = posterior.symbols(posterior.sample(make_uniform(posterior)))
    for k in range(alphabet):
        expected = one.log_prob(torch.full((1, 3), k)).exp()[0]
        torch.testing.assert_close((symbols == k).double().mean(0), expected, rtol=0, atol=0.012)
    prior = make_prior(posterior.config)
    log_p = FACTORISED[family](prior, posterior.config).log_prob()
    paid = -log_p[torch.arange(3), symbols]
    torch.testing.assert_close(paid.mean(0) / math.log(2), one.rate(prior)[0], rtol=0.02, atol=0.02)
    surprise = -posterior.log_prob(symbols)
    torch.testing.assert_close(surprise.mean(0), one.entropy()[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close((paid - surprise).mean(0), one.kl(prior)[0], rtol=0.02, atol=0.02)


@families
def test_a_straight_through_draw_is_hard_to_the_last_bit_and_embeds_its_symbols(family, alphabet):
    posterior = make_posterior(family, alphabet, rows=3000)
    draw = posterior.sample(make_uniform(posterior))
    symbols = posterior.symbols(draw)
    assert torch.equal(draw.float(), posterior.embed(symbols, posterior.config))
    assert ((symbols >= 0) & (symbols < alphabet)).all()
    assert len(symbols.unique()) == alphabet


@families
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_a_relaxed_draw_is_nearest_to_what_the_same_noise_draws_straight_through(family, alphabet, temperature):
    posterior = make_posterior(family, alphabet, rows=2000)
    uniform = make_uniform(posterior)
    relaxed, hard = (posterior.sample(uniform, estimator, temperature) for estimator in reversed(ESTIMATORS))
    assert torch.equal(posterior.symbols(relaxed), posterior.symbols(hard))
    assert (relaxed - hard).abs().max() > 0.05


@families
def test_gradients_are_those_of_finite_differences(family, alphabet):
    config = make_config(family, alphabet)
    parameters, prior = make_parameters(config).requires_grad_(), make_prior(config).requires_grad_()
    uniform = make_uniform(POSTERIORS[family](parameters, config)).double()
    symbols = POSTERIORS[family](parameters, config).mode()

    def relaxed(parameters):
        return POSTERIORS[family](parameters, config).sample(uniform, "relaxed", 0.7)

    def measures(parameters, prior):
        posterior = POSTERIORS[family](parameters, config)
        return posterior.entropy(), posterior.kl(prior), posterior.rate(prior), posterior.log_prob(symbols)

    assert torch.autograd.gradcheck(relaxed, parameters)
    assert torch.autograd.gradcheck(measures, (parameters, prior))


@families
def test_the_mode_is_a_symbol_that_embeds_and_comes_back(family, alphabet):
    posterior = make_posterior(family, alphabet, rows=500)
    if family == "gaussian":  # of wide ones, an outermost bin, which is open, may be more probable than the mean's
        posterior.parameters[:, 3:] = -3
        posterior = Gaussian(posterior.parameters, posterior.config)
    mode = posterior.mode()
    assert (mode.shape, mode.dtype) == ((500, 3), torch.uint8)
    assert torch.equal(posterior.symbols(posterior.embed(mode, posterior.config)), mode.long())
    best = log_probabilities(posterior).argmax(2)
    assert (best == mode).all()


def test_modes_of_large_alphabets_have_room():
    posterior = make_posterior("categorical", 300, rows=50)
    assert posterior.mode().dtype == torch.int32
    assert posterior.mode().max() > 255
    assert make_posterior("gaussian", 256).mode().dtype == torch.uint8


@families
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_decides_everything(family, alphabet, estimator):
    posterior = make_posterior(family, alphabet, rows=40)
    uniform = make_uniform(posterior)
    assert torch.equal(posterior.sample(uniform, estimator), posterior.sample(uniform, estimator))
    assert not torch.equal(posterior.sample(uniform, estimator), posterior.sample(1 - uniform, estimator))
    for edge in (0.0, 1 - 2.0**-24):
        assert posterior.sample(torch.full_like(uniform, edge), estimator).isfinite().all()


@families
def test_decisions_are_those_of_the_symbols(family, alphabet):
    posterior = make_posterior(family, alphabet, rows=200)
    draw = posterior.sample(make_uniform(posterior))
    expected = symbol_bits(alphabet)[posterior.symbols(draw)].flatten(1)
    assert torch.equal(posterior.decisions(draw.float()), expected)


@pytest.mark.parametrize("family", sorted(set(POSTERIORS) - {"residual"}))
def test_estimators_and_temperatures_that_do_not_exist_are_refused(family):
    posterior = make_posterior(family, 2 if family == "bernoulli" else 4)
    uniform = make_uniform(posterior)
    with pytest.raises(UsageError, match="no estimator 'reinforce'; there are straight-through, relaxed"):
        posterior.sample(uniform, "reinforce")
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="temperature is more than 0"):
            posterior.sample(uniform, "relaxed", temperature)


def test_every_family_has_its_posterior_and_its_prior():
    assert set(FAMILIES) == {*POSTERIORS, "residual"} == set(FACTORISED)
