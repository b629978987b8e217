import pytest
import torch

from stochcl.training.objectives import Reconstruct, relative_error


def test_the_error_is_relative_to_the_power_of_the_truth():
    truth = torch.tensor([[3.0, 4.0]])
    assert relative_error(torch.zeros(1, 2), truth) == 1
    assert relative_error(truth * 1.1, truth) == pytest.approx(0.01)
    assert relative_error(torch.ones(1, 2), torch.zeros(1, 2)) == pytest.approx(1e6)


def test_frozen_features_are_reconstructed():
    torch.manual_seed(0)
    features, guesses = torch.randn(8, 3), torch.randn(8, 3, requires_grad=True)
    loss = Reconstruct(3)(guesses, features)
    expected = (relative_error(guesses, features) + relative_error(features, guesses)) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(guesses.grad, (guesses - features).detach() / (24 * features.square().mean()))


def test_views_pull_at_each_other():
    views = torch.randn(2, 8, 3, requires_grad=True)
    Reconstruct(3)(*views).backward()
    assert (views.grad[0] * (views[0] - views[1])).sum() > 0
    assert (views.grad[1] * (views[1] - views[0])).sum() > 0
