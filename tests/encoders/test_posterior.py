import math

import pytest
import torch
from torch.distributions import Bernoulli as Reference
from torch.distributions import kl_divergence

from stochcl.encoders.posterior import POSTERIORS, Bernoulli

LOGITS = torch.linspace(-12, 12, 49).repeat(3, 1)
PRIOR = torch.linspace(3, -3, 49)
BIT = math.log(2)


@pytest.fixture
def exact():
    return Reference(logits=LOGITS.double())


def test_log_prob_entropy_and_kl_are_those_of_torch_in_bits(exact):
    posterior = Bernoulli(LOGITS)
    symbols = torch.arange(3 * 49).view(3, 49) % 2
    tolerance = {"rtol": 1e-5, "atol": 5e-6}
    expected = exact.log_prob(symbols.double()) / BIT
    torch.testing.assert_close(posterior.log_prob(symbols).double(), expected, **tolerance)
    torch.testing.assert_close(posterior.entropy().double(), exact.entropy() / BIT, **tolerance)
    kl = kl_divergence(exact, Reference(logits=PRIOR.double().repeat(3, 1))) / BIT
    torch.testing.assert_close(posterior.kl(PRIOR).double(), kl, **tolerance)


def test_a_fair_coin_is_one_bit():
    assert Bernoulli(torch.zeros(1, 1)).entropy().item() == 1
    assert Bernoulli(torch.zeros(1, 1)).log_prob(torch.ones(1, 1)).item() == -1


def test_the_rate_is_the_cross_entropy_with_the_prior(exact):
    cost = -Reference(logits=PRIOR.double()).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]) / BIT
    expected = (1 - exact.probs) * cost[0] + exact.probs * cost[1]
    torch.testing.assert_close(Bernoulli(LOGITS).rate(PRIOR).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -90.0, -20.0, 20.0, 90.0, 1e4])
def test_certain_bits_cost_nothing_and_break_nothing(logit):
    logits = torch.tensor([[logit]], requires_grad=True)
    posterior = Bernoulli(logits)
    assert posterior.entropy().item() == pytest.approx(0, abs=1e-5)
    assert posterior.log_prob(posterior.mode()).item() == pytest.approx(0, abs=1e-5)
    posterior.rate(torch.zeros(1)).sum().backward()
    assert logits.grad.isfinite().all()


def test_entropy_is_never_negative():
    # It is stored with every image, as its uncertainty.
    assert Bernoulli(torch.linspace(-40, 40, 200_001)[None]).entropy().min() >= 0


def test_draws_have_the_posterior_s_frequencies_and_cost_its_rate():
    logits, prior = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]), torch.tensor([0.5, -1.0, 0.0, 1.0, 2.0])
    draws = 40_000
    posterior = Bernoulli(logits.expand(draws, 5))
    symbols = posterior.sample(torch.rand(draws, 5, generator=torch.Generator().manual_seed(1)))
    assert set(symbols.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(symbols.mean(0), torch.sigmoid(logits), rtol=0, atol=0.01)
    paid = -Bernoulli(prior.expand(draws, 5)).log_prob(symbols)
    torch.testing.assert_close(paid.mean(0), posterior.rate(prior)[0], rtol=0, atol=0.03)
    torch.testing.assert_close(-posterior.log_prob(symbols).mean(0), posterior.entropy()[0], rtol=0, atol=0.03)


def test_noise_decides_the_draw():
    logits = torch.tensor([[-1.0, 1.0]])
    p = torch.sigmoid(logits)
    assert Bernoulli(logits).sample(p - 1e-3).tolist() == [[1, 1]]
    assert Bernoulli(logits).sample(p + 1e-3).tolist() == [[0, 0]]
    assert Bernoulli(logits).sample(torch.zeros(1, 2)).tolist() == [[1, 1]]


def test_samples_are_hard_to_the_last_bit():
    logits = torch.linspace(-8, 8, 10_001)[None].requires_grad_()
    assert set(Bernoulli(logits).sample(torch.zeros(1, 10_001)).tolist()[0]) == {1.0}


def test_gradients_pass_straight_through_to_the_probability():
    logits = torch.linspace(-3, 3, 7)[None].requires_grad_()
    weight = torch.arange(1.0, 8)
    (Bernoulli(logits).sample(torch.rand(1, 7)) * weight).sum().backward()
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, weight * p * (1 - p))


def test_the_mode_is_the_most_probable_symbol():
    posterior = Bernoulli(LOGITS)
    mode = posterior.mode()
    assert mode.dtype == torch.uint8
    assert (posterior.log_prob(mode) >= posterior.log_prob(1 - mode)).all()
    assert mode[0, [0, -1]].tolist() == [0, 1]


def test_families_have_the_names_that_model_files_hold():
    assert {"bernoulli": Bernoulli} == POSTERIORS
