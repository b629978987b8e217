"""Codes of every family, of images and of vectors, from an encoder through codes.bin to vectors and an evaluation."""

import csv

import numpy as np
import pytest
import torch

import stochcl
from stochcl.api.evaluate import evaluate
from stochcl.api.train import train
from stochcl.api.uncertainty import measure_uncertainty
from stochcl.data import open_source
from stochcl.encoders import layout
from stochcl.encoders.config import FAMILIES as KNOWN
from stochcl.encoders.inference import encode
from stochcl.encoders.latents import Latents
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.entropy.model import measure_ones
from stochcl.training.entropy import fit_entropy
from stochcl.training.words import on_grid
from tests.encoders.making import restored
from tests.making import CLASSES, PER_CLASS, SIZE, make_head

CPU = torch.device("cpu")
FAMILIES = {
    "bernoulli": {"posterior": "bernoulli", "latents": 24},
    "categorical": {"posterior": "categorical", "latents": 10, "alphabet": 5, "embedding": 3, "head": (16,)},
    "wide categorical": {"posterior": "categorical", "latents": 4, "alphabet": 300, "embedding": 2},
    "gaussian": {"posterior": "gaussian", "latents": 10, "alphabet": 12},
    "residual": {"posterior": "residual", "latents": 11, "stages": (4, 3, 2, 1, 1)},
}
WIDTH, ROWS = 12, 90


def make_vectors() -> np.ndarray:
    """Vectors of three classes whose columns have other means, and all of them another scale, than features have."""
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 1, (3, WIDTH))
    rows = np.tile(centres, (ROWS // 3, 1)) + rng.normal(0, 0.4, (ROWS, WIDTH))
    return (40 * rows + rng.normal(0, 90, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param] | {"decoder": (8,)}


@pytest.fixture(scope="module")
def head(family, tmp_path_factory):
    """A model of vectors."""
    return stochcl.load(make_head(tmp_path_factory.mktemp("head") / "head.safetensors", make_vectors(), **family))


@pytest.fixture(scope="module")
def model(family, images, tmp_path_factory):
    """A model of images that has seen a few steps of training."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    if family["posterior"] == "residual":  # which is fitted to what a network without latents learned
        family = family | {"deterministic": True}
    train([images], path, epochs=2, batch_size=16, width=4, size=SIZE, device="cpu", seed=1, **family)
    return stochcl.load(path, device="cpu")


def check(codec, given: np.ndarray, expected: np.ndarray, path, latents: int | None = None) -> None:
    """Check symbols, uncertainty and vectors of an archive against what torch makes of the same rows."""
    encoder = codec.model.encoder
    with torch.no_grad():
        features = torch.from_numpy(encode(encoder, given, CPU).features)
        if encoder.config.posterior == "residual":
            mode, vectors = residual_code(encoder, features.numpy(), latents)
        else:
            mode = encoder.posterior(features).mode()
            vectors = restored(encoder, encoder.decode(encoder.embed(mode), latents)).numpy()
            mode = mode[:, :latents].numpy()
    with stochcl.open(path) as archive:
        archive.verify()
        assert archive.header.alphabet == encoder.config.alphabet
        np.testing.assert_array_equal(archive.to_numpy(), mode)
        if (
            latents is None or encoder.config.posterior != "residual"
        ):  # whose narrow codes are searched for themselves
            np.testing.assert_array_equal(archive.to_numpy(), expected[:, :latents])
        found = archive.to_vectors()
    # float16 weights, summed in another order
    np.testing.assert_allclose(found, vectors, rtol=0, atol=4e-3 * vectors.std())
    assert vectors.std() > 0


def residual_code(encoder, features, latents):
    """The symbols of features, and the sum of the words that they name, brought to the units of the input."""
    config, tensors = encoder.config, encoder.arrays()
    family = Latents.of(config, tensors)
    symbols, total, at = family.symbols(family.parameters(features), latents or config.latents), 0, 0
    for bits, book in zip(config.stages, layout.words(config, tensors), strict=True):
        if kept := min(bits, max(0, symbols.shape[1] - at)):
            name = symbols[:, at : at + kept] @ (1 << np.arange(kept)[::-1])
            held = on_grid(book, grid=127)  # as tables hold words
            total = total + held.reshape(1 << kept, len(held) >> kept, -1).mean(axis=1)[name]
        at += bits
    if config.columns:
        total = total @ on_grid(tensors["decoder.output"], axis=0, grid=127) + tensors["decoder.centre"]
    return symbols, restored(encoder, torch.from_numpy(total)).numpy()


@pytest.mark.parametrize("latents", [None, 3])
def test_vectors_go_through_a_file_and_come_back_in_their_own_units(head, tmp_path, latents):
    vectors = make_vectors()
    np.save(tmp_path / "vectors.npy", vectors)
    head.compress(tmp_path / "vectors.npy", tmp_path / "codes.bin", latents=latents)
    codes = head.encode(vectors)
    check(head, vectors, codes.symbols(), tmp_path / "codes.bin", latents)
    assert len(np.unique(codes.symbols())) > 1
    assert ((codes.uncertainty >= 0) & (codes.uncertainty <= codes.decisions_per_row)).all()
    with stochcl.open(tmp_path / "codes.bin") as archive:  # untrained, a decoder gives about the mean of the vectors
        assert abs(archive.to_vectors().mean(axis=0) - vectors.mean(axis=0)).max() < vectors.std()


def test_uncertainty_goes_through_a_file(head, tmp_path):
    vectors = make_vectors()
    np.save(tmp_path / "vectors.npy", vectors)
    head.compress(tmp_path / "vectors.npy", tmp_path / "codes.bin", uncertainty=True)
    encoder = head.model.encoder
    features = encode(encoder, vectors, CPU).features
    if encoder.config.posterior == "residual":
        family = Latents.of(encoder.config, encoder.arrays())
        calibrated = family.uncertainty(family.parameters(features))
    else:
        with torch.no_grad():
            posterior = encoder.posterior(torch.from_numpy(features)).tempered(encoder.config.temperature)
            calibrated = posterior.entropy().sum(1).numpy() / np.log(2)
    with stochcl.open(tmp_path / "codes.bin") as archive:
        archive.verify()
        # within half of a step, and steps are at most a 127th of the range
        np.testing.assert_allclose(archive.uncertainty, calibrated, atol=np.ptp(calibrated) / 250, rtol=1e-5)
        assert len(np.unique(archive.uncertainty)) > 20
        rows = [["name", "label"], *((name, f"c{i % 3}") for i, name in enumerate(archive.names))]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for given in ("vectors", "symbols"):
        found = measure_uncertainty(tmp_path / "codes.bin", labels=tmp_path / "labels.csv", output=given, folds=3)
        assert (found["images"], len(found["scores"])) == (ROWS, 5)
        assert all(len(curve) == 11 for curve in found["refused"].values())


def test_an_archive_of_vectors_is_evaluated(head, tmp_path):
    np.save(tmp_path / "vectors.npy", make_vectors())
    head.compress(tmp_path / "vectors.npy", tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive, (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["name", "label"], *((name, f"c{i % 3}") for i, name in enumerate(archive.names))]
        )
    for given in ("vectors", "symbols"):
        result, facts = evaluate(tmp_path / "codes.bin", labels=tmp_path / "labels.csv", output=given, folds=3)
        assert facts["images"] == ROWS
        assert 0 <= result.score <= 1
    assert evaluate(tmp_path / "codes.bin", labels=tmp_path / "labels.csv", folds=3)[0].score > 0.5


def test_images_are_trained_on_compressed_and_evaluated(model, images, tmp_path):
    report = model.compress(images, tmp_path / "codes.bin")
    assert report.images == PER_CLASS * len(CLASSES)
    (batch,) = open_source(images).batches(model.preprocess, batch_size=100)
    check(model, batch.images, model.encode_prepared(batch.images).codes.symbols(), tmp_path / "codes.bin")
    result, facts = evaluate(tmp_path / "codes.bin", folds=3)
    assert facts["input"] == "vectors"
    assert 0 <= result.score <= 1


def test_a_model_keeps_its_table_and_its_network_through_its_file(head, tmp_path):
    encoder = load_model(save(head.model.encoder, tmp_path / "a.safetensors")).encoder
    rng = np.random.default_rng(0)
    vectors = (make_vectors()[rng.integers(0, ROWS, 1500)] + rng.normal(0, 5, (1500, WIDTH))).astype(np.float32)
    codes = encode(encoder, vectors, CPU).codes
    encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
    fitted = fit_entropy(codes, encoder.config.ladder, passes=4, hidden=4)
    encoder.set_entropy(fitted.network)
    again = stochcl.load(save(encoder, tmp_path / "b.safetensors"), device="cpu")
    tables = again.tables
    assert tables.alphabet == encoder.config.alphabet
    cost = tables.entropy.ideal_bits(codes) / len(codes)
    assert cost < codes.decisions_per_row
    if fitted.network is not None:
        assert tables.autoregressive is not None
        found = fitted.network.ideal_bits(codes) / len(codes)
        decisions = codes.decisions()
        coded = tables.autoregressive.bits_of(decisions, tables.autoregressive.level_indices(decisions)).sum()
        assert coded / len(codes) == pytest.approx(found, rel=1e-3)
    np.save(tmp_path / "vectors.npy", vectors)
    again.compress(tmp_path / "vectors.npy", tmp_path / "codes.bin")
    check(again, vectors, codes.symbols(), tmp_path / "codes.bin")


def save(encoder, path):
    save_model(encoder, path, {})
    return path


def test_all_families_are_tested():
    assert {options["posterior"] for options in FAMILIES.values()} == set(KNOWN)
