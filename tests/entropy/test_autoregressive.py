"""Networks of integers: the same numbers on every machine, however the work is cut up."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes, bits_per_symbol
from stochcl.entropy import autoregressive
from stochcl.entropy import model as linear
from stochcl.entropy.ans import decode_block, encode_block
from stochcl.entropy.autoregressive import MAX_BIAS, AutoregressiveModel, Stepper, logistic_levels
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import fit_linear
from stochcl.errors import FormatError
from tests.compress.making import LEVELS, make_chain, make_codes, make_network, noise


def slowly(model: AutoregressiveModel, row: list[int]) -> list[int]:
    """The indices of the levels of one row's decisions, in Python's integers; docs/FORMAT.md, to the letter."""
    signs = [1 if decision else -1 for decision in row]
    hidden, direct, output = model.hidden_weights.tolist(), model.direct.tolist(), model.output.tolist()
    degrees, bits, indices = model.degrees.tolist(), bits_per_symbol(model.alphabet), []
    active = []
    for h, degree in enumerate(degrees):
        u = int(model.hidden_bias[h]) + sum(hidden[h][i] * signs[i] for i in range(degree))
        active.append(min(127, max(0, (u * int(model.hidden_multiplier[h])) >> 14)))
    for j in range(len(row)):
        z = 128 * sum(direct[j][i] * signs[i] for i in range(j))
        z += sum(output[j][h] * active[h] for h, degree in enumerate(degrees) if degree <= j)
        latent, level = divmod(j, bits)
        node = (1 << level) - 1 + sum(row[j - 1 - place] << place for place in range(level))
        index = (z * int(model.multiplier[j]) + (int(model.bias[latent, node]) << 16)) >> 24
        indices.append(min(len(model.levels) - 1, max(0, index)))
    return indices


def stepped(model: AutoregressiveModel, decisions: np.ndarray) -> np.ndarray:
    """What a reader finds, decision by decision; shape (T, N)."""
    stepper, out = Stepper(model, len(decisions)), []
    for indices in stepper:
        out.append(indices.copy())
        stepper.tell(decisions[:, len(out) - 1])
    np.testing.assert_array_equal(stepper.decisions, decisions.T)
    return np.stack(out)


@st.composite
def networks(draw, most=40):
    """Networks of any shape, with weights that are small, or as large as they can be."""
    alphabet = draw(st.sampled_from([2, 2, 3, 5, 16]))
    bits = bits_per_symbol(alphabet)
    latents = draw(st.integers(1, most // bits))
    t = latents * bits
    hidden = draw(st.integers(0, 12)) if t > 1 else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    extreme = draw(st.booleans())

    def numbers(least, most, shape, dtype):
        if extreme:
            return rng.choice([least, most], shape).astype(dtype)
        return rng.integers(least, most + 1, shape).astype(dtype)

    degrees = np.sort(rng.integers(1, max(2, t), hidden)).astype(np.uint16)
    seen = np.arange(t)
    bias = draw(st.sampled_from([1 << 11, 1 << 20, 2**31 - 1]))
    offset = draw(st.sampled_from([3, MAX_BIAS]))
    return AutoregressiveModel(
        latents=latents,
        alphabet=alphabet,
        levels=numbers(1, 4095, draw(st.sampled_from([2, 3, 81, 256])), np.uint16),
        degrees=degrees,
        hidden_weights=numbers(-127, 127, (hidden, t), np.int8) * (seen < degrees[:, None]),
        hidden_bias=numbers(-offset, offset, hidden, np.int32),
        hidden_multiplier=numbers(0, draw(st.sampled_from([300, 65535])), hidden, np.uint16),
        direct=numbers(-127, 127, (t, t), np.int8) * (seen < seen[:, None]),
        output=numbers(-127, 127, (t, hidden), np.int8) * (degrees <= seen[:, None]),
        multiplier=numbers(0, draw(st.sampled_from([300, 65535])), t, np.uint16),
        bias=numbers(-bias, bias, (latents, (1 << bits) - 1), np.int32),
    )


def rows_for(model: AutoregressiveModel, rows: int, seed: int = 0) -> Codes:
    return make_codes(rows, model.latents, model.alphabet, seed=seed)


@settings(deadline=None, max_examples=150)
@given(networks(), st.integers(1, 5))
def test_the_integers_are_those_of_the_page(model, rows):
    decisions = rows_for(model, rows).decisions()
    expected = np.array([slowly(model, row) for row in decisions.tolist()]).T
    np.testing.assert_array_equal(model.level_indices(decisions), expected)
    np.testing.assert_array_equal(stepped(model, decisions), expected)


@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_as_large_as_they_can_be_are_exact(sign):
    """All signs and weights agree, over the widest row: the largest sums that there are."""
    t, h = 4096, 40
    degrees = np.full(h, t - 1, np.uint16)
    seen = np.arange(t)
    model = AutoregressiveModel(
        latents=t,
        alphabet=2,
        levels=logistic_levels(),
        degrees=degrees,
        hidden_weights=np.full((h, t), 127 * sign, np.int8) * (seen < degrees[:, None]),
        hidden_bias=np.full(h, MAX_BIAS, np.int32),
        hidden_multiplier=np.full(h, 65535, np.uint16),
        direct=np.full((t, t), 127 * sign, np.int8) * (seen < seen[:, None]),
        output=np.full((t, h), 127, np.int8) * (degrees <= seen[:, None]),
        multiplier=np.full(t, 1, np.uint16),
        bias=np.full((t, 1), 40 * 256, np.int32),
    )
    decisions = np.ones((1, t), np.uint8)
    found = model.level_indices(decisions)[:, 0].tolist()
    for j in 0, 1, 2, 100, t - 2, t - 1:
        z = 128 * 127 * sign * j + (h * 127 * 127 if j >= t - 1 else 0)
        assert found[j] == min(80, max(0, z + (40 * 256 << 16) >> 24))
    np.testing.assert_array_equal(stepped(model, decisions)[:, 0], found)


def test_so_many_hidden_units_that_one_product_is_not_exact_are_summed_in_parts(monkeypatch):
    """Two sums that differ by one, beyond 2**24, and a level that begins between them."""
    t, h, total = 3, 4096, 1007 << 16
    rest = total // 127
    output = np.zeros((t, h), np.int8)
    output[1:, :-1] = 127
    for unit in range(h - 1):
        less = min(127, int(output[1, :-1].sum(dtype=int)) - rest)
        output[1:, unit] -= less
    # All units give 127 but the last, which gives 1.
    output[1:, -1] = total % 127, total % 127 - 1
    bias = np.full(h, MAX_BIAS, np.int32)
    bias[-1] = 1
    multiplier = np.full(h, 65535, np.uint16)
    multiplier[-1] = 1 << 14
    model = AutoregressiveModel(
        latents=t,
        alphabet=2,
        levels=LEVELS,
        degrees=np.full(h, 1, np.uint16),
        hidden_weights=np.zeros((h, t), np.int8),
        hidden_bias=bias,
        hidden_multiplier=multiplier,
        direct=np.zeros((t, t), np.int8),
        output=output,
        multiplier=np.full(t, 1, np.uint16),
        bias=np.full((t, 1), 17, np.int32),
    )
    decisions = np.array([[1, 1, 1], [0, 0, 0]], np.uint8)
    expected = np.array([slowly(model, row) for row in decisions.tolist()]).T
    assert expected[:, 0].tolist() == [0, 4, 3]
    np.testing.assert_array_equal(model.level_indices(decisions), expected)
    np.testing.assert_array_equal(stepped(model, decisions), expected)
    monkeypatch.setattr(autoregressive, "_EXACT_UNITS", h)
    assert not np.array_equal(model.level_indices(decisions), expected)  # so this would have found it


# However the work is cut up


@settings(deadline=None, max_examples=60)
@given(networks(), st.integers(1, 9), st.integers(1, 17), st.integers(1, 17), st.integers(1, 17), st.integers(1, 17))
def test_the_sizes_of_parts_change_nothing(model, rows, chunk, columns, together, units):
    decisions = rows_for(model, rows).decisions()
    expected = model.level_indices(decisions)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ("_CHUNK", chunk), ("_COLUMNS", columns), ("_ROWS", together), ("_EXACT_UNITS", units):
            patch.setattr(autoregressive, name, value)
        np.testing.assert_array_equal(model.level_indices(decisions), expected)
        np.testing.assert_array_equal(stepped(model, decisions), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
@settings(deadline=None, max_examples=40)
@given(networks(), st.integers(1, 9))
def test_the_type_of_the_products_changes_nothing(dtype, model, rows):
    """Single precision is exact here; so double precision and integers give the same."""
    decisions = rows_for(model, rows).decisions()
    expected = model.level_indices(decisions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoregressive, "_float", lambda weights: weights.astype(dtype))
        np.testing.assert_array_equal(model.level_indices(decisions), expected)
        np.testing.assert_array_equal(stepped(model, decisions), expected)


def test_rows_do_not_depend_on_those_beside_them():
    model, codes = make_network(20, 5, 30), make_codes(2500, 20, 5)
    whole = model.level_indices(codes.decisions())
    for rows in slice(0, 1), slice(1020, 1030), slice(2499, 2500):
        np.testing.assert_array_equal(model.level_indices(codes[rows].decisions()), whole[:, rows])


HASH = """
import hashlib, sys
import numpy as np
from stochcl.entropy.ans import encode_block
from tests.compress.making import make_codes, make_network
digest = hashlib.sha256()
for latents, alphabet, hidden, rows in (300, 2, 200, 1500), (64, 16, 100, 300), (520, 2, 0, 1100):
    model, codes = make_network(latents, alphabet, hidden), make_codes(rows, latents, alphabet)
    digest.update(model.level_indices(codes.decisions()).tobytes())
    digest.update(encode_block(codes, model).tobytes())
print(digest.hexdigest())
"""


def test_the_number_of_threads_changes_nothing():
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    found = set()
    for threads in "1", "3":
        environment = os.environ | dict.fromkeys(names, threads)
        root = Path(__file__).parents[2]
        run = subprocess.run(
            [sys.executable, "-c", HASH], env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_the_integers_of_a_known_network_never_change():
    digest = hashlib.sha256(make_network(30, 5, 20).level_indices(make_codes(99, 30, 5).decisions()).tobytes())
    assert digest.hexdigest()[:16] == "7a3aea5c99126fe7"


def test_a_prefix_gives_the_first_decisions():
    for alphabet in 2, 5:
        model, codes = make_network(12, alphabet, 9), make_codes(40, 12, alphabet)
        whole = model.level_indices(codes.decisions())
        for latents in range(1, 13):
            prefix = model.prefix(latents)
            assert prefix.decisions_per_row == latents * bits_per_symbol(alphabet)
            found = prefix.level_indices(codes.prefix(latents).decisions())
            np.testing.assert_array_equal(found, whole[: prefix.decisions_per_row])
            assert AutoregressiveModel.from_bytes(prefix.to_bytes()).to_bytes() == prefix.to_bytes()
    assert model.prefix(12) is model


# Bytes


FIELDS = (
    "levels", "degrees", "hidden_weights", "hidden_bias", "hidden_multiplier", "direct", "output", "multiplier",
    "bias",
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(networks())
def test_a_network_comes_back(model):
    again = AutoregressiveModel.from_bytes(model.to_bytes())
    assert (again.latents, again.alphabet) == (model.latents, model.alphabet)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    assert again.to_bytes() == model.to_bytes()


def test_every_truncation_is_a_format_error_and_every_changed_byte_at_most_that():
    data = make_network(3, 5, 4).to_bytes()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            AutoregressiveModel.from_bytes(data[:end])
    with pytest.raises(FormatError, match="bytes, not"):
        AutoregressiveModel.from_bytes(data + b"\0")
    for i in range(len(data)):
        for change in 0x01, 0x80, 0xFF:
            damaged = bytearray(data)
            damaged[i] ^= change
            try:
                again = AutoregressiveModel.from_bytes(bytes(damaged))
            except FormatError:
                continue
            assert again.to_bytes() == damaged


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_format_error(data):
    with pytest.raises(FormatError):
        AutoregressiveModel.from_bytes(data)


def changed(array: np.ndarray, at: tuple[int, ...], value: int) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"levels": m.levels[:1]}, "cannot have 1 levels"),
        (lambda m: {"levels": np.ones(257, np.uint16)}, "cannot have 257 levels"),
        (lambda m: {"levels": changed(m.levels, (0,), 0)}, "k in 1..4095"),
        (lambda m: {"levels": changed(m.levels, (3,), 4096)}, "k in 1..4095"),
        (lambda m: {"levels": m.levels.astype(np.int64)}, "levels is uint16"),
        (lambda m: {"degrees": changed(m.degrees, (0,), 0)}, "degrees of hidden units"),
        (lambda m: {"degrees": changed(m.degrees, (4,), 15)}, "degrees of hidden units|known yet"),
        (lambda m: {"degrees": m.degrees[::-1].copy()}, "degrees of hidden units"),
        (lambda m: {"degrees": np.ones(4097, np.uint16)}, "4,097 hidden units"),
        (lambda m: {"degrees": m.degrees[:-1]}, "of shape"),
        (lambda m: {"degrees": m.degrees[:, None]}, "degrees of hidden units|shape"),
        (lambda m: {"hidden_weights": m.hidden_weights[:, :-1]}, "hidden_weights is int8"),
        (lambda m: {"hidden_weights": m.hidden_weights.astype(np.int16)}, "hidden_weights is int8"),
        (lambda m: {"hidden_weights": changed(m.hidden_weights, (0, 14), 1)}, "not known yet"),
        (lambda m: {"hidden_weights": changed(m.hidden_weights, (0, int(m.degrees[0])), 1)}, "not known yet"),
        (lambda m: {"hidden_bias": changed(m.hidden_bias, (1,), MAX_BIAS + 1)}, "bias of a hidden unit"),
        (lambda m: {"hidden_bias": changed(m.hidden_bias, (1,), -MAX_BIAS - 1)}, "bias of a hidden unit"),
        (lambda m: {"hidden_bias": changed(m.hidden_bias, (1,), -(2**31))}, "bias of a hidden unit"),
        (lambda m: {"hidden_multiplier": m.hidden_multiplier.astype(np.int32)}, "hidden_multiplier is uint16"),
        (lambda m: {"direct": m.direct[:-1]}, "direct is int8"),
        (lambda m: {"direct": changed(m.direct, (7, 7), 1)}, "not known yet"),
        (lambda m: {"direct": changed(m.direct, (0, 14), -1)}, "not known yet"),
        (lambda m: {"output": changed(m.output, (int(m.degrees[2]) - 1, 2), 1)}, "not known yet"),
        (lambda m: {"output": m.output[:, :-1]}, "output is int8"),
        (lambda m: {"multiplier": m.multiplier.astype(np.uint32)}, "multiplier is uint16"),
        (lambda m: {"bias": m.bias[:, :-1]}, "bias is int32"),
        (lambda m: {"bias": m.bias.astype(np.float64)}, "bias is int32"),
        (lambda m: {"latents": 0}, "0 latents of 5 values makes no sense"),
        (lambda m: {"latents": 4097}, "makes no sense"),
        (lambda m: {"latents": 2000}, "at most 4096 binary decisions, not 6,000"),
        (lambda m: {"alphabet": 1}, "makes no sense"),
        (lambda m: {"alphabet": 4097}, "makes no sense"),
        (lambda m: {"alphabet": 9}, "shape"),
    ],
)
def test_arrays_that_cannot_be_are_refused(change, message):
    model = make_network(5, 5, 5)
    with pytest.raises(FormatError, match=message):
        replace(model, **change(model))


def test_a_row_of_one_decision_has_no_hidden_units():
    model = make_network(1)
    with pytest.raises(FormatError, match="degrees"):
        replace(
            model,
            degrees=np.ones(1, np.uint16),
            hidden_weights=np.zeros((1, 1), np.int8),
            hidden_bias=np.zeros(1, np.int32),
            hidden_multiplier=np.zeros(1, np.uint16),
            output=np.zeros((1, 1), np.int8),
        )


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
@pytest.mark.parametrize("value", [0, 1, 257, 4097, 2**31, 2**32 - 1])
def test_sizes_that_a_file_claims_are_checked_before_they_are_believed(offset, value):
    data = bytearray(make_network(5, 5, 5).to_bytes())
    data[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(FormatError):
        AutoregressiveModel.from_bytes(bytes(data))


# Codes


@settings(deadline=None, max_examples=80)
@given(networks(), st.integers(1, 30), st.sampled_from(["skewed", "chain", "constant", "uniform"]))
def test_codes_come_back(model, rows, kind):
    shape = rows, model.latents
    if kind == "constant":
        codes = Codes.from_symbols(np.full(shape, model.alphabet - 1), alphabet=model.alphabet)
    elif kind == "uniform":
        codes = Codes.from_symbols((noise(*shape) * model.alphabet).astype(int), alphabet=model.alphabet)
    else:
        codes = (make_chain if kind == "chain" else make_codes)(*shape, model.alphabet)
    words = encode_block(codes, model)
    np.testing.assert_array_equal(decode_block(words, rows, model), codes.packed)
    ideal = model.ideal_bits(codes)
    assert ideal - 1e-6 <= 32 * len(words) <= ideal + 24 + 32 + 1e-3 * ideal


@pytest.mark.parametrize(
    ("latents", "alphabet"), [(1, 2), (1, 3), (1, 4096), (341, 4096), (4096, 2), (2048, 4), (1365, 5)]
)
def test_codes_of_every_width_come_back(latents, alphabet):
    model, codes = make_network(latents, alphabet, 3), make_codes(3, latents, alphabet)
    np.testing.assert_array_equal(decode_block(encode_block(codes, model), 3, model), codes.packed)


def test_the_payload_is_within_a_thousandth_of_the_ideal():
    """The rest is the end of each stream: 32 to 51 bits, of 64 kbit."""
    codes, model = make_chain(20_000, 128), make_network(128, hidden=20)
    rows = round(65_536 / (model.ideal_bits(codes) / len(codes)))
    words = sum(len(encode_block(codes[start : start + rows], model)) for start in range(0, len(codes), rows))
    assert 4 * words > 60_000
    ideal = model.ideal_bits(codes)
    assert ideal < 32 * words <= 1.001 * ideal


def test_what_codes_cost_is_what_their_levels_say():
    model, codes = make_network(6, 5, 4), make_codes(50, 6, 5)
    decisions = codes.decisions()
    p = model.levels[model.level_indices(decisions)] / 4096
    cost = -np.log2(np.where(decisions.T, p, 1 - p)).sum(axis=1)
    np.testing.assert_allclose(model.bits_by_decision(codes), cost)
    assert model.ideal_bits(codes) == pytest.approx(cost.sum())


# Fitting


def fitted(codes: Codes) -> tuple[float, float]:
    """What rows that were not fitted to cost, in bits: under a linear network, and independently."""
    half = len(codes) // 2
    model = fit_linear(codes[:half])
    return model.ideal_bits(codes[half:]), IndependentModel.fit(codes[:half]).ideal_bits(codes[half:])


@pytest.mark.parametrize("alphabet", [2, 5, 16])
def test_fitting_finds_what_depends_on_what(alphabet):
    network, independent = fitted(make_chain(6000, 12, alphabet))
    assert network < 0.75 * independent


@pytest.mark.parametrize("alphabet", [2, 5])
def test_integers_cost_next_to_nothing_more_than_the_floats_they_were(alphabet, monkeypatch):
    codes, floats = make_chain(4000, 24, alphabet), []
    honest = linear.rounded_model
    monkeypatch.setattr(linear, "rounded_model", lambda *given: floats.append(given) or honest(*given))
    model = fit_linear(codes)
    ((_, _, odds, weights),) = floats
    decisions, bits = codes.decisions(), bits_per_symbol(alphabet)
    logits = (decisions * 2.0 - 1) @ weights.astype(np.float64).T
    for j in range(model.decisions_per_row):
        latent, level = divmod(j, bits)
        before = decisions[:, j - level : j] @ (1 << np.arange(level)[::-1])
        logits[:, j] += odds[latent, (1 << level) - 1 + before.astype(int)]
    exact = np.log2(1 + np.exp(np.where(decisions, -logits, logits))).sum()
    assert model.ideal_bits(codes) < 1.01 * exact


@pytest.mark.parametrize("alphabet", [2, 5])
def test_fitting_finds_nothing_where_there_is_nothing(alphabet):
    rng = np.random.default_rng(7)
    symbols = (rng.random((16_000, 24)) ** np.linspace(0.3, 3, 24) * alphabet).astype(int)
    network, independent = fitted(Codes.from_symbols(symbols, alphabet=alphabet))
    assert network < 1.01 * independent


def test_fitting_is_the_same_for_the_same_codes_and_says_how_far_it_is():
    codes, told = make_chain(300, 6), []
    first = fit_linear(codes, progress=lambda done, total: told.append((done, total)))
    assert first.to_bytes() == fit_linear(codes).to_bytes()
    assert told[-1][0] == told[-1][1] == len(told)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("latents", "alphabet"), [(1, 2), (4, 3)])
def test_fitting_takes_as_little_as_there_is(rows, latents, alphabet):
    codes = make_codes(rows, latents, alphabet)
    model = fit_linear(codes)
    np.testing.assert_array_equal(decode_block(encode_block(codes, model), rows, model), codes.packed)


@pytest.mark.parametrize("value", [0, 4])
def test_fitting_to_constant_symbols_costs_next_to_nothing(value):
    codes = Codes.from_symbols(np.full((2000, 6), value), alphabet=5)
    assert fit_linear(codes).ideal_bits(codes) < 1.1 * IndependentModel.fit(codes).ideal_bits(codes)
