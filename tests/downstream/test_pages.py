"""Pages: one file that loads nothing, in which no name becomes markup."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from stochcl.downstream import pages
from stochcl.errors import OutputError

BAD = '<script>alert("1")</script>&\udcff\n'


class Tags(HTMLParser):
    """What a page holds: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_no_text_becomes_markup():
    body = [pages.table([BAD], [[BAD, 1]]), pages.grid([pages.figure(None, [BAD])])]
    found = Tags(pages.page(BAD, body))
    assert "script" not in [tag for tag, _ in found.tags]
    assert found.text.count('<script>alert("1")</script>&\\udcff\\n') == 5


def test_a_page_loads_nothing():
    text = pages.page("a", [pages.figure(pages.thumbnail(np.zeros((4, 4, 3), np.uint8)), ["b"])])
    assert not re.search(r"https?:|src=[^ ]*//|url\(|@import", re.sub(r"data:[^\"]*", "", text))
    policy = next(a["content"] for tag, a in Tags(text).tags if a.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "script-src 'unsafe-inline'" in pages.page("a", [], script="1")
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_a_thumbnail_is_the_image(rng):
    pixels = np.full((24, 32, 3), (200, 40, 90), np.uint8)
    head, data = pages.thumbnail(pixels).split(",")
    assert head == "data:image/webp;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() < 8


def test_a_page_is_written_whole_or_not(tmp_path):
    pages.write_page(tmp_path / "a.html", pages.page("süß", []))
    assert "süß" in (tmp_path / "a.html").read_text("utf-8")
    with pytest.raises(OutputError, match=r"the page cannot be written: no such file"):
        pages.write_page(tmp_path / "none" / "a.html", "")
