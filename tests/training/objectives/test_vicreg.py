import pytest
import torch

from stochcl.training.objectives import SCALE, VICReg, decorrelation, vicreg


def test_decorrelation_counts_what_features_share():
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    assert decorrelation(x[:, :2]) == 0
    assert decorrelation(x) == pytest.approx(2 / 3)  # the first and the third are one, seen from both
    assert decorrelation(x[:, [0, 0, 0]]) == pytest.approx(2)


def authors(x, y):
    """The loss as the authors' published program computes it (main_vicreg.py of facebookresearch/vicreg)."""
    repr_loss = torch.nn.functional.mse_loss(x, y)
    x = x - x.mean(dim=0)
    y = y - y.mean(dim=0)
    std_x = torch.sqrt(x.var(dim=0) + 0.0001)
    std_y = torch.sqrt(y.var(dim=0) + 0.0001)
    std_loss = torch.mean(torch.relu(1 - std_x)) / 2 + torch.mean(torch.relu(1 - std_y)) / 2
    cov_x = (x.T @ x) / (len(x) - 1)
    cov_y = (y.T @ y) / (len(y) - 1)
    n = x.shape[1]
    apart = ~torch.eye(n, dtype=torch.bool)
    cov_loss = cov_x[apart].pow(2).sum() / n + cov_y[apart].pow(2).sum() / n
    return 25 * repr_loss + 25 * std_loss + cov_loss


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_vicreg_is_the_published_one(spread):
    torch.manual_seed(0)
    a, b = torch.randn(2, 20, 6) * spread
    torch.testing.assert_close(vicreg(a, b), authors(a, b), rtol=1e-5, atol=1e-6)


def test_each_term_does_its_part():
    torch.manual_seed(0)
    z = torch.randn(4000, 3) * 2
    alike = vicreg(z, z)
    assert alike < 0.2  # wide, uncorrelated, the same in both views
    assert vicreg(z, z + 1) == pytest.approx(alike.item() + 25, rel=1e-3)
    assert vicreg(z * 1e-3, z * 1e-3) > 24  # a collapse to a point costs the margin, from both sides halved
    assert vicreg(z[:, :1].expand(-1, 3), z[:, :1].expand(-1, 3)) > 50  # one number three times


def test_the_objective_is_a_tenth_of_it_on_projections():
    torch.manual_seed(0)
    objective, views = VICReg(5, width=4), torch.randn(2, 9, 5)
    torch.testing.assert_close(objective(*views), SCALE * vicreg(*objective.head(views.flatten(0, 1)).chunk(2)))
