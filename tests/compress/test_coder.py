import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress import IndependentModel
from stochcl.compress.coder import decode_block, encode_block
from stochcl.errors import FormatError
from tests.compress.making import make_codes
from tests.compress.pure_ans import decode_rows, encode_rows

alphabets = st.sampled_from([2, 3, 16, 256, 300])


@settings(deadline=None)
@given(alphabets, st.integers(1, 9), st.integers(1, 60), st.integers(0, 5))
def test_rows_come_back(alphabet, latents, rows, seed):
    codes = make_codes(rows, latents, alphabet, seed=seed)
    model = IndependentModel.fit(make_codes(100, latents, alphabet, seed=77))
    words = encode_block(codes, model)
    np.testing.assert_array_equal(decode_block(words, rows, model), codes.packed)


@settings(deadline=None, max_examples=30)
@given(alphabets, st.integers(1, 5), st.integers(1, 20))
def test_the_written_down_algorithm_reads_what_the_library_wrote(alphabet, latents, rows):
    codes = make_codes(rows, latents, alphabet)
    model = IndependentModel.fit(make_codes(100, latents, alphabet, seed=77))
    words = encode_block(codes, model).tolist()
    assert encode_rows(codes.symbols().tolist(), model.ones.tolist(), bits_per_symbol(alphabet)) == words
    symbols, spent = decode_rows(words, rows, model.ones.tolist(), bits_per_symbol(alphabet))
    assert spent
    assert symbols == codes.symbols().tolist()


def test_the_words_of_a_block_never_change():
    model = IndependentModel(np.array([[1000], [3000], [1000], [2048]], np.uint16))
    codes = make_codes(40, 4)
    assert encode_block(codes, model).tolist() == [
        1120436224,
        1663862495,
        1204816992,
        695534719,
        2413219241,
        331644068,
        1351973665,
    ]


def test_the_payload_is_within_a_thousandth_of_the_ideal():
    codes = make_codes(3000, 128)
    model = IndependentModel.fit(codes)
    rows = round(65536 / (model.ideal_bits(codes) / len(codes)))
    block = codes[:rows]
    assert len(encode_block(block, model)) * 32 <= 1.001 * model.ideal_bits(block)


def test_a_symbol_outside_the_alphabet_is_refused():
    wide = IndependentModel(np.full((2, 3), 2048, np.uint16), alphabet=4)
    narrow = IndependentModel(np.full((2, 3), 2048, np.uint16), alphabet=3)
    words = encode_block(Codes.from_symbols([[3, 0]], alphabet=4), wide)
    with pytest.raises(FormatError, match="symbol 3 of an alphabet of 3"):
        decode_block(words, 1, narrow)


@pytest.mark.parametrize("rows", [1, 9, 11, 1000])
def test_another_number_of_rows_than_was_coded_is_refused(rows):
    model = IndependentModel(np.full((8, 1), 2048, np.uint16))
    words = encode_block(make_codes(10, 8), model)
    with pytest.raises(FormatError, match="does not end where its rows do"):
        decode_block(words, rows, model)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("numerator", [1, 2048, 4095])
def test_even_what_is_all_the_same_costs_what_it_should(value, numerator):
    model = IndependentModel(np.full((64, 1), numerator, np.uint16))
    codes = Codes.from_symbols(np.full((3000, 64), value))
    bits = 32 * len(encode_block(codes, model))
    assert model.ideal_bits(codes) <= bits <= model.ideal_bits(codes) + 64


@pytest.mark.parametrize("words", [[], [0], [5, 0]])
def test_a_stream_that_is_empty_or_ends_in_an_empty_word_is_refused(words):
    with pytest.raises(FormatError, match="empty"):
        decode_block(np.array(words, np.uint32), 1, IndependentModel(np.full((8, 1), 2048, np.uint16)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=6))
def test_foreign_words_decode_or_are_a_format_error(words):
    model = IndependentModel(np.full((8, 1), 2000, np.uint16))
    try:
        packed = decode_block(np.array(words, np.uint32), 3, model)
    except FormatError:
        return
    assert packed.shape == (3, 1)
