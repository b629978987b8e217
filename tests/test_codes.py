import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl.codes import Codes, bits_per_symbol

alphabets = st.sampled_from([2, 3, 4, 16, 256, 257, 4096])


@st.composite
def symbol_arrays(draw):
    alphabet = draw(alphabets)
    shape = draw(st.integers(0, 6)), draw(st.integers(1, 19))
    seed = draw(st.integers(0, 1000))
    return np.random.default_rng(seed).integers(0, alphabet, shape), alphabet


@given(symbol_arrays())
def test_symbols_come_back(case):
    symbols, alphabet = case
    codes = Codes.from_symbols(symbols, alphabet=alphabet)
    np.testing.assert_array_equal(codes.symbols(), symbols)
    assert codes.symbols().dtype == (np.uint8 if alphabet <= 256 else np.uint16)
    assert codes.packed.shape[1] == -(-symbols.shape[1] * bits_per_symbol(alphabet) // 8)


@given(symbol_arrays(), st.data())
def test_a_prefix_is_the_code_of_the_first_symbols(case, data):
    symbols, alphabet = case
    k = data.draw(st.integers(1, symbols.shape[1]))
    short = Codes.from_symbols(symbols, alphabet=alphabet).prefix(k)
    np.testing.assert_array_equal(short.packed, Codes.from_symbols(symbols[:, :k], alphabet=alphabet).packed)


@given(symbol_arrays())
def test_decisions_are_the_bits_of_symbols_most_significant_first(case):
    symbols, alphabet = case
    bits = bits_per_symbol(alphabet)
    codes = Codes.from_symbols(symbols, alphabet=alphabet)
    assert codes.decisions_per_row == symbols.shape[1] * bits
    written = ["".join(f"{symbol:0{bits}b}" for symbol in row) for row in symbols.tolist()]
    assert ["".join(map(str, row)) for row in codes.decisions().tolist()] == written
    for row, text in zip(codes.packed, written, strict=True):  # and the rest of the last byte is zero
        assert row.tobytes() == int(text.ljust(8 * len(row), "0"), 2).to_bytes(len(row), "big")


@given(symbol_arrays(), st.data())
def test_prefixes_of_prefixes_are_prefixes_and_change_nothing(case, data):
    symbols, alphabet = case
    codes = Codes.from_symbols(symbols, alphabet=alphabet, names=map(str, range(len(symbols))))
    before = codes.packed.copy()
    j = data.draw(st.integers(1, symbols.shape[1]))
    k = data.draw(st.integers(1, j))
    np.testing.assert_array_equal(codes.prefix(j).prefix(k).packed, codes.prefix(k).packed)
    assert codes.prefix(k).names == codes.names
    short = codes.prefix(k)
    short.packed[:] = 255
    np.testing.assert_array_equal(codes.packed, before)


@given(symbol_arrays(), st.data())
def test_rows_are_chosen_as_numpy_chooses_them(case, data):
    symbols, alphabet = case
    n = len(symbols)
    names, labels = [f"n{i}" for i in range(n)], [f"l{i % 2}" for i in range(n)]
    codes = Codes.from_symbols(symbols, alphabet=alphabet, names=names, labels=labels, uncertainty=np.arange(n))
    ways = [st.slices(n), st.lists(st.booleans(), min_size=n, max_size=n).map(lambda m: np.array(m, dtype=bool))]
    if n:
        numbers = st.lists(st.integers(-n, n - 1), min_size=1)
        ways += [numbers, numbers.map(np.array), st.integers(-n, n - 1)]
    rows = data.draw(st.one_of(ways))
    chosen = codes[rows]
    index = np.atleast_1d(np.arange(n)[rows])
    np.testing.assert_array_equal(chosen.symbols(), symbols[index])
    assert chosen.names == tuple(names[i] for i in index)
    assert chosen.labels == tuple(labels[i] for i in index)
    np.testing.assert_array_equal(chosen.uncertainty, index)
    assert (chosen.latents, chosen.alphabet) == (codes.latents, codes.alphabet)


@given(symbol_arrays(), st.lists(st.integers(0, 6), max_size=3))
def test_joining_undoes_splitting(case, cuts):
    symbols, alphabet = case
    n = len(symbols)
    codes = Codes.from_symbols(
        symbols,
        alphabet=alphabet,
        names=map(str, range(n)),
        labels=["x"] * n,
        uncertainty=np.arange(n) / 4,
    )
    edges = [0, *sorted(cuts), n]
    joined = Codes.concatenate([codes[a:b] for a, b in itertools.pairwise(edges)])
    np.testing.assert_array_equal(joined.packed, codes.packed)
    assert (joined.names, joined.labels) == (codes.names, codes.labels)
    np.testing.assert_array_equal(joined.uncertainty, codes.uncertainty)
    assert joined.uncertainty.dtype == np.float32


@pytest.mark.parametrize("alphabet", range(2, 4097, 37))
def test_the_largest_symbol_of_every_alphabet_fits(alphabet):
    bits = bits_per_symbol(alphabet)
    assert 2 ** (bits - 1) < alphabet <= 2**bits
    codes = Codes.from_symbols([[alphabet - 1, 0, alphabet - 1]], alphabet=alphabet)
    assert codes.symbols().tolist() == [[alphabet - 1, 0, alphabet - 1]]


def test_codes_may_have_no_rows():
    empty = Codes.from_symbols(np.zeros((0, 9)), names=[], labels=[])
    assert (len(empty), empty.packed.shape, empty.symbols().shape) == (0, (0, 2), (0, 9))
    assert len(Codes.concatenate([empty, empty[:0]])) == 0
    with pytest.raises(IndexError):
        empty[0]


def test_one_row_is_codes_too():
    codes = Codes.from_symbols([[1, 0], [0, 1]], labels=["a", "b"])
    assert len(codes[1]) == 1
    assert codes[-1].labels == ("b",)
    assert codes[np.int64(0)].labels == ("a",)
    with pytest.raises(IndexError):
        codes[2]


@pytest.mark.parametrize(
    "rows", [np.True_, None, [[0, 1]], (0, 1), [0.5], ["a"], [True], [0, 2], -3, np.array([], dtype=float)]
)
def test_rows_that_are_not_there_are_index_errors(rows):
    with pytest.raises(IndexError):
        Codes.from_symbols([[1, 0], [0, 1]], names=["a", "b"])[rows]


def test_what_only_some_parts_have_is_dropped():
    named, bare = Codes.from_symbols([[1]], names=["a"]), Codes.from_symbols([[0]])
    assert Codes.concatenate([named, bare]).names is None
    sure = Codes.from_symbols([[0]], uncertainty=[0.5])
    assert Codes.concatenate([sure, bare]).uncertainty is None
    assert Codes.concatenate([named, sure]).labels is None


@pytest.mark.parametrize(
    ("symbols", "alphabet", "message"),
    [
        ([[2]], 2, "found 2..2"),
        ([[-1]], 3, "found -1..-1"),
        ([1, 0], 2, "shape"),
        ([[[1]]], 2, "shape"),
        ([[0]], 1, "an alphabet has 2 to 4096 symbols, not 1"),
        ([[9]], 1, "alphabet"),
        ([[0]], 4097, "alphabet"),
        ([[0.9]], 2, "symbols are integers, not float64"),
        ([[np.nan]], 2, "symbols are integers"),
        ([["1"]], 2, "symbols are integers"),
    ],
)
def test_symbols_that_make_no_sense_are_refused(symbols, alphabet, message):
    with pytest.raises(ValueError, match=message):
        Codes.from_symbols(symbols, alphabet=alphabet)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="rows of 2 bytes"):
        Codes(np.zeros((1, 1), np.uint8), latents=9)
    with pytest.raises(ValueError, match="rows of 2 bytes"):
        Codes(np.zeros((1, 2), np.int8), latents=9)
    with pytest.raises(ValueError, match="rows of 2 bytes"):
        Codes(np.zeros(2, np.uint8), latents=9)
    for field in ("names", "labels", "uncertainty"):
        with pytest.raises(ValueError, match=f"1 rows but 2 {field}"):
            Codes.from_symbols([[1]], **{field: [1, 2]})
    with pytest.raises(ValueError, match="different shapes"):
        Codes.concatenate([Codes.from_symbols([[1]]), Codes.from_symbols([[1]], alphabet=3)])
    with pytest.raises(ValueError, match="different shapes"):
        Codes.concatenate([Codes.from_symbols([[1]]), Codes.from_symbols([[1, 1]])])
    with pytest.raises(ValueError, match="nothing"):
        Codes.concatenate([])


@pytest.mark.parametrize("latents", [0, 4])
def test_a_prefix_is_not_wider_than_the_code(latents):
    with pytest.raises(ValueError, match="1 to 3 latents"):
        Codes.from_symbols([[1, 0, 1]]).prefix(latents)


def test_codes_are_not_assigned_to_and_survive_a_pickle():
    codes = Codes.from_symbols([[1, 0, 2]], alphabet=3, names=["caf\udce9"], uncertainty=[1.5])
    with pytest.raises(dataclasses.FrozenInstanceError):
        codes.latents = 2
    again = pickle.loads(pickle.dumps(codes))
    assert (again.symbols().tolist(), again.names, again.alphabet) == ([[1, 0, 2]], ("caf\udce9",), 3)
