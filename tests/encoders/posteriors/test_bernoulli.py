import math

import pytest
import torch
from torch.distributions import Bernoulli as Reference
from torch.distributions import kl_divergence

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.posteriors import Bernoulli

LOGITS = torch.linspace(-12, 12, 49).repeat(3, 1)
PRIOR = torch.linspace(3, -3, 49)
BIT = math.log(2)


def make(logits) -> Bernoulli:
    return Bernoulli(logits, EncoderConfig(latents=logits.shape[1]))


@pytest.fixture
def exact():
    return Reference(logits=LOGITS.double())


def test_log_prob_entropy_and_kl_are_those_of_torch(exact):
    posterior = make(LOGITS)
    symbols = torch.arange(3 * 49).view(3, 49) % 2
    tolerance = {"rtol": 1e-5, "atol": 5e-6}
    torch.testing.assert_close(posterior.log_prob(symbols).double(), exact.log_prob(symbols.double()), **tolerance)
    torch.testing.assert_close(posterior.entropy().double(), exact.entropy(), **tolerance)
    kl = kl_divergence(exact, Reference(logits=PRIOR.double().repeat(3, 1)))
    torch.testing.assert_close(posterior.kl(PRIOR).double(), kl, **tolerance)


def test_a_fair_coin_is_one_bit():
    fair = make(torch.zeros(1, 1))
    assert fair.entropy().item() == pytest.approx(BIT)
    assert fair.log_prob(torch.ones(1, 1)).item() == pytest.approx(-BIT)
    assert fair.rate(torch.zeros(1)).item() == 1


def test_the_rate_is_the_cross_entropy_with_the_prior(exact):
    cost = -Reference(logits=PRIOR.double()).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]) / BIT
    expected = (1 - exact.probs) * cost[0] + exact.probs * cost[1]
    torch.testing.assert_close(make(LOGITS).rate(PRIOR).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -90.0, -20.0, 20.0, 90.0, 1e4])
def test_certain_bits_cost_nothing_and_break_nothing(logit):
    logits = torch.tensor([[logit]], requires_grad=True)
    posterior = make(logits)
    assert posterior.entropy().item() == pytest.approx(0, abs=1e-5)
    assert posterior.log_prob(posterior.mode()).item() == pytest.approx(0, abs=1e-5)
    posterior.rate(torch.zeros(1)).sum().backward()
    assert logits.grad.isfinite().all()


def test_entropy_is_never_negative():
    # It is stored with every image, as its uncertainty.
    assert make(torch.linspace(-40, 40, 4001)[None]).entropy().min() >= 0


def test_noise_decides_the_draw():
    logits = torch.tensor([[-1.0, 1.0]])
    p = torch.sigmoid(logits)
    assert make(logits).sample(p - 1e-3).tolist() == [[1, 1]]
    assert make(logits).sample(p + 1e-3).tolist() == [[0, 0]]
    assert make(logits).sample(torch.zeros(1, 2)).tolist() == [[1, 1]]


def test_samples_are_hard_to_the_last_bit():
    logits = torch.linspace(-8, 8, 4001)[None].requires_grad_()
    assert set(make(logits).sample(torch.zeros(1, 4001)).tolist()[0]) == {1.0}


def test_gradients_pass_straight_through_to_the_probability():
    logits = torch.linspace(-3, 3, 7)[None].requires_grad_()
    weight = torch.arange(1.0, 8)
    (make(logits).sample(torch.rand(1, 7)) * weight).sum().backward()
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, weight * p * (1 - p))


def test_the_mode_is_the_most_probable_symbol():
    posterior = make(LOGITS)
    mode = posterior.mode()
    assert mode.dtype == torch.uint8
    assert (posterior.log_prob(mode) >= posterior.log_prob(1 - mode)).all()
    assert mode[0, [0, -1]].tolist() == [0, 1]
