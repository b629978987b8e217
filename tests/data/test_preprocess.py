"""Every kind of image read right, and every bad one refused with a reason."""

import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from stochcl.data.pixels import MAX_PIXELS, to_eight_bits
from stochcl.data.preprocess import PAD_GREY, Preprocess, _formats
from stochcl.errors import ImageError

SIZE = 32


def decoded(data, size=SIZE, fit="stretch", depth=None):
    return Preprocess(size, fit, depth).decode(data).astype(int)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def png_header(width, height):
    """A PNG that declares a size and ends there."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


# What comes out


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
)
@settings(deadline=None, max_examples=60)
def test_any_aspect_becomes_a_square(width, height, size, fit):
    image = Image.new("RGB", (width, height), (200, 100, 50))
    result = Preprocess(size, fit).apply(image)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    if fit != "pad":
        assert (result == (200, 100, 50)).all()


def test_same_size_keeps_every_pixel(pixels, as_file):
    image = pixels(SIZE, SIZE)
    for fit in ("crop", "pad", "stretch"):
        assert np.array_equal(decoded(as_file(image), fit=fit), image)


def test_crop_keeps_the_centre(as_file):
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, 30:60] = 255
    assert decoded(as_file(image), size=30, fit="crop").min() == 255
    assert np.array_equal(
        decoded(as_file(image), size=30, fit="crop"),
        decoded(as_file(image.transpose(1, 0, 2)), size=30, fit="crop").transpose(1, 0, 2),
    )


def test_pad_adds_grey_above_and_below(as_file):
    image = np.full((20, 40, 3), 255, np.uint8)
    result = decoded(as_file(image), size=40, fit="pad")
    assert (result[:10] == PAD_GREY).all()
    assert (result[10:30] == 255).all()
    assert (result[30:] == PAD_GREY).all()


def test_shrinking_is_antialiased(as_file):
    checkers = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    result = decoded(as_file(checkers), size=32)
    assert np.abs(result - 127.5).max() < 4


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_scaled_jpeg_decoding_hardly_shows(pixels, as_file, fit):
    noise = np.random.default_rng(0).integers(-20, 20, (768, 1024, 3))
    data = as_file(np.clip(pixels(1024, 768).astype(int) + noise, 0, 255).astype(np.uint8), "JPEG", quality=90)
    with Image.open(BytesIO(data)) as whole:
        whole.load()
        full = Preprocess(64, fit).apply(whole)
    assert np.abs(decoded(data, 64, fit) - full.astype(int)).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(pixels, as_file, orientation, fit, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels(47, 32))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = as_file(stored, kind, exif=exif, **options)
    upright = stored.copy()
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    # The bicubic filter runs across and then down, and rounds between: a unit or two.
    assert difference(decoded(data, fit=fit), Preprocess(SIZE, fit).apply(upright)) <= (12 if kind == "JPEG" else 2)


def test_damaged_exif_does_not_matter(pixels, as_file):
    data = as_file(pixels(SIZE, SIZE), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff")
    assert decoded(data).shape == (SIZE, SIZE, 3)


# Modes


def modes():
    """Pairs of an image file's content and what it must look like, each of one colour."""
    grey16 = np.full((8, 8), 0x8000, np.uint16)
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    yield "bilevel", Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)
    yield "grey", Image.new("L", (8, 8), 77), "PNG", (77, 77, 77)
    yield "grey-alpha", Image.new("LA", (8, 8), (0, 128)), "PNG", (127, 127, 127)
    yield "rgba", Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG", (255, 127, 127)
    yield "rgba-clear", Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "WEBP", (255, 255, 255)
    yield "palette", palette, "PNG", (10, 200, 30)
    yield "palette-gif", palette, "GIF", (10, 200, 30)
    yield "grey-16", Image.fromarray(grey16), "PNG", (128, 128, 128)
    yield "grey-16-tiff", Image.fromarray(grey16), "TIFF", (128, 128, 128)
    yield "grey-16-pgm", Image.fromarray(grey16), "PPM", (128, 128, 128)
    yield "grey-16-max", Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)), "PNG", (255, 255, 255)
    yield "int-32", Image.fromarray(np.full((8, 8), 0x4000, np.int32)), "TIFF", (64, 64, 64)
    yield "float-unit", Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF", (128, 128, 128)
    yield "float-bytes", Image.fromarray(np.full((8, 8), 200, np.float32)), "TIFF", (200, 200, 200)
    yield "cmyk-tiff", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", (255, 0, 0)
    yield "cmyk-jpeg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (255, 0, 0)
    yield "lab", Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF", (255, 255, 255)
    yield "ycbcr", Image.new("YCbCr", (8, 8), (128, 128, 128)), "JPEG", (128, 128, 128)


@pytest.mark.parametrize(("image", "kind", "colour"), [pytest.param(*m[1:], id=m[0]) for m in modes()])
def test_every_mode_is_read_right(as_file, image, kind, colour):
    result = decoded(as_file(image, kind), size=8, depth=16)
    assert np.abs(result - np.array(colour)).max() <= (3 if kind == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"])
def test_every_mode_of_pillow_converts(mode):
    result = Preprocess(4, "crop").apply(Image.new(mode, (9, 5)))
    assert result.shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I", "F", "LAB", "HSV"])
def test_every_wide_mode_of_pillow_converts(mode):
    result = Preprocess(4, "crop").apply(Image.new(mode, (9, 5)))
    assert result.shape == (4, 4, 3)


def test_big_endian_16_bit_is_scaled(as_file):
    tiff = bytearray(as_file(Image.frombytes("I;16B", (8, 8), b"\x40\x00" * 64), "TIFF"))
    assert (decoded(bytes(tiff), size=8, depth=16) == 64).all()


def test_16_bit_ramp_is_scaled_not_clipped(as_file):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(256, 0)
    assert np.array_equal(decoded(as_file(ramp), size=256)[0, :, 0], np.arange(256))


def test_16_bit_values_are_rounded():
    values = np.array([[0, 128, 129, 257, 0x80FF, 65406, 65407]], np.uint16)
    grey = to_eight_bits(Image.fromarray(values))
    assert np.asarray(grey).tolist() == [[0, 0, 1, 1, 128, 254, 255]]


def test_wide_integers_are_stretched(as_file):
    values = np.linspace(-100_000, 100_000, 256).astype(np.int32)[None].repeat(256, 0)
    result = decoded(as_file(values, "TIFF"), size=256)[0, :, 0]
    assert (result[0], result[-1]) == (0, 255)
    assert (np.diff(result) >= 0).all()


def test_floats_beyond_bytes_are_stretched(as_file):
    values = np.linspace(-3, 1000, 256).astype(np.float32)[None].repeat(256, 0)
    result = decoded(as_file(values, "TIFF"), size=256)[0, :, 0]
    assert (result[0], result[-1]) == (0, 255)


def test_floats_that_are_not_finite_are_refused(as_file):
    values = np.zeros((8, 8), np.float32)
    values[3, 3] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        decoded(as_file(values, "TIFF"))


def test_transparent_palette_colour_is_white(as_file):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for kind in ("PNG", "GIF"):
        assert (decoded(as_file(image, kind, transparency=1), size=8) == 255).all()
        assert (decoded(as_file(image, kind, transparency=0), size=8) == (10, 20, 30)).all()


def test_transparent_colours_are_white(as_file):
    assert (decoded(as_file(Image.new("L", (8, 8), 5), transparency=5), size=8) == 255).all()
    assert (decoded(as_file(Image.new("RGB", (8, 8), (5, 6, 7)), transparency=(5, 6, 7)), size=8) == 255).all()
    grey16 = Image.fromarray(np.full((8, 8), 0x1234, np.uint16))
    grey16.info["transparency"] = 0x1234
    assert (Preprocess(8).apply(grey16) == 255).all()


def test_colour_of_clear_pixels_does_not_bleed(as_file):
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = (0, 0, 255, 255)
    image[:, 32:] = (255, 0, 0, 0)
    result = decoded(as_file(image), size=8)
    assert (result[:, :, 0] >= result[:, :, 1] - 2).all()
    assert (result[:, :, 0] <= result[:, :, 1] + 2).all()
    assert (result[:, -1] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_several(as_file, kind):
    frames = [Image.new("RGB", (8, 8), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = as_file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(decoded(data, size=8) - (250, 0, 0)).max() <= 2


# Bad images


def test_empty_and_foreign_data():
    with pytest.raises(ImageError, match=r"empty \(0 bytes\)"):
        decoded(b"")
    for data in (b"this is a text, not an image\n" * 9, b"\0", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7\n"):
        with pytest.raises(ImageError, match="not an image"):
            decoded(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_truncation_is_an_error(pixels, as_file, kind):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    data = as_file(noise, kind)
    end = data.rindex(b"\xff\xd9") if kind == "JPEG" else data.rindex(b"IDAT")
    whole = decoded(data)
    for length in [*range(0, end, 37), end - 1]:
        with pytest.raises(ImageError):
            decoded(data[:length])
    assert np.array_equal(decoded(data), whole)


def test_truncation_is_an_error_whatever_the_size(as_file):
    noise = np.random.default_rng(0).integers(0, 255, (450, 350, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = as_file(noise, kind)
        with pytest.raises(ImageError, match=r"truncated or damaged|not an image"):
            decoded(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def one_of_each_kind():
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        out = BytesIO()
        image.save(out, kind)
        yield kind, out.getvalue()


STORED = dict(one_of_each_kind())


@settings(deadline=None, max_examples=300)
@given(data=st.data(), kind=st.sampled_from(sorted(STORED)))
def test_damage_is_an_image_error_or_an_image(data, kind):
    stored = bytearray(STORED[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = Preprocess(8).decode(bytes(stored))
    except ImageError:
        return
    assert result.shape == (8, 8, 3)


def test_a_bomb_is_refused_by_its_header():
    for width, height in ((100_000, 100_000), (MAX_PIXELS + 1, 1), (13_400, 13_400)):
        with pytest.raises(ImageError, match=f"{MAX_PIXELS:,}"):
            decoded(png_header(width, height))


def test_the_limit_holds_where_pillow_has_none(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match=r"100000 x 100000 pixels"):
        decoded(png_header(100_000, 100_000))


def test_large_images_below_the_limit_do_not_warn(monkeypatch, pixels, as_file):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # 1,024 pixels: Pillow warns from 600, refuses from 1,200
    data = as_file(pixels(SIZE, SIZE))
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(decoded, [data] * 64))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert warnings.filters == filters


def test_warnings_of_others_still_come_through():
    from stochcl.data.pixels import quiet_pillow

    with quiet_pillow(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_memory_that_runs_out_is_an_image_error(monkeypatch, png):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Preprocess, "_check_pixels", fail)
    with pytest.raises(ImageError, match="memory"):
        decoded(png)


@pytest.mark.parametrize(("size", "fit"), [(0, "crop"), (-1, "pad"), (5000, "crop"), (8, "fill")])
def test_what_preprocess_cannot_mean(size, fit):
    with pytest.raises(ValueError, match=r"pixels a side|fit is one of"):
        Preprocess(size, fit)


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


@pytest.mark.parametrize(
    "ancillary",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (2 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * (2 << 20))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"zTXt", b"Comment\0\7strange"),
        chunk(b"tEXt", b"Comment\0damaged", crc=1),
        chunk(b"pHYs", b"short"),
        b"".join(chunk(b"tEXt", b"Comment%d\0" % i + b"x" * 900_000) for i in range(80)),
    ],
    ids=["text", "international text", "profile", "method", "checksum", "length", "many texts"],
)
@pytest.mark.parametrize("behind", [False, True])
def test_ancillary_chunks_do_not_cost_the_pixels_of_a_png(pixels, as_file, ancillary, behind):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = as_file(pixels(12, 9), exif=exif)
    at = plain.index(b"IEND") - 4 if behind else 33
    data = plain[:at] + ancillary + plain[at:]
    np.testing.assert_array_equal(Preprocess(8).decode(data), Preprocess(8).decode(plain))


def test_a_png_whose_pixels_are_damaged_stays_refused(pixels, as_file):
    plain = as_file(pixels(40, 40))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (2 << 20)))
    for cut in (40, len(plain) // 2):
        with pytest.raises(ImageError):
            Preprocess(8).decode(plain[:33] + text + plain[33:cut])


@pytest.mark.parametrize(
    ("data", "plugin"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "pillow-jxl-plugin"),
        (b"\xff\x0a" + bytes(40), "pillow-jxl-plugin"),
    ],
)
def test_formats_of_plug_ins_are_named(data, plugin, monkeypatch):
    monkeypatch.setattr("stochcl.data.preprocess._formats", lambda: ("PNG",))
    with pytest.raises(ImageError, match=f"pip install {plugin}"):
        Preprocess(8).decode(data)


def test_plug_ins_that_are_installed_are_registered(monkeypatch):
    called = []
    fake = type(sys)("pillow_heif")
    fake.register_heif_opener = lambda: called.append("heif")
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    _formats.cache_clear()
    _formats()
    _formats.cache_clear()
    assert called == ["heif"]
