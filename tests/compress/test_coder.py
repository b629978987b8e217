import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.entropy.ans import decode_block, decode_blocks, encode_block
from stochcl.entropy.independent import IndependentModel
from stochcl.errors import FormatError
from tests import independent_tables
from tests.compress.making import make_chain, make_codes, make_network

alphabets = st.sampled_from([2, 3, 16, 256, 300])
EVEN = IndependentModel(np.full((8, 1), 2048, np.uint16))
PINNED = {
    "binary": [2306867200, 203960369, 1675852500, 3659967316, 4192220260, 2145578286, 2121650190],
    "seven": [
        389365760,
        2048821538,
        1609828135,
        1508675618,
        3437087871,
        517326496,
        1895506433,
        3942634625,
        2063520949,
        2029741316,
        20,
    ],
    "linear": [
        1619025920,
        3371672216,
        3841738428,
        3853632545,
        860615539,
        256033509,
        4160693707,
        3598313234,
        3829401039,
        4008779581,
        448649385,
        3941863862,
        1643727638,
        2798839662,
        3372127660,
        2679767684,
        4292633263,
        1272934399,
        3,
    ],
    "masked": [
        2130206720,
        804773016,
        754226702,
        1499249751,
        391521445,
        1828113170,
        122876349,
        1445976110,
        750878553,
        1774738572,
        2733764052,
        615721370,
        3908977694,
        4080508551,
        3019684390,
        380075153,
        2140855550,
        4289330939,
        23999,
    ],
    "masked seven": [
        1792737280,
        1459472575,
        3162790079,
        3204270551,
        2358214601,
        4292359415,
        2224561495,
        2158544091,
        4288018112,
        1069773435,
        23,
    ],
}  # 32-bit words


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
    for model, pure in (
        (IndependentModel.fit(make_codes(100, latents, alphabet, seed=77)), independent_tables.Independent),
        (make_network(latents, alphabet, 3), independent_tables.Network),
    ):
        words = encode_block(codes, model)
        decoded = pure(model.to_bytes()).decode(words, rows, np.arange(latents))
        np.testing.assert_array_equal(decoded, codes.symbols())


def encode_as_written_down(steps):
    """Code pairs of numerator and decision, the first to be read first; docs/FORMAT.md, to the letter."""
    words, state = [], 2**24
    for k, decision in reversed(steps):
        c, w = (2**24 - 4096 * k, 4096 * k) if decision else (0, 2**24 - 4096 * k)
        if state >= w << 40:
            words.append(state & 0xFFFFFFFF)
            state = state >> 32
        state = (state // w << 24) + c + state % w
    words.append(state & 0xFFFFFFFF)
    return [*words, state >> 32] if state >> 32 else words


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4095), st.booleans()), min_size=1, max_size=200))
def test_the_written_down_algorithm_writes_what_the_library_writes(decisions):
    """A row of so many latents, each with a numerator of its own."""
    model = IndependentModel(np.array([[k] for k, _ in decisions], np.uint16))
    words = encode_block(Codes.from_symbols([[decision for _, decision in decisions]]), model)
    folded = [(4096 - k, not decision) if k > 2048 else (k, decision) for k, decision in decisions]
    assert words.tolist() == encode_as_written_down(sorted(folded, key=lambda step: step[0]))


def test_the_words_of_a_block_never_change():
    model = IndependentModel(np.array([[1000], [3000], [1000], [2048]], np.uint16))
    assert encode_block(make_codes(40, 4), model).tolist() == PINNED["binary"]
    tree = IndependentModel(np.arange(100, 2200, 100, dtype=np.uint16).reshape(3, 7), alphabet=7)
    assert encode_block(make_codes(20, 3, 7), tree).tolist() == PINNED["seven"]
    assert encode_block(make_codes(40, 8), make_network(8)).tolist() == PINNED["linear"]
    assert encode_block(make_codes(40, 8), make_network(8, hidden=9)).tolist() == PINNED["masked"]
    assert encode_block(make_codes(20, 3, 7), make_network(3, 7, hidden=5)).tolist() == PINNED["masked seven"]


@settings(deadline=None, max_examples=40)
@given(alphabets, st.integers(1, 9), st.integers(1, 60), st.integers(0, 6), st.booleans())
def test_rows_come_back_from_a_network(alphabet, latents, rows, hidden, chained):
    codes = (make_chain if chained else make_codes)(rows, latents, alphabet)
    model = make_network(latents, alphabet, hidden)
    words = encode_block(codes, model)
    np.testing.assert_array_equal(decode_block(words, rows, model), codes.packed)
    indices = model.level_indices(codes.decisions())
    assert encode_block(codes, model, indices).tolist() == words.tolist()


@pytest.mark.parametrize("alphabet", [2, 7])
@pytest.mark.parametrize("sizes", [[1], [5, 1, 300], [1] * 300, [40] * 7])
def test_blocks_in_lockstep_are_those_one_by_one(alphabet, sizes):
    codes = make_chain(sum(sizes), 5, alphabet)
    parts = np.split(np.arange(len(codes)), np.cumsum(sizes)[:-1])
    for model in make_network(5, alphabet, 4), IndependentModel.fit(codes):
        words = [encode_block(codes[part], model) for part in parts]
        together = decode_blocks(words, sizes, model)
        for stream, block, part in zip(words, together, parts, strict=True):
            np.testing.assert_array_equal(block, codes[part].packed)
            np.testing.assert_array_equal(block, decode_block(stream, len(part), model))


def test_one_bad_block_among_others_is_a_format_error():
    codes, model = make_chain(30, 5), make_network(5)
    good = encode_block(codes, model)
    for bad in good ^ 1, good[1:], good[:0], np.append(good, 1).astype(np.uint32):
        with pytest.raises(FormatError):
            decode_blocks([good, bad, good], [30] * 3, model)


@pytest.mark.parametrize("make", [make_network, lambda *shape: make_network(*shape, 3)])
def test_a_row_of_as_many_decisions_as_there_can_be(make):
    for latents, alphabet in (1, 4096), (341, 4096), (4096, 2), (1, 2):
        if latents * 12 > 4096 and alphabet > 2:
            continue
        codes = Codes.concatenate([make_chain(3, latents, alphabet), make_codes(2, latents, alphabet)])
        model = make(latents, alphabet)
        np.testing.assert_array_equal(decode_block(encode_block(codes, model), 5, model), codes.packed)


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
@pytest.mark.parametrize("model", [EVEN, make_network(8), make_network(8, hidden=3)])
def test_another_number_of_rows_than_was_coded_is_refused(rows, model):
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
        decode_block(np.array(words, np.uint32), 1, EVEN)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=6),
    st.sampled_from([IndependentModel(np.full((8, 1), 2000, np.uint16)), make_network(8, hidden=2)]),
)
def test_foreign_words_decode_or_are_a_format_error(words, model):
    try:
        packed = decode_block(np.array(words, np.uint32), 3, model)
    except FormatError:
        return
    assert packed.shape == (3, 1)
