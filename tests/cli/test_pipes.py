"""stochcl between other programs: tars and lists that come in, archives that go out, readers that leave."""

import io
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import stochcl
from tests.making import SMALL_SEGMENTS, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and signals as Unix has them")


def line(*arguments, before=""):
    return shlex.join(program(*arguments, before=before))


def bash(script, **options):
    given = {"capture_output": True, "timeout": 120, "text": True} | options
    return subprocess.run(["bash", "-o", "pipefail", "-c", script], check=False, **given)


def symbols_by_name(path):
    with stochcl.open(path) as archive:
        return dict(zip(archive.names, map(bytes, archive.to_numpy()), strict=True))


def test_a_tar_comes_in_and_an_archive_goes_out(images, model, codec, codes, tmp_path):
    tar = f"tar c -C {images} ."
    done = bash(f"{tar} | {line('compress', '-', '-m', model, '-o', '-')} | cat > {tmp_path}/a.bin")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("standard output: 42 images, ")
    assert symbols_by_name(tmp_path / "a.bin") == symbols_by_name(codes)
    zipped = bash(f"{tar} | gzip", text=False).stdout
    codec.compress(io.BytesIO(zipped), tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    with stochcl.open(tmp_path / "a.bin") as archive:
        archive.verify()
        assert len(set(archive.labels)) == 3


def test_a_list_from_find(images, model, codes, tmp_path):
    compress = line("compress", "--files-from", "-", "-C", images, "-m", model, "-o", tmp_path / "a.bin", "--strict")
    done = bash(f"(cd {images} && find . -type f -print0) | {compress}")
    assert (done.stderr, done.returncode) == ("", 0)
    assert symbols_by_name(tmp_path / "a.bin") == symbols_by_name(codes)


def test_a_reader_that_leaves_is_quiet(images, model):
    done = bash(f"tar c -C {images} . | {line('compress', '-', '-m', model, '-o', '-', '--latents', '8')} | true")
    said = [text for text in done.stderr.splitlines() if "images" not in text]
    assert "Traceback" not in done.stderr
    assert not any("Error" in text for text in said)
    assert done.returncode in (0, 141)  # 0 where all of it went into the pipe before


def test_a_stream_that_breaks_off_keeps_what_came_before(run, images, model, codes, tmp_path):
    out, partial = tmp_path / "a.bin", tmp_path / "a.bin.partial"
    whole = subprocess.run(["tar", "c", "-C", images, "."], capture_output=True, check=True).stdout
    done = bash(
        f"head -c {len(whole) * 2 // 3} | {line('compress', '-', '-m', model, '-o', out, '--batch-size', '5')}",
        input=whole, text=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said.startswith("stochcl: standard input: the incoming tar breaks off or is damaged after ")
    assert said.count("\n") == 1
    assert not out.exists()
    assert f"`stochcl verify {partial} --salvage {out}` makes an archive of them." in said
    run("verify", partial, "--salvage", out)
    kept, all_of_it = symbols_by_name(out), symbols_by_name(codes)
    assert 10 < len(kept) < 42
    assert kept.items() <= all_of_it.items()
    assert f"What came before, {len(kept)} images, is kept" in said


def test_an_interruption_keeps_what_came_in(images, model, tmp_path):
    """The program is interrupted while it waits for a tar to go on."""
    whole = subprocess.run(["tar", "c", "-C", images, "."], capture_output=True, check=True).stdout
    command = program(
        "compress", "-", "-m", model, "-o", tmp_path / "a.bin", "--batch-size", "2", "--workers", "1",
        before=SMALL_SEGMENTS.format(rows=4),
    )  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            child.stdin.write(whole[: len(whole) * 2 // 3])
            child.stdin.flush()
            journal = tmp_path / "a.bin.partial.journal"
            deadline = time.monotonic() + 60
            while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            out, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (out, child.returncode) == (b"", 130)
    assert said.startswith(b"stochcl: interrupted. What came before, ")
    assert b"--salvage" in said
    assert (tmp_path / "a.bin.partial").exists()


def test_terminals_are_refused(model, images, tmp_path):
    ours, theirs = pty.openpty()
    try:
        for arguments, stream in (
            (["compress", "-", "-m", model, "-o", tmp_path / "a.bin"], "stdin"),
            (["compress", images, "-m", model, "-o", "-"], "stdout"),
        ):
            done = subprocess.run(
                program(*arguments), stderr=subprocess.PIPE, check=False, text=True, timeout=60, **{stream: theirs}
            )
            assert done.returncode == 2
            assert done.stderr.startswith(f"stochcl: standard {'input' if stream == 'stdin' else 'output'} is a term")
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a SOURCE"),
        (["-", "a.tar"], "omit the other sources"),
        (["a.tar", "--files-from", "list"], "omit SOURCE"),
        (["a.tar", "--null"], "need --files-from"),
    ],
)
def test_requests_that_name_too_much_or_nothing(refused, model, tmp_path, arguments, said):
    assert said in refused("compress", *arguments, "-m", model, "-o", tmp_path / "a.bin", code=2)


def test_what_a_stream_cannot_do_is_said(refused, images, model, tmp_path):
    out = tmp_path / "a.bin"
    assert "cannot be read again" in refused("compress", "-", "-m", model, "-o", out, "--resume", code=2)
    assert "--rate: standard output" in refused("compress", images, "-m", model, "-o", "-", "--rate", "9", code=2)


def test_several_sources_and_python_streams(codec, images, codes, tmp_path):
    folders = sorted(folder for folder in images.iterdir())
    codec.compress(folders, tmp_path / "a.bin")
    with stochcl.open(tmp_path / "a.bin") as archive, stochcl.open(codes) as expected:
        np.testing.assert_array_equal(archive.to_numpy(), expected.to_numpy())
    with (tmp_path / "b.bin").open("wb") as file:
        report = codec.compress(images, file)
    assert (tmp_path / "b.bin").read_bytes() == codes.read_bytes()
    assert (report.images, report.bytes) == (42, codes.stat().st_size)
