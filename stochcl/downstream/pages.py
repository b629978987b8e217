"""HTML pages of one file: no network, readable on a phone and in the dark, names of any bytes shown safely."""

from __future__ import annotations

import base64
import html
import io
import os
from typing import TYPE_CHECKING, Any

from stochcl.errors import OutputError
from stochcl.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

QUALITY = 70  # of thumbnails' WebP: 96 pixels take about 2 kB, 64 about 1 kB

STYLE = """\
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #6b6b70; --line: #d9d9de; --card: #f5f5f7;
  --accent: #0a5fd0; --accent-soft: #cfe1fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececef; --paper: #131315; --soft: #a0a0a8; --line: #38383d;
  --card: #1f1f23; --accent: #78b0ff; --accent-soft: #1d3a63; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 60rem; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.grid { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
figure { margin: 0; padding: .375rem; background: var(--card); border-radius: .5rem; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: .25rem; }
figcaption { padding-top: .25rem; line-height: 1.25; overflow-wrap: anywhere; }
figure.query { outline: 2px solid var(--accent); }
.blank { display: block; aspect-ratio: 1; border-radius: .25rem; background: var(--line); }
svg { max-width: 100%; height: auto; }
"""
"""The one stylesheet; colours are the variables at its top, light and dark."""


def escape(text: object) -> str:
    r"""Make a text safe to stand in a page or in an attribute; what is no Unicode or no letter becomes an escape.

    Examples
    --------
    >>> escape("<a>\udcff\x00 süß")
    '&lt;a&gt;\\udcff\\x00 süß'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return html.escape(shown)


def page(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """Return a whole page. Its browser is told to load nothing: what is not in the file is not there."""
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    allowed += "; script-src 'unsafe-inline'" if script else ""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}{style}</style></head>",
        f"<body><h1>{escape(title)}</h1>",
        *body,
    ]
    if script:
        parts.append(f"<script>{script}</script>")
    return "\n".join([*parts, "</body></html>", ""])


class Html(str):
    """A text that is HTML already, and safe."""

    __slots__ = ()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, kind: str = "") -> str:
    """Return a table of texts, which are escaped but for :class:`Html`; a narrow screen scrolls it sideways.

    ``kind`` is the table's class, which a script may look for.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = ("".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    named = f' class="{kind}"' if kind else ""
    parts = f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f'<div class="wide" tabindex="0"><table{named}>{parts}</table></div>'


def _cell(cell: object) -> str:
    return cell if isinstance(cell, Html) else escape(cell)


def figure(image: str | None, lines: Sequence[object], *, query: bool = False, alt: object = "") -> str:
    """Return an image (a data URI; a grey square for None) with lines of text below it, which are escaped.

    ``alt`` is what to say of the image where it is not seen, if the lines do not.
    """
    caption = "<br>".join(escape(line) for line in lines)
    start = '<figure class="query">' if query else "<figure>"
    return f"{start}{picture(image, alt)}<figcaption>{caption}</figcaption></figure>"


def picture(image: str | None, alt: object) -> str:
    """Return an image alone (a data URI), or a grey square for None, and what it is for those who do not see it."""
    said = escape(alt)
    titled = f' title="{said}"' if said else ""
    if image is not None:
        return f'<img src="{image}" alt="{said}"{titled} loading="lazy">'
    return (
        f'<span class="blank" role="img" aria-label="{said}"{titled}></span>'
        if said
        else '<span class="blank"></span>'
    )


def grid(figures: Iterable[str]) -> str:
    """Return figures side by side, as many as the screen is wide."""
    return '<div class="grid">' + "\n".join(figures) + "</div>"


def thumbnail(pixels: NDArray[Any]) -> str:
    """Return an image as the data URI of a WebP file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page; it is complete, or not there."""
    try:
        with replacing(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise OutputError(f"{escape(os.fspath(path))}: the page cannot be written: {reason}.") from exc
