import math

import pytest
import torch
from torch.distributions import Normal

from stochcl.encoders.posteriors import Gaussian
from stochcl.encoders.priors import LogisticPrior
from tests.encoders.posteriors.making import make_config, make_posterior, make_uniform


def gaussian(mean: torch.Tensor, deviation: torch.Tensor, alphabet: int) -> Gaussian:
    config = make_config("gaussian", alphabet, latents=mean.shape[1])
    return Gaussian(torch.cat([mean, deviation.log()], dim=1), config)


@pytest.mark.parametrize("alphabet", [3, 8, 9])
def test_a_symbol_s_probability_is_that_of_its_bin_and_outermost_bins_are_open(alphabet):
    posterior = make_posterior("gaussian", alphabet)
    mean, log_deviation = posterior.parameters.chunk(2, dim=1)
    normal = Normal(mean, log_deviation.exp())
    for symbol in range(alphabet):
        middle = symbol - alphabet // 2
        upper = normal.cdf(torch.tensor(middle + 0.5)) if symbol < alphabet - 1 else torch.ones(4, 3)
        lower = normal.cdf(torch.tensor(middle - 0.5)) if symbol else torch.zeros(4, 3)
        found = posterior.log_prob(torch.full((4, 3), symbol)).exp()
        torch.testing.assert_close(found, (upper - lower).double(), rtol=1e-6, atol=1e-9)


def test_where_bins_are_narrow_entropy_and_divergence_are_those_of_the_densities():
    posterior = gaussian(torch.tensor([[3.3, -9.1]]).double(), torch.tensor([[6.0, 11.0]]).double(), 256)
    normal = Normal(posterior.mean, posterior.deviation)
    torch.testing.assert_close(posterior.entropy(), normal.entropy(), rtol=0, atol=2e-3)
    prior = torch.tensor([[1.0, math.log(7.0)], [-4.0, math.log(5.0)]]).double()
    draws = normal.icdf(torch.linspace(0.5 / 20_000, 1 - 0.5 / 20_000, 20_000).double()[:, None])
    u = (draws - prior[:, 0]) / (prior[:, 1].exp() + 0.06)
    log_p = -u - 2 * torch.nn.functional.softplus(-u) - (prior[:, 1].exp() + 0.06).log()
    expected = (normal.log_prob(draws) - log_p).mean(0, keepdim=True)
    torch.testing.assert_close(posterior.kl(prior), expected, rtol=0, atol=5e-3)


def test_zero_is_the_middle_of_a_bin_whatever_the_alphabet():
    for alphabet in (3, 4, 255, 256):
        mean = torch.tensor([[-0.49, 0.0, 0.49]])
        posterior = gaussian(mean, torch.ones(1, 3), alphabet)
        assert posterior.mode().unique().tolist() == [alphabet // 2]
        assert posterior.embed(posterior.mode(), posterior.config).unique().tolist() == [0]


def test_numbers_beyond_the_levels_are_clipped():
    posterior = gaussian(torch.tensor([[-90.0, 90.0, 3.4]]), torch.ones(1, 3), 8)
    assert posterior.mode().tolist() == [[0, 7, 7]]
    assert posterior.embed(posterior.mode(), posterior.config).tolist() == [[-4, 3, 3]]
    draw = posterior.sample(torch.full((1, 3), 0.5))
    assert draw.tolist() == [[-4, 3, 3]]
    assert posterior.sample(torch.full((1, 3), 0.5), "relaxed")[0, :2].tolist() == [-90, 90]


def test_relaxed_draws_are_normal():
    rows = 20_000
    posterior = gaussian(torch.tensor([[1.5, -7.0]]).expand(rows, 2), torch.tensor([[0.2, 4.0]]).expand(rows, 2), 8)
    draws = posterior.sample(make_uniform(posterior), "relaxed")
    for level in (0.05, 0.3, 0.5, 0.9):
        expected = Normal(posterior.mean[0], posterior.deviation[0]).icdf(torch.tensor(level))
        torch.testing.assert_close((draws < expected).float().mean(0), torch.full((2,), level), rtol=0, atol=0.015)


def test_gradients_of_a_hard_draw_are_those_of_the_number_inside_the_levels_and_none_beyond():
    config = make_config("gaussian", 8, latents=2)
    parameters = torch.tensor([[0.3, 40.0, 0.1, 0.1]], requires_grad=True)
    uniform = torch.tensor([[0.8, 0.5]])
    Gaussian(parameters, config).sample(uniform).sum().backward()
    hard, parameters.grad = parameters.grad, None
    Gaussian(parameters, config).sample(uniform, "relaxed").sum().backward()
    torch.testing.assert_close(hard[0, [0, 2]], parameters.grad[0, [0, 2]])
    assert hard[0, [1, 3]].tolist() == [0, 0]
    assert hard[0, 0] == 1


@pytest.mark.parametrize("mean", [-1e6, -300.0, 0.5, 80.0, 1e6])
@pytest.mark.parametrize("log_deviation", [-20.0, -4.0, 0.0, 4.9, 20.0])
@pytest.mark.parametrize("alphabet", [3, 16, 4096])
def test_extremes_are_finite_and_so_are_their_gradients(mean, log_deviation, alphabet):
    config = make_config("gaussian", alphabet, latents=1)
    parameters = torch.tensor([[mean, log_deviation]], requires_grad=True)
    prior = LogisticPrior.initial(config).requires_grad_()
    posterior = Gaussian(parameters, config)
    parts = [posterior.entropy(), posterior.kl(prior), posterior.rate(prior), posterior.log_prob(posterior.mode())]
    draw = posterior.sample(torch.full((1, 1), 0.3))
    total = sum(part.sum() for part in parts) + posterior.decisions(draw).sum()
    total.backward()
    assert total.isfinite()
    assert parameters.grad.isfinite().all()
    assert prior.grad.isfinite().all()
    assert posterior.entropy().item() >= 0
    assert posterior.kl(prior).item() >= -1e-5


def test_decisions_have_the_gradients_of_their_probabilities_at_their_nodes():
    config = make_config("gaussian", 4, latents=1)
    parameters = torch.tensor([[0.2, -0.3]], dtype=torch.float64, requires_grad=True)
    posterior = Gaussian(parameters, config)
    draw = posterior.embed(torch.tensor([[2]]), posterior.config)  # 10 in binary: the node after a one
    q = posterior.log_q.exp()[0, 0]
    for decision, probability in zip(posterior.decisions(draw)[0], (q[2] + q[3], q[3] / (q[2] + q[3])), strict=True):
        (expected,) = torch.autograd.grad(probability, parameters, retain_graph=True)
        (found,) = torch.autograd.grad(decision, parameters, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_the_log_probability_of_given_symbols_is_that_of_the_table():
    config = make_config("gaussian", latents=5, alphabet=7)
    torch.manual_seed(0)
    found = Gaussian(torch.cat([torch.randn(40, 5) * 6, torch.randn(40, 5) * 2], dim=1), config)
    symbols = torch.randint(7, (40, 5))
    expected = found.log_q.gather(2, symbols[:, :, None])[:, :, 0]
    torch.testing.assert_close(found.log_prob(symbols), expected, rtol=1e-4, atol=1e-5)
