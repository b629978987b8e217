"""Files that must be written, byte for byte, and read, for ever; also by a reader that knows docs/FORMAT.md alone."""

import dataclasses
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from stochcl.codes import folder_label
from stochcl.compress import Archive, Header
from stochcl.entropy.tables import Tables
from tests import independent_reader, independent_tables
from tests.compress.golden import archives
from tests.compress.making import make_tables, usual_zlib, write
from tests.compress.strategies import archives_of
from tests.conftest import GOLDEN

ARCHIVES = archives()
TABLES = GOLDEN / "binary.tables"


@pytest.mark.skipif(not usual_zlib(), reason="this zlib deflates to other bytes, which are as good")
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_written_as_ever(name, golden, tmp_path):
    made = ARCHIVES[name]
    golden(name, made.write(tmp_path / name).read_bytes())


def test_tables_are_written_as_ever(golden):
    golden(TABLES.name, make_tables(20).data)


def test_a_golden_file_that_is_missing_is_a_failure(golden, request):
    if not request.config.getoption("--remake-golden"):
        with pytest.raises(AssertionError, match="missing; it belongs into the repository"):
            golden("no such file", b"")


def test_there_are_no_other_golden_files_and_they_are_small():
    assert {path.name for path in GOLDEN.iterdir()} == {*ARCHIVES, TABLES.name}
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 100_000


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_as_ever(name):
    made = ARCHIVES[name]
    with Archive(GOLDEN / name, tables=[TABLES]) as archive:
        archive.verify()
        assert archive.skipped == list(made.skipped)
        assert tuple(head.model for _, head in archive._index.segments) == made.models
        codes = archive[:]
    np.testing.assert_array_equal(codes.packed, made.codes.packed)
    assert (codes.uncertainty is None) == (made.codes.uncertainty is None or not len(codes))
    if codes.uncertainty is not None:
        np.testing.assert_array_equal(codes.uncertainty, made.codes.uncertainty)


def test_among_them_are_a_fitted_model_of_each_kind_several_blocks_and_a_retired_part():
    heads = {}
    for name in ARCHIVES:
        with Archive(GOLDEN / name, tables=[TABLES]) as archive:
            heads[name] = [head for _, head in archive._index.segments]
            assert len(archive._index.retired) == (name.endswith("appended.bin"))
    assert [head.number for head in heads["fitted.bin"]] == [0, 1]
    assert all(len(heads[name][0].words) > 1 for name in ("wide.bin", "blocks.bin"))


@pytest.mark.parametrize("name", ["appended.bin", "v3-appended.bin"])
def test_an_appended_archive_that_is_cut_back_is_the_earlier_one(name, tmp_path):
    made = ARCHIVES[name]
    before = dataclasses.replace(made, codes=made.codes[:40], appended=0).write(tmp_path / "a").read_bytes()
    assert (GOLDEN / name).read_bytes()[: len(before)] == before


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_written_down_format_is_enough_to_read_them(name):
    made = ARCHIVES[name]
    pure = agree((GOLDEN / name).read_bytes(), made.tables)
    np.testing.assert_array_equal(pure.symbols, made.codes.symbols())


def agree(data: bytes, tables: Tables) -> independent_reader.Archive:
    """Check that the written-down format gives what the program gives."""
    pure = independent_reader.Archive(data, tables.data)
    with Archive(io.BytesIO(data), tables=[tables]) as archive:
        archive.verify()
        header = dataclasses.asdict(archive.header)
        assert Header(**pure.header | {"selection": header["selection"], "version": pure.version}) == archive.header
        assert pure.header.get("selection") == (None if header["selection"] is None else list(header["selection"]))
        assert (len(pure.symbols), pure.source_bytes) == (len(archive), archive.source_bytes)
        assert [tuple(pair) for pair in pure.skipped] == list(archive.skipped)
        np.testing.assert_array_equal(pure.symbols, archive.to_numpy())
        assert pure.names == (None if archive.names is None else list(archive.names))
        if pure.labels is not None:  # without labels, the archive gives the names' folders
            assert pure.labels == list(archive.labels)
        uncertainty = archive[:].uncertainty
        assert pure.uncertainty == (None if uncertainty is None else uncertainty.tolist())
        assert tuple(pure.tables.rungs) == archive.tables.ladder
        if (pure.tables.layers or pure.tables.residual) and len(archive):
            np.testing.assert_allclose(pure.vectors(), archive.to_vectors(), rtol=1e-3, atol=1e-4)
    return pure


@pytest.mark.parametrize("name", ["appended.bin", "v3-appended.bin"])
def test_an_append_that_is_not_finished_is_passed_over_by_both(name):
    made = ARCHIVES[name]
    data = (GOLDEN / name).read_bytes()
    with Archive(io.BytesIO(data)) as archive:
        start, size, _ = archive._index.retired[0]
    for end in range(start + size, len(data), 7):
        pure = agree(data[:end], made.tables)
        np.testing.assert_array_equal(pure.symbols, made.codes.symbols()[:40])
    for damaged in (data[:-1] + b"?", data[:-30] + b"?" + data[-29:-8] + bytes(8)):
        with pytest.raises(ValueError, match="damaged trailer"):
            independent_reader.Archive(damaged)
        with pytest.raises(ValueError, match="trailer is damaged"):
            Archive(io.BytesIO(damaged))


@settings(deadline=None, max_examples=60)
@given(archives_of())
def test_the_written_down_format_is_enough_to_read_any(tmp_path_factory, archive):
    codes, tables, options = archive
    path = write(tmp_path_factory.mktemp("any") / "a", codes, tables, **options)
    pure = agree(path.read_bytes(), tables)
    np.testing.assert_array_equal(pure.symbols, codes.symbols())
    if len(codes):
        assert pure.names == (list(codes.names) if codes.names and options["names"] else None)
        labels = codes.labels
        if labels is None and codes.names and not options["names"]:  # folders stay, as labels
            labels = [folder_label(name) for name in codes.names]
        assert pure.labels == (None if labels is None else list(labels))


@pytest.mark.parametrize("name", ["selection-fitted.bin", "v3-selection.bin"])
def test_the_independent_reader_refuses_every_flipped_byte(name):
    """Its own word for what the checksums of the page are for."""
    data = (GOLDEN / name).read_bytes()
    independent_reader.Archive(data)
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises((ValueError, LookupError, zlib.error, struct.error)):
            independent_reader.Archive(bytes(damaged))


def test_the_independent_reader_is_independent():
    for module in (independent_reader, independent_tables):
        source = Path(module.__file__).read_text("utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+(?:\.\w+)?)", source, re.MULTILINE))
        assert imported <= {"json", "struct", "zlib", "hashlib", "itertools", "numpy", "tests.independent_tables"}
