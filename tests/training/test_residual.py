"""Residual latents fitted in closed form: to vectors, to images, to a rate."""

import numpy as np
import pytest
import torch

import stochcl
from stochcl.api.embedding_model import codec_of, to_bytes, train_head
from stochcl.api.search import search
from stochcl.api.train import train
from stochcl.codes import Codes
from stochcl.encoders import layout
from stochcl.encoders.inference import encode
from stochcl.encoders.latents import Latents
from stochcl.errors import TrainingError, UsageError
from stochcl.training.monitor import code_health, health_warnings
from stochcl.training.options import options_from
from stochcl.training.residual import fit, rounded_map
from stochcl.training.words import (
    beam_encode,
    decode_words,
    on_grid,
    ordered,
    refit,
    residual_books,
    sign_stages,
)
from tests.making import CLASSES, PER_CLASS, SIZE

CPU = torch.device("cpu")


def make(rows, seed=0, width=24):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(0, 1, (10, width)) * np.linspace(2, 0.2, 10)[:, None]
    return (rng.normal(0, 1, (rows, 10)) @ mixing + rng.normal(0, 0.3, (rows, width)) + 3).astype(np.float32)


def trained(rows=3000, held=500, rate=24.0, seed=0, posterior="residual", latents=None, **options):
    bits = round(rate) if latents is None else latents
    return train_head(
        make(rows), make(held, seed=1), latents=bits, config={"posterior": posterior}, rate=rate, seed=seed, **options
    )


@pytest.fixture(scope="module", autouse=True)
def few_passes():
    """The entropy network, most of a fit's time, is fitted in fewer passes: what codes cost is measured anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stochcl.training.residual._PASSES", {"images": 5, "vectors": 10})
        yield


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.mark.parametrize("rate", [5, 8, 11, 40, 90])
def test_held_out_rows_cost_what_was_asked_for(rate):
    encoder, record = trained(rate=float(rate))
    codes = encode(encoder, make(500, seed=1), CPU).codes
    bits = encoder.bits_by_latent(codes).sum()
    assert bits == pytest.approx(rate, rel=0.05)
    assert record["latents"]["rate"] == pytest.approx(bits, rel=1e-3)


def test_each_stage_brings_decoded_vectors_nearer(model):
    codec, rows = codec_of(to_bytes(*model)), make(400, seed=2)
    symbols = codec.encode(rows).symbols()
    decode = codec.tables.decoder.decode
    errors = [np.square(rows - decode(symbols[:, :k])).mean() for k in codec.tables.ladder]
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < 0.4 * np.square(rows - rows.mean(0)).mean()


def test_reconstruction_errs_less_than_contrast(model):
    errors = []
    for fitted in (trained(objective="reconstruct"), model):
        codec, rows = codec_of(to_bytes(*fitted)), make(400, seed=2)
        errors.append(np.square(rows - codec.tables.decoder.decode(codec.encode(rows).symbols())).mean())
    assert errors[0] < errors[1]


def test_bits_decode_to_what_the_encoder_itself_reconstructs(model):
    encoder, tensors = model[0], model[0].arrays()
    symbols = encode(encoder, make(300, seed=2), CPU).codes.symbols()
    words, names = layout.words(encoder.config, tensors), Latents.of(encoder.config, tensors).names(symbols)
    points = decode_words(names, words, encoder.config.reduced)
    own = points @ tensors["decoder.output"] + tensors["decoder.centre"]
    restored = own * tensors["norm.scale"] + tensors["norm.centre"]
    np.testing.assert_allclose(encoder.vector_decoder().decode(symbols), restored, rtol=1e-3, atol=1e-3)


def test_the_file_gives_the_same_codes_and_names_the_same_model(model, tmp_path):
    data = to_bytes(*model)
    codec, again = codec_of(data), codec_of(data)
    rows = make(300, seed=2)
    symbols = encode(model[0], rows, CPU).codes.symbols()
    np.testing.assert_array_equal(codec.encode(rows).symbols(), symbols)
    assert codec.model.sha256 == again.model.sha256
    assert codec.tables.sha256 == again.tables.sha256
    np.save(tmp_path / "rows.npy", rows)
    codec.compress(tmp_path / "rows.npy", tmp_path / "codes.bin", uncertainty=True)
    with stochcl.open(tmp_path / "codes.bin") as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), symbols)
        np.testing.assert_allclose(archive.to_vectors(), codec.tables.decoder.decode(symbols), rtol=1e-6)


def test_the_seed_decides():
    hashes = [codec_of(to_bytes(*trained(600, 100, seed=seed))).model.sha256 for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_uncertainty_is_how_sure_the_words_are(model):
    encoder, _ = model
    entropy = encode(encoder, make(400, seed=2), CPU).codes.uncertainty
    assert ((entropy > 0) & (entropy < encoder.config.latents)).all()
    assert len(np.unique(entropy)) > 300


@pytest.mark.parametrize(("width", "latents"), [(384, 256), (64, 64), (1280, 80)])
def test_tables_are_small(width, latents):
    rng = np.random.default_rng(0)
    rows = (rng.normal(0, 1, (1200, width)) * np.linspace(2, 0.1, width)).astype(np.float32)
    encoder, record = train_head(rows, rows[:200], latents=latents, config={"posterior": "residual"})
    assert len(codec_of(to_bytes(encoder, record)).tables.data) < 150_000


def test_a_map_errs_by_its_step_and_leaves_out_what_matters_less():
    rng = np.random.default_rng(0)
    output = rng.normal(0, 1, (40, 300)).astype(np.float32)
    deviation = np.geomspace(1, 1e-3, 40)
    step = 0.05
    rounded = rounded_map(output, deviation, step)
    errors = np.sqrt(np.square(output - rounded).mean(1)) * deviation
    assert errors.max() < step / 2
    assert (rounded[:10] != 0).mean() > 0.8
    assert not rounded[deviation < step / 4].any()


def test_the_entropy_network_of_vectors_joins_names_alone():
    rng = np.random.default_rng(0)  # 200 clusters: the first name says much of the second
    rows = make(200)[rng.integers(0, 200, 4500)] + rng.normal(0, 0.3, (4500, 24)).astype(np.float32)
    encoder, _ = train_head(rows, rows[:500], latents=60, config={"posterior": "residual"})
    network = encoder.entropy_network()
    named = sum(bits for bits in encoder.config.stages if bits > 1)
    assert named < encoder.config.latents
    assert network.direct[:named].any()
    assert not network.direct[named:].any()
    assert not network.output[named:].any()


def test_rows_that_are_alike_are_refused():
    for rows in (np.ones((50, 6), np.float32), np.full((2, 6), 3, np.float32)):
        with pytest.raises(TrainingError, match="equal"):
            train_head(rows, rows[:0], latents=8, config={"posterior": "residual"})


@pytest.mark.parametrize("rows", [2, 3, 7, 40])
def test_few_rows_and_constant_columns_make_a_model(rows):
    given = make(rows)
    given[:, 3:9] = 2
    encoder, _ = train_head(given, given[:0], latents=70, config={"posterior": "residual"})
    assert encode(encoder, given, CPU).codes.symbols().shape == (rows, 70)


def test_objectives_without_a_closed_form_are_refused():
    with pytest.raises(UsageError, match="vicreg"):
        trained(objective="vicreg")


def test_images_get_residual_latents_of_a_finished_network(images, tmp_path):
    path = tmp_path / "a.safetensors"
    shape = {"width": 4, "size": SIZE, "device": "cpu"}
    train([images], path, epochs=1, batch_size=16, latents=8, decoder=(8,), **shape)
    again = tmp_path / "b.safetensors"
    report = train([images], again, init=path, epochs=0, posterior="residual", rate=12.0, device="cpu")
    codec = stochcl.load(again, device="cpu")
    assert codec.model.encoder.config.transform == "sqrt"
    assert report.latents == codec.latents
    assert report.rate == pytest.approx(12, rel=0.05)
    for name, tensor in stochcl.load(path, device="cpu").model.encoder.backbone.state_dict().items():
        assert torch.equal(codec.model.encoder.backbone.state_dict()[name], tensor)
    codec.compress(images, tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert len(archive) == PER_CLASS * len(CLASSES)
        assert archive.to_vectors().shape[1] == archive.header.feature_dim == codec.model.encoder.config.reduced
        name = archive.names[3]
    # A query is a point of the space that codes decode to, not the features, which are of another width.
    found = search(tmp_path / "codes.bin", [images / name], count=3, output="vectors", model=str(again), device="cpu")
    assert name in [neighbour["name"] for neighbour in found["queries"][0]["neighbours"]]


def test_residual_latents_do_not_depend_on_how_many_cores_there_are(images, tmp_path):
    path, before, found = tmp_path / "a.safetensors", torch.get_num_threads(), set()
    shape = {"width": 4, "size": SIZE, "device": "cpu"}
    train([images], path, epochs=1, batch_size=16, latents=8, decoder=(8,), **shape)
    try:
        for cores in (1, 2):
            torch.set_num_threads(cores)
            out = tmp_path / f"{cores}.safetensors"
            train([images] * 4, out, init=path, epochs=0, posterior="residual", rate=12.0, device="cpu")
            found.add(stochcl.load(out, device="cpu").model.sha256)
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_residual_latents_are_not_trained_by_steps_on_images(images, tmp_path):
    with pytest.raises(UsageError, match="finished network"):
        options_from({"posterior": "residual", "epochs": 3})
    assert options_from({"posterior": "residual", "epochs": 0, "rate": 20})[0].latents == 20


def test_a_refit_errs_no_more():
    rows = make(800)
    rows -= rows.mean(0)
    books = residual_books(rows, [16, 8, 4], np.random.default_rng(0))
    names = beam_encode(rows, books)

    def errors(words):
        return np.array(
            [np.square(rows - decode_words(names[:, : k + 1], words[: k + 1], rows.shape[1])).sum() for k in range(3)]
        )

    octaves = np.log2([7 / 4, 9 / 7, 2])  # between prefixes of 4, 7 and 9 bits; the last counts as one
    assert octaves @ errors(refit(rows, names, books)) <= octaves @ errors(books)


def test_signs_take_the_axis_with_most_variance_left_again():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (2000, 3)).astype(np.float32) * [9, 2, 1]
    signs = sign_stages(rows.astype(np.float32), 3, 3)
    first, second = signs[0] / np.linalg.norm(signs[0]), signs[1] / np.linalg.norm(signs[1])
    assert abs(first @ second) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(signs[0]) > np.linalg.norm(signs[1]) > np.linalg.norm(signs[2])


def test_words_in_order_are_halved_by_their_bits():
    words = np.array([[5.0], [1], [7], [3], [0], [2], [6], [4]], np.float32)
    found = ordered(words)[:, 0]
    assert set(found) == set(words[:, 0])
    assert max(found[:4]) < min(found[4:]) or min(found[:4]) > max(found[4:])


def test_numbers_on_the_grid_are_what_tables_hold():
    numbers = on_grid(np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32))
    steps = numbers / (np.abs(numbers).max() / 127)
    np.testing.assert_allclose(steps, np.rint(steps), rtol=0, atol=1e-3)
    np.testing.assert_allclose(on_grid(numbers), numbers, rtol=1e-6)


def test_views_say_which_directions_matter():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (2000, 6)).astype(np.float32)
    views = rows.copy()
    views[:, :3] = rng.normal(0, 1, (2000, 3))  # what no view keeps
    fitted = fit(rows, (6, 2), views=views, width=6)
    weight = np.square(fitted.matrix).sum(1)
    assert weight[:3].max() < 0.1 * weight[3:].min()


@pytest.mark.parametrize(("family", "said"), [("bernoulli", True), ("residual", False)])
def test_signs_near_coin_tosses_are_no_undecided_posterior(family, said):
    symbols = np.random.default_rng(0).integers(0, 2, (400, 16))
    codes = Codes.from_symbols(symbols, uncertainty=np.full(400, 15.5, np.float32))
    warnings = health_warnings(code_health(codes, family))
    assert any("undecided" in warning for warning in warnings) == said


def test_a_map_is_not_lost_to_keep_tables_small(monkeypatch):
    """Where words alone take more than tables may, vectors are still decoded."""
    from stochcl.training import residual

    rng = np.random.default_rng(8)
    rows = (2 * rng.normal(size=(9, 48))[rng.integers(0, 9, 700)] + rng.normal(size=(700, 48))).astype(np.float32)
    monkeypatch.setitem(residual._MOST_TABLES, "vectors", 14_000)
    encoder, record = train_head(rows[:600], rows[600:], latents=32, entropy="independent", config={
        "posterior": "residual", "alphabet": 2,
    })  # fmt: skip
    codec = codec_of(to_bytes(encoder, record))
    decoded = codec.decode(codec.encode(rows[600:]))
    lost = np.square(decoded - rows[600:]).sum() / np.square(rows[600:] - rows[:600].mean(0)).sum()
    assert lost < 0.3
