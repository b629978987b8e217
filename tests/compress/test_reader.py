import errno
import io
import os
import pickle

import pytest

from stochcl.compress import Archive
from stochcl.compress.bytes import ByteReader
from stochcl.errors import SourceError, Truncated
from tests.compress.making import make_codes, make_tables, write

DATA = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(DATA)
    return path


class Trickle(io.BytesIO):
    """A file that gives three bytes at a time, as an unbuffered one may."""

    def read(self, size=-1):
        return super().read(min(size, 3))


@pytest.fixture(params=["path", "bytes", "buffered", "unbuffered", "trickle"])
def reader(request, path):
    sources = {
        "path": lambda: path,
        "bytes": lambda: io.BytesIO(DATA),
        "buffered": lambda: path.open("rb"),
        "unbuffered": lambda: path.open("rb", buffering=0),
        "trickle": lambda: Trickle(DATA),
    }
    source = sources[request.param]()
    reader = ByteReader(source)
    yield reader
    reader.close()
    if hasattr(source, "close"):
        source.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 1024), (1000, 24), (17, 100), (1024, 0)])
def test_just_the_bytes_that_were_asked_for_are_read(reader, offset, size):
    assert reader.size == 1024
    assert reader.read(offset, size) == DATA[offset : offset + size]


@pytest.mark.parametrize(("offset", "size"), [(0, 1025), (1024, 1), (-1, 1), (5, -1), (1 << 70, 1)])
def test_bytes_that_are_not_there_are_truncated(reader, offset, size):
    with pytest.raises(Truncated):
        reader.read(offset, size)


def test_a_file_that_shrinks_is_truncated(path):
    reader = ByteReader(path)
    os.truncate(path, 100)
    with pytest.raises(Truncated, match="ends after 100 bytes"):
        reader.read(50, 100)
    reader.close()


def test_a_file_object_that_shrinks_is_truncated():
    file = Trickle(DATA)
    reader = ByteReader(file)
    file.truncate(100)
    with pytest.raises(Truncated, match="ends after 100 bytes"):
        reader.read(50, 100)


def test_a_closed_reader_says_so(path):
    reader = ByteReader(path)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 1)


def test_pickling_opens_the_file_anew(path):
    reader = ByteReader(path)
    again = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert again.read(1, 2) == DATA[1:3]
    again.close()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"pipe: it cannot be read: it is not a regular file\."):
        Archive(tmp_path / "pipe")


def test_a_file_object_that_does_not_seek_is_a_source_error():
    read, write_end = os.pipe()
    with os.fdopen(write_end, "wb"), os.fdopen(read, "rb") as file, pytest.raises(SourceError, match="seek"):
        Archive(file)


def test_a_disk_that_fails_is_a_source_error(tmp_path, monkeypatch):
    archive = Archive(write(tmp_path / "a", make_codes(9, 6), make_tables(6)))

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with archive, pytest.raises(SourceError, match=r"a: it cannot be read: input/output error\."):
        archive.to_numpy()
