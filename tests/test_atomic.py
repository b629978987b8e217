import os
import socket
import stat
import subprocess
import sys

import pytest

import stochcl.files
from stochcl.errors import OutputError
from stochcl.files import WriteLock, replacing, write_all


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


OTHER = """
import sys
from stochcl.files import WriteLock
lock = WriteLock(sys.argv[1], "a")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of a file."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


@needs_locks
def test_a_lock_names_the_process_that_has_it(tmp_path, other):
    with pytest.raises(OutputError, match=f"process {other.pid} "):
        WriteLock(tmp_path / "a", "a")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OutputError, match=f"process {other.pid} "):
        WriteLock(tmp_path / "link", "link")


@needs_locks
def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / "a.lock").exists()
    with WriteLock(tmp_path / "a", "a"):
        pass
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_a_process_has_a_lock_once(tmp_path):
    with WriteLock(tmp_path / "a", "a"):
        with pytest.raises(OutputError, match=f"this process .{os.getpid()}. .* already"):
            WriteLock(tmp_path / "a", "a")
        WriteLock(tmp_path / "b", "b").release()
    WriteLock(tmp_path / "a", "a").release()
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_a_lock_file_that_is_removed_or_replaced_in_between_is_opened_anew(tmp_path, monkeypatch):
    real, calls = stochcl.files._flock, []

    def flock(file):
        if not calls:
            (tmp_path / "a.lock").unlink()  # as its last holder does
        calls.append(file)
        return real(file)

    monkeypatch.setattr(stochcl.files, "_flock", flock)
    with WriteLock(tmp_path / "a", "a"):
        assert len(calls) == 2
        assert (tmp_path / "a.lock").read_text().startswith(f"{os.getpid()} ")


@needs_locks
@pytest.mark.parametrize(
    ("said", "refused"),
    [("1 {host}", True), ("{me} {host}", True), ("4194305 {host}", False), ("77 elsewhere", True), ("", False)],
)
def test_without_locks_the_named_process_decides(tmp_path, monkeypatch, said, refused):
    monkeypatch.setattr(stochcl.files, "_flock", lambda file: None)
    said = said.format(host=socket.gethostname(), me=os.getpid())
    (tmp_path / "a.lock").write_text(said)
    if refused:
        with pytest.raises(OutputError, match=f"process .?{said.split()[0]}"):
            WriteLock(tmp_path / "a", "a")
    else:
        WriteLock(tmp_path / "a", "a").release()
        assert list(tmp_path.iterdir()) == []


@needs_locks
def test_a_child_that_is_forked_does_not_keep_the_lock(tmp_path):
    held = WriteLock(tmp_path / "a", "a")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        held.release()  # which is not its own to give back
        os.read(reader, 1)
        os._exit(0)
    try:
        held.release()
        WriteLock(tmp_path / "a", "a").release()
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)
