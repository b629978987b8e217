"""Files that must be written, byte for byte, and read, for ever; also by a reader that knows docs/FORMAT.md alone."""

import dataclasses
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.compress import Archive
from tests.compress.golden import archives
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.compress.pure_reader import Reader
from tests.conftest import GOLDEN

ARCHIVES = archives()
TABLES = GOLDEN / "binary.tables"


def usual_zlib() -> bool:
    """Tell whether this zlib deflates as zlib itself does; zlib-ng, for one, gives other bytes."""
    probe = "".join(f"{i * i % 97:x}/{i:04d}.jpg" for i in range(200)).encode()
    return zlib.crc32(zlib.compress(probe, 9)) == 0xD1D0892C


@pytest.mark.skipif(not usual_zlib(), reason="this zlib deflates to other bytes, which are as good")
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_written_as_ever(name, golden, tmp_path):
    made = ARCHIVES[name]
    path = write(tmp_path / name, made.codes, made.tables, skipped=made.skipped, **made.options)
    golden(name, path.read_bytes())


def test_tables_are_written_as_ever(golden):
    golden(TABLES.name, make_tables(20).data)


def test_a_golden_file_that_is_missing_is_a_failure(golden, request):
    if not request.config.getoption("--remake-golden"):
        with pytest.raises(AssertionError, match="missing; it belongs into the repository"):
            golden("no such file", b"")


def test_there_are_no_other_golden_files():
    assert {path.name for path in GOLDEN.iterdir()} == {*ARCHIVES, TABLES.name}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_as_ever(name):
    made = ARCHIVES[name]
    with Archive(GOLDEN / name, tables=[TABLES]) as archive:
        archive.verify()
        assert archive.skipped == list(made.skipped)
        codes = archive[:]
    np.testing.assert_array_equal(codes.packed, made.codes.packed)
    assert (codes.uncertainty is None) == (made.codes.uncertainty is None or not len(codes))
    if codes.uncertainty is not None:
        np.testing.assert_array_equal(codes.uncertainty, made.codes.uncertainty)


def agree(data: bytes, tables: bytes | None = None) -> None:
    """Check that the written-down format gives what the program gives."""
    pure = Reader(data, tables)
    with Archive(io.BytesIO(data), tables=[] if tables is None else [make_tables(20)]) as archive:
        archive.verify()
        assert pure.header == dataclasses.asdict(archive.header)
        assert (pure.rows, pure.source_bytes) == (len(archive), archive.source_bytes)
        assert [tuple(pair) for pair in pure.skipped] == archive.skipped
        assert pure.symbols == archive.to_numpy().tolist()
        assert pure.names == (None if archive.names is None else list(archive.names))
        if pure.labels is not None:  # without labels, the archive gives the names' folders
            assert pure.labels == list(archive.labels)
        uncertainty = archive[:].uncertainty
        assert pure.uncertainty == (None if uncertainty is None else uncertainty.tolist())
        assert tuple(pure.ladder) == archive.tables.ladder


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_written_down_format_is_enough_to_read_them(name):
    agree((GOLDEN / name).read_bytes(), TABLES.read_bytes())


@settings(deadline=None, max_examples=25)
@given(
    alphabet=st.sampled_from([2, 3, 16, 300]),
    latents=st.integers(1, 6),
    rows=st.integers(0, 25),
    segment=st.integers(1, 12),
    named=st.booleans(),
    labelled=st.booleans(),
    sure=st.booleans(),
)
def test_the_written_down_format_is_enough_to_read_any(
    tmp_path_factory, alphabet, latents, rows, segment, named, labelled, sure
):
    extra = {
        "names": make_names(rows) if named else None,
        "labels": ["a", "", "ä\udcff"] * 9 if labelled else None,
        "uncertainty": np.arange(rows, dtype=np.float32) / 4 if sure else None,
    }
    if labelled:
        extra["labels"] = extra["labels"][:rows]
    codes = make_codes(rows, latents, alphabet, **extra)
    path = tmp_path_factory.mktemp("any") / "a"
    agree(write(path, codes, make_tables(latents, alphabet), segment_rows=segment).read_bytes())
