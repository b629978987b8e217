import pytest
import torch
from torch.distributions import Categorical as Reference
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical

from stochcl.encoders.posteriors import POSTERIORS, Categorical
from tests.encoders.posteriors.making import make_config, make_posterior, make_uniform


def test_the_parameters_are_logits_latent_after_latent():
    posterior = make_posterior("categorical", 5)
    reference = Reference(logits=posterior.parameters.view(4, 3, 5))
    torch.testing.assert_close(posterior.entropy(), reference.entropy())
    symbols = torch.arange(12).view(4, 3) % 5
    torch.testing.assert_close(posterior.log_prob(symbols), reference.log_prob(symbols))


def test_gradients_pass_straight_through_to_the_probabilities():
    config = make_config("categorical", 5)
    logits = torch.randn(6, 15, generator=torch.Generator().manual_seed(3)).requires_grad_()
    posterior = Categorical(logits, config)
    weight = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(4))
    (posterior.sample(make_uniform(posterior)) * weight).sum().backward()
    taken, logits.grad = logits.grad, None
    (torch.softmax(logits.view(6, 3, 5), dim=2) * weight).sum().backward()
    torch.testing.assert_close(taken, logits.grad)


def test_a_decision_s_gradient_is_that_of_its_probability():
    config = make_config("categorical", 4, latents=1)
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    posterior = Categorical(logits, config)
    first, second = posterior.decisions(posterior.sample(make_uniform(posterior)))[0]
    for decision, ones in ((first, [2, 3]), (second, [1, 3])):
        (expected,) = torch.autograd.grad(torch.softmax(logits, 1)[0, ones].sum(), logits)
        (found,) = torch.autograd.grad(decision, logits, retain_graph=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_relaxed_draws_are_those_of_torch_s_relaxed_distributions(family, temperature):
    # Draws are of a distribution where the mean of its score is zero, for every parameter that it has.
    alphabet, rows = (2 if family == "bernoulli" else 3), 40_000
    one = make_posterior(family, alphabet, rows=1, latents=2)
    posterior = POSTERIORS[family](one.parameters.expand(rows, -1), one.config)
    draws = posterior.sample(make_uniform(posterior), "relaxed", temperature)
    logits = (posterior.logits if family == "categorical" else posterior.parameters).detach().clone().requires_grad_()
    reference = RelaxedBernoulli if family == "bernoulli" else RelaxedOneHotCategorical

    def log_density(tau):
        at = torch.tensor(tau, dtype=torch.float64)
        return reference(at, logits=logits).log_prob(draws.clamp(1e-12, 1 - 1e-12))

    log_density(temperature).sum().backward()
    of_temperature = (log_density(temperature + 1e-4) - log_density(temperature - 1e-4)) / 2e-4
    for score in (logits.grad, of_temperature.detach()):
        error = score.std(0) / rows**0.5
        assert (error > 0).all()
        assert (score.mean(0).abs() < 4 * error).all()
