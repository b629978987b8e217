import math

import pytest
import torch

from stochcl.training.objectives import NTXent, nt_xent


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


def test_the_objective_compares_projections_of_both_views_together(views):
    # In one batch, so that the normalisation sees both.
    torch.manual_seed(0)
    objective = NTXent(5, temperature=0.3, width=4)
    projections = objective.head(torch.cat(views)).chunk(2)
    torch.testing.assert_close(objective(*views), nt_xent(*projections, 0.3))
