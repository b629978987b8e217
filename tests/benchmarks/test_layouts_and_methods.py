"""Every method gives back what it was given, for every shape; and says how many bytes that took."""

import numpy as np
import pytest

from stochcl.benchmarks import codesets, layouts, models
from stochcl.benchmarks.codesets import CodeSet
from stochcl.benchmarks.entries import entries_of
from stochcl.benchmarks.methods import PerSymbol, symbol_probabilities
from stochcl.benchmarks.worker import Job, measure
from stochcl.codes import Codes
from stochcl.entropy.independent import IndependentModel

SHAPES = [(2, 1, 2), (50, 13, 2), (300, 16, 2), (40, 3, 256), (30, 5, 5), (20, 2, 4096)]


def some_codes(rng, rows, latents, alphabet):
    symbols = np.minimum(rng.geometric(2 / alphabet, (rows, latents)) - 1, alphabet - 1)
    return Codes.from_symbols(symbols, alphabet=alphabet)


def code_set(codes):
    return CodeSet("some", codes, models.fitted(codes), "for a test")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [layouts.ROWS, layouts.COLUMNS, layouts.PLANES])
def test_layouts_can_be_taken_up_again(rng, shape, layout):
    codes = some_codes(rng, *shape)
    data = layouts.lay_out(codes, layout)
    again = layouts.take_up(data, layout, *shape)
    assert (again.packed == codes.packed).all()
    assert (again.latents, again.alphabet) == shape[1:]


def test_columns_put_equal_latents_side_by_side():
    codes = Codes.from_symbols([[1, 0, 1]] * 16)
    assert layouts.lay_out(codes, layouts.COLUMNS) == bytes([255, 255, 0, 0, 255, 255])
    wide = Codes.from_symbols([[7, 200], [8, 201]], alphabet=256)
    assert layouts.lay_out(wide, layouts.COLUMNS) == bytes([7, 8, 200, 201])
    assert layouts.lay_out(wide, layouts.ROWS) == bytes([7, 200, 8, 201])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_gives_the_codes_back(rng, shape):
    codes = some_codes(rng, *shape)
    for entry in entries_of(code_set(codes), pytest.fail):
        data = entry.method.encode(codes)
        again = entry.method.decode(data)
        assert (again.packed == codes.packed).all(), entry.method.name
        assert (again.latents, again.alphabet) == shape[1:], entry.method.name


def test_blocks_hold_all_rows_where_there_are_many_blocks(rng):
    codes = Codes.from_symbols(rng.random((3000, 64)) < 0.5)
    entry = entries_of(code_set(codes), pytest.fail)[0]
    assert entry.method.rows_per_block == pytest.approx(1024, rel=0.01)
    data = entry.method.encode(codes)
    assert (entry.method.decode(data).packed == codes.packed).all()
    assert len(data) * 8 <= 1.001 * entry.method.model.ideal_bits(codes) + 64


@pytest.mark.parametrize(("make", "fitted"), [(codesets.correlated, 1), (codesets.skewed, 0)])
def test_the_file_of_codes_without_a_model_holds_the_models_that_pay(make, fitted):
    made = make(4000, 32, 0)
    (entry,) = [entry for entry in entries_of(made, print) if entry.method.name == "archive"]
    assert len(entry.method.fitted) == fitted  # none for independent bits: a table of the segment itself does as well
    assert len(entry.method.encode(made.codes)) < 0.95 * made.codes.packed.nbytes


def test_a_stream_is_the_same_whatever_the_size_of_calls(rng, monkeypatch):
    codes = some_codes(rng, 100, 7, 6)
    method = PerSymbol("x", 100, 7, 6, IndependentModel.fit(codes), perfect=True)
    at_once = method.encode(codes)
    monkeypatch.setattr("stochcl.benchmarks.methods._PARAMETERS", 7 * 6 * 9)
    assert method.encode(codes) == at_once
    assert (method.decode(at_once).packed == codes.packed).all()


def test_probabilities_of_symbols_are_products_of_decisions(rng):
    codes = some_codes(rng, 500, 3, 5)
    model = IndependentModel.fit(codes)
    p = symbol_probabilities(model)
    assert p.shape == (3, 5)
    assert p.sum(axis=1) == pytest.approx([1, 1, 1])
    bits = -np.log2(p[np.arange(3), codes.symbols()]).sum()
    assert bits == pytest.approx(model.ideal_bits(codes), rel=0.01)


def test_a_measurement_has_sizes_times_and_memory(rng):
    codes = some_codes(rng, 50, 8, 2)
    for entry in entries_of(code_set(codes), pytest.fail):
        found = measure(Job(entry.method, entry.method, codes, 2))
        assert found["correct"] is True
        assert found["bytes"] == len(entry.method.encode(codes))
        for way in ("encode", "decode"):
            assert found[way]["repeats"] == 2
            assert found[way]["seconds"] > 0
            assert found[way]["peak_bytes"] >= 0
