"""Whole archives of every model, shape and option give back what went in."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN, fit_linear
from stochcl.entropy.tables import Tables
from tests.compress.golden import append
from tests.compress.making import make_chain, make_codes, make_decoder, make_names, make_network, make_tables, write
from tests.compress.strategies import archives_of, codes_of


def check(data: bytes, codes: Codes, tables: Tables, *, names: bool = True) -> list[int]:
    """Read an archive in every way that there is; return the entropy models of its segments."""
    with Archive(io.BytesIO(data), tables=[tables]) as archive:
        archive.verify()
        assert len(archive) == len(codes)
        whole = archive[:]
        np.testing.assert_array_equal(whole.packed, codes.packed)
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
        if len(codes):
            assert (whole.names and list(whole.names)) == (list(codes.names) if codes.names and names else None)
            if codes.labels is not None:
                assert list(whole.labels) == list(codes.labels)
            if codes.uncertainty is not None:
                np.testing.assert_array_equal(whole.uncertainty, codes.uncertainty)
            assert (whole.uncertainty is None) == (codes.uncertainty is None)
            some = np.array([len(codes) - 1, 0, len(codes) // 2, 0])
            np.testing.assert_array_equal(archive[some].packed, codes.packed[some])
            np.testing.assert_array_equal(archive[len(codes) - 1].packed, codes.packed[-1:])
            assert b"".join(part.packed.tobytes() for part in archive.iter_codes(7)) == codes.packed.tobytes()
            half = (codes.latents + 1) // 2
            np.testing.assert_array_equal(archive.to_numpy(half), codes.symbols()[:, :half])
        return [head.model for _, head in archive._index.segments]


@settings(deadline=None, max_examples=150)
@given(archives_of(), st.one_of(st.none(), st.integers(1, 9)))
def test_archives_of_every_kind_come_back(archive, step):
    codes, tables, options = archive
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a", codes, tables, step=step, **options)
        check(path.read_bytes(), codes, tables, names=options["names"])
        with Archive(path, tables=[tables]) as read:
            assert read.skipped == list(options["skipped"])
            assert read.header.selection == options["selection"]


@settings(deadline=None, max_examples=15)
@given(archives_of(most_rows=3000, most_latents=40))
def test_larger_ones_come_back_too(archive):
    codes, tables, options = archive
    options["segment_rows"] = max(100, options["segment_rows"])
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a", codes, tables, **options)
        check(path.read_bytes(), codes, tables, names=options["names"])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 20), max_size=4), st.sampled_from([2, 5]), st.booleans())
def test_appended_archives_come_back(sizes, alphabet, network):
    codes = make_chain(sum(sizes) + 5, 4, alphabet, names=make_names(sum(sizes) + 5))
    tables = make_tables(4, alphabet, network=make_network(4, alphabet) if network else None)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a", codes[:5], tables)
        for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
            append(path, codes[5 + end - size : 5 + end], tables)
        models = check(path.read_bytes(), codes, tables)
    assert len(models) == len(sizes) + 1


@pytest.mark.parametrize("kind", ["skewed", "constant", "uniform"])
@pytest.mark.parametrize(("latents", "alphabet"), [(1, 2), (16, 2), (3, 5)])
def test_65536_rows_come_back(tmp_path, kind, latents, alphabet):
    codes, tables = codes_of(kind, 65_536, latents, alphabet), make_tables(latents, alphabet)
    data = write(tmp_path / "a", codes, tables).read_bytes()
    assert set(check(data, codes, tables)) <= {INDEPENDENT, OWN}


@pytest.mark.parametrize(
    ("latents", "alphabet"),
    [(1, 2), (1, 3), (1, 4096), (4096, 2), (2048, 4), (2048, 3), (512, 256), (341, 4096), (372, 2048)],
)
@pytest.mark.parametrize("kind", ["constant", "uniform"])
def test_rows_of_every_width_come_back(tmp_path, latents, alphabet, kind):
    codes = codes_of(kind, 12, latents, alphabet)
    tables = make_tables(latents, alphabet, decoder=False)
    data = write(tmp_path / "a", codes, tables, segment_rows=8).read_bytes()
    assert len(check(data, codes, tables)) == 2


@pytest.mark.parametrize(("latents", "alphabet"), [(1, 2), (2048, 2), (300, 16), (86, 4096)])
def test_rows_of_every_width_come_back_from_networks(tmp_path, latents, alphabet):
    codes = make_chain(30, latents, alphabet)
    network = make_network(latents, alphabet, 8)
    tables = make_tables(latents, alphabet, decoder=False, network=network)
    for options in {}, {"fitted": [network], "segment_rows": 25}:
        data = write(tmp_path / "a", codes, tables, embed=False, force=True, **options).read_bytes()
        models = check(data, codes, tables)
        assert latents == 1 or set(models) == {NETWORK}  # the tables' is as good as the fitted one, and comes first


@pytest.mark.parametrize("alphabet", [2, 5])
def test_models_that_were_fitted_to_an_archive_are_chosen_and_repay_themselves(tmp_path, alphabet):
    codes = make_chain(4000, 10, alphabet)
    tables = make_tables(10, alphabet, decoder=False)
    linear, table = fit_linear(codes), IndependentModel.fit(codes)
    plain = write(tmp_path / "plain", codes, tables).read_bytes()
    data = write(tmp_path / "fitted", codes, tables, fitted=[table, linear]).read_bytes()
    assert check(data, codes, tables) == [FITTED]
    assert len(data) < len(plain)


def test_vectors_come_back_from_a_prefix_and_from_a_selection(tmp_path):
    codes = make_codes(20, 6)
    tables = Tables((2, 6), IndependentModel.fit(codes), make_decoder(6))
    whole = tables.decoder.decode(codes.symbols())
    with Archive(write(tmp_path / "a", codes, tables)) as archive:
        np.testing.assert_array_equal(archive.to_vectors(), whole)
        first = archive.to_vectors(2)
    with Archive(write(tmp_path / "b", codes.prefix(2), tables)) as archive:
        np.testing.assert_array_equal(archive.to_vectors(), first)
    chosen = Codes.from_symbols(codes.symbols()[:, [0, 1]])
    with Archive(write(tmp_path / "c", chosen, tables, selection=(0, 1))) as archive:
        np.testing.assert_allclose(archive.to_vectors(), first, rtol=1e-5, atol=1e-6)
