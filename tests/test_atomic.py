import os
import stat

import pytest

from stochcl.files import replacing, write_all


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "a"):
            pass
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    finally:
        os.umask(mask)


def test_everything_is_written_however_little_a_file_takes():
    class Slow:
        def __init__(self):
            self.data = b""

        def write(self, view):
            self.data += bytes(view[:3])
            return min(3, len(view))

    slow = Slow()
    write_all(slow, b"0123456789")
    assert slow.data == b"0123456789"
