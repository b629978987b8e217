"""Appending in place: what is added, and that whatever fails leaves the archive that was there."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.compress import Archive, Writer
from stochcl.compress.append import Appender, repair
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, fit_linear
from stochcl.errors import ChecksumMismatch, FormatError, OutputError, SourceError
from tests.compress.making import make_codes, make_header, make_names, make_tables, write
from tests.making import every

TABLES = make_tables(6)
CODES = make_codes(40, 6, names=make_names(40))


class Stop(Exception):
    pass


@pytest.fixture
def path(tmp_path):
    """An archive of the first 25 rows."""
    return write(tmp_path / "codes.bin", CODES[:25], TABLES, segment_rows=10, skipped=[("bad", "it is empty")])


def append(path, codes=CODES[25:], **options):
    with Appender(path, **({"segment_rows": 10} | options)) as out:
        out.add(codes, sizes=[10] * len(codes))


def same(codes, others):
    np.testing.assert_array_equal(codes.packed, others.packed)
    assert codes.names == others.names


def test_rows_are_added_behind_those_that_are_there(path):
    before = path.read_bytes()
    append(path)
    assert path.read_bytes().startswith(before)
    with Archive(path) as archive:
        archive.verify()
        same(archive[:], CODES)
        assert archive.source_bytes == 25 * 100 + 15 * 10
        assert archive.skipped == [("bad", "it is empty")]
        (retired,) = archive._index.retired
        assert sum(retired[:2]) == len(before)
    path.write_bytes(path.read_bytes()[: len(before)])
    with Archive(path) as archive:  # by design: cut back to an earlier trailer, it is the earlier archive
        same(archive[:], CODES[:25])


def test_appending_again_and_again(path):
    for i in range(25, 40):
        append(path, CODES[i : i + 1])
    with Archive(path) as archive:
        archive.verify()
        same(archive[:], CODES)
        assert len(archive._index.retired) == 15


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 30), st.integers(0, 30), st.integers(1, 9), st.sampled_from([2, 5]), st.integers(1, 12),
    st.sets(st.sampled_from(["names", "labels", "uncertainty"])),
)  # fmt: skip
def test_whatever_is_appended_comes_back(tmp_path_factory, there, added, latents, alphabet, rows, parts):
    path = tmp_path_factory.mktemp("a") / "codes.bin"
    total = there + added
    extra = {
        "names": make_names(total),
        "labels": [str(i % 3) for i in range(total)],
        "uncertainty": np.arange(total, dtype=np.float32),
    }
    codes = make_codes(total, latents, alphabet, **{part: extra[part] for part in parts})
    write(path, codes[:there], make_tables(latents, alphabet), segment_rows=rows)
    append(path, codes[there:], segment_rows=rows)
    with Archive(path) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive[:].packed, codes.packed)
        if total:
            assert archive[:].names == codes.names
        if "labels" in parts and total:
            assert archive[:].labels == codes.labels
        if "uncertainty" in parts and total:
            np.testing.assert_array_equal(archive[:].uncertainty, codes.uncertainty)


def test_nothing_to_add_changes_nothing(path):
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    append(path, CODES[:0])
    with Appender(path) as out:
        out.skip("bad", "it is empty")  # as it was
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, time)


def test_what_could_not_be_read_and_now_is_is_no_longer_skipped(path):
    with Appender(path) as out:
        out.skip("worse", "it is cut short")
    with Archive(path) as archive:
        assert archive.skipped == [("bad", "it is empty"), ("worse", "it is cut short")]
    with Appender(path) as out:
        out.add(replace(CODES[25:26], names=("bad",)))
        out.skip("worse", "it is empty, too")
    with Archive(path) as archive:
        archive.verify()
        assert archive.skipped == [("worse", "it is empty, too")]


def test_models_that_were_fitted_to_the_archive_are_used(tmp_path):
    symbols = np.repeat(make_codes(600, 3).symbols(), 2, axis=1)  # every latent is there twice
    codes = Codes.from_symbols(symbols)
    models = [IndependentModel.fit(codes), fit_linear(codes)]
    path = tmp_path / "a"
    with Writer(path, make_header(TABLES), TABLES, embed_tables=True, fitted=models) as writer:
        writer.add(codes[:300])
    append(path, codes[300:], segment_rows=300)
    with Archive(path) as archive:
        archive.verify()
        heads = [head for _, head in archive._index.segments]
        assert [(head.model, head.number) for head in heads] == [(FITTED, 1)] * 2
        np.testing.assert_array_equal(archive.to_numpy(), symbols)


@pytest.mark.parametrize(
    ("field", "value"), [("labels", ("a",) * 15), ("uncertainty", np.zeros(15, np.float32)), ("names", None)]
)
def test_rows_with_other_things_beside_them_are_refused(path, field, value):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="with and without"):
        append(path, replace(CODES[25:], **{field: value}))
    assert path.read_bytes() == before


def test_an_exception_leaves_the_archive_as_it_was(path):
    before = path.read_bytes()
    with suppress(Stop), Appender(path, segment_rows=4) as out:
        out.add(CODES[25:])
        assert path.stat().st_size > len(before)
        raise Stop
    assert path.read_bytes() == before


def test_a_file_that_is_cut_anywhere_is_the_archive_before(path):
    before = path.read_bytes()
    with Appender(path, segment_rows=10) as out:
        out.add(CODES[25:])
    after = path.read_bytes()
    cut = path.with_name("cut.bin")
    for end in sorted({*range(len(before), len(after), every(5)), len(after) - 1}):
        cut.write_bytes(after[:end])
        with Archive(cut) as archive:
            archive.verify()
            same(archive[:], CODES[:25])
            assert (archive.left_over, archive.size) == (end - len(before), len(before))
            assert sum(archive.parts().values()) == len(before)
    for end in range(1, len(before), every(3)):  # what was never complete is no append
        cut.write_bytes(after[:end])
        with pytest.raises(FormatError):
            Archive(cut)


def test_a_damaged_trailer_is_no_append_that_was_interrupted(path):
    """What was committed is not passed over in silence; what was never written is."""
    before = path.read_bytes()
    append(path)
    data = path.read_bytes()
    for i in range(1, 33):
        path.write_bytes(data[:-i] + bytes([data[-i] ^ 4]) + data[len(data) - i + 1 :])
        with pytest.raises(FormatError):
            Archive(path)
    path.write_bytes(data[:-8] + bytes(8))
    with pytest.raises(ChecksumMismatch, match=r"the trailer is damaged.*repair"):
        Archive(path)
    repair(path)
    assert path.read_bytes() == before
    path.write_bytes(data[:-32] + bytes(32))
    same(Archive(path)[:], CODES[:25])


def test_a_cut_second_append_goes_back_to_the_first(path):
    append(path, CODES[25:30])
    middle = path.stat().st_size
    append(path, CODES[30:])
    data = path.read_bytes()
    path.write_bytes(data[: middle + 5])
    same(Archive(path)[:], CODES[:30])
    path.write_bytes(data[:middle])
    same(Archive(path)[:], CODES[:30])


@pytest.mark.parametrize("which", range(1, 8))  # the journal, two segments with their records, index, trailer
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_device_that_fails_leaves_the_archive_as_it_was(path, monkeypatch, which, call):
    from stochcl.compress import append as appending
    from stochcl.compress import journal, writer

    before, calls = path.read_bytes(), []
    real = {"fsync": os.fsync, "write": appending.write_all}[call]

    def fail(file, *data):
        calls.append(file)
        if len(calls) == which:
            if data:
                file.write(data[0][: len(data[0]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, *data)

    for module in (appending, journal, writer):
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "write": (module, "write_all")}[call], fail)
    with pytest.raises(OutputError, match=r"codes\.bin: it cannot be written: no space left on device\."):
        append(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    append(path)
    same(Archive(path)[:], CODES)


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.compress.test_append import append
from stochcl.errors import OutputError
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    append(sys.argv[1])
except OutputError as exc:
    print(exc)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits as Unix has them")
@pytest.mark.parametrize("room", [0, 50, "index", "last byte"])
def test_a_full_disk_leaves_the_archive_as_it_was(path, tmp_path, room):
    before = path.read_bytes()
    whole = tmp_path / "whole.bin"
    whole.write_bytes(before)
    append(whole)
    size = whole.stat().st_size
    limit = {"index": size - 40, "last byte": size - 1}.get(room) or len(before) + room
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)],
        capture_output=True, text=True, check=False, cwd=Path.cwd(),
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (7, "")
    assert run.stdout == f"{path}: it cannot be written: file too large.\n"
    assert path.read_bytes() == before


KILLED = """
import os, signal, sys
from tests.compress.test_append import CODES
from stochcl.compress.append import Appender
with Appender(sys.argv[1], segment_rows=5) as out:
    out.add(CODES[25:37])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")
def test_a_process_that_is_killed_leaves_the_archive_as_it_was(path, tmp_path):
    before = path.read_bytes()
    run = subprocess.run([sys.executable, "-c", KILLED, path], check=False, cwd=Path.cwd())
    assert run.returncode == -9
    left = path.read_bytes()
    assert left.startswith(before)
    with Archive(path) as archive:
        archive.verify()
        same(archive[:], CODES[:25])
        assert archive.left_over == len(left) - len(before) > 0
    done = repair(path)
    assert (path.read_bytes(), done.cut) == (before, len(left) - len(before))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]
    path.write_bytes(left)
    append(path)  # which knows nothing of what was left, and does it again
    expected = path.read_bytes()
    path.write_bytes(before)
    append(path)
    assert path.read_bytes() == expected


def go_on(path, stop=None, *, facts="these", kind=KeyboardInterrupt):
    """Append the rows from where an earlier append was stopped; stop before a row."""
    with suppress(kind), Appender(path, segment_rows=4) as out:
        out.resume({"source": facts})
        position = out.position
        for i in range(position, 15):
            if i == stop:
                raise kind
            if i % 5 == 3:
                out.skip(f"bad{i}", "it is empty", position=i)
            else:
                out.add(
                    CODES[25 + i : 26 + i] if i else replace(CODES[25:26], names=("bad",)), positions=[i], sizes=[i]
                )
    return position


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SourceError])
@pytest.mark.parametrize("stop", range(15))
def test_an_interrupted_append_goes_on_to_the_same_bytes(path, tmp_path, stop, kind):
    before = path.read_bytes()
    assert go_on(path) == 0
    whole = path.read_bytes()
    path.write_bytes(before)
    go_on(path, stop, kind=kind)
    same(Archive(path)[:], CODES[:25])
    assert go_on(path) == (stop if stop % 5 != 4 else stop - 1)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]
    with Archive(path) as archive:
        archive.verify()
        assert archive.skipped == [("bad3", "it is empty"), ("bad8", "it is empty"), ("bad13", "it is empty")]


def test_an_append_of_something_else_begins_anew(path):
    before = path.read_bytes()
    go_on(path, 9)
    go_on(path, facts="those")
    found = path.read_bytes()
    path.write_bytes(before)
    go_on(path)
    assert path.read_bytes() == found


def test_damage_behind_the_archive_costs_what_follows_it(path, tmp_path):
    before = path.read_bytes()
    go_on(path)
    whole = path.read_bytes()
    went_on = set()
    for at in range(8, 600, 40):  # behind the kind of the first chunk, without which it is nothing of an append's
        path.write_bytes(before)
        go_on(path, 12)
        data = bytearray(path.read_bytes())
        if len(before) + at < len(data):
            data[len(before) + at] ^= 1
        path.write_bytes(data)
        same(Archive(path)[:], CODES[:25])
        went_on.add(go_on(path))
        assert path.read_bytes() == whole
    assert {0, 5, 12} <= went_on


@pytest.mark.skipif(sys.platform == "win32", reason="an open file is not replaced there")
@pytest.mark.parametrize("how", ["replaced", "moved", "deleted"])
def test_an_archive_that_goes_while_rows_are_appended_is_no_success(path, tmp_path, how):
    before = path.read_bytes()
    other = write(tmp_path / "other.bin", CODES[:5], TABLES)
    left = other.read_bytes()
    go = {
        "replaced": lambda: other.replace(path),
        "moved": lambda: path.rename(tmp_path / "moved.bin"),
        "deleted": path.unlink,
    }[how]
    with Appender(path, segment_rows=5) as out:
        out.add(CODES[25:])
        go()
        with pytest.raises(OutputError, match="replaced, moved or deleted"):
            out.finish()
        out.close()
    if how == "replaced":
        assert path.read_bytes() == left
    elif how == "moved":
        assert (tmp_path / "moved.bin").read_bytes() == before
    assert not list(tmp_path.glob("*journal"))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_two_at_once_are_refused(path):
    with Appender(path) as out:
        with pytest.raises(OutputError, match="is writing to it already"):
            Appender(path)
        out.add(CODES[25:])
    append(path, CODES[:1])
    assert len(Archive(path)) == 41


@pytest.mark.skipif(sys.platform == "win32", reason="an open file is not replaced there")
def test_a_file_that_is_replaced_meanwhile_is_left_alone(path, tmp_path, monkeypatch):
    import stochcl.compress.append as appending

    other = write(tmp_path / "other.bin", CODES[:5], TABLES)
    left = other.read_bytes()

    real = appending.WriteLock

    def replaced(*where):
        other.replace(path)
        return real(*where)

    monkeypatch.setattr(appending, "WriteLock", replaced)
    with pytest.raises(OutputError, match="it was replaced by another file just now; try again"):
        append(path)
    assert path.read_bytes() == left


def test_a_reader_that_was_there_before_sees_what_it_saw(path):
    with Archive(path) as archive:
        append(path)
        same(archive[:], CODES[:25])


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        Appender(tmp_path / "missing")
    with pytest.raises(OutputError, match="it cannot be written: is a directory"):
        Appender(tmp_path)


def test_a_closed_appender_takes_no_rows(path):
    before = path.read_bytes()
    with Appender(path, segment_rows=5) as out:
        out.add(CODES[25:27])
        out.close()
        with pytest.raises(ValueError, match="closed"):
            out.add(CODES[27:])
    assert path.read_bytes() == before
