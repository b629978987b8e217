import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stochcl.training.quantiser import Metric, deal, start_from_axes, start_from_quantiser, start_latents
from tests.training.latents.making import make_encoder, make_features, make_stage
from tests.training.latents.test_stage import decoded_error


def started(**config):
    encoder = make_encoder(posterior="categorical", **({"latents": 4, "alphabet": 8} | config))
    features = encoder.features(torch.from_numpy(make_features()[0])).detach().numpy()
    metric = Metric.of(features, 0.125)
    return encoder, features, metric, start_from_quantiser(encoder, features, metric, seed=0)


def test_symbols_are_those_of_the_nearest_centres():
    encoder, features, metric, done = started()
    assert done
    rows = (metric.coordinates(features) * metric.weight).numpy()
    symbols = encoder.posterior(torch.from_numpy(features)).mode().numpy()
    for group, axes in enumerate(deal(rows.var(axis=0), 4)):
        means = np.stack([rows[symbols[:, group] == k][:, axes].mean(axis=0) for k in range(8)])
        nearest = np.square(rows[:, None, axes] - means).sum(2).argmin(1)
        assert (nearest == symbols[:, group]).mean() > 0.95  # k-means is nearly done


def test_every_symbol_is_used_and_most_are_sure():
    encoder, features, _, _ = started()
    posterior = encoder.posterior(torch.from_numpy(features))
    assert all(len(np.unique(column)) == 8 for column in posterior.mode().numpy().T)
    assert 0.5 < float(posterior.log_q.exp().amax(2).mean().detach()) < 0.999


def test_codebooks_say_all_that_symbols_say():
    encoder, features, _, _ = started(latents=2)
    symbols = encoder.posterior(torch.from_numpy(features)).mode().long().numpy()
    books = encoder.codebooks.detach().numpy()
    centres = np.concatenate([books[g][symbols[:, g]] for g in range(2)], axis=1)
    cells = np.concatenate([np.eye(8)[symbols[:, g]] for g in range(2)], axis=1)

    def left(columns):
        design = np.column_stack([columns, np.ones(len(columns))])
        return np.square(features - design @ np.linalg.lstsq(design, features, rcond=None)[0]).sum()

    assert left(cells) < 0.3 * np.square(features - features.mean(0)).sum()
    assert left(centres) < 1.02 * left(cells)


def test_training_goes_on_from_it_to_a_smaller_error():
    stage = make_stage(make_encoder(posterior="categorical", latents=4, alphabet=8), steps=60)
    stage.run()
    other = make_stage(make_encoder(posterior="categorical", latents=4, alphabet=8), steps=60)
    assert start_from_quantiser(other.encoder, other.features, other.metric, seed=0)
    other.run()
    assert decoded_error(other) < 0.9 * decoded_error(stage)


@pytest.mark.parametrize("config", [{"head": (8,)}, {"latents": 64}, {"alphabet": 2048}])
def test_where_it_does_not_fit_nothing_changes(config):
    before = make_encoder(posterior="categorical", **({"latents": 4, "alphabet": 8} | config)).state_dict()
    encoder, _, _, done = started(**config)
    assert not done
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.head.state_dict(prefix="head.").items())


def test_rows_that_are_all_alike_do_no_harm():
    encoder = make_encoder(posterior="categorical", latents=2, alphabet=4)
    features = np.zeros((50, 12), np.float32)
    features[:25] = 1
    metric = Metric.of(features, 0.125)
    start_from_quantiser(encoder, features, metric, seed=0)
    assert all(bool(tensor.isfinite().all()) for tensor in encoder.state_dict().values())


@given(npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-6, 1e3)), st.integers(1, 8))
def test_axes_are_dealt_once_and_evenly(variances, groups):
    dealt = deal(variances, groups)
    assert sorted(axis for axes in dealt for axis in axes) == list(range(len(variances)))
    assert max(map(len, dealt)) <= -(-len(variances) // groups)
    held = [variances[axes].sum() for axes in dealt]
    assert held == sorted(held, reverse=True)


def transformed(**config):
    encoder = make_encoder(posterior="gaussian", **({"latents": 6, "alphabet": 64} | config))
    features = encoder.features(torch.from_numpy(make_features()[0])).detach().numpy()
    features += np.linspace(-1, 1, features.shape[1], dtype=np.float32)  # so that their mean is seen
    metric = Metric.of(features, 0.125)
    return encoder, features, metric, start_from_axes(encoder, metric)


@pytest.mark.parametrize("head", [(), (12,)])
def test_numbers_are_the_coordinates_of_principal_axes_in_steps_of_one_size(head):
    encoder, features, metric, done = transformed(head=head)
    assert done
    weighted = (metric.coordinates(features) * metric.weight)[:, :6].numpy()
    step = weighted[:, 0].std() * 8 / 64  # four deviations either way fill 64 levels
    found = encoder.posterior(torch.from_numpy(features))
    np.testing.assert_allclose(found.mean.detach().numpy(), weighted / step, atol=2e-3)
    assert found.deviation.unique().tolist() == [0.5]


def test_hidden_units_of_a_head_that_no_number_needs_are_quiet():
    encoder, features, metric, done = transformed(head=(40,))
    assert done
    weighted = (metric.coordinates(features) * metric.weight)[:, :6].numpy()
    found = encoder.posterior(torch.from_numpy(features)).mean.detach().numpy()
    for number, axis in zip(found.T, weighted.T, strict=True):
        assert np.corrcoef(number, axis)[0, 1] > 0.98


@pytest.mark.parametrize("decoder", [(), (12,), (24,)])
def test_the_decoder_of_a_transform_gives_features_back(decoder):
    encoder, features, metric, _ = transformed(decoder=decoder)
    symbols = encoder.posterior(torch.from_numpy(features)).mode().long()
    with torch.no_grad():
        guess = encoder.decode(encoder.embed(symbols)).numpy()
    axes = metric.axes[:, :6].numpy()
    projected = metric.coordinates(features)[:, :6].numpy() @ axes.T + metric.mean.numpy()
    left = np.square(features - projected).sum()  # what six axes cannot say
    # The hidden units that no axis needs are quiet, not silent.
    assert np.square(features - guess).sum() < 1.02 * left + 2e-3 * np.square(features - features.mean(0)).sum()


@pytest.mark.parametrize("config", [{"head": (8,)}, {"head": (24, 24)}, {"decoder": (8,)}, {"decoder": (24, 24)}])
def test_layers_that_cannot_say_the_transform_stay_as_they_were(config):
    before = make_encoder(posterior="gaussian", latents=6, alphabet=64, **config).state_dict()
    encoder, _, _, done = transformed(**config)
    part = "head." if "head" in config else "decoder."
    after = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith(part)}
    assert done == ("head" not in config)
    assert after
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_more_latents_than_axes_and_features_that_are_all_alike_do_no_harm():
    encoder, features, _, done = transformed(latents=40)
    assert done
    assert encoder.posterior(torch.from_numpy(features)).mode().shape == (1500, 40)
    alike = Metric.of(np.ones((50, 12), np.float32), 0.125)
    start_from_axes(encoder, alike)
    assert all(bool(tensor.isfinite().all()) for tensor in encoder.state_dict().values())


def test_training_goes_on_from_the_axes_to_a_smaller_error():
    errors = []
    for begun in (False, True):
        stage = make_stage(make_encoder(posterior="gaussian", latents=6, alphabet=16), steps=30, lr=1e-2)
        if begun:
            assert start_latents(stage.encoder, stage.features, stage.metric, seed=0) == "principal axes"
        stage.run()
        errors.append(decoded_error(stage))
    assert errors[1] < 0.8 * errors[0]


def test_bits_begin_at_random():
    stage = make_stage()
    before = {name: tensor.clone() for name, tensor in stage.encoder.state_dict().items()}
    assert start_latents(stage.encoder, stage.features, stage.metric, seed=0) == "a random head"
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.encoder.state_dict().items())
