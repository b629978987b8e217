import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.compress import Archive, Writer
from stochcl.compress.segment import OWN, PREFIX
from stochcl.errors import OutputError, UsageError
from tests.compress.making import make_codes, make_header, make_names, make_tables, write

TABLES = make_tables(6)
CODES = make_codes(40, 6, names=make_names(40), labels=["x"] * 40, uncertainty=np.linspace(0, 6, 40))


class Stop(Exception):
    pass


def partials(folder):
    return sorted(p.name for p in folder.iterdir())


def test_rows_names_labels_and_uncertainty_come_back(tmp_path):
    with Archive(write(tmp_path / "a", CODES, TABLES)) as archive:
        codes = archive[:]
    np.testing.assert_array_equal(codes.packed, CODES.packed)
    assert codes.names == CODES.names
    assert codes.labels == CODES.labels
    np.testing.assert_allclose(codes.uncertainty, CODES.uncertainty, atol=2e-3)


@pytest.mark.parametrize("step", [1, 7, 16, 40])
def test_the_bytes_do_not_depend_on_how_rows_arrive(tmp_path, step):
    whole = write(tmp_path / "whole", CODES, TABLES, segment_rows=16).read_bytes()
    assert write(tmp_path / "parts", CODES, TABLES, segment_rows=16, step=step).read_bytes() == whole


def test_an_archive_without_rows(tmp_path):
    with Archive(write(tmp_path / "a", CODES[:0], TABLES)) as archive:
        archive.verify()
        assert len(archive) == 0
        assert archive.to_numpy().shape == (0, 6)
        assert archive.to_vectors().shape == (0, 3)
        assert archive.names is None


def test_names_are_left_out_where_they_are_not_wanted(tmp_path):
    with Archive(write(tmp_path / "a", CODES, TABLES, names=False)) as archive:
        assert archive.names is None
        assert archive.labels == CODES.labels
        assert archive.parts()["names"] < 30


def test_a_table_of_its_own_is_embedded_exactly_when_it_repays_itself(tmp_path):
    odd = Codes.from_symbols(np.zeros((3000, 6), np.uint8))  # the tables expect something else
    few, many = odd[:20], odd
    with Archive(write(tmp_path / "few", few, TABLES)) as a, Archive(write(tmp_path / "many", many, TABLES)) as b:
        assert a._index.segments[0][1].model == PREFIX
        assert b._index.segments[0][1].model == OWN
        np.testing.assert_array_equal(b[:].packed, many.packed)
        b.verify()


@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_are_all_the_same_come_back(tmp_path, first):
    symbols = np.zeros((16_384, 16), np.uint8)
    symbols[0] = first  # coded last: what comes before it must not be for nothing
    with Archive(write(tmp_path / "a", Codes.from_symbols(symbols), make_tables(16))) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), symbols)


def test_nothing_is_left_of_a_run_that_failed_before_its_first_segment(tmp_path):
    begin(tmp_path / "a", 5)
    assert partials(tmp_path) == []


def begin(path, rows, **options):
    """Write some rows in segments of 10 and stop by an exception."""
    with (
        suppress(Stop),
        Writer(path, make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, **options) as writer,
    ):
        add_from(writer, stop=rows)
        raise Stop


def add_from(writer, stop=40):
    """Give a writer the rows from its position on; every eighth image cannot be read."""
    for i in range(writer.position, stop):
        if i % 8 == 3:
            writer.skip(f"broken{i}", "it is empty", position=i)
        else:
            writer.add(CODES[i : i + 1], positions=[i], sizes=[i])


def go_on(path):
    with Writer(path, make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, resume=True) as writer:
        position = writer.position
        add_from(writer)
    return position


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a"
    go_on(path)
    return path.read_bytes()


@pytest.mark.parametrize("rows", range(0, 41, 4))
def test_a_resumed_run_gives_the_bytes_of_one_that_was_never_interrupted(tmp_path, rows, uninterrupted):
    path = tmp_path / "a"
    begin(path, rows)
    go_on(path)
    assert path.read_bytes() == uninterrupted
    assert partials(tmp_path) == ["a"]
    with Archive(path) as archive:
        archive.verify()
        assert [name for name, _ in archive.skipped] == [f"broken{i}" for i in range(3, 40, 8)]
        assert archive.source_bytes == sum(i for i in range(40) if i % 8 != 3)


def test_a_resumption_goes_on_where_the_last_segment_ended(tmp_path):
    begin(tmp_path / "a", 30)  # 26 rows, two segments of ten
    assert go_on(tmp_path / "a") == 23  # the twentieth readable row is 22


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 400), st.binary(max_size=50))
def test_what_follows_the_journal_is_cut_off(tmp_path_factory, cut, extra):
    path = tmp_path_factory.mktemp("cut") / "a"
    go_on(path)
    whole = path.read_bytes()
    path.unlink()
    begin(path, 35)
    partial, journal = path.with_name("a.partial"), path.with_name("a.partial.journal")
    with partial.open("ab") as file:
        file.write(extra)
    data = journal.read_bytes()
    journal.write_bytes(data[: max(len(data) - cut, data.index(b"\n") + 1)])
    go_on(path)
    assert path.read_bytes() == whole


def test_a_damaged_partial_file_is_refused_and_kept(tmp_path):
    begin(tmp_path / "a", 30)
    partial = tmp_path / "a.partial"
    data = bytearray(partial.read_bytes())
    data[-5] ^= 1
    partial.write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.partial: it is damaged .*--force"):
        go_on(tmp_path / "a")
    assert partial.read_bytes() == bytes(data)


def test_a_partial_file_of_another_run_is_refused(tmp_path):
    begin(tmp_path / "a", 30, facts={"source": "that"})
    with pytest.raises(UsageError, match="begun with another source"):
        begin(tmp_path / "a", 40, facts={"source": "this"}, resume=True)
    with pytest.raises(UsageError, match="begun with another names"):
        begin(tmp_path / "a", 40, facts={"source": "that"}, resume=True, names=False)
    assert partials(tmp_path) == ["a.partial", "a.partial.journal"]


def test_a_partial_file_is_not_replaced_unasked(tmp_path, uninterrupted):
    begin(tmp_path / "a", 30)
    with pytest.raises(UsageError, match=r"--resume .* --force"):
        begin(tmp_path / "a", 40)
    with Writer(
        tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, force=True
    ) as writer:
        assert writer.position == 0
        add_from(writer)
    assert (tmp_path / "a").read_bytes() == uninterrupted


def test_an_existing_output_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already; pass --force"):
        write(path, CODES, TABLES)
    assert path.read_bytes() == b"precious"
    write(path, CODES, TABLES, force=True)
    Archive(path).verify()


def test_a_failing_replacement_leaves_the_old_output(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    begin(path, 5, force=True)
    assert path.read_bytes() == b"precious"
    assert partials(tmp_path) == ["a"]


def test_a_folder_as_output_is_refused(tmp_path):
    with pytest.raises(UsageError, match="this is a folder"):
        write(tmp_path, CODES, TABLES, force=True)


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: no such file or directory"):
        write(tmp_path / "missing" / "a", CODES, TABLES)


def test_codes_of_another_shape_are_refused(tmp_path):
    with (
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True) as writer,
        pytest.raises(ValueError, match="6 latents of 2 values"),
    ):
        writer.add(make_codes(3, 5))


def test_a_device_that_fails_keeps_what_is_on_disk(tmp_path, monkeypatch, uninterrupted):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # the journal's beginning, and segment and record of two segments
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with (
        pytest.raises(OutputError, match=r"no space left on device\. What was done is kept in .*--resume"),
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer,
    ):
        add_from(writer)
    monkeypatch.setattr(os, "fsync", real)
    go_on(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == uninterrupted


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.compress.test_writer import TABLES, add_from, make_header
from stochcl.compress import Writer
from stochcl.errors import OutputError
path, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with Writer(path, make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer:
        add_from(writer)
except OutputError as exc:
    print(exc)
    sys.exit(7)
"""


@pytest.mark.parametrize("where", [100, "first segment", "last byte"])
def test_a_full_disk_loses_nothing_and_leaves_no_half_archive(tmp_path, where, uninterrupted):
    begin(tmp_path / "b", 30)
    after_two = (tmp_path / "b.partial").stat().st_size
    limit = {"first segment": after_two, "last byte": len(uninterrupted) - 1}.get(where, where)
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "a", str(limit)],
        capture_output=True, text=True, check=False, cwd=Path.cwd(),
    )  # fmt: skip
    assert run.returncode == 7, run.stderr
    assert "file too large" in run.stdout
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.partial").exists() == (where != 100)
    go_on(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == uninterrupted
