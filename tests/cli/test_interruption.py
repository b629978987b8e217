"""Ctrl-C while images are compressed: no traceback, and a partial file that --resume completes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import stochcl
from tests.making import SMALL_SEGMENTS, make_pixels, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")

ROWS = 30
SMALL = SMALL_SEGMENTS.format(rows=ROWS)

# The run waits at an image until it has been interrupted, so that the interruption always comes at the same place.
STOP_AT = """
import time
from pathlib import Path
from stochcl.data import ArraySource
image, mark = ArraySource._image, Path({mark!r})
def slow(self, i, preprocess):
    if i == 100:
        mark.touch()
        while mark.exists():
            time.sleep(0.01)
    return image(self, i, preprocess)
ArraySource._image = slow
"""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(path, np.stack([make_pixels(i, i)[:, :40] for i in range(130)]))
    return path


def interrupted(*arguments, mark):
    """Run the program, interrupt it when it has come to a certain image, and return what it said."""
    before = SMALL + STOP_AT.format(mark=os.fspath(mark))
    with subprocess.Popen(
        program(*arguments, before=before), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            while not mark.exists():
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            mark.unlink()
            said = child.communicate(timeout=60)
        finally:
            child.kill()
    return *said, child.returncode


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_interruption_leaves_what_resume_completes(
    run, refused, small_segments, pixels, model, codec, tmp_path, workers
):
    out, whole = tmp_path / "codes.bin", tmp_path / "whole.bin"
    request = ["compress", pixels, "-m", model, "--batch-size", "10", "--workers", workers, "-o"]
    partial = tmp_path / "codes.bin.partial"
    said = interrupted(*request, out, mark=tmp_path / "mark")
    kept = f"What was done is kept in {partial}: pass --resume to continue."
    assert said == ("", f"stochcl: interrupted. {kept}\n", 130)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.bin.partial", "codes.bin.partial.journal"]
    assert partial.stat().st_size > 0

    small_segments(ROWS)
    assert "pass --resume" in refused(*request, out, code=2)
    run(*request, out, "--resume")
    run(*request, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.bin", "whole.bin"]
    with stochcl.open(out) as archive:
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(np.load(pixels)).symbols())


def test_an_interruption_before_anything_is_on_disk_leaves_nothing(pixels, model, tmp_path):
    out = tmp_path / "codes.bin"
    out.write_bytes(b"precious")
    request = ["compress", pixels, "-m", model, "-o", out, "--force", "--batch-size", "200"]
    assert interrupted(*request, mark=tmp_path / "mark") == ("", "stochcl: interrupted.\n", 130)
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]
    assert out.read_bytes() == b"precious"
