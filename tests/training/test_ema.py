import torch

from stochcl.training.loop import EMA
from tests.encoders.making import make_encoder


def filled(encoder, value):
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.fill_(value)
    return encoder


def test_the_average_is_exponential_and_short_at_first():
    network = filled(make_encoder(), 0.0)
    ema = EMA(network, decay=0.5)
    expected = 0.0
    for step, value in enumerate([3.0, 5.0, 7.0, 1.0] * 3, 1):
        filled(network, value)
        ema.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    state = ema.network.state_dict()
    for name in ("backbone.conv1.weight", "norm.running_var", "prior", "backbone.bn1.running_mean"):
        torch.testing.assert_close(state[name], torch.full_like(state[name], expected)), name
    assert state["backbone.bn1.num_batches_tracked"] == 1
    assert state["ones"].eq(1).all()


def test_it_is_a_network_of_its_own_that_is_not_trained():
    network = make_encoder().train()
    ema = EMA(network, 0.9)
    before = ema.network.head.weight.clone()
    filled(network, 1.0)
    assert torch.equal(ema.network.head.weight, before)
    assert network.training
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
