"""Outputs that cannot be written: nothing that was there is lost, and what was done can be gone on with."""

import sys

import pytest

from tests.making import SMALL_SEGMENTS, process

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, as Unix has it")

# A limit on the size of a file stands in for a full disk.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


@unix
def test_a_full_disk_before_anything_is_done(images, model, tmp_path):
    out = tmp_path / "codes.bin"
    out.write_bytes(b"precious")
    request = ["compress", images, "-m", model, "-o", out, "--force"]
    done = process(*request, before=FULL.format(size=1000))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == f"stochcl: {out}: it cannot be written: file too large.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]
    assert out.read_bytes() == b"precious"


@unix
def test_a_full_disk_after_some_segments(run, small_segments, images, model, codes, tmp_path):
    out, whole, rows = tmp_path / "codes.bin", tmp_path / "whole.bin", 10
    small_segments(rows)
    run("compress", images, "-m", model, "-o", whole)
    assert whole.stat().st_size > codes.stat().st_size  # several segments cost more than one
    before = SMALL_SEGMENTS.format(rows=rows) + "\n" + FULL.format(size=whole.stat().st_size - 300)
    done = process("compress", images, "-m", model, "-o", out, before=before)
    partial = tmp_path / "codes.bin.partial"
    assert done.stderr.startswith(f"stochcl: {out}: it cannot be written: file too large.")
    assert f"kept in {partial}" in done.stderr
    assert "--resume" in done.stderr
    assert done.stderr.count("\n") == done.returncode == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "codes.bin.partial", "codes.bin.partial.journal", "whole.bin",
    ]  # fmt: skip
    run("compress", images, "-m", model, "-o", out, "--resume")
    assert out.read_bytes() == whole.read_bytes()


@unix
def test_a_full_disk_while_a_rate_is_written(run, refused, images, model, tmp_path, monkeypatch):
    """All latents are there, and only the prefix is not: so the encoding is not done twice."""
    out, full = tmp_path / "codes.bin", tmp_path / "codes.bin.full"
    request = ["compress", images, "-m", model, "-o", out, "--rate", "12"]

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stochcl.api.compress.tempfile.TemporaryDirectory", fail)
        said = refused(*request)
    assert said.startswith(f"{out}: it cannot be written: no space left on device")
    assert f"kept in {full}" in said
    assert "--resume" in said
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin.full"]
    with monkeypatch.context() as patch:
        patch.setattr("stochcl.api.compress.Writer", None)  # nothing is encoded again
        run(*request, "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]


@unix
@pytest.mark.parametrize("ending", ["npz", "npy", "csv", "parquet"])
def test_a_full_disk_while_codes_are_decoded(codes, tmp_path, ending):
    out = tmp_path / f"a.{ending}"
    out.write_bytes(b"precious")
    done = process("decompress", codes, "-o", out, "--force", before=FULL.format(size=500))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == f"stochcl: {out}: it cannot be written: file too large.\n"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"precious"


def test_outputs_that_make_no_sense(refused, images, model, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"precious")
    cases = [
        (tmp_path / "no" / "codes.bin", 1, "folder to write to does not exist"),
        (tmp_path / "file" / "codes.bin", 1, "folder to write to does not exist"),
        (tmp_path / "folder", 2, "this is a folder"),
        (tmp_path / ("x" * 300), 1, "file name too long"),
        (tmp_path / ("x" * 250), 1, "file name too long"),
    ]
    for out, code, message in cases:
        for options in ([], ["--force"], ["--rate", "9"]):
            said = refused("compress", images, "-m", model, "-o", out, *options, code=code)
            assert message in said
            assert said.startswith(f"{out}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"precious"


@unix
def test_no_device_is_replaced(refused, images, model, tmp_path):
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    said = refused("compress", images, "-m", model, "-o", device, "--force", code=2)
    assert said == f"{device}: this is a device or pipe; name the file to write."
    assert device.is_symlink()


def test_the_source_is_never_replaced(refused, images, model, tmp_path):
    source = tmp_path / "cat.png"
    source.write_bytes((images / "cats" / "00.png").read_bytes())
    said = refused("compress", source, "-m", model, "-o", source, "--force", code=2)
    assert said == f"{source}: the output would replace the source; give another name."
    assert source.read_bytes() == (images / "cats" / "00.png").read_bytes()


def test_a_partial_file_of_another_request_is_kept(
    run, refused, images, model, tmp_path, small_segments, monkeypatch
):
    small_segments(10)
    out, partial = tmp_path / "codes.bin", tmp_path / "codes.bin.partial"
    request = ["compress", images, "-m", model, "-o", out, "--batch-size", "8"]
    with monkeypatch.context() as patch:
        patch.setattr("stochcl.compress.writer.Writer.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*request)
    left = partial.read_bytes()
    for options, what in [
        (["--latents", "9"], "--latents"), (["--fit", "pad"], "--fit"),
        (["--no-names"], "--no-names"), (["--strict"], "--strict"),
    ]:  # fmt: skip
        said = refused(*request, "--resume", *options, code=2)
        assert said.startswith(f"{partial}: ")
        assert what in said
    said = refused("compress", images / "cats", *request[2:], "--resume", code=2)
    assert "begun with another source (images were added, removed or changed)" in said
    assert partial.read_bytes() == left
    run(*request, "--resume")
