import numpy as np
import pytest
import torch

from stochcl.training.quantiser import Metric, principal_decoder
from tests.training.latents.making import WIDTH, make_encoder, make_features


@pytest.fixture(scope="module")
def features():
    return make_features(3000)[0]


def test_coordinates_are_principal_ones(features):
    metric = Metric.of(features, 0.0)
    found = metric.coordinates(features).numpy()
    covariance = np.cov(found.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    assert (np.diff(np.diag(covariance)) <= 0).all()
    np.testing.assert_allclose(metric.deviation.numpy(), found.std(axis=0), rtol=1e-3)
    assert found.var(axis=0).sum() > 0.99 * features.var(axis=0).sum()
    assert found.shape[1] < WIDTH  # three directions of small noise are left out


def test_plain_error_is_relative_to_variance(features):
    metric = Metric.of(features, 0.0)
    targets = metric.coordinates(features)
    assert float(metric.error(torch.zeros_like(targets), targets)) == pytest.approx(1, rel=1e-4)
    assert float(metric.error(targets, targets)) == 0


def test_whitening_makes_directions_count_alike(features):
    axes = Metric.of(features, 0.0).axes.shape[1]

    def shares(power):
        metric = Metric.of(features, power)
        targets = metric.coordinates(features)
        targets[:, axes:] = 0
        missing = [targets * (torch.arange(targets.shape[1]) != i) for i in (0, axes - 1)]
        return [float(metric.error(guess, targets)) for guess in missing]

    plain, half, whole = (shares(power) for power in (0.0, 0.25, 0.5))
    assert plain[0] > 5 * plain[1]
    assert whole[0] == pytest.approx(whole[1], rel=0.3)
    assert whole[0] / whole[1] < half[0] / half[1] < plain[0] / plain[1]


def test_the_more_errors_are_whitened_the_more_axes_are_looked_at(features):
    kept = [Metric.of(features, power).axes.shape[1] for power in (0.0, 0.25, 0.5)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    metric = Metric.of(features, 0.5)
    assert len(metric.weight) == len(metric.deviation) == kept[-1]


def test_features_come_back_from_coordinates(features):
    metric = Metric.of(features, 0.25)
    back = metric.features(metric.coordinates(features)).numpy()
    assert np.square(back - features).sum() < 0.011 * np.square(features - features.mean(0)).sum()


def test_features_without_any_variance_have_a_finite_error():
    metric = Metric.of(np.ones((50, 4), np.float32), 0.25)
    assert np.isfinite(float(metric.error(metric.coordinates(np.zeros((3, 4), np.float32)), torch.zeros(3, 1))))


def test_decoder_gives_coordinates_inside_and_features_outside(features):
    encoder = make_encoder()
    metric = Metric.of(features, 0.25)
    draw = torch.randint(2, (40, 16)).float()
    with torch.no_grad():
        before = encoder.decode(draw)
        with principal_decoder(encoder, metric):
            inside = encoder.decode(draw)
        after = encoder.decode(draw)
    torch.testing.assert_close(inside, (before - metric.mean) @ metric.axes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, metric.features(inside), atol=1e-5, rtol=1e-5)
    assert after.shape == (40, WIDTH)


def test_decoder_comes_back_after_an_error(features):
    encoder = make_encoder()
    with pytest.raises(KeyboardInterrupt), principal_decoder(encoder, Metric.of(features, 0.0)):
        raise KeyboardInterrupt
    assert encoder.decode(torch.zeros(2, 16)).shape == (2, WIDTH)
