"""Compressing to a folder of shards, and reading the folder as one archive."""

import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest

import stochcl
from stochcl.api import archives, evaluate, shards
from stochcl.api.compress import CompressOptions
from stochcl.compress import FolderArchive
from stochcl.errors import ChecksumMismatch, FormatError, ImageError, OutputError, SourceError, UsageError
from tests.making import write_images

PER_SHARD = 8


def compress(codec, source, folder, model="tiny", *, run=None, shard_images=PER_SHARD, **options):
    return shards.compress_to_folder(
        codec, [source], folder, CompressOptions(**options), model=str(model), shard_images=shard_images, run=run
    )


@pytest.fixture
def photos(tmp_path):
    """Images of one's own, some of which are bad."""
    folder = write_images(tmp_path / "photos", per_class=7)
    (folder / "cats" / "03.jpg").write_bytes(b"bad")
    (folder / "dogs" / "00.png").write_bytes(b"")
    (folder / "lost.png").symlink_to("nowhere")
    return folder


@pytest.fixture
def folder(codec, photos, tmp_path):
    compress(codec, photos, tmp_path / "codes")
    return tmp_path / "codes"


@pytest.fixture
def whole(codec, photos, tmp_path):
    codec.compress(photos, tmp_path / "whole.bin")
    return stochcl.open(tmp_path / "whole.bin")


def test_a_folder_reads_as_the_one_archive_does(folder, whole):
    with stochcl.open(folder) as archive:
        assert isinstance(archive, FolderArchive)
        assert len(archive) == len(whole) == 19
        assert archive.names == tuple(whole.names)
        assert archive.labels == tuple(whole.labels)
        assert archive.skipped == whole.skipped
        assert archive.source_bytes == whole.source_bytes
        np.testing.assert_array_equal(archive.to_numpy(), whole.to_numpy())
        np.testing.assert_array_equal(archive.to_vectors(), whole.to_vectors())
        for rows in (0, -1, 12, slice(5, 14), slice(None, None, -3), [18, 0, 7, 7, 8], []):
            a, b = archive[rows], whole[rows]
            np.testing.assert_array_equal(a.symbols(), b.symbols())
            assert (a.names, a.labels) == (b.names, b.labels)
        with pytest.raises(IndexError, match="no row 19"):
            archive[19]
        assert sorted(name for codes in archive.iter_shuffled(1, rows=4, blocks=2) for name in codes.names) == sorted(
            whole.names
        )
        assert sum(archive.parts().values()) == archive.size == sum(p.stat().st_size for p in folder.iterdir())
        names = archive.names
    assert names[11] == whole.names[11]  # also when it is closed


def test_shards_are_ordinary_archives_and_nothing_else_is_left(folder):
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".tables") == [
        "manifest.json", "shard-00000.bin", "shard-00001.bin", "shard-00002.bin",
    ]  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [shard["images"] for shard in manifest["shards"]] == [6, 8, 5]
    assert manifest["images"] == 19
    tables = list(folder.glob("*.tables"))
    assert manifest["tables"] == tables[0].name  # a model that does not come with the package
    with stochcl.Archive(folder / "shard-00001.bin", tables=tables) as archive:
        assert len(archive) == 8


def test_it_is_pickled_and_survives_it(folder):
    with stochcl.open(folder) as archive:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(archive))[3:5].symbols(), archive[3:5].symbols())
        pickled = pickle.dumps(archive)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"model": "tiny"', b'"model": "tony"'))
    with pytest.raises(FormatError, match="another folder"):
        pickle.loads(pickled)


def test_merging_a_folder_gives_the_one_archive_with_its_tables(folder, whole, tmp_path):
    edit = archives.merge([folder], tmp_path / "merged.bin")
    assert edit.report.images == 19
    with stochcl.open(tmp_path / "merged.bin") as archive:
        assert archive.external_bytes == 0
        assert archive.names == tuple(whole.names)
        assert archive.skipped == whole.skipped
        np.testing.assert_array_equal(archive.to_numpy(), whole.to_numpy())
        archive.verify()
    archives.merge([folder, tmp_path / "merged.bin"], tmp_path / "twice.bin")
    assert len(stochcl.open(tmp_path / "twice.bin")) == 38


def test_the_order_does_not_depend_on_who_is_done_first(codec, photos, folder, tmp_path):
    def backwards(plan, numbers, codec, source):
        return list(shards.run_here(plan, numbers[::-1], codec, source))

    compress(codec, photos, tmp_path / "other", run=backwards)
    for path in folder.iterdir():
        assert (tmp_path / "other" / path.name).read_bytes() == path.read_bytes()


def test_verify_finds_what_is_damaged_missing_or_exchanged(folder):
    stochcl.open(folder).verify()
    shard = folder / "shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ChecksumMismatch, match=r"shard-00001\.bin: its SHA-256"):
        stochcl.open(folder).verify()
    shutil.copy(folder / "shard-00002.bin", shard)
    with pytest.raises(FormatError, match="manifest says"):
        stochcl.open(folder)[9]
    shard.unlink()
    with pytest.raises(SourceError, match=r"shard-00001\.bin"):
        stochcl.open(folder).verify()
    assert len(stochcl.open(folder)[:6]) == 6  # those before it are still there


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"schema": "stochcl.folder/9"}, "schema"),
        (lambda m: m | {"images": 20}, "20 images"),
        (lambda m: m | {"shards": []}, "no shard"),
        (lambda m: m | {"shards": [m["shards"][0] | {"file": "../x.bin"}]}, "not a file of the folder"),
        (lambda m: m | {"shards": [m["shards"][0] | {"images": -1}]}, "images"),
        (lambda m: m | {"shards": [m["shards"][0] | {"more": 1}]}, "not a manifest"),
        (lambda m: m | {"skipped": 3}, "not a manifest"),
        (lambda m: [m], "not a manifest"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, change, said):
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=said):
        stochcl.open(folder)


def test_a_folder_without_a_manifest_is_not_an_archive(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(SourceError, match="has no manifest"):
        stochcl.open(folder)


def stopping_after(count):
    def run(plan, numbers, codec, source):
        for number in numbers[:count]:
            yield number, shards.make_shard(plan, number, codec, source)
        raise KeyboardInterrupt

    return run


def counting(made):
    def run(plan, numbers, codec, source):
        made.extend(numbers)
        return shards.run_here(plan, numbers, codec, source)

    return run


def test_a_rerun_makes_only_what_is_not_finished(codec, photos, folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compress(codec, photos, out, run=stopping_after(2))
    with pytest.raises(SourceError):
        stochcl.open(out)
    (out / ".work-killed").mkdir()
    (out / "shard-00001.bin").write_bytes(b"half")  # a disk that failed
    made = []
    report = compress(codec, photos, out, run=counting(made))
    assert made == [1, 2]
    assert (report.images, report.encoded) == (19, 13)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in folder.iterdir())
    for path in folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    compress(codec, photos, out, run=counting(made))
    assert made == [1, 2]  # all of it was there


def test_a_second_run_into_the_folder_continues_and_says_so(codec, photos, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "3 of them from an earlier run" in compress(codec, photos, folder).notes[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UsageError, match="this is a folder of shards; pass the shard_images"):
        codec.compress(photos, folder)


def test_a_full_disk_names_the_shard_and_what_to_do(codec, photos, folder, tmp_path, monkeypatch):
    def fsync(descriptor):
        if list(tmp_path.glob("out/shard-00000.bin")):  # the first is complete
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"no space .* complete shards are kept: free .* repeat") as raised:
        compress(codec, photos, tmp_path / "out")
    assert ".work" not in str(raised.value)
    assert "resume" not in str(raised.value)
    monkeypatch.undo()
    assert "1 of them from an earlier run" in compress(codec, photos, tmp_path / "out").notes[0]


def test_a_second_run_into_the_folder_is_refused_while_the_first_runs(codec, photos, folder, tmp_path):
    def second(plan, numbers, codec, source):
        with pytest.raises(OutputError, match="is writing to it"):
            compress(codec, photos, tmp_path / "out", force=True)
        return shards.run_here(plan, numbers, codec, source)

    compress(codec, photos, tmp_path / "out", run=second)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in folder.iterdir())


def test_another_request_is_refused_unless_forced(codec, photos, folder, images):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="another source"):
        compress(codec, images, folder)
    with pytest.raises(UsageError, match=r"another model, latents"):
        compress(codec, photos, folder, latents=16)
    with pytest.raises(UsageError, match="another shard_images"):
        compress(codec, photos, folder, shard_images=4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    report = compress(codec, photos, folder, latents=16, shard_images=12, force=True)
    assert report.latents == 16
    assert len(list(folder.glob("shard-*.bin"))) == 2
    stochcl.open(folder).verify()


def test_what_is_not_a_folder_of_codes_is_left_alone(codec, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="holds other files"):
        compress(codec, photos, tmp_path / "mine", force=True)
    with pytest.raises(UsageError, match="this is a file"):
        compress(codec, photos, tmp_path / "mine" / "thesis.txt", force=True)
    with pytest.raises(UsageError, match="source lies in this folder"):
        compress(codec, photos, tmp_path, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_strict_stops_and_nothing_readable_is_an_error(codec, photos, tmp_path):
    with pytest.raises(ImageError, match="strict"):
        compress(codec, photos, tmp_path / "a", strict=True)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of its images can be read; the first is a\.png"):
        compress(codec, bad, tmp_path / "b")
    with pytest.raises(UsageError, match="rate"):
        compress(codec, photos, tmp_path / "c", rate=10)


def test_a_shard_of_bad_images_only_is_empty(codec, photos, tmp_path):
    compress(codec, photos, tmp_path / "codes", shard_images=1)
    with stochcl.open(tmp_path / "codes") as archive:
        assert len(archive) == 19
        assert {shard.images for shard in archive.manifest.shards} == {0, 1}
        archive.verify()
    archives.merge([tmp_path / "codes"], tmp_path / "merged.bin")


def test_a_matrix_is_cut_by_rows(tmp_path, rng):
    from tests.making import make_head

    vectors = rng.normal(size=(50, 12)).astype(np.float32)
    vectors[20] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    head = stochcl.load(make_head(tmp_path / "head.safetensors", vectors[:20]), device="cpu")
    compress(head, tmp_path / "v.npy", tmp_path / "codes", shard_images=16)
    head.compress(tmp_path / "v.npy", tmp_path / "whole.bin")
    with stochcl.open(tmp_path / "codes") as archive, stochcl.open(tmp_path / "whole.bin") as whole:
        assert archive.names == tuple(whole.names)
        assert archive.skipped == whole.skipped
        np.testing.assert_array_equal(archive.to_numpy(), whole.to_numpy())


def test_evaluating_info_and_decompressing_take_a_folder(folder, whole, tmp_path):
    report = archives.info(folder)
    assert (report.images, sum(report.parts.values())) == (19, report.bytes)
    found, _ = evaluate.evaluate(folder, folds=3)
    assert found.score == evaluate.evaluate(whole._reader.path, folds=3)[0].score
    assert archives.decompress(folder, tmp_path / "a.npz").rows == 19


def test_a_data_loader_takes_a_folder(folder, whole):
    from stochcl.torch import CodesDataset

    dataset = CodesDataset(folder, output="symbols")
    assert len(dataset) == 19
    np.testing.assert_array_equal(np.asarray(dataset[12][0]), whole[12].symbols()[0])
