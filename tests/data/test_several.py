"""Several sources as one, patterns of shards, and lists of files."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from stochcl.data import Preprocess, open_list, open_source, open_sources
from stochcl.data import access as files
from stochcl.data.open import expand, read_list
from stochcl.errors import SourceError, UsageError

SMALL = Preprocess(16, "crop")


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{1..0}/{0..1}", ["1/0", "1/1", "0/0", "0/1"]),
        ("plain{}.tar", ["plain{}.tar"]),
    ],
)
def test_numbers_are_written_out_as_bash_does(pattern, paths):
    assert [str(path) for path in expand(pattern)] == paths


def test_a_star_stands_for_the_files_that_are_there(tmp_path):
    for name in ("b10.tar", "b9.tar", "a.tar", ".b.tar"):
        (tmp_path / name).write_bytes(b"")
    assert expand(tmp_path / "b*.tar") == [tmp_path / "b10.tar", tmp_path / "b9.tar"]
    assert expand(tmp_path / "b{9..10}*") == [tmp_path / "b9.tar", tmp_path / "b10.tar"]
    assert expand(tmp_path / "c*") == [tmp_path / "c*"]
    assert expand("https://example.org/*.tar") == ["https://example.org/*.tar"]
    (tmp_path / "b*.tar").write_bytes(b"")
    assert expand(tmp_path / "b*.tar") == [tmp_path / "b*.tar"]


def test_a_name_that_is_there_is_no_pattern(tmp_path):
    path = tmp_path / "a{1..2}.tar"
    path.write_bytes(b"")
    assert expand(path) == [path]
    with pytest.raises(UsageError, match="at most 1,000,000"):
        expand("{0..1000000}.tar")


@pytest.fixture
def shards(tmp_path, pixels, as_file):
    for k in range(3):
        with tarfile.open(tmp_path / f"s-{k:03d}.tar", "w:gz" if k == 1 else "w") as archive:
            for i in (2, 0, 1):
                data = as_file(pixels(12 + i, 12 + k))
                info = tarfile.TarInfo(f"class{i}/{k}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return tmp_path / "s-{000..002}.tar"


@pytest.mark.parametrize("kept_open", [256, 1])
def test_shards_are_read_one_after_the_other(shards, monkeypatch, kept_open):
    monkeypatch.setattr(files, "most_open", lambda: kept_open)
    source = pickle.loads(pickle.dumps(open_sources([shards])))
    assert [entry.name for entry in source.entries] == [f"class{i}/{k}.png" for k in range(3) for i in range(3)]
    assert source.kind == "tar"
    images = np.concatenate([batch.images for batch in source.batches(SMALL, batch_size=4, workers=2)])
    single = [open_source(path) for path in expand(shards)]
    np.testing.assert_array_equal(images, [one.load(i, SMALL) for one in single for i in range(3)])


def test_a_shard_that_is_missing_is_named(shards):
    with pytest.raises(SourceError, match=r"s-003\.tar: there is no such file"):
        open_sources([str(shards).replace("002", "003")])


def test_image_files_among_several_are_named_as_they_are_given(tree, png, monkeypatch):
    folder = tree({"a/1.png": png, "b/1.png": png})
    monkeypatch.chdir(folder)
    assert [entry.name for entry in open_sources(["a/1.png", "b/1.png"]).entries] == ["a/1.png", "b/1.png"]


def test_embeddings_are_not_read_with_others(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "images.npy", np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="these are embeddings"):
        open_sources([tmp_path / "images.npy", tmp_path / "a.npy"])


def test_a_list_keeps_its_order_and_names_what_it_cannot_read(tree, png):
    folder = tree({"b/1.png": png, "a/2.png": png, "c.png": b"no image"})
    listed = ["./b/1.png", str(folder / "a" / "2.png"), "gone.png", "c.png", "../up.png"]
    source = open_list(io.BytesIO("\0".join(listed).encode()), folder=folder)
    assert [entry.name for entry in source.entries] == ["b/1.png", "a/2.png", "c.png"]
    assert [failure.name for failure in source.rejected] == ["gone.png", "../up.png"]
    (batch,) = source.batches(SMALL)
    assert (batch.names, [failure.name for failure in batch.failures]) == (("b/1.png", "a/2.png"), ["c.png"])


def test_separators_are_known_or_told():
    assert read_list(io.BytesIO(b"a\r\n\nb\xff")) == ["a", "b\udcff"]
    assert read_list(io.BytesIO(b"a\nb\0")) == ["a\nb"]
    assert read_list(io.BytesIO(b"a\nb"), null=True) == ["a\nb"]


@pytest.mark.parametrize(("data", "said"), [(b"\n", "list of files is empty"), (b"gone.png", "gone.png: it cannot")])
def test_a_list_of_nothing_is_refused(tmp_path, data, said):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        open_list(tmp_path / "list", folder=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_in_any_encoding_that_editors_write(encoding, end):
    text = "".join(f"{name}{end}" for name in ("a/süß.png", "b/2.png"))
    data = (("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding)
    assert read_list(io.BytesIO(data)) == ["a/süß.png", "b/2.png"]


def test_half_of_a_list_in_utf_16_is_refused():
    with pytest.raises(SourceError, match="UTF-8"):
        read_list(io.BytesIO("a.png".encode("utf-16")[:-1]))
    for unmarked in ("utf-16-be", "utf-16-le"):
        with pytest.raises(SourceError, match="UTF-16 without a byte order mark"):
            read_list(io.BytesIO("a.png\nb.png\n".encode(unmarked)))
    assert read_list(io.BytesIO(b"a\0b\0c\0d\0"), null=True) == ["a", "b", "c", "d"]


def test_paths_of_a_list_may_lead_out_of_the_folder(tree, png, monkeypatch):
    folder = tree({"x/cat/1.png": png, "here/dog/2.png": png, "dog/3.png": png})
    monkeypatch.chdir(folder / "here")
    (folder / "list").write_text("../x/cat/1.png\ndog/2.png\n../here/../dog/3.png\n")
    source = open_list(folder / "list")
    assert [entry.name for entry in source.entries] == ["x/cat/1.png", "dog/2.png", "dog/3.png"]
    assert source.load(0, SMALL).shape == (16, 16, 3)
    assert not source.rejected
