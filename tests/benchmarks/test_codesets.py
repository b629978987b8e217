"""Built-in sets are seeded, of the size asked for, and their ideals are what they are said to be."""

import numpy as np
import pytest

import stochcl
from stochcl.benchmarks import codesets, opq, sources
from stochcl.errors import MissingExtraError, SourceError, UsageError

MAKERS = [codesets.skewed, codesets.correlated, opq.opq]


@pytest.mark.parametrize("make", MAKERS)
def test_sets_are_seeded_and_of_the_size_asked_for(make):
    first, again, other = make(60, 16, 1), make(60, 16, 1), make(60, 16, 2)
    assert len(first.codes) == 60
    assert first.codes.decisions_per_row == 16
    assert (first.codes.packed == again.codes.packed).all()
    assert (first.codes.packed != other.codes.packed).any()


def test_the_ideal_of_skewed_bits_is_the_entropy_of_their_distribution():
    made = codesets.skewed(4000, 32, 0)
    bits, kind = made.ideal
    assert kind in made.models
    assert bits / 4000 == pytest.approx(made.source_bits, rel=0.02)


def test_correlated_bits_cost_less_than_independent_ones():
    made = codesets.correlated(4000, 64, 0)
    assert made.source_bits < 0.8 * made.models["independent"].model.ideal_bits(made.codes) / 4000


def test_the_probability_of_a_mixture_adds_up_to_one():
    p = np.random.default_rng(0).random((5, 3))
    every = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(bool)
    bits = [codesets._mixture_bits(row[None], p) for row in every]
    assert sum(2.0**-b for b in bits) == pytest.approx(1)


def read(path, **options):
    return sources.read_source(path, **({"latents": None, "rows": None, "refit": False, "seed": 0} | options))


def test_an_archive_is_coded_with_its_own_tables(codes):
    made = read(codes)
    with stochcl.open(codes) as archive:
        assert (made.codes.packed == archive[:].packed).all()
        assert made.tables.sha256 == archive.header.tables_sha256
    assert made.codes.names is None
    assert len(read(codes, rows=5, latents=8).codes) == 5
    assert read(codes, latents=8).header.latents == 8


def test_refit_codes_other_rows_than_it_fits(codes):
    made = read(codes, refit=True)
    with stochcl.open(codes) as archive:
        assert (made.codes.packed == archive[:][::2].packed).all()
    assert made.models["independent"].origin == "fitted"
    assert "every second row" in made.notes[0]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_symbols_of_an_array(tmp_path, rng, ending):
    path = tmp_path / f"symbols.{ending}"
    symbols = rng.integers(0, 7, (21, 4), dtype=np.uint8)
    symbols[0, 0] = 6
    if ending == "npy":
        np.save(path, symbols)
    else:
        np.savez(path, symbols=symbols, names=np.array(["x"] * 21))
    made = read(path)
    assert made.codes.alphabet == 7
    assert (made.codes.symbols() == symbols[::2]).all()


def test_features_become_opq_indices(tmp_path, rng):
    path = tmp_path / "features.npy"
    np.save(path, rng.normal(size=(600, 10)).astype(np.float16))
    made = read(path, latents=32)
    assert (made.codes.alphabet, made.codes.latents, len(made.codes)) == (256, 4, 300)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "not uint8 of shape (4, 4, 4)"),
        (np.array([[0, -1], [1, 0]]), "not in -1 to 1"),
        (np.array([[0, 4096], [1, 0]]), "symbols lie in 0 to 4095"),
        (np.zeros((1, 4), np.uint8), "fewer than two rows"),
        (np.zeros((0, 4), np.uint8), "it is empty"),
        (np.zeros((4, 5000), np.uint8), "4096 binary decisions"),
        (np.zeros((40, 4), np.float32), "needs 512 rows or more"),
        (np.full((600, 4), np.nan), "not finite"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, message):
    path = tmp_path / "array.npy"
    np.save(path, array)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert message in str(caught.value)


def test_other_files_that_are_refused(tmp_path, codes):
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "no.npy")
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "no.bin")
    (tmp_path / "bad.npy").write_bytes(b"text")
    with pytest.raises(SourceError, match="no NumPy file"):
        read(tmp_path / "bad.npy")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(SourceError, match="no array called symbols"):
        read(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="32 latents, not 33"):
        read(codes, latents=33)


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stochcl.benchmarks.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"faiss-cpu; install it with: pip install 'stochcl\[bench\]'\."):
        opq.opq(10, 16, 0)


def test_codes_of_cifar10_are_made_once_and_made_again_for_another_model(tmp_path, images, codec, monkeypatch):
    made = []

    class Codec:
        def __init__(self, device):
            self.model, self.tables = codec.model, codec.tables

        def compress(self, source, path, **options):
            made.append(source)
            return codec.compress(images, path, **options)

    monkeypatch.setattr("stochcl.api.codec.Codec", Codec)
    monkeypatch.setenv("STOCHCL_DATA", str(tmp_path))
    (tmp_path / sources.CIFAR10_ZIP).touch()

    def take():
        return sources.cifar10(tmp_path, latents=16, rows=None, refit=False, say=lambda line: None)

    assert take().name == "cifar10-16"
    assert len(take().codes) == 42
    assert made == [tmp_path / sources.CIFAR10_ZIP]
    (tmp_path / sources.CIFAR10_CODES).write_bytes(b"of another version")
    assert len(take().codes) == 42
    assert len(made) == 2
