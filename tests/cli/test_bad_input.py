"""Every bad input, end to end: one clear sentence, the right exit code, nothing lost and nothing half-written."""

import io
import os
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.making import make_pixels

PIXELS = make_pixels(1, size=32)[:, :32]


def encoded(kind="PNG", image=None, **options):
    out = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(out, kind, **options)
    return out.getvalue()


PNG, JPEG = encoded(), encoded("JPEG")


def png_of(width, height):
    """A PNG that claims so many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:12] + head + struct.pack(">I", zlib.crc32(head)) + PNG[33:]


def zipped(path, members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # one name twice is wanted here
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def claiming(name, size):
    """The header of a tar's member of so many bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


def folder_of(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def linked(path, target):
    path.symlink_to(target)
    return path


def saved(path, array, **options):
    np.save(path, array, **options)
    return path


SOURCES = {
    "no such source": (lambda t: t / "nowhere", 1, "there is no such file or folder."),
    "a name longer than any file's": (lambda t: t / ("x" * 300), 1, "it cannot be read: file name too long."),
    "an empty folder": (lambda t: folder_of(t / "empty", {"a/.keep": b""}), 1, "this folder holds no image; images"),
    "a folder without an image": (lambda t: folder_of(t / "docs", {"a.txt": b"x"}), 1, "this folder holds no image"),
    "a folder of bad images only": (
        lambda t: folder_of(t / "bad", {"a.jpg": b"", "b.jpg": b"x"}), 1,
        "none of its images can be read; the first is a.jpg: the file is empty (0 bytes).",
    ),
    "an empty file": (lambda t: written(t / "a.jpg", b""), 1, "this file is empty (0 bytes)."),
    "a text": (lambda t: written(t / "a.txt", b"words"), 1, "this is not a source of images or embeddings; give a"),
    "a text called .jpg": (
        lambda t: written(t / "a.jpg", b"words"), 1,
        "none of its images can be read; the first is a.jpg: it is not an image in a format that is read here",
    ),
    "a text called .zip": (lambda t: written(t / "a.zip", b"words"), 1, "this zip is truncated or damaged"),
    "half a zip": (
        lambda t: written(t / "b.zip", zipped(t / "a.zip", [("a.png", PNG)]).read_bytes()[:-30]), 1,
        "this zip is truncated or damaged",
    ),
    "half a tar": (
        lambda t: written(t / "b.tar", tarred(t / "a.tar", [("a.png", PNG)]).read_bytes()[:700]), 1,
        "this tar is truncated or damaged",
    ),
    "a tar that claims a terabyte": (
        lambda t: written(t / "a.tar", claiming("a.png", 1 << 40)), 1, "this tar is truncated or damaged",
    ),
    "a zip of bad names only": (
        lambda t: zipped(t / "a.zip", [("../a.png", PNG)]), 1,
        "none of the 1 images in this zip can be read; the first is ../a.png: the name climbs out",
    ),
    "a zip without an image": (lambda t: zipped(t / "a.zip", [("a.txt", b"x")]), 1, "this zip holds no image"),
    "a loop of links": (lambda t: linked(t / "a", t / "a"), 1, "it cannot be read: too many levels of symbolic"),
    "a broken link": (lambda t: linked(t / "a", t / "b"), 1, "there is no such file or folder."),
    "a device": (lambda t: linked(t / "a", "/dev/null"), 1, "this is neither a file nor a folder."),
    "a pickle called .npy": (
        lambda t: saved(t / "a.npy", np.array([{}]), allow_pickle=True), 1,
        "this array holds Python objects (a pickle), which are never loaded",
    ),
    "half a .npy": (
        lambda t: written(t / "b.npy", saved(t / "a.npy", PIXELS[None]).read_bytes()[:-9]), 1,
        "this .npy file is truncated or damaged",
    ),
    "images as floats": (lambda t: saved(t / "a.npy", PIXELS[None] / 255), 1, "images are uint8, 0 to 255"),
    "channels first": (
        lambda t: saved(t / "a.npy", PIXELS[None].transpose(0, 3, 1, 2)), 1,
        "transpose it with .transpose(0, 2, 3, 1)",
    ),
    "embeddings": (
        lambda t: saved(t / "e.npy", np.zeros((7, 5), np.float32)), 2,
        "these are embeddings (7 x 5), and the model tiny takes images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
@pytest.mark.parametrize("force", [False, True], ids=["", "over an existing archive"])
def test_a_source_that_cannot_be_compressed(refused, model, tmp_path, case, force):
    make, code, message = SOURCES[case]
    source, out = make(tmp_path), tmp_path / "out" / "codes.bin"
    out.parent.mkdir()
    if force:
        out.write_bytes(b"precious")
    said = refused("compress", source, "-m", model, "-o", out, *["--force"] * force, code=code)
    assert said.startswith(f"{source}: ")
    assert message in said
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"precious"] * force


def test_embeddings_are_told_the_training_command(refused, model, tmp_path):
    source = saved(tmp_path / "e.npy", np.zeros((7, 5), np.float16))
    said = refused("compress", source, "-m", model, "-o", tmp_path / "codes.bin", code=2)
    assert f"`stochcl train {source} -o head.safetensors --rate 64`" in said
    assert "-m" in said


HEAD = "the image is truncated or damaged"
SKIPPED = {
    "empty.png": (b"", "the file is empty (0 bytes)"),
    "text.jpg": (b"not an image", "it is not an image in a format that is read here"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], HEAD),
    "cut.png": (PNG[: len(PNG) // 2], HEAD),
    "head only.png": (PNG[:40], "it is not an image in a format that is read here, or its beginning is damaged"),
    "damaged.png": (PNG[:60] + bytes(20) + PNG[80:], HEAD),
    "bomb.png": (png_of(50_000, 50_000), "it has more than 178,956,970 pixels"),
    "flat bomb.png": (png_of(2_000_000_000, 1), "it has more than 178,956,970 pixels"),
    "runs a program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not an image in a format"),
}


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_image_that_cannot_be_read_is_named_and_skipped(run, model, tmp_path, name, kind):
    data, reason = SKIPPED[name]
    members = {"a/good.png": PNG, f"b/{name}": data}
    make = {"folder": folder_of, "zip": lambda p, m: zipped(p, m.items()), "tar": lambda p, m: tarred(p, m.items())}
    source = make[kind](tmp_path / f"images.{kind}", members)
    result = run("compress", source, "-m", model, "-o", tmp_path / "codes.bin")
    assert result.stderr.startswith(f"skipped b/{name}: {reason}")
    assert result.stderr.count("\n") == 1
    assert result.stdout.startswith(f"{tmp_path / 'codes.bin'}: 1 image, ")
    assert "  skipped    1 image that could not be read\n" in result.stdout


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_would_climb_out_are_named_and_nothing_is_unpacked(run, model, tmp_path, kind):
    reasons = {"../up.png": "climbs", "a/../../up.png": "climbs"}
    if kind == "zip":  # tar takes a leading / away, as GNU tar does
        reasons["/abs.png"] = "absolute"
    make = zipped if kind == "zip" else tarred
    source = make(tmp_path / f"a.{kind}", [(name, PNG) for name in [*reasons, "ok.png"]])
    (tmp_path / "out").mkdir()
    result = run("compress", source, "-m", model, "-o", tmp_path / "out" / "codes.bin")
    lines = dict(line.removeprefix("skipped ").split(": ") for line in result.stderr.splitlines())
    assert set(lines) == set(reasons)
    assert all(reasons[name] in reason for name, reason in lines.items())
    assert {p.name for p in tmp_path.rglob("*.*")} == {source.name, "codes.bin"}


def lying_zip(path):
    """A zip whose member of 50 MB says that it has 10 bytes."""
    data = bytearray(zipped(path, [("bomb.png", bytes(50_000_000)), ("good.png", PNG)]).read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)
    return written(path, data)


def test_a_bomb_in_a_zip_is_not_unpacked(run, model, tmp_path):
    result = run("compress", lying_zip(tmp_path / "a.zip"), "-m", model, "-o", tmp_path / "codes.bin")
    assert result.stderr == "skipped bomb.png: the zip member holds more than the 10 bytes it declares\n"


def test_a_bomb_in_a_compressed_tar_is_refused(refused, model, tmp_path, monkeypatch):
    monkeypatch.setattr("stochcl.data.tar.EXPANSION_FLOOR", 1_000_000)
    source = tarred(tmp_path / "a.tar.gz", [("bomb.png", bytes(5_000_000))], "w:gz")
    said = refused("compress", source, "-m", model, "-o", tmp_path / "codes.bin")
    assert said.startswith(f"{source}: the images in this compressed tar take more than 1,000,000 bytes")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_symbolic_links(run, model, tmp_path):
    folder = folder_of(tmp_path / "images", {"a/good.png": PNG})
    outside = folder_of(tmp_path / "outside", {"b.png": PNG})
    for name, target in {
        "link.png": folder / "a" / "good.png", "broken.png": "nowhere", "loop.png": "loop.png", "a/round": folder,
        "elsewhere": outside, "again": folder / "a",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    result = run("compress", folder, "-m", model, "-o", tmp_path / "codes.bin")
    assert sorted(result.stderr.splitlines()) == [
        "skipped a/round: it links to a folder that is read already",
        "skipped again: it links to a folder that is read already",
        "skipped broken.png: it is a broken link",
        "skipped loop.png: it cannot be looked at: too many levels of symbolic links",
    ]
    run("decompress", tmp_path / "codes.bin", "-o", tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as found:
        assert found["names"].tolist() == ["a/good.png", "elsewhere/b.png", "link.png"]


def test_files_and_folders_that_may_not_be_read(run, refused, model, tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops: so the system's answer is made."""
    folder = folder_of(tmp_path / "images", {"good.png": PNG, "secret.png": PNG, "vault/a.png": PNG})
    forbidden = {os.fspath(folder / "secret.png"), os.fspath(folder / "vault")}

    def guard(function):
        def guarded(path, *rest, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path) in forbidden:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path, *rest, **options)

        return guarded

    monkeypatch.setattr(os, "open", guard(os.open))
    monkeypatch.setattr(os, "scandir", guard(os.scandir))
    result = run("compress", folder, "-m", model, "-o", tmp_path / "codes.bin")
    assert sorted(result.stderr.splitlines()) == [
        "skipped secret.png: it cannot be read: permission denied",
        "skipped vault: the folder cannot be read: permission denied",
    ]
    forbidden.add(os.fspath(folder))
    said = refused("compress", folder, "-m", model, "-o", tmp_path / "b.bin")
    assert said == f"{folder}: this folder cannot be read: permission denied."
