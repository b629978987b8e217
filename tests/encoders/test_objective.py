import math

import pytest
import torch

from stochcl.encoders import objective
from stochcl.encoders.model import Encoder
from stochcl.encoders.objective import (
    DECORRELATION,
    Projectors,
    decorrelation,
    nt_xent,
    stochastic_contrastive,
)
from stochcl.encoders.rate import RateController
from tests.encoders.making import make_config


def plain_nt_xent(a, b, temperature):
    """Equation 1 of SimCLR, pair by pair."""
    z = [*a.double(), *b.double()]
    n = len(a)

    def similarity(i, j):
        return float(z[i] @ z[j] / (z[i].norm() * z[j].norm())) / temperature

    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(similarity(i, j)) for j in range(2 * n) if j != i)
        total += -math.log(math.exp(similarity(i, partner)) / others)
    return total / (2 * n)


@pytest.fixture
def views():
    torch.manual_seed(0)
    return torch.randn(7, 5), torch.randn(7, 5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_formula(views, temperature):
    assert nt_xent(*views, temperature).item() == pytest.approx(plain_nt_xent(*views, temperature), rel=1e-5)


def test_nt_xent_is_that_of_pytorch_metric_learning(views):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    a, b = (view.clone().requires_grad_() for view in views)
    theirs = losses.NTXentLoss(temperature=0.2)(torch.cat([a, b]), torch.arange(7).repeat(2))
    ours = nt_xent(*(view.requires_grad_() for view in views), 0.2)
    torch.testing.assert_close(ours, theirs)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(views[0].grad, a.grad, rtol=1e-4, atol=1e-6)


def test_nt_xent_knows_partners_from_strangers(views):
    a, _ = views
    assert nt_xent(a, a, 0.1) < nt_xent(a, a.roll(1, 0), 0.1)
    assert nt_xent(a * 3, a / 7, 0.1).item() == pytest.approx(nt_xent(a, a, 0.1).item(), rel=1e-5)


def test_nt_xent_is_exact_under_autocast(views):
    with torch.autocast("cpu", torch.bfloat16):
        rounded = nt_xent(*views, 0.1)
    torch.testing.assert_close(rounded, nt_xent(*views, 0.1), rtol=1e-6, atol=0)


def test_decorrelation_counts_what_features_share():
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    assert decorrelation(x[:, :2]) == 0
    assert decorrelation(x) == pytest.approx(2 / 3)  # the first and the third are one, seen from both
    assert decorrelation(x[:, [0, 0, 0]]) == pytest.approx(2)


def losses_of(*, bf16=False, beta=1e-2, latents=8, seed=0):
    torch.manual_seed(seed)
    model = Encoder(make_config())
    projectors = Projectors(model.feature_dim, width=8)
    views, noise = torch.randn(12, 3, 16, 16), torch.rand(12, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = stochastic_contrastive(
            model, projectors, views, views[:3], noise, latents=latents, beta=beta, temperature=0.2
        )
    return model, projectors, losses


@pytest.mark.parametrize("bf16", [False, True])
def test_gradient_flows_to_every_parameter(bf16):
    # The target's pass without gradients comes first, and autocast might keep its weights for the second.
    model, projectors, losses = losses_of(bf16=bf16)
    losses.total.backward()
    for module in (model, projectors):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_the_total_is_the_sum_of_its_terms():
    _, _, losses = losses_of(beta=0.02)
    parts = losses.contrast + losses.contrast_codes + losses.reconstruction + 0.02 * losses.rate
    parts = parts + DECORRELATION * losses.decorrelation
    torch.testing.assert_close(losses.total.detach(), parts)
    assert 0 < losses.kl < losses.rate


def test_beta_pays_for_the_rate():
    free, dear = (losses_of(beta=beta)[2] for beta in (0.0, 0.5))
    torch.testing.assert_close((dear.total - free.total).detach(), 0.5 * free.rate)


def test_an_untrained_prior_makes_every_bit_cost_a_bit():
    assert losses_of()[2].rate.item() == pytest.approx(16, rel=1e-6)


def test_the_trained_prefix_matters():
    assert losses_of(latents=8)[2].total != losses_of(latents=4)[2].total


def test_no_gradient_flows_to_the_target():
    # It would draw the features towards what is easily reconstructed: a constant.
    torch.manual_seed(0)
    model = Encoder(make_config())
    clean = torch.randn(3, 3, 16, 16, requires_grad=True)
    views, noise = torch.randn(12, 3, 16, 16, requires_grad=True), torch.rand(12, 16)
    projectors = Projectors(model.feature_dim, width=8)
    stochastic_contrastive(
        model, projectors, views, clean, noise, latents=8, beta=0.0, temperature=0.2
    ).total.backward()
    assert views.grad is not None
    assert clean.grad is None


def test_reconstruction_trains_latents_and_decoder_only(monkeypatch):
    # A backbone that it could reach would make features easy to reconstruct, all variance in one direction.
    monkeypatch.setattr(objective, "nt_xent", lambda a, b, temperature: 0 * (a.sum() + b.sum()))
    monkeypatch.setattr(objective, "DECORRELATION", 0.0)
    model, _, losses = losses_of(beta=0.0)
    losses.total.backward()
    assert not any(p.grad.any() for p in model.backbone.parameters())
    assert all(p.grad.any() for p in (*model.head.parameters(), *model.decoder.parameters()))


def test_the_target_is_no_part_of_the_statistics():
    model, _, _ = losses_of()
    assert model.training
    assert model.norm.num_batches_tracked == 1  # of the views alone


class Plant:
    """An encoder as a controller sees it: its rate follows beta, slowly and with noise."""

    def __init__(self, rate=1000.0):
        self.rate = rate
        self.noise = torch.Generator().manual_seed(0)

    def step(self, beta):
        settled = 1000 / (1 + (beta / 1e-3) ** 0.8)
        self.rate += 0.05 * (settled - self.rate)
        return self.rate * (1 + 0.02 * torch.randn((), generator=self.noise).item())


@pytest.mark.parametrize("target", [32, 128, 600])
def test_the_controller_holds_a_target(target):
    controller, plant, rates = RateController(target), Plant(), []
    for _ in range(1500):
        controller.update(plant.step(controller.beta))
        rates.append(plant.rate)
    assert sum(rates[-300:]) / 300 == pytest.approx(target, rel=0.05)
    assert all(rate == pytest.approx(target, rel=0.25) for rate in rates[-300:])


def test_the_controller_does_not_wind_up():
    controller = RateController(100)
    for _ in range(100_000):  # a rate that nothing brings down
        controller.update(5000)
    assert controller.beta == controller.HIGHEST
    for _ in range(500):
        controller.update(10)
    assert controller.beta < controller.HIGHEST / 1000


def test_the_controller_stays_within_its_bounds():
    controller = RateController(100, beta=0.0)
    for _ in range(1000):
        controller.update(0)
        assert controller.beta == controller.LOWEST
    controller.update(1e30)
    assert controller.beta == pytest.approx(controller.LOWEST * (1 + controller.GAIN))


def test_without_a_target_beta_is_constant():
    controller = RateController(None, 0.007)
    for rate in (0.0, 1e6, 3.0):
        controller.update(rate)
    assert controller.beta == 0.007
