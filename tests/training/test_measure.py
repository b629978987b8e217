import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from stochcl.codes import Codes
from stochcl.entropy.independent import DENOMINATOR, IndependentModel
from stochcl.entropy.model import hard_rate, measure_ones
from stochcl.training.monitor import Monitor, knn_accuracy
from tests.encoders.making import make_encoder, make_images
from tests.training.making import make_set


@pytest.fixture
def codes(rng):
    return Codes.from_symbols((rng.random((300, 20)) < np.linspace(0, 1, 20)).astype(np.uint8))


def test_ones_are_frequencies_that_leave_nothing_impossible(codes):
    ones = measure_ones(codes)
    assert (ones.shape, ones.dtype) == ((20, 1), np.int32)
    frequencies = codes.symbols().mean(axis=0)
    np.testing.assert_allclose(ones[:, 0] / DENOMINATOR, frequencies, atol=0.5 / 300 + 0.5 / DENOMINATOR)
    assert ones[0, 0] >= 1
    assert ones[-1, 0] <= DENOMINATOR - 1
    many = Codes.from_symbols(np.zeros((100_000, 1), np.uint8))
    assert measure_ones(many).tolist() == [[1]]
    assert measure_ones(Codes.from_symbols(np.ones((100_000, 1), np.uint8))).tolist() == [[DENOMINATOR - 1]]


def test_the_rate_is_what_the_coder_s_table_asks_for(codes):
    ones = measure_ones(codes)
    table = IndependentModel(ones.astype(np.uint16), 2)
    assert hard_rate(codes, ones) == pytest.approx(table.ideal_bits(codes) / len(codes), rel=1e-9)
    assert hard_rate(codes, np.full((20, 1), DENOMINATOR // 2)) == pytest.approx(20)


def test_knn_is_a_weighted_vote_by_cosine(rng):
    centres = rng.normal(size=(3, 8))
    labels = np.array(["a", "b", "c"] * 60)
    features = (np.tile(centres, (60, 1)) + rng.normal(size=(180, 8))).astype(np.float32)
    features *= rng.uniform(0.1, 9, (180, 1)).astype(np.float32)  # lengths say nothing
    bank, query = slice(0, 120), slice(120, 180)
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(features[bank], labels[bank])
    expected = reference.score(features[query], labels[query])
    assert 0.5 < expected < 1
    assert knn_accuracy(features[bank], labels[bank], features[query], labels[query]) == expected


def test_knn_takes_what_neighbours_there_are():
    bank, labels = np.eye(3, dtype=np.float32), np.array(["a", "b", "c"])
    assert knn_accuracy(bank, labels, bank, labels, neighbours=50) == 1
    assert knn_accuracy(bank, labels, bank, labels[::-1], neighbours=1) == pytest.approx(1 / 3)


def monitor_of(data, seed=0, **sizes):
    return Monitor(data.train, data.held, data.train_labels, data.held_labels, seed=seed, **sizes)


def test_knn_is_measured_only_with_labels_of_held_out_images():
    encoder, cpu = make_encoder(), torch.device("cpu")
    assert set(monitor_of(make_set(20, 8))(encoder, cpu)) == {"rate", "knn"}
    assert set(monitor_of(make_set(20, 8, labels=("",)))(encoder, cpu)) == {"rate"}
    assert set(monitor_of(make_set(20, 0))(encoder, cpu)) == {"rate"}


def test_the_rate_is_that_of_held_out_images():
    # Two kinds of image: the training set's table is dear for the held-out one.
    data = make_set(40, 40)
    grey = np.full_like(data.held, 3)
    encoder, cpu = make_encoder(), torch.device("cpu")
    same = Monitor(data.train, data.train, data.train_labels, data.train_labels, seed=0)(encoder, cpu)
    other = Monitor(data.train, grey, data.train_labels, data.held_labels, seed=0)(encoder, cpu)
    assert same["rate"] != other["rate"]
    assert same["rate"] == monitor_of(make_set(40))(encoder, cpu)["rate"]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_encoder_as_it_was(training):
    encoder = make_encoder().train(training)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    monitor_of(make_set(20, 8))(encoder, torch.device("cpu"))
    assert encoder.training == training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_large_sets_are_sampled_by_the_seed(monkeypatch):
    seen = []

    def note(encoder, images, device, precision):
        seen.append(images)
        rows = len(images)
        return type("", (), {"codes": Codes.from_symbols(np.zeros((rows, 2), int)), "features": np.ones((rows, 2))})

    monkeypatch.setattr("stochcl.training.monitor.encode", note)
    data = make_set(50, 30)
    for seed in (0, 0, 1):
        monitor_of(data, seed, bank=10, queries=5)(make_encoder(), None)
    assert [len(images) for images in seen] == [10, 5] * 3
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[4])
    known = {image.tobytes() for image in make_images(80)[:50]}
    assert all(image.tobytes() in known for image in seen[0])
