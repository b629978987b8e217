"""Zips read in place: what is listed, what is refused, and what damage does."""

import pickle
import struct
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stochcl.data import Preprocess, ZipSource, open_source
from stochcl.errors import ImageError, SourceError
from tests.making import every

SMALL = Preprocess(8)


@pytest.fixture
def zipped(tmp_path):
    """Write a zip of (name, data) pairs and return its path."""

    def write(members, name="images.zip", method=zipfile.ZIP_STORED, **options):
        path = tmp_path / name
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method, **options) as archive:
            warnings.simplefilter("ignore")  # duplicate names are wanted here
            for member, data in members:
                archive.writestr(member, data)
        return path

    return write


def names(source):
    return [entry.name for entry in source.entries]


def shade(as_file, value):
    return as_file(np.full((8, 8, 3), value, np.uint8))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_order_and_pixels(zipped, as_file, method):
    members = [
        ("b/2.png", shade(as_file, 2)),
        ("a/1.PNG", shade(as_file, 1)),
        ("a/notes.txt", b"x"),
        ("a/", b""),
    ]
    path = zipped(members, method=method)
    source = open_source(path)
    assert isinstance(source, ZipSource)
    assert source.kind == "zip"
    assert names(source) == ["a/1.PNG", "b/2.png"]
    assert [source.load(i, SMALL).max() for i in (0, 1)] == [1, 2]
    assert source.entries[0].size == len(members[1][1])
    assert source.entries[0].mtime_ns == path.stat().st_mtime_ns


def test_duplicate_names_are_kept_in_their_order(zipped, as_file):
    source = open_source(zipped([("a.png", shade(as_file, v)) for v in (7, 3, 5)]))
    assert names(source) == ["a.png"] * 3
    assert [source.load(i, SMALL).max() for i in range(3)] == [7, 3, 5]


def test_names_that_climb_out_are_rejected(zipped, png):
    bad = ["/etc/a.png", "../b.png", "c/../../d.png", "C:\\e.png"]
    source = open_source(zipped([(name, png) for name in [*bad, "./ok//f.png"]]))
    assert names(source) == ["ok/f.png"]
    assert {f.name for f in source.rejected} == set(bad)
    assert all("absolute" in f.reason or "climbs out" in f.reason for f in source.rejected)


def test_macos_forks_and_hidden_members_are_left_out(zipped, png):
    source = open_source(zipped([(n, png) for n in ("__MACOSX/._a.png", "b/._a.png", ".c/a.png", "b/a.png")]))
    assert names(source) == ["b/a.png"]
    assert source.rejected == []


def test_undecodable_and_unflagged_utf8_names_survive(tmp_path, png):
    raw = [b"a\xff\xfe.png", "ü/é.png".encode()]
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(raw):
            archive.writestr(chr(65 + i) * len(name), png)
    data = path.read_bytes()
    for i, name in enumerate(raw):  # as old tools write them: bytes, and no word on what they mean
        data = data.replace(bytes([65 + i]) * len(name), name)
    path.write_bytes(data)
    source = open_source(path)
    assert names(source) == [name.decode("utf-8", "surrogateescape") for name in raw]
    assert source.load(0, SMALL).shape == (8, 8, 3)


def test_a_very_long_name(zipped, png):
    name = "d/" * 20_000 + "a.png"
    assert names(open_source(zipped([(name, png)]))) == [name]


def patch(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def directory_entry(path):
    """Offset of the first entry of the central directory."""
    return path.read_bytes().index(b"PK\x01\x02")


def set_field(path, offset, code, value):
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, offset, value)
    path.write_bytes(data)


def test_encrypted_members_are_rejected(zipped, png):
    path = zipped([("a.png", png)])
    set_field(path, directory_entry(path) + 8, "<H", 1)
    with pytest.raises(SourceError, match=r"none of the 1 images .* a\.png: it is encrypted"):
        open_source(path)


def test_unknown_compression_is_rejected(zipped, png):
    path = zipped([("a.png", png)])
    set_field(path, directory_entry(path) + 10, "<H", 97)
    with pytest.raises(SourceError, match="zip method 97"):
        open_source(path)


def test_a_member_too_large_is_rejected_by_its_declared_size(zipped, png, monkeypatch):
    monkeypatch.setattr("stochcl.data.zip.MAX_FILE_BYTES", 1000)
    source = open_source(zipped([("a.png", bytes(2000)), ("b.png", png)], method=zipfile.ZIP_DEFLATED))
    assert names(source) == ["b.png"]
    assert "2,000 bytes, and the limit is 1,000" in source.rejected[0].reason


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize(("declared", "reason"), [(100, "more than the 100"), (9_000_000, "of the 9,000,000")])
def test_a_member_that_lies_about_its_size(zipped, method, declared, reason):
    path = zipped([("a.png", bytes(5_000_000))], method=method)
    set_field(path, directory_entry(path) + 24, "<I", declared)
    with pytest.raises(ImageError, match=reason):
        open_source(path).load(0, SMALL)


def test_a_bomb_is_not_unpacked(zipped):
    path = zipped([("a.png", bytes(50_000_000))], method=zipfile.ZIP_DEFLATED)
    set_field(path, directory_entry(path) + 24, "<I", 10)
    source = open_source(path)
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more than the 10 bytes"):
            source.load(0, SMALL)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_every_flipped_byte_is_an_error_or_harmless(zipped, as_file, method):
    path = zipped([("a.png", shade(as_file, 9)), ("b.png", shade(as_file, 9))], method=method)
    data = path.read_bytes()
    for at in range(0, len(data), every(3)):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        try:
            source = open_source(path)
            for batch in source.batches(SMALL):
                assert (batch.images == 9).all()  # a CRC stands over every image
        except SourceError:
            pass


def test_every_truncation_is_a_source_error(zipped, png):
    path = zipped([("a.png", png), ("b.png", png)])
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError):
            open_source(path)


def test_damage_is_found_where_pixels_would_not_show_it(zipped, as_file):
    member = shade(as_file, 4) + b"behind the image"
    path = zipped([("a.png", member)])
    patch(path, b"behind", b"BEHIND")
    with pytest.raises(ImageError, match="CRC-32"):
        open_source(path).load(0, SMALL)


def test_a_zip_cut_short_after_listing(zipped, png):
    path = zipped([("a.png", png)])
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match="the zip ends within this member"):
        source.load(0, SMALL)


def test_a_member_beyond_the_end_is_rejected(zipped, png):
    path = zipped([("a.png", png), ("b.png", png)])
    set_field(path, directory_entry(path) + 42, "<I", 0x7FFFFFFF)
    source = open_source(path)
    assert names(source) == ["b.png"]
    assert "beyond its end" in source.rejected[0].reason


def test_no_member_is_an_image(zipped):
    for members in ([], [("notes.txt", b"x")]):
        with pytest.raises(SourceError, match="this zip holds no image"):
            open_source(zipped(members))


def test_a_zip_by_any_other_name_and_with_a_prefix(zipped, png, tmp_path):
    path = zipped([("a.png", png)], name="archive.jpg")
    assert open_source(path).kind == "zip"
    prefixed = tmp_path / "self-extracting.zip"
    prefixed.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert open_source(prefixed).load(0, SMALL).shape == (8, 8, 3)


def test_something_else_called_zip(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"no zip at all, but rather long for a text")
    with pytest.raises(SourceError, match="truncated or damaged"):
        open_source(path)


def test_threads_and_pickles(zipped, as_file):
    members = [(f"{i:03d}.png", shade(as_file, i)) for i in range(200)]
    source = pickle.loads(pickle.dumps(open_source(zipped(members, method=zipfile.ZIP_DEFLATED))))
    with ThreadPoolExecutor(8) as pool:
        shades = list(pool.map(lambda i: int(source.load(i, SMALL).max()), range(200)))
    assert shades == list(range(200))


@pytest.mark.parametrize(("system", "mixed"), [(0, False), (0, True), (3, False)])
def test_backslashes_between_folders(tmp_path, png, system, mixed):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat\\1.png", "dog\\old\\2.png", *(["x/3.png"] if mixed else [])):
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.create_system = system
            archive.writestr(info, png)
    source = open_source(path)
    assert [entry.name for entry in source.entries] == ["cat/1.png", "dog/old/2.png", *(["x/3.png"] if mixed else [])]
    assert source.load(0, SMALL).shape[2] == 3


def test_a_backslash_is_a_letter_where_slashes_separate(tmp_path, png):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat/a\\b.png", "cat/c.png"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 3
            archive.writestr(info, png)
    assert [entry.name for entry in open_source(path).entries] == ["cat/a\\b.png", "cat/c.png"]


def test_a_name_that_is_not_the_utf8_that_it_claims_costs_nothing(zipped, png):
    path = zipped([("é.png", png), ("zü.png", png), ("a.png", png)])
    data = path.read_bytes()
    path.write_bytes(data.replace("zü.png".encode(), b"z\xff\xfe.png"))
    source = open_source(path)
    assert [entry.name for entry in source.entries] == ["a.png", "z\udcff\udcfe.png", "é.png"]
    assert [source.load(i, SMALL).shape for i in range(3)] == [(8, 8, 3)] * 3
