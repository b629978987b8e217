"""Ctrl-C while images are compressed: no traceback, and a partial file that --resume completes."""

import os
import re
import signal
import sys

import numpy as np
import pytest

import stochcl
from tests.making import SMALL_SEGMENTS, make_pixels, process, signalled, write_images

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


def interrupted(*arguments, mark, sent=signal.SIGINT, small=True):
    """Run the program, interrupt it when it has come to a certain image, and return what it said."""
    before = (SMALL if small else "") + STOP_AT.format(mark=os.fspath(mark))
    return signalled(*arguments, before=before, mark=mark, sent=sent)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_interruption_leaves_what_resume_completes(
    run, refused, small_segments, pixels, model, codec, tmp_path, workers
):
    out, whole = tmp_path / "codes.bin", tmp_path / "whole.bin"
    request = ["compress", pixels, "-m", model, "--batch-size", "10", "--workers", workers, "-o"]
    partial = tmp_path / "codes.bin.partial"
    said = interrupted(*request, out, mark=tmp_path / "mark")
    kept = re.search(
        rf"interrupted\. What is done, (\d+) images, is kept in {re.escape(str(partial))}: .*--resume", said[1]
    )
    assert 0 < int(kept[1]) <= 100
    assert (said[0], said[2]) == ("", 130)
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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_before_the_first_segment_keeps_what_is_done(run, pixels, model, tmp_path, sent, code):
    out, whole = tmp_path / "codes.bin", tmp_path / "whole.bin"
    request = ["compress", pixels, "-m", model, "--batch-size", "10", "--workers", "1", "-o"]
    said = interrupted(*request, out, mark=tmp_path / "mark", sent=sent, small=False)
    assert said[2] == code
    assert re.search(r"done, (9\d|100) images, is kept", said[1])
    run(*request, out, "--resume")
    run(*request, whole)
    assert out.read_bytes() == whole.read_bytes()


def test_an_interruption_before_anything_is_on_disk_leaves_nothing(pixels, model, tmp_path):
    out = tmp_path / "codes.bin"
    out.write_bytes(b"precious")
    request = ["compress", pixels, "-m", model, "-o", out, "--force", "--batch-size", "200"]
    assert interrupted(*request, mark=tmp_path / "mark") == ("", "stochcl: interrupted.\n", 130)
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]
    assert out.read_bytes() == b"precious"


def test_a_source_that_vanishes_keeps_what_was_done_and_can_be_resumed(model, tmp_path):
    photos = write_images(tmp_path / "photos")
    gone = tmp_path / "gone"
    before = f"""
import os
from stochcl.data.source import ImageSource
read = ImageSource._image
def lose(self, i, preprocess):
    if i == 20 and not os.path.exists({os.fspath(gone)!r}):
        os.rename({os.fspath(photos)!r}, {os.fspath(gone)!r})
    return read(self, i, preprocess)
ImageSource._image = lose
"""
    out = tmp_path / "codes.bin"
    request = ["compress", photos, "-m", model, "-o", out, "--device", "cpu", "--workers", "1", "--batch-size", "10"]
    ended = process(*request, before=before)
    assert ended.returncode == 1, ended.stderr
    assert "no such file or directory" in ended.stderr
    assert "codes.bin.partial: pass --resume" in ended.stderr
    assert not out.exists()
    gone.rename(photos)
    ended = process(*request, "--resume", "--json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    with stochcl.open(out) as archive:
        assert (len(archive), archive.skipped) == (42, [])
