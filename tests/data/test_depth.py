"""16-bit images that use fewer bits: read as bright as they are, the same way in a folder, a tar and a stream."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api.append import append
from stochcl.data import Preprocess, TarStream, open_source
from stochcl.data.open import JoinedSource, open_sources

SIDE = 40
PLAIN = Preprocess(32)


def scene(seed):
    """Smooth grey values from 0 to 1, shape (40, 40)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.random((5, 5)).astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small)
    return (values - values.min()) / (values.max() - values.min())


def saved(values, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind, **options)
    return out.getvalue()


def of_bits(seed, bits, kind="PNG", **options):
    """A 16-bit file of values of so many bits."""
    return saved((scene(seed) * ((1 << bits) - 1)).round().astype(np.uint16), kind, **options)


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return io.BytesIO(out.getvalue())


def with_sbit(png, bits):
    """The same PNG, which says how many bits are significant."""
    body = b"sBIT" + bytes([bits])
    chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def pixels(source, preprocess=PLAIN):
    return np.concatenate([batch.images for batch in source.batches(preprocess, batch_size=3)]).astype(int)


@pytest.fixture
def eight_bits(tree):
    return pixels(open_source(tree({f"{i}.png": of_bits(i, 16) for i in range(8)}, "whole")))


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("TIFF", "tif")])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_folder_is_as_bright_as_its_brightest_image(tree, eight_bits, kind, ending, bits):
    source = open_source(tree({f"{i}.{ending}": of_bits(i, bits, kind) for i in range(8)}))
    np.testing.assert_allclose(pixels(source), eight_bits, atol=2)
    assert any(f"use {bits} bits" in line for line in source.remarks())
    np.testing.assert_allclose(pixels(source, Preprocess(32, depth=16)), eight_bits >> (16 - bits), atol=2)


def test_dark_images_stay_dark_among_bright_ones(tree):
    dark = saved((scene(1) * 1000).astype(np.uint16))
    images = pixels(open_source(tree({"a.png": dark, "b.png": of_bits(2, 12)})))
    assert images[0].max() == pytest.approx(1000 / 4095 * 255, abs=4)
    assert images[1].max() > 250


def test_one_image_beyond_the_others_is_not_clipped(tree, monkeypatch):
    monkeypatch.setattr("stochcl.data.source.SAMPLED", 1)
    files = {f"{i}.png": of_bits(i, 12) for i in range(3)} | {"z.png": of_bits(9, 16)}
    source = open_source(tree(files))
    images = pixels(source)
    assert images[0].max() > 250
    assert np.abs(images[3] - pixels(open_source(tree({"z.png": of_bits(9, 16)}, "one")))[0]).max() <= 1


def test_a_png_says_its_bits(tree, eight_bits):
    # Values in the lowest 12 bits, and values scaled to all 16 as the standard wants: sBIT is 12 for both.
    low = with_sbit(of_bits(0, 12), 12)
    twelve = (scene(0) * 4095).round().astype(np.uint16)
    scaled = with_sbit(saved((twelve << 4) | (twelve >> 8)), 12)
    dark = (scene(0) * 200).round().astype(np.uint16)
    scaled_dark = with_sbit(saved(dark << 4), 12)
    images = pixels(open_source(tree({"a.png": low, "b.png": scaled, "c.png": scaled_dark, "d.png": of_bits(3, 16)})))
    np.testing.assert_allclose(images[0], eight_bits[0], atol=2)
    np.testing.assert_allclose(images[1], eight_bits[0], atol=2)
    assert images[2].max() <= 14


def test_formats_that_scale_themselves_are_left_alone(tree):
    grey = (scene(0) * 1000).round().astype(">u2")
    pgm = b"P5 40 40 4095\n" + grey.tobytes()
    assert pixels(open_source(tree({"a.pgm": pgm}))).max() == pytest.approx(1000 / 4095 * 255, abs=4)


def test_a_stream_and_several_sources_agree_with_a_folder(tree, tmp_path):
    files = {f"a/{i}.png": of_bits(i, 12) for i in range(6)}
    folder = open_source(tree(files))
    for name in ("x.tar", "y.tar"):
        (tmp_path / name).write_bytes(tar_of(files).read())
    stream = TarStream(tar_of(files))
    np.testing.assert_array_equal(pixels(stream), pixels(folder))
    assert any("use 12 bits" in line for line in stream.remarks())
    both = open_sources([tmp_path / "x.tar", tmp_path / "y.tar"])
    np.testing.assert_array_equal(pixels(both), np.concatenate([pixels(folder)] * 2))


@pytest.mark.parametrize("bits", [9, 12, 14, 16])
def test_a_few_among_many_8_bit_images_are_bright_wherever_they_stand(tree, tmp_path, png, eight_bits, bits):
    """The sample, and the beginning of a stream, miss them: each has its own range then."""
    files = {f"{i:03d}.png": png for i in range(200)} | {"033.png": of_bits(1, bits), "z.png": of_bits(2, bits)}
    expected = eight_bits[1:3]
    for source in (open_source(tree(files)), TarStream(tar_of(files))):
        images = [batch.images for batch in source.batches(PLAIN)]
        np.testing.assert_allclose(np.concatenate(images).astype(int)[[33, 200]], expected, atol=2)
    parts = JoinedSource([open_source(tree({name: data}, name)) for name, data in list(files.items())[:130]])
    np.testing.assert_allclose(pixels(parts)[33], expected[0], atol=2)


def test_different_ranges_in_one_source_are_said(tree, eight_bits):
    source = open_source(tree({"a.png": of_bits(0, 16), "b.png": of_bits(1, 12), "c.png": of_bits(2, 13)}))
    assert pixels(source)[1].max() < 32
    assert any("1 of 3 images" in line and "--depth 0" in line for line in source.remarks())
    np.testing.assert_allclose(pixels(source, Preprocess(32, depth=0)), eight_bits[:3], atol=2)


def test_16_bit_colour_of_few_bits_is_named(tree):
    rows = (np.repeat(scene(0)[..., None], 3, 2) * 4095).astype(">u2").reshape(SIDE, -1)  # Pillow writes none
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + data, b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    files = {f"{i:03d}.png": of_bits(i, 8) for i in range(99)}
    source = open_source(tree(files | {"033.png": b"\x89PNG\r\n\x1a\n" + b"".join(parts)}))
    (damaged,) = [failure for batch in source.batches(PLAIN) for failure in batch.damaged]
    assert damaged.name == "033.png"
    assert "nearly black" in damaged.reason


def test_archives_record_it_and_append_keeps_to_it(tree, codec, tmp_path):
    folder = tree({f"a/{i}.png": of_bits(i, 12) for i in range(6)})
    path = tmp_path / "codes.bin"
    report = codec.compress(folder, path)
    assert any("use 12 bits" in line for line in report.warnings)
    with stochcl.open(path) as archive:
        assert archive.header.preprocess["depth"] == 12
        low = archive.to_numpy()
    whole = tree({f"a/{i}.png": of_bits(i, 16) for i in range(6)}, "whole")
    codec.compress(whole, tmp_path / "whole.bin")
    with stochcl.open(tmp_path / "whole.bin") as archive:
        assert archive.header.preprocess["depth"] == 16
        assert (archive.to_numpy() == low).mean() > 0.97
    (folder / "a" / "7.png").write_bytes(of_bits(7, 11))  # half as bright as the others can be
    append(path, folder, codec)
    codec.compress(folder, tmp_path / "again.bin", depth=12)
    with stochcl.open(path) as grown, stochcl.open(tmp_path / "again.bin") as again:
        assert grown.names == again.names
        np.testing.assert_array_equal(grown.to_numpy(), again.to_numpy())
