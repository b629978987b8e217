import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress import IndependentModel
from stochcl.compress.coder import decode_block, encode_block
from stochcl.errors import FormatError
from tests.compress.making import make_codes
from tests.compress.pure_ans import decode_rows

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
    symbols, spent = decode_rows(words, rows, model.ones.tolist(), bits_per_symbol(alphabet))
    assert spent
    assert symbols == codes.symbols().tolist()


def test_the_words_of_a_block_never_change():
    model = IndependentModel(np.array([[1000], [3000], [1000], [2048]], np.uint16))
    codes = make_codes(40, 4)
    assert encode_block(codes, model).tolist() == [
        2134999040,
        416824593,
        3159253763,
        585373461,
        4042814809,
        3755779952,
        123584187,
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


def test_fewer_rows_than_were_coded_are_refused():
    # More rows are not found out here, the stream gives zeros for ever: the checksum over rows finds them.
    model = IndependentModel(np.full((8, 1), 2048, np.uint16))
    words = encode_block(make_codes(10, 8), model)
    with pytest.raises(FormatError, match="does not end where its rows do"):
        decode_block(words, 9, model)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=6))
def test_foreign_words_decode_or_are_a_format_error(words):
    model = IndependentModel(np.full((8, 1), 2000, np.uint16))
    try:
        packed = decode_block(np.array(words, np.uint32), 3, model)
    except FormatError:
        return
    assert packed.shape == (3, 1)
