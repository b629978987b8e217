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


@given(symbol_arrays(), st.data())
def test_rows_are_chosen_as_numpy_chooses_them(case, data):
    symbols, alphabet = case
    n = len(symbols)
    names = [f"n{i}" for i in range(n)]
    codes = Codes.from_symbols(symbols, alphabet=alphabet, names=names, uncertainty=np.arange(n))
    rows = (
        data.draw(st.slices(n))
        if n == 0 or data.draw(st.booleans())
        else data.draw(st.lists(st.integers(-n, n - 1), min_size=1))
    )
    chosen = codes[rows]
    index = np.arange(n)[rows]
    np.testing.assert_array_equal(chosen.symbols(), symbols[index])
    assert chosen.names == tuple(names[i] for i in index)
    np.testing.assert_array_equal(chosen.uncertainty, index)


@given(symbol_arrays(), st.integers(0, 6))
def test_joining_undoes_splitting(case, at):
    symbols, alphabet = case
    codes = Codes.from_symbols(symbols, alphabet=alphabet, names=map(str, range(len(symbols))))
    joined = Codes.concatenate([codes[:at], codes[at:]])
    np.testing.assert_array_equal(joined.packed, codes.packed)
    assert joined.names == codes.names


def test_one_row_is_codes_too():
    codes = Codes.from_symbols([[1, 0], [0, 1]], labels=["a", "b"])
    assert len(codes[1]) == 1
    assert codes[-1].labels == ("b",)
    assert codes[np.int64(0)].labels == ("a",)
    with pytest.raises(IndexError):
        codes[2]


def test_what_only_some_parts_have_is_dropped():
    named, bare = Codes.from_symbols([[1]], names=["a"]), Codes.from_symbols([[0]])
    assert Codes.concatenate([named, bare]).names is None


@pytest.mark.parametrize(
    ("symbols", "alphabet", "message"),
    [
        ([[2]], 2, "found 2..2"),
        ([[-1]], 3, "found -1..-1"),
        ([1, 0], 2, "shape"),
        ([[0]], 1, "alphabet"),
        ([[0]], 4097, "alphabet"),
    ],
)
def test_symbols_that_make_no_sense_are_refused(symbols, alphabet, message):
    with pytest.raises(ValueError, match=message):
        Codes.from_symbols(symbols, alphabet=alphabet)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="rows of 2 bytes"):
        Codes(np.zeros((1, 1), np.uint8), latents=9)
    with pytest.raises(ValueError, match="1 rows but 2 names"):
        Codes.from_symbols([[1]], names=["a", "b"])
    with pytest.raises(ValueError, match="different shapes"):
        Codes.concatenate([Codes.from_symbols([[1]]), Codes.from_symbols([[1, 1]])])
    with pytest.raises(ValueError, match="nothing"):
        Codes.concatenate([])


@pytest.mark.parametrize("latents", [0, 4])
def test_a_prefix_is_not_wider_than_the_code(latents):
    with pytest.raises(ValueError, match="1 to 3 latents"):
        Codes.from_symbols([[1, 0, 1]]).prefix(latents)
