"""The entropy network: what it saves, what it may see, and how it travels in a model file."""

import json

import numpy as np
import pytest
import safetensors

from stochcl.codes import Codes, bits_per_symbol
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.errors import FormatError, ModelError, UsageError
from stochcl.training import entropy
from stochcl.training.entropy import fit_entropy, hidden_units, smaller_images
from tests.encoders.making import make_config, make_encoder, make_images
from tests.training.making import digits, make_set, make_trainer


def dependent_codes(rows: int = 3000, latents: int = 20, alphabet: int = 2, seed: int = 0) -> Codes:
    """Latents that follow one another, and one in three the parity of two before it, which no linear model sees."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, alphabet, (rows, latents))
    for j in range(2, latents):
        source = (symbols[:, j - 1] + symbols[:, j - 2]) % alphabet if j % 3 == 2 else symbols[:, j - 1]
        symbols[:, j] = np.where(rng.random(rows) < 0.9, source, symbols[:, j])
    return Codes.from_symbols(symbols, alphabet=alphabet)


def fitted(codes: Codes, **options) -> entropy.EntropyFit:
    given = {"hidden": 16, "passes": 10, "precision": "fp32"} | options
    return fit_entropy(codes, (8, codes.latents), **given)


@pytest.fixture(scope="module", params=[2, 5])
def codes(request):
    return dependent_codes(alphabet=request.param, latents=20 if request.param == 2 else 6)


@pytest.fixture(scope="module")
def network(codes):
    return fitted(codes).network


def test_it_codes_in_fewer_bits_than_independent_symbols_and_the_hidden_layer_sees_more(codes):
    linear, masked = fitted(codes, hidden=0, passes=8), fitted(codes, hidden=64, passes=30)
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
    bits = found.network.ideal_bits(fresh) / len(fresh)
    assert found.record["autoregressive_bits"][str(codes.latents)] == pytest.approx(bits, rel=0.05)


@pytest.mark.parametrize("hidden", [0, 16])
def test_no_decision_sees_itself_or_a_later_one(codes, hidden):
    network = fitted(codes, hidden=hidden, passes=4).network
    changed = codes[:200].decisions()
    before = network.level_indices(changed)
    for j in (0, 1, 7, codes.decisions_per_row - 1):
        other = changed.copy()
        other[:, j:] ^= 1
        bits = bits_per_symbol(codes.alphabet)
        seen = j + 1 if bits == 1 else j // bits * bits + 1 if j % bits == 0 else j // bits * bits
        assert np.array_equal(network.level_indices(other)[:seen], before[:seen])


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

    class Noting(entropy.EntropyStage):
        def run(self):
            kept.update(fitted=self.codes.symbols(), held=self.held.symbols())
            return super().run()

    monkeypatch.setattr(entropy, "EntropyStage", Noting)
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
    fitted(codes, passes=10_000, max_time=0.3, report=told.append)
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert told[0].line().endswith(" bits a code")


def test_the_pass_that_codes_the_others_best_is_kept(monkeypatch):
    noisy = dependent_codes(rows=1000, latents=40)
    monkeypatch.setattr(entropy, "_HIDDEN_LR", 0.1)
    told = []
    found = fitted(
        noisy, hidden=128, passes=40, report=lambda progress: told.append(float(progress.line().split()[2]))
    )
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


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("levels", 0, 0, "k in 1"),
        ("levels", 0, 4096, "k in 1"),
        ("multiplier", 0, -1, "multiplier of"),
        ("hidden_multiplier", 0, 65536, "hidden_multiplier of"),
        ("hidden_bias", 0, 2**24 + 1, "too large"),
        ("degrees", 0, 0, "do not ascend"),
        ("degrees", 0, 10**6, "do not ascend"),
        ("direct", (1, 1), 3, "not known yet"),
        ("hidden_weights", (0, -1), 3, "not known yet"),
        ("output", (0, 0), 3, "not known yet"),
    ],
)
def test_arrays_that_are_no_network_are_refused(network, name, place, value, message):
    arrays = {k: v.astype(np.int64) for k, v in network.arrays().items()}
    again = AutoregressiveModel.from_arrays(arrays, latents=network.latents, alphabet=network.alphabet)
    for key, array in network.arrays().items():
        assert np.array_equal(again.arrays()[key], array)
        assert again.arrays()[key].dtype == array.dtype
    arrays[name][place] = value
    with pytest.raises(FormatError, match=message):
        AutoregressiveModel.from_arrays(arrays, latents=network.latents, alphabet=network.alphabet)


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
    encoder.set_entropy(None)
    assert (encoder.entropy_network(), encoder.config) == (None, make_encoder(latents=16).config)
    assert save_model(encoder, tmp_path / "n.safetensors", {}) != sha256


def test_a_model_file_with_a_network_that_sees_later_decisions_is_refused(tmp_path):
    encoder, path = make_encoder(latents=16), tmp_path / "m.safetensors"
    encoder.set_entropy(fitted(dependent_codes(latents=16)).network)
    encoder.entropy.direct[3, 9] = 1
    save_model(encoder, path, {})
    with pytest.raises(ModelError, match="not known yet"):
        load_model(path)


def test_a_model_without_a_network_says_nothing_of_one_so_that_its_hash_stays_what_it_was(tmp_path):
    save_model(make_encoder(latents=8), tmp_path / "m.safetensors", {})
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        stored = json.loads(file.metadata()["config"])
    assert not [name for name in stored if name.startswith("entropy")]


@pytest.mark.parametrize(
    "options", [{"entropy": "psychic"}, {"entropy_hidden": 3}, {"entropy": "autoregressive", "entropy_hidden": 4097}]
)
def test_configurations_of_no_network_are_refused(options):
    with pytest.raises(UsageError):
        make_config(**options)


def test_training_fits_a_network_where_there_are_enough_images(tmp_path, monkeypatch):
    monkeypatch.setattr(entropy, "MIN_CODES", 500)
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
