"""HTML pages of one file: templates that escape everything, thumbnails as data URIs, atomic writing."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.data import ImageSource, Preprocess, open_source
from stochcl.errors import EnvironmentFault, ImageError, UsageError
from stochcl.files import replacing, writing
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os

    from jinja2 import Environment
    from numpy.typing import NDArray

WEBP_QUALITY = 70  # 96 pixels take about 2 kB, 64 about 1 kB


def percent(share: float, digits: int = 0) -> str:
    """Format a share.

    >>> percent(0.474), percent(0.001), percent(0.0)
    ('47 %', '0.1 %', '0 %')
    """
    value = 100 * share
    if 0 < value < 1 and not digits:
        digits = 1 if value >= 0.05 else 2
    return f"{value:.{digits}f} %"


def number(value: float) -> str:
    """Format a number with three significant digits.

    >>> number(221.54), number(3.3219), number(0.001911), number(0)
    ('222', '3.32', '0.00191', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Format bytes.

    >>> size(1), size(368), size(278_556), size(9_209_662)
    ('1 byte', '368 bytes', '279 kB', '9.21 MB')
    """
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{number(count / of)} {unit}"
    return f"{count:,.0f} byte{'' if count == 1 else 's'}"


def _visible(value: Any) -> Any:
    """Write what is not Unicode or has no shape as an escape, since files may have any bytes as names."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return escape_name(value)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        finalize=_visible, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "number": number, "size": size, "commas": "{:,}".format, "median": np.median
    }  # fmt: skip
    return environment


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates beside this file; values are escaped."""
    return _environment().get_template(template).render(**values)


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page, whole or not at all."""
    with writing(path, "the page"), replacing(path) as file:
        file.write(text.encode("utf-8"))


def thumbnail(pixels: NDArray[Any]) -> str:
    """Return an image, uint8 of shape (H, W, 3) or (H, W), as the data URI of a WebP file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


class Thumbnails:
    """Thumbnails of a source's images; counts which images were ``asked`` for and which are ``missing``."""

    def __init__(self, path: str | os.PathLike[str], *, size: int = 96) -> None:
        source = open_source(path)
        if not isinstance(source, ImageSource):
            raise UsageError(f"{escape_name(path)}: this holds vectors; thumbnails are made of images.")
        self.source, self._preprocess = source, Preprocess(size, "pad")
        self._rows = {escape_name(entry.name): row for row, entry in reversed(list(enumerate(source.entries)))}
        self._made: dict[int, str | None] = {}
        self.asked: set[str | int] = set()
        self.missing: set[str | int] = set()

    def of(self, which: str | int) -> str | None:
        """Return the image of a printable name, or at a place in the source; None if missing."""
        row = self._rows.get(which) if isinstance(which, str) else which if which < len(self.source) else None
        shown = None if row is None else self._load(row)
        self.asked.add(which)
        if shown is None:
            self.missing.add(which)
        return shown

    def _load(self, row: int) -> str | None:
        """Return the thumbnail at a place of the source."""
        if row not in self._made:
            try:
                self._made[row] = thumbnail(self.source.load(row, self._preprocess))
            except (ImageError, EnvironmentFault):
                self._made[row] = None
        return self._made[row]
