import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from stochcl.encoders.inference import encode
from stochcl.errors import LabelsError
from stochcl.training.finetune import (
    class_indices,
    class_scores,
    classification,
    deterministic_classification,
    mixup,
    soft_targets,
    top1,
    with_mirrored,
)
from tests.encoders.making import make_encoder, make_images

CPU = torch.device("cpu")


def classifying(classifies="vectors", **changes):
    encoder = make_encoder(**changes)
    encoder.set_classes(("a", "b", "c"), classifies)
    torch.nn.init.normal_(encoder.classifier.weight)
    return encoder


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(8, 3, 16, 16, generator=generator)
    targets = torch.rand(8, 3, generator=generator).softmax(1)
    return views, targets, torch.rand(8, 16, generator=generator)


def test_smoothed_labels_are_torch_s():
    labels, logits = torch.tensor([2, 0, 1]), torch.randn(3, 4)
    ours = functional.cross_entropy(logits, soft_targets(labels, 4, 0.1))
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, label_smoothing=0.1))


def test_mixup_mixes_images_and_targets_with_the_same_weights():
    views = torch.eye(6).view(6, 1, 6, 1) * 10
    mixed, targets = mixup(views, torch.eye(6), 0.5, [0, 3])
    torch.testing.assert_close(mixed[:, 0, :, 0], targets * 10)
    own = targets.diagonal()
    assert ((own >= 0.5) & (own < 1)).all()
    assert len(set(own.tolist())) == 6
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    torch.testing.assert_close(targets[torch.arange(6), (torch.arange(6) + 1) % 6], 1 - own)


def test_mixup_is_drawn_from_its_seed():
    views, targets = torch.rand(6, 3, 2, 2), torch.eye(6)
    first, again, other = (mixup(views, targets, 0.5, seed)[0] for seed in ([0, 1], [0, 1], [0, 2]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert mixup(views, targets, 0, [0])[0] is views


def test_mixing_weights_are_of_the_beta_distribution():
    targets = torch.eye(2).repeat(5000, 1)
    own = mixup(torch.zeros(10_000, 1, 1, 1), targets, 0.2, [1])[1].amax(1)
    # E|2w - 1| of Beta(a, a), as max(w, 1 - w) is (1 + |2w - 1|) / 2.
    from scipy.stats import beta

    expected = beta(0.2, 0.2).expect(lambda w: np.maximum(w, 1 - w))
    assert float(own.mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("nested", "beta"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.01)])
def test_the_loss_is_its_formula(batch, nested, beta):
    encoder = classifying()
    views, targets, noise = batch
    losses = classification(encoder, views, targets, noise, latents=4, nested=nested, beta=beta)

    logits = encoder.head(encoder.features(views))
    bits = (noise < logits.sigmoid()).float()

    def entropy(code):
        scores = encoder.decode(code) @ encoder.classifier.weight.T + encoder.classifier.bias
        return -(targets * scores.log_softmax(1)).sum(1).mean()

    short = bits.clone()
    short[:, 4:] = encoder.prior.sigmoid()[4:]
    p, q = encoder.prior.sigmoid(), logits.sigmoid()
    rate = -(q * p.log2() + (1 - q) * (1 - p).log2()).sum(1).mean()
    torch.testing.assert_close(losses.classification, entropy(bits).detach())
    torch.testing.assert_close(losses.rate, rate.detach())
    if nested:
        torch.testing.assert_close(losses.nested, entropy(short).detach())
    torch.testing.assert_close(losses.total, entropy(bits) + nested * entropy(short) + beta * rate)


def test_gradients_go_through_the_draw_to_the_backbone(batch):
    encoder = classifying()
    views, targets, noise = batch
    classification(encoder, views, targets, noise, latents=4, nested=0.3, beta=0.0).total.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_prior_follows_the_codes_and_does_not_draw_them(batch):
    encoder = classifying()
    views, targets, noise = batch
    losses = classification(encoder, views, targets, noise, latents=4, nested=0.0, beta=0.5)
    grads = torch.autograd.grad(losses.total, [encoder.prior, encoder.head.bias])
    q = encoder.head(encoder.features(views)).sigmoid().mean(0)
    torch.testing.assert_close(grads[0], (encoder.prior.sigmoid() - q).detach())
    # Without a price of the rate the head's gradient is the classification's: what W and g do not read has none.
    for layer in (encoder.classifier, *encoder.decoder):
        torch.nn.init.zeros_(layer.weight)
    still = classification(encoder, views, targets, noise, latents=4, nested=0.0, beta=0.0)
    assert torch.autograd.grad(still.total, encoder.head.bias)[0].abs().max() == 0


@pytest.mark.parametrize(
    "family", [{"posterior": "categorical", "alphabet": 4}, {"posterior": "gaussian", "alphabet": 8}]
)
def test_other_families_are_classified_too(batch, family):
    from stochcl.encoders.posteriors import POSTERIORS

    encoder = classifying(**family)
    views, targets, _ = batch
    noise = torch.rand(8, POSTERIORS[encoder.config.posterior].noise(encoder.config))
    losses = classification(encoder, views, targets, noise, latents=8, nested=0.2, beta=0.001)
    losses.total.backward()
    assert math.isfinite(float(losses.total.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert class_scores(encoder, make_images(5), CPU).shape == (5, 3)


def test_the_twin_reads_features(batch):
    encoder = classifying("features")
    views, targets, _ = batch
    losses = deterministic_classification(encoder, views, targets)
    scores = encoder.features(views) @ encoder.classifier.weight.T + encoder.classifier.bias
    torch.testing.assert_close(losses.total, -(targets * scores.log_softmax(1)).sum(1).mean())


def test_scores_are_of_hard_codes():
    encoder = classifying()
    images = make_images(70)
    symbols = encode(encoder, images, CPU).codes.symbols()
    with torch.no_grad():
        expected = encoder.classifier(encoder.decode(torch.from_numpy(symbols).float()))
    np.testing.assert_allclose(class_scores(encoder, images, CPU), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_scores_of_a_twin_are_of_features():
    encoder = classifying("features")
    images = make_images(7)
    features = torch.from_numpy(encode(encoder, images, CPU).features)
    with torch.no_grad():
        expected = encoder.classifier(features).numpy()
    np.testing.assert_allclose(class_scores(encoder, images, CPU), expected, rtol=1e-4, atol=1e-4)


def test_mirroring_takes_the_mean_of_both():
    encoder = classifying()
    images = make_images(6)
    other = np.ascontiguousarray(images[:, :, ::-1])
    plain, turned = (class_scores(encoder, pixels, CPU) for pixels in (images, other))
    found = with_mirrored(encoder, images, CPU, plain)
    np.testing.assert_allclose(found, with_mirrored(encoder, other, CPU, turned), rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    each = [np.exp(s - s.max(1, keepdims=True)) for s in (plain, turned)]
    np.testing.assert_allclose(found, sum(e / e.sum(1, keepdims=True) for e in each) / 2, rtol=1e-4)


def test_labels_are_places_among_the_classes():
    assert class_indices(["b", "a", "b"], ("a", "b")).tolist() == [1, 0, 1]
    assert class_indices([], ("a", "b")).shape == (0,)
    with pytest.raises(LabelsError, match="2 labels are not among the 2 training classes: x, y"):
        class_indices(["a", "y", "x"], ("a", "b"))
    assert top1(np.array([[0, 1], [1, 0], [0, 1]], np.float32), np.array([1, 1, 1])) == pytest.approx(2 / 3)
