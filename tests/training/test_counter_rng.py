import numpy as np
import pytest
import torch

from stochcl.training.augment import as_words, counter_rng, from_words

KEYS = torch.arange(4096)


def test_numbers_belong_to_their_key_whatever_the_batch():
    whole = counter_rng(KEYS, 3, 1, 12)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counter_rng(KEYS[order], 3, 1, 12), whole[order])
    assert torch.equal(counter_rng(KEYS[7:8], 3, 1, 12), whole[7:8])
    assert torch.equal(counter_rng(KEYS.to(torch.int32), 3, 1, 12), whole)
    assert torch.equal(counter_rng(KEYS, 3, 1, 5), whole[:, :5])


def test_numbers_are_those_of_every_version():
    # A checkpoint goes on with them; computed independently, with Python's integers.
    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for key, seed, stream in [(0, 0, 0), (123_456_789, 7, 2), (2**40 + 1, 2**62, 1)]:
        start = mix((seed * golden + stream + 1) % 2**64)
        row = mix((key * golden + start) % 2**64)
        expected = [(mix((row + c * golden) % 2**64) >> 40) / 2**24 for c in (1, 2, 3)]
        assert counter_rng(torch.tensor([key]), seed, stream, 3)[0].tolist() == expected


def test_numbers_are_uniform():
    u = counter_rng(KEYS, 0, 0, 64)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u.numpy(), bins=64, range=(0, 1))[0]
    expected = u.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-squared, 63 degrees: 1 in 10^6
    columns = u.mean(0).numpy()
    assert np.abs(columns - 0.5).max() < 5 * (1 / 12 / 4096) ** 0.5
    rows = u.var(1).numpy().mean()
    assert rows == pytest.approx(1 / 12, rel=0.02)


@pytest.mark.parametrize(
    ("a", "b"),
    [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 1), (1, 0)), ((5, 2), (6, 2))],
)
def test_seeds_and_streams_are_independent(a, b):
    x, y = (counter_rng(KEYS, seed, stream, 16).flatten().numpy() for seed, stream in (a, b))
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / len(x) ** 0.5
    assert (x == y).mean() < 1e-3


def test_columns_and_neighbouring_keys_are_independent():
    u = counter_rng(KEYS, 0, 0, 32).numpy()
    columns = np.corrcoef(u.T) - np.eye(32)
    assert np.abs(columns).max() < 5.5 / 4096**0.5
    for lag in (1, 2, 64):  # of the whole table: keys, and one key's columns against the next key's
        assert abs(np.corrcoef(u[lag:].ravel(), u[:-lag].ravel())[0, 1]) < 5 / u.size**0.5
        assert abs(np.corrcoef(u[:-1, lag % 32 :].ravel(), u[1:, : 32 - lag % 32].ravel())[0, 1]) < 5 / 4096**0.5
    assert len(np.unique(u)) > 0.99 * u.size


def test_words_are_the_numbers_and_cannot_be_rounded():
    uniform = counter_rng(torch.arange(500), 3, 1, 40)
    words = as_words(uniform)
    assert words.dtype == torch.int32
    assert torch.equal(from_words(words), uniform)
