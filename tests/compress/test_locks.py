"""One writer for a path: the second is refused, whatever both do, and the first is not disturbed."""

import os
import subprocess
import sys

import numpy as np
import pytest

import stochcl
from stochcl.api.archives import merge, split, transcode
from stochcl.compress import Archive, Writer
from stochcl.compress.append import Appender, repair
from stochcl.compress.salvage import salvage
from stochcl.compress.segment_writer import StreamWriter
from stochcl.errors import OutputError
from tests.compress.making import make_codes, make_header, make_names, make_tables, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

TABLES = make_tables(6)
CODES = make_codes(40, 6, names=make_names(40))


def begin(path, **options):
    return Writer(path, make_header(TABLES), TABLES, embed_tables=True, **options)


SECOND = {
    "writer": lambda path, source: begin(path, force=True),
    "resumed writer": lambda path, source: begin(path, force=True, resume=True),
    "append": lambda path, source: Appender(path),
    "merge": lambda path, source: merge([source, source], path, force=True),
    "transcode": lambda path, source: transcode(source, path, latents=3, force=True),
    "transcode to a rate": lambda path, source: transcode(source, path, rate=9, force=True),
    "split": lambda path, source: split(source, path.parent, parts=1, force=True),
    "salvage": lambda path, source: salvage(source, path, force=True),
    "repair": lambda path, source: repair(path),
}


@pytest.mark.parametrize("first", ["writer", "append"])
@pytest.mark.parametrize("second", SECOND)
def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path, first, second):
    source = write(tmp_path / "a.bin", CODES, TABLES)
    path = write(tmp_path / "a-0001.bin", CODES[:20], TABLES)  # what split calls its first part
    with begin(path, force=True) if first == "writer" else Appender(path) as out:
        out.add(CODES[20:])
        with pytest.raises(OutputError, match=f"process .?{os.getpid()}"):
            SECOND[second](path, source)
    with Archive(path) as archive:
        archive.verify()
        expected = CODES[20:] if first == "writer" else CODES
        np.testing.assert_array_equal(archive.to_numpy(), expected.symbols())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-0001.bin", "a.bin"]
    if second != "repair":  # which has nothing to repair
        out = SECOND[second](path, source)  # nobody has it any more
        if isinstance(out, Writer | Appender):
            out.close()


def test_a_file_that_is_there_when_the_lock_is_free_is_not_replaced_unasked(tmp_path, monkeypatch):
    """The other may have finished between the first look and the lock."""
    import stochcl.compress.writer as module

    real = module.WriteLock

    def late(path, shown):
        write(path.with_name("b"), CODES, TABLES)
        path.with_name("b").replace(path)
        return real(path, shown)

    with monkeypatch.context() as patch:
        patch.setattr(
            module, "WriteLock", lambda path, shown: late(path, shown) if path.name == "a" else real(path, shown)
        )
        with pytest.raises(stochcl.errors.UsageError, match="exists already"):
            begin(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_stream_writer_refuses_a_file_that_another_writes_to(tmp_path):
    with (
        (tmp_path / "a").open("wb") as one,
        (tmp_path / "a").open("r+b") as two,
        StreamWriter(one, make_header(TABLES), TABLES, embed_tables=True) as out,
    ):
        out.add(CODES)
        with pytest.raises(OutputError, match="another process"):
            StreamWriter(two, make_header(TABLES), TABLES, embed_tables=True)
    Archive(tmp_path / "a").verify()


KILLED = """
import os, signal, sys
from tests.compress.test_locks import CODES, begin
out = begin(sys.argv[1], segment_rows=10)
out.add(CODES[:15])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_held_is_free(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], check=False)
    assert (tmp_path / "a.lock").exists()
    with begin(tmp_path / "a", segment_rows=10, resume=True) as out:
        assert out.position == 10
        out.add(CODES[10:])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
