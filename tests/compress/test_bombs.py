"""Small files that claim to be large: what is inflated is bounded by what it can be, and read a piece at a time."""

import json
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl import framing
from stochcl.compress import Archive
from stochcl.compress.index import iterate_skipped
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import pack_model, unpack_model
from stochcl.errors import FormatError, LimitExceeded
from tests.compress.making import make_codes, make_network, make_tables, write


def peak_of(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


texts = st.text(st.characters(codec=None) | st.sampled_from('[],"\\ \n'), max_size=20)


@given(st.lists(st.tuples(texts, texts), max_size=20), st.sampled_from([None, 1]))
def test_skipped_images_are_read_as_json_is(pairs, indent):
    text = json.dumps(pairs, indent=indent)
    assert list(iterate_skipped(zlib.compress(text.encode("ascii")))) == pairs


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "]", "{}", "null", "[1]", '["a"]', '["a","b"]', '[["a"]]', '[["a","b","c"]]', '[["a",1]]',
        "[[NaN,NaN]]",
        '[["a","b"]', '[["a","b"],]', '[["a","b"]]x', '[,["a","b"]]', '[["a","b"] ["c","d"]]', '[["a","b"]],', "[[[[",
        '{"a":["a","b"]}', '[["a","b"', '[["a","b"],["c"', "[" * 100_000, '[["a","é"]]',
    ],
)  # fmt: skip
def test_what_is_not_a_list_of_pairs_is_a_format_error(text):
    with pytest.raises(FormatError, match="the list of skipped images is not"):
        list(iterate_skipped(zlib.compress(text.encode())))


def test_what_is_not_deflated_or_does_not_end_is_a_format_error():
    good = zlib.compress(b'[["a","b"]]')
    for data in (b"x", good[:-1], good + b"x", good[:5]):
        with pytest.raises(FormatError):
            list(iterate_skipped(data))


def test_one_skipped_image_is_not_longer_than_any_can_be():
    with pytest.raises(FormatError):
        list(iterate_skipped(zlib.compress(b'[["' + b"a" * (3 << 20) + b'","b"]]')))


def test_the_list_of_skipped_images_is_limited(monkeypatch):
    monkeypatch.setattr("stochcl.compress.index._MAX_SKIPPED", 999)
    with pytest.raises(LimitExceeded):
        list(iterate_skipped(zlib.compress(b"[" + b",".join([b'["a","b"]'] * 100) + b"]")))


def test_what_is_beyond_the_limit_is_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("stochcl.compress.index._MAX_SKIPPED", 999)
    pairs = [(f"{i}.jpg", "it is empty") for i in range(100)]
    path = write(tmp_path / "a", make_codes(3, 7), make_tables(7), skipped=pairs)
    with Archive(path) as archive:
        *first, last = archive.skipped
    assert first == pairs[: len(first)]
    assert 20 < len(first) < 40
    assert last == ("...", f"{100 - len(first)} more could not be read")


def test_a_long_list_of_skipped_images_takes_no_memory_until_it_is_asked_for(tmp_path):
    pairs = 1 << 17
    data = zlib.compress(b"[" + b",".join([b'["",""]'] * pairs) + b"]", 9)
    path = write(tmp_path / "a", make_codes(3, 7), make_tables(7))
    with Archive(path) as archive:
        start = archive._index.start
        changed = replace(archive._index, skipped=data).to_bytes()
    path.write_bytes(path.read_bytes()[:start] + changed)

    def read():
        with Archive(path) as archive:
            assert archive[0].packed.shape == (1, 1)
            archive._check_latents(7)

    assert len(data) < 20_000
    assert peak_of(read) < 2 << 20
    assert peak_of(lambda: sum(1 for _ in iterate_skipped(data))) < 5 << 20
    with Archive(path) as archive:
        archive.verify()
        assert len(archive.skipped) == pairs


def test_no_more_is_inflated_than_a_model_can_have():
    bomb = zlib.compress(b"independent".ljust(16, b"\0") + bytes(20 << 20), 9)

    def read():
        with pytest.raises(LimitExceeded, match="the size of an entropy model"):
            unpack_model(bomb, 7, 2)

    assert peak_of(read) < 1 << 20


@pytest.mark.parametrize(
    ("latents", "alphabet", "hidden"), [(1, 2, 0), (7, 2, 4096), (3, 300, 100), (40, 16, 4096), (2, 4096, 30)]
)
def test_models_of_every_size_are_within_the_limit(latents, alphabet, hidden):
    for model in (
        make_network(latents, alphabet, hidden),
        IndependentModel(np.ones((latents, (1 << (alphabet - 1).bit_length()) - 1), np.uint16), alphabet),
    ):
        assert unpack_model(pack_model(model), latents, alphabet).to_bytes() == model.to_bytes()


def test_thousands_of_fitted_models_are_not_all_kept(tmp_path):
    model = make_network(7, hidden=4096)
    path = write(tmp_path / "a", make_codes(3, 7), make_tables(7), fitted=[model])
    with Archive(path) as archive:
        index = archive._index
        offset, size = index.fitted[0]
        chunk = path.read_bytes()[offset : offset + size]
        segment = path.read_bytes()[index.segments[0][0] : index.start]
    many = 60
    data = path.read_bytes()[:offset] + chunk * many + segment
    moved = tuple((at + size * (many - 1), head) for at, head in index.segments)
    changed = replace(
        index, fitted=tuple((offset + size * i, size) for i in range(many)), segments=moved, start=len(data)
    )
    path.write_bytes(data + changed.to_bytes())
    with Archive(path) as archive:
        assert peak_of(archive.verify) < 24 << 20


def test_names_of_many_rows_are_read_within_their_limits():
    data = framing.pack_texts([""] * framing.MAX_SEGMENT_ROWS)
    assert len(data) < 1000
    assert peak_of(lambda: framing.unpack_texts(data, framing.MAX_SEGMENT_ROWS, "names")) < 50 << 20
    long = framing.pack_texts(["a" * 60] * framing.MAX_SEGMENT_ROWS)
    assert peak_of(lambda: framing.unpack_texts(long, framing.MAX_SEGMENT_ROWS, "names")) < 60 << 20
