import tracemalloc

import numpy as np
import pytest

from stochcl.entropy.vectors import VectorDecoder
from stochcl.errors import FormatError, LimitExceeded
from tests.compress.making import make_decoder


def test_vectors_are_those_of_the_formula():
    decoder = make_decoder(5)
    symbols = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], np.uint8)
    (w1, b1), (w2, b2) = [(w.astype(np.float64), b.astype(np.float64)) for w, b in decoder.layers]
    expected = np.maximum((symbols - 0.5) * 2 @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(decoder.decode(symbols), expected, rtol=1e-5, atol=1e-6)


def test_missing_latents_count_as_their_centre():
    decoder = make_decoder(6)
    decoder.centre[4:] = [0.0, 1.0]
    full = np.array([[1, 0, 1, 1, 0, 1]], np.uint8)
    np.testing.assert_allclose(decoder.decode(full[:, :4]), decoder.decode(full), rtol=1e-6)


def test_more_latents_than_it_takes_are_refused():
    with pytest.raises(ValueError, match="takes 3 latents, not 4"):
        make_decoder(3).decode(np.zeros((1, 4), np.uint8))


def test_many_rows_are_decoded_like_few(rng):
    decoder = make_decoder(12)
    symbols = rng.integers(0, 2, (2500, 12)).astype(np.uint8)
    few = np.concatenate([decoder.decode(symbols[i : i + 100]) for i in range(0, 2500, 100)])
    np.testing.assert_allclose(decoder.decode(symbols), few, rtol=1e-5, atol=1e-6)


def test_categories_are_looked_up():
    decoder = make_decoder(3, books=(5, 2))
    assert (decoder.latents, decoder.dim) == (3, 3)
    symbols = np.array([[4, 0, 2], [1, 1, 3]])
    books = decoder.codebooks.embeddings.astype(np.float64)
    (w1, b1), (w2, b2) = [(w.astype(np.float64), b.astype(np.float64)) for w, b in decoder.layers]
    x = np.concatenate([books[j, symbols[:, j]] for j in range(3)], axis=1)
    expected = np.maximum((x - 0.125) * 1.5 @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(decoder.decode(symbols), expected, rtol=1e-5, atol=1e-6)


def test_missing_categories_are_zeros_and_latents_can_be_chosen():
    decoder = make_decoder(4, books=(5, 3))
    symbols = np.array([[4, 0, 2, 1], [1, 3, 3, 0]], np.uint8)
    (weight, _), *_ = decoder.layers
    weight[:, 6:] = 0  # what the last two latents add
    np.testing.assert_allclose(decoder.decode(symbols[:, :2]), decoder.decode(symbols), rtol=1e-6)
    decoder = make_decoder(4, books=(5, 3))
    decoder.layers[0][0][:, [0, 1, 2, 6, 7, 8]] = 0
    np.testing.assert_allclose(decoder.select((1, 3)).decode(symbols[:, [1, 3]]), decoder.decode(symbols), rtol=1e-6)
    assert decoder.select((1, 3)).latents == 2


def test_a_wide_decoder_is_evaluated_in_few_rows_at_a_time():
    decoder = make_decoder(2, dim=1 << 15)
    symbols = np.zeros((400, 2), np.uint8)
    tracemalloc.start()
    vectors = decoder.decode(symbols)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * vectors.nbytes
    np.testing.assert_allclose(vectors[[0, 127, 128, 399]], decoder.decode(symbols[:1]).repeat(4, 0), rtol=1e-6)


def test_a_decoder_comes_back():
    decoder = make_decoder(9, dim=4)
    again = VectorDecoder.from_bytes(decoder.to_bytes())
    assert (again.latents, again.dim) == (9, 4)
    assert again.to_bytes() == decoder.to_bytes()


def test_every_truncation_is_a_format_error():
    data = make_decoder(3).to_bytes()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            VectorDecoder.from_bytes(data[:end])
    with pytest.raises(FormatError):
        VectorDecoder.from_bytes(data + b"\0")


def test_sizes_are_bounded_before_anything_is_allocated():
    with pytest.raises(LimitExceeded):
        VectorDecoder.from_bytes(b"\xff\xff\xff\x7f" + b"\1\0\0\0" + b"\xff\xff\xff\x7f")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(FormatError, match="not finite"):
        VectorDecoder.from_arrays(np.zeros(2), np.ones(2), [(np.array([[1, np.inf]]), np.zeros(1))])


def test_layers_that_do_not_fit_together_are_refused():
    with pytest.raises(FormatError, match="shape"):
        VectorDecoder.from_arrays(
            np.zeros(2), np.ones(2), [(np.ones((3, 2)), np.zeros(3)), (np.ones((1, 2)), np.zeros(1))]
        )
