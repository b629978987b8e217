"""What can be had of an image file that does not decode as it is, or why it cannot."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from stochcl.data.pixels import PNG_MAGIC, png_chunks
from stochcl.files import LFS_ADVICE, is_lfs_pointer

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_MAGICS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_PNG_KEPT = (b"tRNS", b"eXIf")  # of the chunks that a reader may ignore: transparency and orientation
_JPEG_MAGIC, _JPEG_END, _JPEG_SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"
_PADDING = (bytes.fromhex("5aa7330f") * 64, bytes.fromhex("00") * 256, bytes.fromhex("c3912e78a4") * 50)


def what_is_needed(data: bytes, formats: tuple[str, ...]) -> str | None:
    """Say what to do about a file that stands for an image, or that a plug-in of Pillow reads; None for others."""
    if is_lfs_pointer(data):
        return LFS_ADVICE
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    for there, name, kind, plugin in (
        (heif, "HEIC", "HEIF", "pillow-heif"),
        (data.startswith(_JXL_MAGICS), "JPEG XL", "JXL", "pillow-jxl-plugin"),
    ):
        if there and kind not in formats:
            return f"it is a {name} image, which needs {plugin}, not installed here; run: pip install {plugin}"
    return None


def lean_png(data: bytes) -> bytes | None:
    """Return a PNG with nothing but what its pixels need, for texts and profiles must not cost them.

    None where it is no PNG, or holds nothing else.
    """
    parts, left_out = [PNG_MAGIC], False
    for kind, chunk in png_chunks(data):
        critical = not kind[0] & 0x20
        sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if critical or (kind in _PNG_KEPT and sound):
            parts.append(chunk)
        else:
            left_out = True
    return b"".join(parts) if left_out else None


def ended_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG with its end marker, where that is all that it lacks, else None.

    The decoder fills up what is missing of a cut one without a word. So it is decoded with some bytes behind it, too:
    they change the pixels unless all of them were there.
    """
    if not data.startswith(_JPEG_MAGIC):
        return None
    data = data.rstrip(b"\xff")
    try:
        pixels, progressive = _jpeg_pixels(data + _JPEG_END)
        whole = all(np.array_equal(pixels, _jpeg_pixels(data + pad + _JPEG_END)[0]) for pad in _PADDING)
    except Exception:  # noqa: BLE001, RUF100 - as when decoding: it is not whole
        return None
    return data + _JPEG_END if whole and (not progressive or _has_all_scans(data)) else None


def _jpeg_pixels(data: bytes) -> tuple[np.ndarray, bool]:
    with Image.open(BytesIO(data), formats=("JPEG", "MPO")) as image:
        image.load()
        return np.asarray(image), "progressive" in image.info


def _has_all_scans(data: bytes) -> bool:
    """Tell whether the scans of a progressive JPEG bring each coefficient of each component to its last bit."""
    components, exact, at = set[int](), set[tuple[int, int]](), data.find(_JPEG_SCAN)
    while at >= 0:
        count = data[at + 4]
        found, (first, last, bits) = data[at + 5 : at + 5 + 2 * count : 2], data[at + 5 + 2 * count :][:3]
        components.update(found)
        if not bits & 15:
            exact.update((component, k) for component in found for k in range(first, last + 1))
        at = data.find(_JPEG_SCAN, at + 2)
    return len(exact) == 64 * len(components)
