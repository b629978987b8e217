"""Runs that are interrupted, killed or out of room: what they keep, and what a second one makes of it."""

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

from stochcl.compress import Archive, Writer
from stochcl.compress.journal import Journal, rows_kept
from stochcl.compress.salvage import salvage
from stochcl.errors import OutputError, SourceError, UsageError
from tests.compress.making import Stop, make_codes, make_header, make_names, make_tables, partials
from tests.making import every

TABLES = make_tables(6)
CODES = make_codes(40, 6, names=make_names(40), labels=["x"] * 40, uncertainty=np.linspace(0, 6, 40))


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


def sound_rows(path, at, torn):
    """Damage a page of the partial file, or of its journal; go on; return where that began."""
    damaged = path.with_name(f"a.partial{torn}")
    data = bytearray(damaged.read_bytes())
    data[at : at + 30] = bytes(len(data[at : at + 30]))
    damaged.write_bytes(data)
    return go_on(path)


def test_a_torn_page_of_the_partial_file_costs_what_follows_it(tmp_path, uninterrupted):
    path = tmp_path / "a"
    begin(path, 40)
    size = (tmp_path / "a.partial").stat().st_size
    went_on = set()
    for at in range(0, size, every(43, 17)):
        begin(path, 40, force=True)
        went_on.add(sound_rows(path, at, ""))
        assert path.read_bytes() == uninterrupted
        path.unlink()
    assert went_on == {0, 11, 23, 34}  # 34 also with a beginning that is torn: it can be written anew


def test_a_torn_line_of_the_journal_costs_what_follows_it(tmp_path, uninterrupted):
    path = tmp_path / "a"
    begin(path, 40)
    journal = tmp_path / "a.partial.journal"
    first = journal.read_bytes().index(b"\n") + 1
    went_on = set()
    for at in range(0, journal.stat().st_size, every(61, 23)):
        begin(path, 40, force=True)
        position = sound_rows(path, at, ".journal")
        if at + 30 < first:  # the facts: the other lines vouch for them
            assert position == 34
        went_on.add(position)
        assert path.read_bytes() == uninterrupted
        path.unlink()
    assert went_on == {0, 11, 23, 34}


def test_a_journal_without_facts_of_another_run_is_refused(tmp_path):
    begin(tmp_path / "a", 30, facts={"source": "that"})
    journal = tmp_path / "a.partial.journal"
    journal.write_bytes(b"\n" + journal.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(UsageError, match="damaged, or another run's"):
        begin(tmp_path / "a", 40, facts={"source": "this"}, resume=True)


def interrupt(path, rows, *, resume=False, kind=KeyboardInterrupt):
    with (
        suppress(kind),
        Writer(path, make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, resume=resume) as writer,
    ):
        add_from(writer, stop=rows)
        raise kind


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SourceError])
@pytest.mark.parametrize("rows", range(1, 41, 3))
def test_an_interruption_keeps_every_row(tmp_path, rows, kind, uninterrupted):
    path = tmp_path / "a"
    interrupt(path, rows, kind=kind)
    assert partials(tmp_path) == ["a.partial", "a.partial.journal"]
    done = [i for i in range(rows) if i % 8 != 3]
    assert rows_kept(tmp_path / "a.partial.journal") == len(done)
    assert go_on(path) == done[-1] + 1
    assert path.read_bytes() == uninterrupted
    assert partials(tmp_path) == ["a"]


def test_one_interruption_after_the_other(tmp_path, uninterrupted):
    path = tmp_path / "a"
    for rows in (0, 3, 4, 5, 13, 14, 30, 31, 39):
        interrupt(path, rows, resume=True)
    assert go_on(path) == 39
    assert path.read_bytes() == uninterrupted


@pytest.mark.parametrize("which", range(40))
def test_an_interruption_at_any_moment_loses_and_doubles_nothing(tmp_path, monkeypatch, which, uninterrupted):
    """Between any two steps of writing a segment."""
    calls = []

    def stopping(real):
        def call(*args, **options):
            calls.append(real)
            if len(calls) == 2 * which + 1:
                raise KeyboardInterrupt
            found = real(*args, **options)
            calls.append(real)
            if len(calls) == 2 * which + 2:
                raise KeyboardInterrupt
            return found

        return call

    path = tmp_path / "a"
    with monkeypatch.context() as patch:
        for owner, name in [
            (Writer, "_store"),
            (Writer, "_take"),
            (Journal, "append"),
            (os, "fsync"),
            (Writer, "_flush"),
        ]:
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        with suppress(KeyboardInterrupt):
            interrupt(path, 40)
    go_on(path) if not path.exists() else None
    assert path.read_bytes() == uninterrupted


def test_what_was_kept_can_be_salvaged(tmp_path):
    interrupt(tmp_path / "a", 25)
    saved = salvage(tmp_path / "a.partial", tmp_path / "b")
    assert saved.rows == 22


def test_a_partial_file_of_another_run_is_refused(tmp_path):
    begin(tmp_path / "a", 30, facts={"source": "that"})
    with pytest.raises(UsageError, match="begun with another source"):
        begin(tmp_path / "a", 40, facts={"source": "this"}, resume=True)
    with pytest.raises(UsageError, match="begun with another choice of names=False"):
        begin(tmp_path / "a", 40, facts={"source": "that"}, resume=True, names=False)
    assert partials(tmp_path) == ["a.partial", "a.partial.journal"]


def test_a_partial_file_is_not_replaced_unasked(tmp_path, uninterrupted):
    begin(tmp_path / "a", 30)
    with pytest.raises(UsageError, match=r"resume=True .* force=True"):
        begin(tmp_path / "a", 40)
    with Writer(
        tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, force=True
    ) as writer:
        assert writer.position == 0
        add_from(writer)
    assert (tmp_path / "a").read_bytes() == uninterrupted


def test_a_failing_replacement_leaves_the_old_output(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    begin(path, 5, force=True)
    assert path.read_bytes() == b"precious"
    assert partials(tmp_path) == ["a"]


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "free some disk space and pass"), (errno.EIO, "pass")])
def test_a_device_that_fails_keeps_what_is_on_disk(tmp_path, monkeypatch, uninterrupted, number, advice):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # the journal's beginning, and segment and record of two segments
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with (
        pytest.raises(
            OutputError, match=rf"written: [\w/ ]+\. What was done is kept in .*partial: {advice} resume=True"
        ),
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer,
    ):
        add_from(writer)
    monkeypatch.setattr(os, "fsync", real)
    go_on(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == uninterrupted


@pytest.mark.parametrize("call", ["open", "read"])
def test_a_resumption_that_fails_keeps_what_was_there(tmp_path, monkeypatch, call, uninterrupted):
    import stochcl.compress.writer

    begin(tmp_path / "a", 30)
    before = (tmp_path / "a.partial").read_bytes()

    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    target = {"open": (Path, "open"), "read": (stochcl.compress.writer, "read_all")}[call]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises((OutputError, UsageError), match=r"(?i)input/output error"):
            go_on(tmp_path / "a")
    assert (tmp_path / "a.partial").read_bytes() == before
    go_on(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == uninterrupted


@pytest.mark.parametrize("which", range(1, 11))
def test_who_makes_room_and_goes_on_loses_nothing(tmp_path, monkeypatch, which, uninterrupted):
    """Whatever write fails halfway, it may be tried again: its rows are still waiting."""
    import stochcl.compress.journal
    import stochcl.compress.writer

    calls = []

    def write_half(file, data):
        calls.append(len(data))
        if len(calls) == which:
            file.write(data[: len(data) // 2] + b"rest of what was there" * 100)
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(data)

    path = tmp_path / "a"
    with Writer(path, make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer:
        monkeypatch.setattr(stochcl.compress.writer, "write_all", write_half)
        monkeypatch.setattr(stochcl.compress.journal, "write_all", write_half)
        for i in range(40):
            if i % 8 == 3:
                writer.skip(f"broken{i}", "it is empty", position=i)
                continue
            with suppress(OutputError):
                writer.add(CODES[i : i + 1], positions=[i], sizes=[i])
        with suppress(OutputError):
            writer.finish()
        if not path.exists():
            writer.finish()
    assert path.read_bytes() == uninterrupted


def test_facts_that_are_not_json_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        begin(tmp_path / "a", 5, facts={"path": tmp_path})
    assert partials(tmp_path) == []


def test_facts_are_compared_as_json_has_them(tmp_path, uninterrupted):
    begin(tmp_path / "a", 30, facts={"rungs": (1, 2), "by": {3: "x"}})
    begin(tmp_path / "a", 30, facts={"rungs": [1, 2], "by": {"3": "x"}}, resume=True)
    with pytest.raises(UsageError, match="begun with another rungs"):
        begin(tmp_path / "a", 30, facts={"rungs": [1, 3], "by": {"3": "x"}}, resume=True)


@pytest.mark.parametrize("some", range(1, 5))
def test_a_process_that_is_killed_loses_at_most_a_segment(tmp_path, some, uninterrupted):
    """What is on disk at any time is enough: copied after so many segments, it is continued elsewhere."""
    (tmp_path / "there").mkdir()
    with (
        suppress(Stop),
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer,
    ):
        add_from(writer, stop=8 * some + 4)
        for name in partials(tmp_path):
            if name.startswith("a."):
                (tmp_path / "there" / name).write_bytes((tmp_path / name).read_bytes())
        raise Stop
    go_on(tmp_path / "there" / "a")
    assert (tmp_path / "there" / "a").read_bytes() == uninterrupted


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.compress.test_resume import TABLES, add_from, make_header
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
    assert run.stdout.startswith(f"{tmp_path / 'a'}: it cannot be written: file too large.")
    assert run.stdout.count("\n") == 1
    assert ("pass resume=True" in run.stdout) == (where != 100)
    assert not run.stderr
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.partial").exists() == (where != 100)
    go_on(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == uninterrupted
