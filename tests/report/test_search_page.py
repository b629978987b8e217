"""The page of a search: what was found, with pictures, and no name as markup."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api.search import search
from stochcl.errors import OutputError, UsageError
from stochcl.report.report import write_search_page


def test_a_page_shows_what_was_found(codes, images, tmp_path):
    query = min(images.rglob("*.png"))
    with stochcl.open(codes) as archive:
        row = archive.names.index(query.relative_to(images).as_posix())
    found = search(codes, rows=[row, 2], count=4)
    write_search_page(found, tmp_path / "found.html", images)
    page = (tmp_path / "found.html").read_text("utf-8")
    shown = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    assert len(shown) == 2 + 8
    assert "script" not in page
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))).convert("RGB"), int)
    assert pixels.shape == (96, 96, 3)
    with Image.open(query) as image:
        assert np.abs(pixels.mean(axis=(0, 1))[0] - np.asarray(image.convert("RGB")).mean(axis=(0, 1))[0]) < 30
    for part in found["queries"]:
        for hit in part["neighbours"]:
            assert hit["name"] in page
            assert f"<b>{hit['distance']:.4g}</b>" in page
    write_search_page(found, tmp_path / "bare.html")
    bare = (tmp_path / "bare.html").read_text("utf-8")
    assert 'src="data:' not in bare
    assert bare.count('class="blank"') == 2 + 8


def test_a_query_file_is_shown(codes, images, tmp_path):
    found = search(codes, rows=[0], count=2)
    photo = min(images.rglob("*.png"))
    found["queries"][0]["query"] = str(photo)
    write_search_page(found, tmp_path / "found.html", queries=[photo])
    assert (tmp_path / "found.html").read_text("utf-8").count('src="data:image/webp') == 1


def test_no_name_becomes_markup(codes, tmp_path):
    found = search(codes, rows=[0], count=2)
    bad = "<script>alert(1)</script>{{ 7 * 7 }}\udcff"
    found["path"] = found["queries"][0]["query"] = bad
    found["queries"][0]["neighbours"][0] |= {"name": bad, "label": bad}
    write_search_page(found, tmp_path / "found.html")
    page = (tmp_path / "found.html").read_text("utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}\\udcff") >= 5
    assert not re.search(r"https?:|//|url\(|@import", page)


def test_what_cannot_be_shown_or_written_is_refused(codes, tmp_path):
    found = search(codes, rows=[0], count=2)
    with pytest.raises(OutputError, match="no such file"):
        write_search_page(found, tmp_path / "none" / "found.html")
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    with pytest.raises(UsageError, match="holds vectors"):
        write_search_page(found, tmp_path / "found.html", tmp_path / "x.npy")
