"""``stochcl verify --salvage`` and ``--repair``."""

from pathlib import Path

import pytest

import stochcl
from tests.making import json_of

APPENDED = Path(__file__).parents[1] / "golden" / "appended.bin"


@pytest.fixture
def damaged(codes, tmp_path):
    """The images' archive with a byte of its codes changed, which is all in one segment of one block."""
    data = bytearray(codes.read_bytes())
    with stochcl.open(codes) as archive:
        offset, head = archive._index.segments[0]
    data[offset + head.size - 3] ^= 1
    path = tmp_path / "damaged.bin"
    path.write_bytes(data)
    return path


@pytest.fixture
def in_three(compress, images, small_segments):
    """An archive of three segments, of 20, 20 and 2 images, and where these begin and end."""
    small_segments(20)
    path = compress(images)
    with stochcl.open(path) as archive:
        return path, [(offset, offset + head.size) for offset, head in archive._index.segments]


def test_of_a_whole_archive_everything_is_saved(run, codes, tmp_path):
    out = tmp_path / "out.bin"
    done = run("verify", codes, "--salvage", out)
    assert done.stderr == ""
    assert done.stdout == f"{out}: 42 rows in 1 segment, {out.stat().st_size:,} bytes\n"
    assert out.read_bytes() == codes.read_bytes()


def test_what_is_lost_is_said_and_the_exit_code_is_1(run, in_three, tmp_path):
    path, places = in_three
    start, end = places[1]
    data = bytearray(path.read_bytes())
    data[end - 3] ^= 1
    path.write_bytes(data)
    out = tmp_path / "out.bin"
    done = run("verify", path, "--salvage", out, code=1)
    assert done.stderr == f"damaged: bytes {start:,} to {end - 1:,}\nlost: 20 rows\n"
    assert done.stdout == f"{out}: 22 rows in 2 segments, {out.stat().st_size:,} bytes\n"
    result = json_of(run("verify", path, "--salvage", out, "--force", "--json", code=1))
    assert result == {
        "schema": "stochcl.verify/0",
        "path": str(path),
        "salvaged": str(out),
        "segments": 2,
        "images": 22,
        "recoded_images": 0,
        "unchecked_images": 0,
        "unnamed_images": 0,
        "unlabelled_images": 0,
        "uncertainty_lost": False,
        "bytes": out.stat().st_size,
        "lost_images": 20,
        "lost_bytes": [[start, end]],
        "tables": "intact",
        "ok": False,
    }
    run("verify", out)


def test_a_partial_file_is_saved_too(run, in_three, tmp_path):
    path, places = in_three
    partial, out = tmp_path / "codes.bin.partial", tmp_path / "out.bin"
    partial.write_bytes(path.read_bytes()[: places[1][1]])
    assert run("verify", partial, "--salvage", out).stdout.startswith(f"{out}: 40 rows in 2 segments")
    partial.write_bytes(path.read_bytes()[: places[1][1] + 9])
    done = run("verify", partial, "--salvage", out, "--force", code=1)
    assert done.stderr == (
        f"damaged: bytes {places[1][1]:,} to {places[1][1] + 8:,}\n"
        "lost: an unknown number of rows, because the index at the end is damaged or missing\n"
    )


def test_many_places_are_counted(run, in_three, tmp_path):
    path, places = in_three
    data = path.read_bytes()
    (tmp_path / "b").write_bytes(data[: places[0][0]] + b"".join(data[a:b] + b"?" for a, b in places * 3))
    said = run("verify", tmp_path / "b", "--salvage", tmp_path / "out", code=1).stderr.splitlines()
    assert len(said) == 7
    assert said[5] == "damaged: 4 more places; --json lists them all"


def test_a_header_that_is_damaged_is_one_sentence(refused, codes, tmp_path):
    data = codes.read_bytes()
    path, out = tmp_path / "a.bin", tmp_path / "out.bin"
    path.write_bytes(data[:40] + b"\0" + data[41:])
    said = refused("verify", path, "--salvage", out)
    assert "without its header nothing of an archive can be salvaged" in said
    path.write_bytes(b"PK" + data)
    assert "this is not an archive of codes" in refused("verify", path, "--salvage", out)
    assert not out.exists()


def test_nothing_intact_is_one_sentence(refused, damaged, tmp_path):
    said = refused("verify", damaged, "--salvage", tmp_path / "out.bin")
    assert said == f"{damaged}: nothing behind its header is intact, so nothing was written."


def test_outputs_are_replaced_with_force_only(run, refused, codes, tmp_path):
    out = tmp_path / "out.bin"
    out.write_bytes(b"mine")
    assert "pass --force to replace it" in refused("verify", codes, "--salvage", out, code=2)
    assert out.read_bytes() == b"mine"
    run("verify", codes, "--salvage", out, "--force")
    assert out.read_bytes() == codes.read_bytes()
    said = refused("verify", codes, "--salvage", tmp_path / "none" / "out.bin")
    assert said.endswith("the folder to write to does not exist; make it first.")


def test_options_that_do_not_go_together_are_usage_errors(run, codes, tmp_path):
    assert "give one of them" in run("verify", codes, "--repair", "--salvage", tmp_path / "out", code=2).stderr
    assert "give both or neither" in run("verify", codes, "--force", code=2).stderr
    assert "give both or neither" in run("verify", codes, "--force", "--repair", code=2).stderr


def test_repair_undoes_an_interrupted_append(run, tmp_path):
    path = tmp_path / "a.bin"
    data = APPENDED.read_bytes()
    path.write_bytes(data[:-40])
    said = run("verify", path).stdout.splitlines()
    assert said[0].endswith("nothing damaged")
    assert "--repair cuts them off" in said[1]
    left = json_of(run("verify", path, "--json"))["left_over_bytes"]
    done = run("verify", path, "--repair")
    size = path.stat().st_size
    assert left == len(data) - 40 - size
    assert done.stdout == f"{path}: 40 rows remain, {len(data) - 40 - size:,} bytes cut off\n"
    assert run("verify", path).stdout == f"{path}: 40 images, {size:,} bytes, nothing damaged\n"
    path.write_bytes(data[:-40])
    assert json_of(run("verify", path, "--repair", "--json")) == {
        "schema": "stochcl.verify/0",
        "path": str(path),
        "images": 40,
        "bytes": size,
        "cut_bytes": len(data) - 40 - size,
        "ok": True,
    }


def test_what_repair_cannot_better_is_one_sentence(refused, codes, damaged, tmp_path):
    for path in (codes, damaged):
        said = refused("verify", path, "--repair", code=2)
        assert said.startswith(f"{path}: there is nothing to repair")
    path = tmp_path / "a.bin"
    path.write_bytes(codes.read_bytes()[:-9])
    assert "`stochcl verify --salvage` saves what is intact" in refused("verify", path, "--repair")
    assert "there is no such file" in refused("verify", tmp_path / "none", "--repair")
