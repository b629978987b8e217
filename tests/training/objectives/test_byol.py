import pytest
import torch

from stochcl.training.objectives import BYOL, MomentumEncoder, momentum


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return BYOL(5, width=4)


@pytest.fixture
def views():
    torch.manual_seed(1)
    return torch.randn(2, 9, 5, requires_grad=True)


def test_it_is_the_squared_distance_of_unit_vectors(objective, views):
    targets = tuple(torch.randn(2, 9, 5))
    guesses = objective.predictor(objective.head(views.flatten(0, 1)))
    truth = objective.slow_head.network(torch.cat([targets[0], targets[1]]))
    swapped = torch.cat([truth[9:], truth[:9]])  # the first view's guess is about the second view
    unit_guesses, unit_truth = (z / z.norm(dim=1, keepdim=True) for z in (guesses, swapped))
    expected = (unit_guesses - unit_truth).square().sum(1).mean()
    torch.testing.assert_close(objective(*views, targets), expected)
    assert 0 <= expected <= 4


def test_vectors_stand_in_for_targets(objective, views):
    torch.testing.assert_close(objective(*views), objective(*views, tuple(views.detach())))


def test_no_gradient_flows_to_what_follows(objective, views):
    targets = tuple(torch.randn(2, 9, 5, requires_grad=True))
    objective(*views, targets).backward()
    assert all(p.grad is None for p in objective.slow_head.parameters())
    assert all(
        p.grad.abs().sum() > 0 for module in (objective.head, objective.predictor) for p in module.parameters()
    )
    assert views.grad.abs().sum() > 0


def test_the_slow_head_follows_the_head(objective):
    before = [p.clone() for p in objective.slow_head.parameters()]
    with torch.no_grad():
        for p in objective.head.parameters():
            p.add_(1)
    objective.step(0.0)
    for old, slow, new in zip(before, objective.slow_head.parameters(), objective.head.parameters(), strict=True):
        torch.testing.assert_close(slow, momentum(0) * old + (1 - momentum(0)) * new)
    objective.step(1.0)
    slow = [p.clone() for p in objective.slow_head.parameters()]
    objective.step(1.0)  # at the end it stands still
    assert all(torch.equal(a, b) for a, b in zip(slow, objective.slow_head.parameters(), strict=True))


def test_the_momentum_rises_as_published():
    assert momentum(0, 0.996) == pytest.approx(0.996)
    assert momentum(0.5, 0.996) == pytest.approx(0.998)
    assert momentum(1, 0.996) == 1
    values = [momentum(f / 10) for f in range(11)]
    assert values == sorted(values)


def test_a_follower_has_weights_of_its_own():
    network = torch.nn.Linear(2, 2)
    follower = MomentumEncoder(network)
    with torch.no_grad():
        network.weight.add_(1)
    assert not torch.equal(follower.network.weight, network.weight)
    assert not any(p.requires_grad for p in follower.parameters())
