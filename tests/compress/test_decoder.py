import numpy as np
import pytest

from stochcl.compress import VectorDecoder
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
