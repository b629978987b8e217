import pytest
import torch

from stochcl.encoders.encoder import Encoder
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.training.objectives import DECORRELATION, OBJECTIVES, NTXent, StochasticContrastive
from tests.encoders.making import make_config


def losses_of(objective="nt-xent", *, bf16=False, beta=1e-2, latents=8, **config):
    torch.manual_seed(0)
    model = Encoder(make_config(**config))
    loss = StochasticContrastive(model, objective)
    noise = POSTERIORS[model.config.posterior].noise(model.config)
    views, noise = torch.randn(12, 3, 16, 16), torch.rand(12, noise)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = loss(views, views[:3], noise, latents=latents, beta=beta)
    return loss, losses


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("posterior", ["bernoulli", "categorical", "gaussian"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_flows_to_every_parameter(objective, posterior, bf16):
    # The target's pass without gradients comes first, and autocast might keep its weights for the second.
    loss, losses = losses_of(objective, bf16=bf16, posterior=posterior, alphabet=2 if posterior == "bernoulli" else 4)
    losses.total.backward()
    for name, parameter in loss.named_parameters():
        if not parameter.requires_grad:
            assert "slow" in name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_total_is_the_sum_of_its_terms():
    _, losses = losses_of(beta=0.02)
    parts = losses.contrast + losses.contrast_codes + losses.reconstruction + 0.02 * losses.rate
    parts = parts + DECORRELATION * losses.decorrelation
    torch.testing.assert_close(losses.total.detach(), parts)
    assert 0 < losses.kl < losses.rate


def test_beta_pays_for_the_rate():
    free, dear = (losses_of(beta=beta)[1] for beta in (0.0, 0.5))
    torch.testing.assert_close((dear.total - free.total).detach(), 0.5 * free.rate)


def test_an_untrained_prior_makes_every_bit_cost_a_bit():
    assert losses_of()[1].rate.item() == pytest.approx(16, rel=1e-6)


def test_the_trained_prefix_matters():
    assert losses_of(latents=8)[1].total != losses_of(latents=4)[1].total


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_gradient_flows_to_the_target(objective):
    # It would draw the features towards what is easily reconstructed: a constant.
    torch.manual_seed(0)
    loss = StochasticContrastive(Encoder(make_config()), objective)
    clean = torch.randn(3, 3, 16, 16, requires_grad=True)
    views, noise = torch.randn(12, 3, 16, 16, requires_grad=True), torch.rand(12, 16)
    loss(views, clean, noise, latents=8, beta=0.0).total.backward()
    assert views.grad is not None
    assert clean.grad is None


def test_reconstruction_trains_latents_and_decoder_only(monkeypatch):
    # A backbone that it could reach would make features easy to reconstruct, all variance in one direction.
    monkeypatch.setattr(NTXent, "forward", lambda self, first, second, targets=None: 0 * (first.sum() + second.sum()))
    monkeypatch.setattr("stochcl.training.objectives.DECORRELATION", 0.0)
    loss, losses = losses_of(beta=0.0)
    losses.total.backward()
    model = loss.encoder
    assert not any(p.grad.any() for p in model.backbone.parameters())
    assert all(p.grad.any() for p in (*model.head.parameters(), *model.decoder.parameters()))


def test_the_target_is_no_part_of_the_statistics():
    loss, _ = losses_of()
    assert loss.encoder.training
    assert loss.encoder.norm.num_batches_tracked == 1  # of the views alone


def test_only_byol_keeps_a_slow_copy_of_the_whole_encoder():
    assert [name for name in OBJECTIVES if losses_of(name)[0].slow] == ["byol"]
    loss, _ = losses_of("byol")
    before = {n: p.clone() for n, p in loss.slow.network.named_parameters()}
    with torch.no_grad():
        for parameter in loss.encoder.parameters():
            parameter.add_(1)
    loss.step(0.0)
    assert all(not torch.equal(before[n], p) for n, p in loss.slow.network.named_parameters())
    assert {n.split(".")[0] for n in before} == {"backbone", "head", "prior", "decoder"}


def test_the_slow_copy_s_features_and_codes_are_the_targets():
    # The online network changes, and what is predicted stays.
    loss, _ = losses_of("byol")
    seen = []
    for part in (loss.features, loss.codes):
        part.register_forward_pre_hook(lambda objective, given: seen.append(given[2]))
    views, noise = torch.randn(12, 3, 16, 16), torch.rand(12, 16)
    for shift in (0, 1):
        with torch.no_grad():
            loss.encoder.head.weight.add_(shift)
        loss(views, views[:3], noise, latents=4, beta=0.0)
    for first, again in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first, again)
    features, full, short = seen[:3]
    assert torch.equal(full[0], short[0])  # a prefix predicts the full code
    assert not torch.allclose(features[0], full[0])


def test_the_estimator_is_used():
    torch.manual_seed(0)
    model = Encoder(make_config())
    views, noise = torch.randn(12, 3, 16, 16), torch.rand(12, 16)
    totals = []
    for estimator in ("straight-through", "relaxed"):
        torch.manual_seed(1)
        loss = StochasticContrastive(model, estimator=estimator)
        totals.append(loss(views, views[:3], noise, latents=8, beta=0.0).total)
    assert totals[0] != totals[1]


@pytest.mark.parametrize("objective", ["nt-xent", "byol", "vicreg"])
def test_the_twin_has_no_latents_and_trains_the_backbone_alone(objective):
    torch.manual_seed(0)
    loss = StochasticContrastive(Encoder(make_config()), objective, deterministic=True)
    views, clean = torch.randn(12, 3, 16, 16), torch.randn(3, 3, 16, 16)
    losses = [loss(views, clean, torch.rand(12, 16), latents=k, beta=1.0) for k in (4, 16)]
    torch.testing.assert_close(losses[0].contrast, losses[1].contrast)  # no draw, no prefix
    assert losses[0].reconstruction == losses[0].rate == losses[0].kl == 0
    parts = losses[0].contrast + losses[0].contrast_codes + DECORRELATION * losses[0].decorrelation
    torch.testing.assert_close(losses[0].total.detach(), parts)
    losses[0].total.backward()
    trained = {name.split(".")[0] for name, p in loss.encoder.named_parameters() if p.grad is not None}
    assert trained == {"backbone"}
    assert all(p.grad.abs().sum() > 0 for p in loss.encoder.backbone.parameters())
    heads = [p for part in (loss.features, loss.codes) for p in part.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in heads)
