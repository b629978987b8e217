"""The entropy network: its arithmetic against plain Python, what it saves, what it may see."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import stochcl
from stochcl.codes import Codes, bits_per_symbol
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.entropy.autoregressive import AutoregressiveModel, EntropyNetwork
from stochcl.errors import ModelError, UsageError
from stochcl.training import entropy
from stochcl.training import entropy as codetables
from stochcl.training.entropy import fit_entropy, hidden_units, independent_bits, smaller_images
from tests.encoders.making import digits, make_config, make_encoder, make_images, make_set, make_trainer


def dependent_codes(rows: int = 3000, latents: int = 20, alphabet: int = 2, seed: int = 0) -> Codes:
    """Latents that follow one another, and one in three the parity of two before it, which no linear model sees."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, alphabet, (rows, latents))
    for j in range(2, latents):
        source = (symbols[:, j - 1] + symbols[:, j - 2]) % alphabet if j % 3 == 2 else symbols[:, j - 1]
        symbols[:, j] = np.where(rng.random(rows) < 0.9, source, symbols[:, j])
    return Codes.from_symbols(symbols, alphabet=alphabet)


def fitted(codes: Codes, **options) -> entropy.Fitted:
    given = {"hidden": 16, "passes": 10, "precision": "fp32"} | options
    return fit_entropy(codes, (8, codes.latents), **given)


@pytest.fixture(scope="module", params=[2, 5])
def codes(request):
    return dependent_codes(alphabet=request.param, latents=20 if request.param == 2 else 6)


@pytest.fixture(scope="module")
def network(codes):
    return fitted(codes).network


def plain_numerators(network: EntropyNetwork, symbols: list[int]) -> list[int]:
    """The specification, in Python's integers, of one row."""
    bits = bits_per_symbol(network.alphabet)
    decisions = [(symbol >> (bits - 1 - level)) & 1 for symbol in symbols for level in range(bits)]
    signs = [2 * d - 1 for d in decisions]
    a = {name: array.tolist() for name, array in network.arrays().items()}
    active = []
    for h, degree in enumerate(a["degrees"]):
        u = a["hidden_bias"][h] + sum(a["hidden_weights"][h][i] * signs[i] for i in range(degree))
        active.append(min(127, max(0, (u * a["hidden_multiplier"][h]) >> 14)))
    out = []
    for j in range(len(signs)):
        z = 128 * sum(a["direct"][j][i] * signs[i] for i in range(j))
        z += sum(a["output"][j][h] * active[h] for h, degree in enumerate(a["degrees"]) if degree <= j)
        latent, level = divmod(j, bits)
        node = 2**level - 1 + (symbols[latent] >> (bits - level))
        index = (z * a["multiplier"][j] + (a["bias"][latent][node] << 16)) >> 24
        out.append(a["levels"][min(len(a["levels"]) - 1, max(0, index))])
    return out


def test_all_rows_at_once_are_what_the_specification_says_of_each(codes, network):
    part = codes[:40]
    expected = [plain_numerators(network, row) for row in part.symbols().tolist()]
    assert network.numerators(part).tolist() == expected
    assert len(np.unique(expected)) > 10


def test_extreme_weights_overflow_nowhere(rng):
    t, h = 40, 12
    degrees = np.sort(rng.integers(1, t, h)).astype(np.int32)
    places = np.arange(t)

    def extreme(shape, mask):
        return np.where(mask, rng.choice([-127, 127], shape), 0).astype(np.int8)

    network = EntropyNetwork(
        latents=t, alphabet=2, levels=np.linspace(1, 4095, 256).astype(np.uint16), degrees=degrees,
        hidden_weights=extreme((h, t), places < degrees[:, None]),
        hidden_bias=rng.choice([-(2**24), 0, 2**24], h).astype(np.int32),
        hidden_multiplier=np.full(h, 65535, np.uint16),
        direct=extreme((t, t), places < places[:, None]), output=extreme((t, h), degrees <= places[:, None]),
        multiplier=np.full(t, 65535, np.uint16), bias=rng.integers(-(2**31), 2**31, (t, 1)).astype(np.int32),
    )  # fmt: skip
    codes = Codes.from_symbols(rng.integers(0, 2, (20, t)))
    assert network.numerators(codes).tolist() == [plain_numerators(network, row) for row in codes.symbols().tolist()]


def test_it_codes_in_fewer_bits_than_independent_symbols_and_the_hidden_layer_sees_more(codes):
    linear, masked = fitted(codes, hidden=0, passes=10), fitted(codes, hidden=64, passes=40)
    full = str(codes.latents)
    independent = linear.record["independent_bits"][full]
    assert linear.record["autoregressive_bits"][full] < 0.95 * independent
    if codes.alphabet == 2:
        assert masked.record["autoregressive_bits"][full] < 0.95 * linear.record["autoregressive_bits"][full]


def test_rounding_to_integers_costs_less_than_a_hundredth(codes):
    record = fitted(codes).record
    for rung, bits in record["autoregressive_bits"].items():
        assert bits < 1.01 * record["autoregressive_bits_float"][rung]


def test_what_is_reported_is_what_codes_that_were_not_fitted_cost(codes):
    found = fitted(codes)
    fresh = dependent_codes(latents=codes.latents, alphabet=codes.alphabet, seed=1)
    bits = found.network.decision_bits(fresh)
    assert bits.shape == (codes.decisions_per_row,)
    assert found.record["autoregressive_bits"][str(codes.latents)] == pytest.approx(bits.sum(), rel=0.05)
    p = found.network.numerators(fresh) / 4096
    expected = -np.log2(np.where(fresh.decisions() == 1, p, 1 - p)).mean(axis=0)
    np.testing.assert_allclose(bits, expected)


@pytest.mark.parametrize("hidden", [0, 16])
def test_no_decision_sees_itself_or_a_later_one(codes, hidden):
    network = fitted(codes, hidden=hidden, passes=4).network
    changed = codes[:200].decisions()
    before = network.numerators(codes[:200])
    for j in (0, 1, 7, codes.decisions_per_row - 1):
        other = changed.copy()
        other[:, j:] ^= 1
        packed = Codes(np.packbits(other, axis=1), codes.latents, codes.alphabet)
        bits = bits_per_symbol(codes.alphabet)
        seen = j + 1 if bits == 1 else j // bits * bits + 1 if j % bits == 0 else j // bits * bits
        assert np.array_equal(network.numerators(packed)[:, :seen], before[:, :seen])


def test_a_prefix_costs_what_its_decisions_cost(codes, network):
    bits = bits_per_symbol(codes.alphabet)
    t = 4 * bits
    h = int(np.searchsorted(network.degrees, t))
    arrays = {
        "degrees": network.degrees[:h], "hidden_weights": network.hidden_weights[:h, :t],
        "hidden_bias": network.hidden_bias[:h], "hidden_multiplier": network.hidden_multiplier[:h],
        "direct": network.direct[:t, :t], "output": network.output[:t, :h], "multiplier": network.multiplier[:t],
        "bias": network.bias[:4],
    }  # fmt: skip
    shorter = dataclasses.replace(network, latents=4, **arrays)
    np.testing.assert_allclose(shorter.decision_bits(codes.prefix(4)), network.decision_bits(codes)[:t])


def test_the_seed_decides_the_network(codes):
    runs = [fitted(codes, seed=seed, passes=4).network.arrays() for seed in (3, 3, 4)]
    first, again, other = ({k: v.tobytes() for k, v in arrays.items()} for arrays in runs)
    assert first == again
    assert first["direct"] != other["direct"]


def test_few_codes_or_independent_ones_get_no_network(rng):
    assert fit_entropy(dependent_codes(rows=entropy.MIN_CODES - 1), (20,)).network is None
    coins = Codes.from_symbols(rng.integers(0, 2, (1500, 12)))
    assert fitted(coins).network is None
    assert fit_entropy(Codes.from_symbols(rng.integers(0, 2, (2000, 1))), (1,)).network is None


def test_an_image_is_held_out_in_all_its_versions(monkeypatch):
    kept = {}
    descend = entropy._descend

    def note(network, fitted_codes, held, *rest):
        kept.update(fitted=fitted_codes.symbols(), held=held.symbols())
        return descend(network, fitted_codes, held, *rest)

    monkeypatch.setattr(entropy, "_descend", note)
    numbers = (np.arange(600)[:, None] >> np.arange(10)) & 1  # every image's code is its number
    fitted(Codes.from_symbols(np.concatenate([numbers, numbers])), versions=2, passes=1)
    parts = {
        name: [sum(bit << i for i, bit in enumerate(row)) for row in rows.tolist()] for name, rows in kept.items()
    }
    assert not set(parts["fitted"]) & set(parts["held"])
    assert sorted(parts["held"]) == sorted(list(set(parts["held"])) * 2)
    assert sorted(parts["fitted"] + parts["held"]) == sorted([*range(600)] * 2)


def test_time_ends_a_fit(codes):
    told = []
    fitted(codes, passes=10_000, max_time=0.5, progress=lambda fraction, line: told.append((fraction, line)))
    assert told[-1][0] == 1
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert told[0][1].endswith(" bits/image")


def test_the_pass_that_codes_the_others_best_is_kept(monkeypatch):
    noisy = dependent_codes(rows=1000, latents=40)
    monkeypatch.setattr(entropy, "_HIDDEN_LR", 0.1)
    told = []
    options = {"hidden": 64, "passes": 60, "progress": lambda f, line: told.append(float(line.split()[2]))}
    found = fitted(noisy, **options)
    assert found.record["autoregressive_bits_float"]["40"] == pytest.approx(min(told), abs=0.1)
    assert told[-1] > min(told)  # it learned its codes by heart


def test_smaller_images_lose_detail_and_nothing_else():
    images = make_images(60, 32)
    smaller = smaller_images(images, seed=0)
    assert (smaller.shape, smaller.dtype) == (images.shape, np.uint8)
    assert smaller_images(images, seed=0).tobytes() == smaller.tobytes() != smaller_images(images, seed=1).tobytes()
    detail = [np.abs(np.diff(part.astype(int), axis=2)).mean() for part in (images, smaller)]
    assert detail[1] < 0.7 * detail[0]
    assert smaller.mean() == pytest.approx(images.mean(), abs=2)
    flat = np.full((5, 16, 16, 3), 77, np.uint8)
    assert np.array_equal(smaller_images(flat, 0), flat)


def test_few_codes_are_worth_no_hidden_units():
    assert hidden_units(5000) == 0 < hidden_units(50_000)
    assert fit_entropy(dependent_codes(rows=1200), (20,), passes=10).network.hidden == 0


def test_independent_bits_are_the_entropy_where_the_table_is_right():
    codes = Codes.from_symbols([[0, 1]] * 3 + [[1, 1]])
    bits = independent_bits(np.log(np.array([[1 / 3], [3.0]], np.float32)), codes)
    expected = [-0.75 * np.log2(0.75) - 0.25 * np.log2(0.25), -np.log2(0.75)]
    np.testing.assert_allclose(bits, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("levels", 0, 0, "levels holds"),
        ("levels", 0, 4096, "levels holds"),
        ("multiplier", 0, -1, "multiplier holds"),
        ("hidden_multiplier", 0, 65536, "hidden_multiplier holds"),
        ("hidden_bias", 0, 2**24 + 1, "hidden_bias holds"),
        ("degrees", 0, 0, "degrees do not ascend"),
        ("degrees", 0, 10**6, "degrees do not ascend"),
        ("direct", (1, 1), 3, "direct has weights of decisions that come later"),
        ("hidden_weights", (0, -1), 3, "hidden_weights has weights of decisions that come later"),
        ("output", (0, 0), 3, "output has weights of decisions that come later"),
    ],
)
def test_arrays_that_are_no_network_are_refused(network, name, place, value, message):
    arrays = {k: v.astype(np.int64) for k, v in network.arrays().items()}
    again = EntropyNetwork.from_arrays(arrays, latents=network.latents, alphabet=network.alphabet)
    for key, array in network.arrays().items():
        assert np.array_equal(again.arrays()[key], array)
        assert again.arrays()[key].dtype == array.dtype
    arrays[name][place] = value
    with pytest.raises(ValueError, match=message):
        EntropyNetwork.from_arrays(arrays, latents=network.latents, alphabet=network.alphabet)


def test_the_shapes_of_a_model_file_are_those_of_a_network(codes, network):
    shapes = entropy.array_shapes(codes.latents, network.hidden, codes.alphabet)
    assert {k: v.shape for k, v in network.arrays().items()} == {k: shape for k, (_, shape) in shapes.items()}
    assert all(torch.iinfo(shapes[k][0]).max >= v.max() for k, v in network.arrays().items())


@pytest.mark.parametrize("hidden", [0, 5])
def test_an_encoder_takes_a_network_along_through_its_file(tmp_path, hidden):
    encoder, codes = make_encoder(latents=16), dependent_codes(latents=16)
    network = fitted(codes, hidden=hidden).network
    encoder.set_entropy(network)
    assert (encoder.config.entropy, encoder.config.entropy_hidden) == ("autoregressive", hidden)
    sha256 = save_model(encoder, tmp_path / "m.safetensors", {})
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.sha256, loaded.encoder.config) == (sha256, encoder.config)
    found = loaded.encoder.entropy_network()
    for name, array in network.arrays().items():
        assert np.array_equal(found.arrays()[name], array), name
        assert found.arrays()[name].dtype == array.dtype
    assert np.array_equal(found.numerators(codes), network.numerators(codes))
    encoder.set_entropy(None)
    assert (encoder.entropy_network(), encoder.config) == (None, make_encoder(latents=16).config)
    assert save_model(encoder, tmp_path / "n.safetensors", {}) != sha256


def test_a_model_file_with_a_network_that_sees_later_decisions_is_refused(tmp_path):
    encoder, path = make_encoder(latents=16), tmp_path / "m.safetensors"
    encoder.set_entropy(fitted(dependent_codes(latents=16)).network)
    encoder.entropy.direct[3, 9] = 1
    save_model(encoder, path, {})
    with pytest.raises(ModelError, match="direct has weights of decisions that come later"):
        load_model(path)


def test_a_model_without_a_network_keeps_the_hash_that_it_had_before_there_were_any(tmp_path):
    save_model(make_encoder(latents=8), tmp_path / "m.safetensors", {})
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        stored = json.loads(file.metadata()["config"])
    assert not [name for name in stored if name.startswith("entropy")]
    default = Path(stochcl.__file__).with_name("models") / "general.safetensors"
    if default.is_file() and (model := load_model(default)).encoder.entropy_network() is None:
        assert model.sha256 == "c944504174d043eebc8f174c9cbc82399eb968ddfb9584c6d7f1342f8f9d0d5c"


@pytest.mark.parametrize(
    "options", [{"entropy": "psychic"}, {"entropy_hidden": 3}, {"entropy": "autoregressive", "entropy_hidden": 4097}]
)
def test_configurations_of_no_network_are_refused(options):
    with pytest.raises(UsageError):
        make_config(**options)


def test_training_fits_a_network_where_there_are_enough_images(tmp_path, monkeypatch):
    monkeypatch.setattr(codetables, "MIN_CODES", 500)
    trainer = make_trainer(tmp_path, digits(600, 0), batch_size=100)
    encoder = trainer.run()
    record = trainer.entropy_record
    assert encoder.config.entropy == "autoregressive"
    assert (record["codes"], record["measured_codes"]) == (1140, 60)
    assert record["autoregressive_bits"]["16"] < record["independent_bits"]["16"]
    assert encoder.entropy_network().latents == 16


@pytest.mark.parametrize("options", [{}, {"entropy": "independent"}])
def test_few_images_or_independent_symbols_give_a_model_without_one(tmp_path, options):
    encoder = make_trainer(tmp_path, make_set(40), **options).run()
    assert (encoder.config.entropy, encoder.entropy_network()) == ("independent", None)


def test_the_coder_s_model_of_the_same_arrays_gives_the_same_probabilities(codes, network):
    model = AutoregressiveModel(latents=network.latents, alphabet=network.alphabet, **network.arrays())
    levels = model.levels[model.level_indices(codes.decisions())].T
    assert np.array_equal(levels, network.numerators(codes))
    np.testing.assert_allclose(model.bits_by_decision(codes) / len(codes), network.decision_bits(codes))
