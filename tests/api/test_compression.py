"""`Codec.compress`: progress, options, and going on with what was interrupted."""

import os
import shutil

import numpy as np
import pytest

import stochcl
from stochcl.api.compress import CompressOptions
from stochcl.errors import ImageError, UsageError
from tests.making import LATENTS, Interrupted, stop_after, write_images

ROWS = 10  # of a segment


@pytest.fixture
def photos(tmp_path):
    """Images of one's own, to be changed."""
    return write_images(tmp_path / "photos", per_class=9)


@pytest.fixture
def interrupt(codec, photos, tmp_path, small_segments):
    """Compress some of the images and stop there."""
    small_segments(ROWS)

    def run(images=15, error=Interrupted, **options):
        with pytest.raises(error):
            codec.compress(photos, tmp_path / "codes.bin", progress=stop_after(images), batch_size=3, **options)
        return tmp_path / "codes.bin.partial"

    return run


def test_progress_goes_from_nothing_to_everything(codec, photos, tmp_path):
    told = []
    report = codec.compress(photos, tmp_path / "a", progress=lambda *args: told.append(args), batch_size=10)
    assert told == [(0, 27), (10, 27), (20, 27), (27, 27)]
    assert (report.images, report.encoded, report.skipped) == (27, 27, ())
    assert report.images_per_second == pytest.approx(27 / report.seconds)
    assert report.path == str(tmp_path / "a")


def test_resuming_encodes_the_rest_and_gives_the_same_bytes(codec, photos, tmp_path, interrupt):
    partial = interrupt()
    assert partial.exists()
    told = []
    report = codec.compress(
        photos, tmp_path / "codes.bin", resume=True, batch_size=4, progress=lambda *args: told.append(args)
    )
    assert told[0] == (ROWS, 27)
    assert (report.images, report.encoded) == (27, 27 - ROWS)
    codec.compress(photos, tmp_path / "whole.bin")
    assert (tmp_path / "codes.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_resuming_keeps_count_of_what_was_skipped(codec, photos, tmp_path, interrupt):
    for name in ("cats/00.png", "cats/08.png", "dogs/03.jpg", "fische/süß/08.png"):
        (photos / name).write_bytes(b"bad")
    (photos / "lost.png").symlink_to("nowhere")
    interrupt(images=20)
    codec.compress(photos, tmp_path / "codes.bin", resume=True)
    codec.compress(photos, tmp_path / "whole.bin")
    assert (tmp_path / "codes.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert [name for name, _ in archive.skipped] == [
            "lost.png", "cats/00.png", "cats/08.png", "dogs/03.jpg", "fische/süß/08.png",
        ]  # fmt: skip
        assert len(archive) == 23


@pytest.mark.parametrize("change", ["touched", "added", "removed"])
def test_a_source_that_has_changed_is_not_gone_on_with(codec, photos, tmp_path, interrupt, change):
    partial = interrupt()
    left = partial.read_bytes()
    image = photos / "dogs" / "00.png"
    if change == "touched":
        data = image.read_bytes()
        image.write_bytes(data)
        os.utime(image, ns=(1, 1))
    elif change == "added":
        shutil.copy(image, photos / "new.png")
    else:
        image.unlink()
    with pytest.raises(UsageError, match="begun with another source"):
        codec.compress(photos, tmp_path / "codes.bin", resume=True)
    assert partial.read_bytes() == left


def test_a_failing_reader_of_progress_loses_nothing_that_was_there(codec, photos, tmp_path, interrupt):
    (tmp_path / "codes.bin").write_bytes(b"precious")
    interrupt(images=5, force=True)  # before a segment is full
    assert (tmp_path / "codes.bin").read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.partial*"))


def test_strict_in_the_middle_keeps_what_is_on_disk(codec, photos, tmp_path, small_segments):
    small_segments(ROWS)
    bad = photos / "fische" / "süß" / "02.png"
    good = bad.read_bytes()
    bad.write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"süß/02\.png: .*strict=True"):
        codec.compress(photos, tmp_path / "codes.bin", strict=True, batch_size=3)
    assert (tmp_path / "codes.bin.partial").exists()
    bad.write_bytes(good)  # which is another source now, by its time
    with pytest.raises(UsageError, match="begun with another source"):
        codec.compress(photos, tmp_path / "codes.bin", strict=True, resume=True)
    assert codec.compress(photos, tmp_path / "codes.bin", strict=True, force=True).images == 27


def test_an_interrupted_rate_goes_on_with_the_encoding(codec, photos, tmp_path, small_segments):
    small_segments(ROWS)
    out = tmp_path / "codes.bin"
    with pytest.raises(Interrupted):
        codec.compress(photos, out, rate=30, batch_size=3, progress=stop_after(15))
    assert sorted(p.name for p in tmp_path.glob("codes*")) == [
        "codes.bin.full.partial", "codes.bin.full.partial.journal",
    ]  # fmt: skip
    report = codec.compress(photos, out, rate=30, resume=True)
    assert report.encoded == 27 - ROWS
    codec.compress(photos, tmp_path / "whole.bin", rate=30)
    assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert not list(tmp_path.glob("codes.bin.*"))


def test_a_kept_full_width_is_not_taken_for_another_source(codec, photos, tmp_path):
    out, full = tmp_path / "codes.bin", tmp_path / "codes.bin.full"
    codec.compress(photos, full)  # as an interrupted run leaves it
    image = photos / "dogs" / "00.png"
    image.rename(photos / "dogs" / "0.png")
    with pytest.raises(UsageError, match="begun with another source, model or option"):
        codec.compress(photos, out, rate=15, resume=True)
    (photos / "dogs" / "0.png").rename(image)
    image.write_bytes((photos / "cats" / "00.png").read_bytes())  # same names, newer than what was kept
    later = full.stat().st_mtime_ns + 10**9
    os.utime(image, ns=(later, later))
    with pytest.raises(UsageError, match="begun with another source, model or option"):
        codec.compress(photos, out, rate=15, resume=True)
    assert full.exists()
    codec.compress(photos, out, rate=15, force=True)
    assert not full.exists()


def test_an_interruption_says_where_to_go_on(codec, photos, tmp_path, interrupt):
    def stop(done, total):
        if done >= 15:
            raise KeyboardInterrupt

    partial = tmp_path / "codes.bin.partial"
    with pytest.raises(KeyboardInterrupt) as caught:
        codec.compress(photos, tmp_path / "codes.bin", progress=stop, batch_size=3)
    (note,) = caught.value.__notes__
    assert f"done, 15 images, is kept in {partial}: pass resume=True" in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": 0}, "latents"),
        ({"latents": LATENTS + 1}, "this model has 32 latents"),
        ({"rate": 5, "latents": 5}, "latents and rate"),
        ({"self_contained": True, "external_tables": True}, "contradict"),
    ],
)
def test_options_that_make_no_sense(codec, photos, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        codec.compress(photos, tmp_path / "codes.bin", **options)
    assert not list(tmp_path.glob("codes*"))
    CompressOptions(latents=LATENTS).check(codec)


def test_relative_paths_and_a_source_that_holds_the_output(codec, photos, monkeypatch):
    monkeypatch.chdir(photos)
    report = codec.compress(".", "codes.bin")
    assert report.images == 27
    with stochcl.open("codes.bin") as archive:
        np.testing.assert_array_equal(archive.to_numpy()[0], codec.encode(["cats/00.png"]).symbols()[0])
