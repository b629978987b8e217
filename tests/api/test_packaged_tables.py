"""Tables that the package brings along: an archive holds them only where they hardly add to it."""

import math

import numpy as np
import pytest

import stochcl
from stochcl.compress.archive import Archive
from stochcl.compress.edit import is_embedded
from stochcl.entropy.model import expected_bits
from tests.making import make_head


def make(rows):
    return np.random.default_rng(0).normal(0, 1, (rows, 6)).astype(np.float32)


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A model whose tables the package brings along, and how many rows take twenty times as much as they do."""
    codec = stochcl.load(make_head(tmp_path / "tiny.safetensors", make(200)), device="cpu")
    monkeypatch.setitem(vars(codec), "has_packaged_tables", True)
    bits = expected_bits(codec.tables.entropy)
    return codec, math.ceil(20 * 8 * len(codec.tables.data) / bits)


def brings_tables(codec, rows, path, **options):
    np.save(path.with_suffix(".npy"), make(rows))
    codec.compress(path.with_suffix(".npy"), path, **options)
    with Archive(path, tables=[codec.tables]) as archive:
        assert len(archive) == rows
        return is_embedded(archive)


@pytest.mark.parametrize(("change", "embedded"), [(-20, False), (20, True)])
def test_packaged_tables_come_along_where_they_add_less_than_a_twentieth(packaged, tmp_path, change, embedded):
    codec, rows = packaged
    assert brings_tables(codec, rows + change, tmp_path / "codes.bin") is embedded


def test_packaged_tables_are_weighed_against_the_codes_that_are_kept(packaged, tmp_path):
    codec, rows = packaged
    assert not brings_tables(codec, rows + 20, tmp_path / "narrow.bin", latents=codec.tables.ladder[0])
    assert not brings_tables(codec, rows + 20, tmp_path / "rate.bin", rate=expected_bits(codec.tables.entropy) / 2)


def test_who_says_where_tables_go_is_obeyed(packaged, tmp_path):
    codec, rows = packaged
    assert brings_tables(codec, 5, tmp_path / "few.bin", self_contained=True)
    assert not brings_tables(codec, 2 * rows, tmp_path / "many.bin", external_tables=True)
