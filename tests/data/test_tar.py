"""Tars, plain and compressed: what is listed, what is refused, and what damage does."""

import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from stochcl.data import Preprocess, TarSource, TarStream, open_source, tar
from stochcl.errors import ImageError, MissingExtraError, SourceError
from tests.making import every

SMALL = Preprocess(8)
KINDS = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


@pytest.fixture
def tarred(tmp_path):
    """Write a tar of (name or TarInfo, data) pairs and return its path."""

    def write(members, ending="tar", fmt=tarfile.PAX_FORMAT, name="images"):
        path = tmp_path / f"{name}.{ending}"
        with tarfile.open(path, KINDS[ending], format=fmt) as archive:
            for member, data in members:
                info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write


def names(source):
    return [entry.name for entry in source.entries]


def shade(as_file, value):
    return as_file(np.full((8, 8, 3), value, np.uint8))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_order_and_pixels(tarred, as_file, ending, fmt):
    members = [("b/2.png", shade(as_file, 2)), ("notes.txt", b"x" * 1024), ("./a/1.PNG", shade(as_file, 1))]
    path = tarred(members, ending, fmt)
    source = open_source(path)
    assert isinstance(source, TarSource)
    assert source.kind == "tar"
    assert names(source) == ["a/1.PNG", "b/2.png"]
    assert [source.load(i, SMALL).max() for i in (0, 1)] == [1, 2]
    assert source.entries[1].size == len(members[0][1])
    assert source.entries[0].mtime_ns == path.stat().st_mtime_ns


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_members_of_every_length(tarred, as_file, ending):
    image = shade(as_file, 5)
    members = [(f"{n:04d}.png", image + bytes(n)) for n in range(0, 1100, 61)]
    members.append(("9999.png", image + bytes(1024 - len(image))))
    source = open_source(tarred(members, ending))
    assert [source._read(i) for i in range(len(source))] == [data for _, data in members]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_duplicates_are_kept_and_forks_left_out(tarred, as_file, ending):
    members = [("a.png", shade(as_file, v)) for v in (7, 3)] + [("__MACOSX/._a.png", b"x"), ("._a.png", b"x")]
    source = open_source(tarred(members, ending))
    assert names(source) == ["a.png", "a.png"]
    assert [source.load(i, SMALL).max() for i in (0, 1)] == [7, 3]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_links_devices_and_names_that_climb_out_are_rejected(tarred, png, ending):
    bad = {
        "C:/a.png": "absolute",
        "../b.png": "climbs out",
        "c/../../d.png": "climbs out",
        "link.png": "is a link",
        "hard.png": "is a link to ok.png, which is not an image before it",
        "pipe.png": "not a regular file",
        "device.png": "not a regular file",
    }
    members = [(name, png) for name in list(bad)[:3]]
    members += [
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "ok.png"),
    ]
    members += [special("pipe.png", tarfile.FIFOTYPE), special("device.png", tarfile.CHRTYPE)]
    source = open_source(tarred([*members, ("ok.png", png)], ending))
    assert names(source) == ["ok.png"]
    assert {f.name for f in source.rejected} == set(bad)
    assert all(bad[f.name] in f.reason for f in source.rejected)


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_undecodable_non_ascii_and_very_long_names(tarred, png, fmt):
    wanted = ["a\udcff.png", "d/" * 5000 + "e.png", "é.png"]
    assert names(open_source(tarred([(name, png) for name in wanted], fmt=fmt))) == wanted


def test_a_member_too_large_is_rejected(tarred, png, monkeypatch):
    monkeypatch.setattr("stochcl.data.tar.MAX_FILE_BYTES", 1000)
    for ending in ("tar", "tar.gz"):
        source = open_source(tarred([("a.png", bytes(2000)), ("b.png", png)], ending))
        assert names(source) == ["b.png"]
        assert "2,000 bytes" in source.rejected[0].reason


def test_a_compressed_bomb_is_not_unpacked(tarred, png, monkeypatch):
    monkeypatch.setattr(tar, "EXPANSION_FLOOR", 100_000)
    members = [(f"{i}.png", bytes(200_000)) for i in range(10)]
    with pytest.raises(SourceError, match="suspiciously more"):
        open_source(tarred(members, "tar.gz"))
    assert len(open_source(tarred(members, "tar"))) == 10


def test_a_header_that_claims_gigabytes(tarred, png, tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    path = tmp_path / "long.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(SourceError, match="truncated or damaged"):
        open_source(path)


def test_a_compressed_header_that_unpacks_to_much(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 32 << 20
    path = tmp_path / "long.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size), 1))
    with pytest.raises(SourceError, match="a header claims 33,554,432 bytes"):
        open_source(path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_truncation_is_a_source_error(tarred, png, ending):
    path = tarred([("a.png", png), ("b.png", png)], ending)
    data = path.read_bytes()
    end = data.rstrip(b"\0")
    lengths = range(0, len(data), 97) if ending == "tar" else range(len(data))
    for length in lengths:
        if ending == "tar" and length >= -(-len(end) // 512) * 512 + 512:
            break  # the mark that ends a tar is there; the rest is padding
        path.write_bytes(data[:length])
        with pytest.raises(SourceError):
            open_source(path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_flipped_byte_is_an_error_or_harmless(tarred, png, ending):
    path = tarred([("a.png", png), ("b.png", png)], ending)
    data = path.read_bytes()
    for at in range(0, len(data), every(61, 13) if ending == "tar" else every(3)):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        try:
            source = open_source(path)
        except SourceError:
            continue
        for batch in source.batches(SMALL):
            assert len(batch.images) + len(batch.failures) == len(batch.rows)


def test_a_damaged_header_does_not_end_the_archive(tarred, png):
    path = tarred([("a.png", png), ("b.png", png), ("c.png", png)], fmt=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[data.index(b"b.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="truncated or damaged"):
        open_source(path)


def test_a_tar_cut_short_after_listing(tarred, png):
    path = tarred([("a.png", png)])
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match="ends within this member"):
        source.load(0, SMALL)


def test_no_member_is_an_image(tarred):
    for members in ([], [("notes.txt", b"x")]):
        for ending in ("tar", "tar.gz"):
            with pytest.raises(SourceError, match="this tar holds no image"):
                open_source(tarred(members, ending))


def test_something_else_that_is_compressed(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 99))
    with pytest.raises(SourceError, match="this tar is truncated or damaged"):
        open_source(path)


@pytest.mark.parametrize("where", ["write", "TemporaryFile"])
def test_a_full_temporary_disk(tarred, png, monkeypatch, where):
    path = tarred([("a.png", png)], "tar.gz")

    class Full(io.BytesIO):
        def write(self, _data):
            raise OSError(28, "No space left on device")

    def make(**_options):
        if where == "write":
            return Full()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", make)
    with pytest.raises(SourceError, match=r"no space left on device; set TMPDIR"):
        open_source(path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_tars_pickle(tarred, as_file, ending):
    source = open_source(tarred([("b.png", shade(as_file, 2)), ("a.png", shade(as_file, 1))], ending))
    again = pickle.loads(pickle.dumps(source))
    assert again.entries == source.entries
    assert [again.load(i, SMALL).max() for i in (0, 1)] == [1, 2]


# What GNU tar reads


ZST = pytest.importorskip("zstandard")
PACKED = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": lambda data: ZST.ZstdCompressor().compress(data)}


def streamed(data):
    """Names and largest values of the images of a tar through a pipe."""
    batches = list(TarStream(io.BytesIO(data)).batches(SMALL))
    assert not any(batch.failures for batch in batches)
    return [(n, int(image.max())) for batch in batches for n, image in zip(batch.names, batch.images, strict=True)]


def listed(path):
    source = open_source(path)
    return [(entry.name, int(source.load(i, SMALL).max())) for i, entry in enumerate(source.entries)]


@pytest.fixture
def parts(tarred, as_file):
    """Three tars of an image each."""
    return [tarred([(f"{c}/1.png", shade(as_file, i))], name=c).read_bytes() for i, c in enumerate("abc")]


@pytest.mark.parametrize("ending", PACKED)
def test_tars_that_are_joined_are_read_to_the_last(parts, tmp_path, ending):
    path, pack = tmp_path / f"all.{ending}", PACKED[ending]
    for data in (pack(b"".join(parts)), b"".join(map(pack, parts)), pack(bytes(512).join(parts))):
        path.write_bytes(data)
        assert listed(path) == streamed(data) == [("a/1.png", 0), ("b/1.png", 1), ("c/1.png", 2)]


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("junk", [b"junk" * 128, bytes(99), b"junk"])
def test_behind_a_tar_anything_may_stand_but_a_damaged_one(parts, tmp_path, ending, junk):
    path, pack = tmp_path / f"all.{ending}", PACKED[ending]
    path.write_bytes(pack(parts[0] + junk))
    assert listed(path) == streamed(path.read_bytes()) == [("a/1.png", 0)]
    if len(junk) == 512:
        path.write_bytes(pack(junk.join(parts)))
        with pytest.raises(SourceError, match="between the tars"):
            open_source(path)


@pytest.mark.parametrize("ending", PACKED)
def test_a_tar_without_the_mark_at_its_end_is_read(tarred, as_file, tmp_path, ending):
    data = tarred([("a/1.png", shade(as_file, 1)), ("b/1.png", shade(as_file, 2))]).read_bytes().rstrip(b"\0")
    data = PACKED[ending](data + bytes(-len(data) % 512))
    path = tmp_path / f"x.{ending}"
    path.write_bytes(data)
    assert listed(path) == streamed(data) == [("a/1.png", 1), ("b/1.png", 2)]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_hard_link_is_the_image_before_it(tarred, as_file, ending):
    members = [("./b/1.png", shade(as_file, 7)), special("a/2.png", tarfile.LNKTYPE, "/b/1.png")]
    members.append(special("a/3.png", tarfile.LNKTYPE, "a/2.png"))
    path = tarred(members, ending)
    assert listed(path) == [("a/2.png", 7), ("a/3.png", 7), ("b/1.png", 7)]
    data = path.read_bytes()
    (batch,) = TarStream(io.BytesIO(data)).batches(SMALL)
    assert batch.names == ("b/1.png", "a/2.png", "a/3.png")
    assert (batch.images == 7).all()


def test_a_hard_link_to_an_image_long_gone_by_in_a_stream_is_refused(tarred, as_file, monkeypatch):
    first = shade(as_file, 7)
    members = [("b/1.png", first), ("b/2.png", shade(as_file, 8)), special("a/2.png", tarfile.LNKTYPE, "b/1.png")]
    monkeypatch.setattr("stochcl.data.tar.RECENT_BYTES", len(first) + 10)
    (batch,) = TarStream(io.BytesIO(tarred(members).read_bytes())).batches(SMALL)
    assert batch.names == ("b/1.png", "b/2.png")
    assert [f.name for f in batch.failures] == ["a/2.png"]
    assert "`tar --hard-dereference`" in batch.failures[0].reason


def test_a_leading_slash_is_stripped(tarred, as_file):
    path = tarred([("/photos/cat/1.png", shade(as_file, 7))])
    assert listed(path) == streamed(path.read_bytes()) == [("photos/cat/1.png", 7)]


@pytest.mark.skipif(shutil.which("tar") is None or sys.platform != "linux", reason="needs GNU tar")
@pytest.mark.parametrize(
    "sparse", [["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
@pytest.mark.parametrize("mode", ["-cf", "-czf"])
def test_sparse_members_are_read(tmp_path, rng, sparse, mode):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.zeros((300, 300, 3), np.uint8)  # a plain bitmap is mostly holes
    pixels[100], pixels[200:203] = rng.integers(0, 255, (300, 3)), 9
    with (folder / "a.ppm").open("wb") as file:
        file.write(b"P6 300 300 255\n")
        for row in pixels:
            if row.any():
                file.write(row.tobytes())
            else:
                file.seek(row.size, os.SEEK_CUR)
        file.truncate()
    (folder / "b.ppm").write_bytes(b"P6 1 1 255\nabc")
    path = tmp_path / "a.tar"
    subprocess.run(["tar", mode, path, "--sparse", *sparse, "-C", folder, "a.ppm", "b.ppm"], check=True)
    assert path.stat().st_size < pixels.nbytes / 2
    source = open_source(path)
    assert names(source) == ["a.ppm", "b.ppm"]
    assert not source.rejected
    assert [source._read(i) for i in (0, 1)] == [(folder / name).read_bytes() for name in ("a.ppm", "b.ppm")]
    whole = Preprocess(300)
    np.testing.assert_array_equal(source.load(0, whole), pixels)
    (batch,) = TarStream(io.BytesIO(path.read_bytes())).batches(whole)
    np.testing.assert_array_equal(batch.images[0], pixels)


def test_a_sparse_map_that_lies_costs_its_image(tarred, as_file):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.map": "5,9999,0,1", "GNU.sparse.size": "100", "GNU.sparse.name": "a.png"}
    source = open_source(tarred([(info, b"x" * 600), ("b.png", shade(as_file, 3))]))
    assert names(source) == ["b.png"]
    assert "map is damaged" in source.rejected[0].reason


def test_every_truncation_of_a_zstandard_tar(tarred, png, tmp_path):
    data = PACKED["tar.zst"](tarred([("a.png", png), ("b.png", png)]).read_bytes())
    path = tmp_path / "a.tar.zst"
    for whole in (b"", data):
        for length in range(1, len(data), 3):
            path.write_bytes(whole + data[:length])
            with pytest.raises(SourceError):
                open_source(path)


def test_what_to_install_for_zstandard(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.zst"
    path.write_bytes(PACKED["tar.zst"](bytes(1024)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"stochcl\[zstd\]"):
        open_source(path)
    with pytest.raises(MissingExtraError, match=r"stochcl\[zstd\]"):
        list(TarStream(io.BytesIO(path.read_bytes())).batches(SMALL))
