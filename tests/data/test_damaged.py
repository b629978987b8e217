"""Images that are damaged and can be read all the same, and files that are not what they are called."""

import numpy as np
import pytest

import stochcl
from stochcl.api.evaluate import evaluate
from stochcl.api.predict import predict
from stochcl.api.train import train
from stochcl.data import FolderSource, Preprocess, open_source, read_labels
from stochcl.data.preprocess import DamagedImage
from stochcl.errors import FormatError, ImageError, LabelsError, ModelError, SourceError, StochclError

SMALL = Preprocess(16)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.fixture
def photo(as_file):
    """A JPEG with detail up to its last pixel."""
    noise = np.random.default_rng(3).integers(0, 255, (6, 9, 3)).repeat(9, 0).repeat(9, 1).astype(np.uint8)

    def make(**options):
        return as_file(noise, "JPEG", quality=85, **options)

    return make


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_that_lacks_its_end_marker_has_all_its_pixels(tree, photo, options, cut):
    whole = photo(**options)
    source = open_source(tree({"a.jpg": whole[:-cut], "b.jpg": whole}))
    (batch,) = source.batches(SMALL)
    assert batch.names == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(batch.images[0], batch.images[1])
    assert [(f.name, f.reason) for f in batch.damaged] == [("a.jpg", "the end marker is missing")]
    assert batch.failures == ()
    np.testing.assert_array_equal(source.load(0, SMALL), source.load(1, SMALL))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_lacks_more_is_a_failure(photo, options):
    whole, large = photo(**options), Preprocess(80)
    pixels, kept = large.decode(whole), 0
    for end in range(len(whole) // 3, len(whole) - 2):
        with pytest.raises(ImageError) as caught:
            large.decode(whole[:end])
        if isinstance(caught.value, DamagedImage):  # what is missing was of no weight
            np.testing.assert_array_equal(caught.value.pixels, pixels)
            kept += 1
        else:
            assert "truncated or damaged" in str(caught.value)
    assert kept < 3


def test_damaged_images_are_counted_and_strict_refuses_them(tree, photo, codec, tmp_path):
    folder = tree({"a/1.jpg": photo()[:-2], "a/2.jpg": photo()})
    report = codec.compress(folder, tmp_path / "a.bin")
    assert (report.images, report.skipped) == (2, ())
    assert report.to_json("compress")["damaged"] == [{"name": "a/1.jpg", "reason": "the end marker is missing"}]
    assert any("1 image is damaged" in line and "a/1.jpg" in line for line in report.warnings)
    with pytest.raises(ImageError, match="strict"):
        codec.compress(folder, tmp_path / "b.bin", strict=True)
    codes = codec.encode([folder / "a" / "1.jpg", folder / "a" / "2.jpg"])
    np.testing.assert_array_equal(codes.packed[0], codes.packed[1])


def test_git_lfs_pointers_are_called_that(tree, png, tmp_path):
    source = FolderSource(tree({"a.png": POINTER, "b.png": png}))
    (batch,) = source.batches(SMALL)
    assert "git lfs pull" in batch.failures[0].reason
    for name in ("x.zip", "x.tar", "x.npy", "x.parquet", "x.tar.gz"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(SourceError, match="git lfs pull"):
            open_source(tmp_path / name)
    for name, read, error in (
        ("codes.bin", stochcl.open, FormatError),
        ("model.safetensors", stochcl.load, ModelError),
        ("labels.csv", read_labels, LabelsError),
    ):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(error, match="git lfs pull"):
            read(tmp_path / name)


def test_git_lfs_pointers_are_called_that_wherever_a_file_is_given(codec, codes, images, tmp_path):
    def given(name):
        (tmp_path / name).write_bytes(POINTER)
        return tmp_path / name

    out = tmp_path / "out"
    codec.compress(images, tmp_path / "bare.bin", external_tables=True)
    tables = given(f"{codec.tables.sha256}.tables")
    for call in (
        lambda: train([images], out, init=given("weights.safetensors"), epochs=0),
        lambda: train([images], out, init=given("weights.pth"), epochs=0),
        lambda: train([given("rows.npy")], out),
        lambda: predict(codes, given("probe.skops"), out),
        lambda: predict(codes, given("classifier.safetensors"), out),
        lambda: stochcl.transcode(codes, out, select=given("selection.json")),
        lambda: evaluate(codes, labels=given("labels.npy")),
        lambda: evaluate(codes, groups=str(given("groups.csv"))),
        lambda: stochcl.open(tmp_path / "bare.bin").tables,
        lambda: evaluate(tmp_path / "bare.bin", tables=[tables]),
        lambda: codec.encode([given("a.jpg")]),
        lambda: codec.compress(given("table.parquet"), out),
        lambda: codec.compress(given("table.arrow"), out),
    ):
        with pytest.raises(StochclError, match="git lfs pull"):
            call()


def test_a_larger_image_is_read_where_it_is_asked_for(tree, png, codec, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 60)  # Pillow refuses from 120, an image here has 144
    folder = tree({"a/1.png": png})
    with pytest.raises(SourceError, match="max_pixels"):
        codec.compress(folder, tmp_path / "a.bin")
    with pytest.raises(SourceError, match="more than 143"):
        codec.compress(folder, tmp_path / "a.bin", max_pixels=143)
    import PIL.Image

    assert codec.compress(folder, tmp_path / "a.bin", max_pixels=300_000_000).images == 1
    assert PIL.Image.MAX_IMAGE_PIXELS == 60
