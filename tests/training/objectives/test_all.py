import pytest
import torch

from stochcl.training.objectives import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_views_that_belong_together_are_better_than_strangers(name):
    torch.manual_seed(0)
    objective = OBJECTIVES[name](6)
    first, second = torch.randn(2, 32, 6)
    second = first + 0.1 * second
    alike, strange = objective(first, second), objective(first, second.roll(1, 0))
    assert alike.shape == ()
    assert 0 <= alike < strange < 10


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_a_layer_brings_views_together(name):
    # The lowest that each reaches differs; all must come well below the beginning.
    torch.manual_seed(0)
    objective, layer = OBJECTIVES[name](8), torch.nn.Linear(6, 8)
    norm = torch.nn.BatchNorm1d(8, affine=False)
    optimizer = torch.optim.AdamW(
        [*layer.parameters(), *(p for p in objective.parameters() if p.requires_grad)], 0.01
    )
    base = torch.randn(64, 6)
    values = []
    for step in range(60):
        views = (norm(layer(base + 0.3 * torch.randn(64, 6))) for _ in range(2))
        loss = objective(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.step(step / 60)
        values.append(loss.item())
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_they_run_under_autocast(name):
    torch.manual_seed(0)
    objective, views = OBJECTIVES[name](6), torch.randn(2, 16, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(*views)
    assert loss.dtype == torch.float32
    loss.backward()
    assert views.grad.isfinite().all()
