"""Images of every kind of pixel, from the file to the decoded codes: read as they are seen."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_bad_input import PIXELS, encoded, written


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right when it is shown
    return encoded(image=Image.fromarray(np.rot90(PIXELS).copy()), exif=exif)


def grey_alpha():
    alpha = Image.fromarray(np.where(PIXELS[:, :, 1] > 99, 255, 0).astype(np.uint8))
    image = Image.merge("LA", (Image.fromarray(PIXELS[:, :, 0].copy()), alpha))
    shown = np.where(PIXELS[:, :, 1] > 99, PIXELS[:, :, 0], 255)  # transparent is white
    return encoded(image=image), shown[..., None].repeat(3, 2).astype(np.uint8)


def animated():
    frames = [Image.fromarray(PIXELS // 128 * 128), Image.new("RGB", (32, 32), "red")]
    return encoded("GIF", frames[0].quantize(8), save_all=True, append_images=[frames[1].quantize(8)])


GREY = PIXELS[:, :, 0].copy()
GREYS = GREY[..., None].repeat(3, 2)
COARSE = PIXELS // 128 * 128
RIGHT = {
    "16 bits": (encoded(image=Image.fromarray(GREY.astype(np.uint16) * 257)), GREYS),
    "palette": (encoded(image=Image.fromarray(COARSE).quantize(8)), COARSE),
    "grey": (encoded(image=Image.fromarray(GREY)), GREYS),
    "grey with alpha": grey_alpha(),
    "CMYK": (encoded("TIFF", Image.fromarray(PIXELS).convert("CMYK")), PIXELS),
    "turned by EXIF": (rotated(), PIXELS),
    "animated GIF": (animated(), COARSE),
}


@pytest.mark.parametrize("case", RIGHT)
def test_images_of_every_kind_are_read_right(run, codec, model, tmp_path, case):
    data, pixels = RIGHT[case]
    assert not np.array_equal(codec.encode([pixels]).symbols(), codec.encode([np.rot90(pixels, -1)]).symbols())
    source = written(tmp_path / "image.png", data)  # whatever it is called: its content says what it is
    out = tmp_path / "codes.npz"
    result = run("compress", source, "-m", model, "-o", tmp_path / "codes.bin")
    assert result.stderr == ""
    run("decompress", tmp_path / "codes.bin", "-o", out)
    with np.load(out) as found:
        np.testing.assert_array_equal(found["symbols"], codec.encode(pixels[None]).symbols())
