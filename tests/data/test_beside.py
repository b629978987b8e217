"""Files that were not taken for images: counted, looked into, or read as the labels of images beside them."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

import stochcl
from stochcl.data import Preprocess, SourceOptions, TarSource, TarStream, open_source
from stochcl.errors import SourceError, UsageError

SMALL = Preprocess(8)


def packed(folder, files, kind):
    """The same files as a folder, a zip, a tar or a compressed tar."""
    if kind == "folder":
        for name, data in files.items():
            (folder / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "x" / name).write_bytes(data)
        return folder / "x"
    path = folder / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


KINDS = ["folder", "zip", "tar", "tar.gz"]


def read(source):
    """Names and labels, as batches have them."""
    batches = list(source.batches(SMALL, batch_size=2))
    return [
        (name, label)
        for batch in batches
        for name, label in zip(batch.names, batch.labels or [None] * len(batch.names), strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_counted_and_looked_into_on_request(tmp_path, png, kind):
    files = {
        "a/1.png": png,
        "a/2.jpg_large": png,
        "a/3": png,
        "a/4.jpg?x=1": png,
        "a/5.bin": b"no image",
        ".h/6": png,
    }
    path = packed(tmp_path, files, kind)
    source = open_source(path)
    assert [name for name, _ in read(source)] == ["a/1.png"]
    (line,) = source.remarks()
    assert "left out 4 files" in line
    assert ".jpg_large" in line
    assert "--any-name" in line
    source = open_source(path, SourceOptions(any_name=True))
    assert [name for name, _ in read(source)] == ["a/1.png", "a/2.jpg_large", "a/3", "a/4.jpg?x=1"]
    assert source.remarks() == []
    if kind.startswith("tar"):
        stream = TarStream(io.BytesIO(path.read_bytes()), options=SourceOptions(any_name=True))
        assert [name for name, _ in read(stream)] == ["a/1.png", "a/2.jpg_large", "a/3", "a/4.jpg?x=1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_without_images_says_what_it_has(tmp_path, png, kind):
    path = packed(tmp_path, {"a/2.jpg_large": png, "b/x": b""}, kind)
    with pytest.raises(SourceError, match=r"no image.*2 files .*any_name"):
        open_source(path)
    if kind == "tar":
        with pytest.raises(SourceError, match="any_name"):
            list(TarStream(io.BytesIO(path.read_bytes())).batches(SMALL))


SAMPLES = {"cls": [b"3\n", b"-1", b"cat"], "txt": ["süß".encode(), b"", b"two words\n"],
           "json": [b'{"label": 4}', b"{}", b'{"class": "dog", "n": null}']}  # fmt: skip
LABELS = {"cls": ["3", "", "cat"], "txt": ["süß", "", "two words"], "json": ["4", "", "dog"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["cls", "txt", "json"])
def test_files_beside_images_are_their_labels(tmp_path, png, kind, ending):
    files = {}
    for i, label in enumerate(SAMPLES[ending]):
        files |= {f"s/{i:04d}.png": png, f"s/{i:04d}.{ending}": label, f"s/{i:04d}.other": b""}
    path = packed(tmp_path, files, kind)
    plain = open_source(path)
    assert read(plain)[0][1] is None
    assert f"--label-files={ending}" in plain.remarks()[0]
    options = SourceOptions(label_files=ending)
    wanted = [(f"s/{i:04d}.png", label) for i, label in enumerate(LABELS[ending])]
    assert read(open_source(path, options)) == wanted
    if kind.startswith("tar"):
        assert read(TarStream(io.BytesIO(path.read_bytes()), options=options)) == wanted


def test_labels_stand_before_images_have_several_and_a_key_of_their_own(tmp_path, png):
    label = json.dumps({"label": "no", "species": "tit"}).encode()
    files = {"0.json": label, "0.seg.png": png, "0.png": png, "1.png": png, "2.json": b"[1]", "2.png": png}
    path = packed(tmp_path, files, "tar")
    options = SourceOptions(label_files="json", label_column="species")
    wanted = [("0.png", "tit"), ("0.seg.png", "tit"), ("1.png", ""), ("2.png", "")]
    assert read(open_source(path, options)) == wanted
    assert sorted(read(TarStream(io.BytesIO(path.read_bytes()), options=options))) == wanted
    with pytest.raises(SourceError, match=r"no image has a label in a \.json file with genus"):
        TarSource(path, SourceOptions(label_files="json", label_column="genus"))


def test_archives_have_the_labels(tmp_path, png, codec):
    files = {f"{i}.{ending}": data for i in range(3) for ending, data in (("png", png), ("cls", b"%d" % (i % 2)))}
    for kind in KINDS:
        codec.compress(packed(tmp_path, files, kind), tmp_path / "a.bin", label_files="cls", force=True)
        with stochcl.open(tmp_path / "a.bin") as archive:
            assert tuple(archive.labels) == ("0", "1", "0")
    report = codec.compress(packed(tmp_path, files, "tar"), tmp_path / "a.bin", force=True)
    assert any("label_files=" in line for line in report.warnings)
    both = [packed(tmp_path, files, "zip"), packed(tmp_path, files, "tar")]
    report = codec.compress(both, tmp_path / "a.bin", label_files="cls", force=True)
    assert any("3 names of one source are in another" in line for line in report.warnings)
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert tuple(archive.labels) == ("0", "1", "0") * 2


def test_another_folder_is_the_label(tmp_path, png, codec):
    folder = packed(tmp_path, {"train/cat/1.png": png, "val/dog/2.png": png, "val/dog/old/3.png": png}, "folder")
    codec.compress(folder, tmp_path / "a.bin", label_level=2)
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert tuple(archive.labels) == ("cat", "dog", "dog")
    codec.compress(folder, tmp_path / "a.bin", label_level=-1, names=False, force=True)
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert (archive.names, tuple(archive.labels)) == (None, ("cat", "dog", "old"))
    with pytest.raises(UsageError, match="label_level"):
        codec.compress(folder, tmp_path / "a.bin", label_level=0, force=True)
    with pytest.raises(UsageError, match="label_files"):
        codec.compress(folder, tmp_path / "a.bin", label_level=2, label_files="cls", force=True)


def test_a_tar_without_its_mark_is_told(tmp_path, png):
    path = packed(tmp_path, {"a/1.png": png, "a/2.png": png}, "tar")
    whole = path.read_bytes()
    cut = whole[: len(whole.rstrip(b"\0")) + -len(whole.rstrip(b"\0")) % 512]
    for data, told in ((whole, False), (cut, True), (cut[: len(cut) // 2], True)):
        stream = TarStream(io.BytesIO(data))
        assert len(read(stream)) >= 1
        assert any("end" in line for line in stream.remarks()) == told
        path.write_bytes(data)
        assert any("end" in line for line in open_source(path).remarks()) == told
    assert np.frombuffer(cut[: len(cut) // 2], np.uint8).size % 512 == 0
