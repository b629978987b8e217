import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl.codes import Codes, bits_per_symbol
from stochcl.entropy.independent import IndependentModel, node_counts, quantised
from stochcl.errors import FormatError
from tests.compress.making import make_codes


@given(st.sampled_from([2, 3, 16, 256, 300]), st.integers(1, 9), st.integers(1, 40))
def test_a_table_comes_back(alphabet, latents, rows):
    model = IndependentModel.fit(make_codes(rows, latents, alphabet))
    again = IndependentModel.from_bytes(model.to_bytes())
    assert again.alphabet == alphabet
    np.testing.assert_array_equal(again.ones, model.ones)


@pytest.mark.parametrize("alphabet", [2, 3, 16, 300])
def test_a_table_counts_every_node_of_the_tree(alphabet):
    codes = make_codes(300, 3, alphabet)
    bits = bits_per_symbol(alphabet)
    ones, visits = np.zeros((2, 3, (1 << bits) - 1))
    for row in codes.symbols().tolist():
        for j, symbol in enumerate(row):
            for level in range(bits):
                node = (1 << level) - 1 + (symbol >> bits - level)
                visits[j, node] += 1
                ones[j, node] += symbol >> bits - level - 1 & 1
    np.testing.assert_array_equal(node_counts(codes), (ones, visits))
    expected = IndependentModel.nearest((ones + 0.5) / (visits + 1), alphabet)
    np.testing.assert_array_equal(IndependentModel.fit(codes).ones, expected.ones)


def test_the_ideal_is_the_sum_of_the_symbols_information():
    model = IndependentModel(np.array([[1024, 2048, 512]], np.uint16), alphabet=4)
    codes = Codes.from_symbols([[0], [1], [2], [3]], alphabet=4)
    # first decision a one: 1/4; second after a zero: 1/2, after a one: 1/8
    expected = -np.log2([3 / 4 * 1 / 2, 3 / 4 * 1 / 2, 1 / 4 * 7 / 8, 1 / 4 * 1 / 8]).sum()
    assert model.ideal_bits(codes) == pytest.approx(expected)


@pytest.mark.parametrize("alphabet", [2, 5, 16])
def test_the_fitted_table_costs_hardly_more_than_the_entropy(alphabet):
    codes = make_codes(20_000, 7, alphabet)
    symbols = codes.symbols()
    entropy = 0.0
    for column in symbols.T:
        p = np.bincount(column, minlength=alphabet) / len(column)
        entropy -= len(column) * (p[p > 0] * np.log2(p[p > 0])).sum()
    assert entropy <= IndependentModel.fit(codes).ideal_bits(codes) <= 1.002 * entropy


def test_constant_latents_keep_a_probability_for_what_never_came():
    model = IndependentModel.fit(Codes.from_symbols(np.tile([0, 1], (10_000, 1))))
    assert model.ones[:, 0].tolist() == [1, 4095]


def test_a_prefix_is_the_first_rows():
    model = IndependentModel.fit(make_codes(50, 6, 4))
    np.testing.assert_array_equal(model.prefix(2).ones, model.ones[:2])


@pytest.mark.parametrize(
    "ones",
    [np.array([[0]], np.uint16), np.array([[4096]], np.uint16), np.array([[7]], np.int64), np.array([7], np.uint16)],
)
def test_a_table_that_makes_no_sense_is_refused(ones):
    with pytest.raises(FormatError):
        IndependentModel(ones)


def test_a_row_has_at_most_4096_decisions():
    with pytest.raises(FormatError, match="4096"):
        IndependentModel(np.full((4097, 1), 2048, np.uint16))


@pytest.mark.parametrize(
    ("latents", "alphabet", "message"),
    [
        (0, 2, "makes no sense"),
        (4097, 2, "makes no sense"),
        (1, 1, "makes no sense"),
        (1, 4097, "makes no sense"),
        (2049, 4, "at most 4096"),
        (2048, 4, "bytes, not"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(latents, alphabet, message):
    with pytest.raises(FormatError, match=message):
        IndependentModel.from_bytes(struct.pack("<II", latents, alphabet) + b"\1\0")


@given(st.binary(max_size=64))
def test_foreign_bytes_are_a_format_error(data):
    with pytest.raises(FormatError):
        IndependentModel.from_bytes(data)


def test_every_truncation_of_a_table_is_a_format_error():
    data = IndependentModel.fit(make_codes(50, 6, 3)).to_bytes()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            IndependentModel.from_bytes(data[:end])


def test_numerators_leave_nothing_impossible():
    numerators = quantised(np.array([[0.0, 1.0, 0.5, 1.6 / 4096, 2.4 / 4096]]))
    assert numerators.tolist() == [[1, 4095, 2048, 2, 2]]
    IndependentModel(numerators[:, :3].astype(np.uint16), 4)
