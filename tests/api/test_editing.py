"""append, merge, split and transcode, as a program calls them."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stochcl
from stochcl.api.evaluate import select
from stochcl.codes import Codes
from stochcl.compress import Archive, Writer
from stochcl.compress.append import Appender
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import FormatError, ImageError, LabelsError, ModelMismatch, OutputError, SourceError, UsageError
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.making import make_model, write_images

TABLES = make_tables(12)
ROWS = 60
CODES = make_codes(ROWS, 12, names=make_names(ROWS))


def blocks(path):
    with Archive(path) as archive:
        return [segment.raw().blocks for segment in archive._segments]


def read(path, **options):
    """An archive's rows, after all of it has been checked."""
    with Archive(path, **options) as archive:
        archive.verify()
        return archive[:]


# Append


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", per_class=9)


@pytest.fixture
def some(codec, photos, tmp_path):
    """An archive of the cats only, which go back to the others then."""
    away = {name: photos / name for name in ("dogs", "fische")}
    (tmp_path / "away").mkdir()
    for name, path in away.items():
        path.rename(tmp_path / "away" / name)
    codec.compress(photos, tmp_path / "codes.bin")
    for name, path in away.items():
        (tmp_path / "away" / name).rename(path)
    return tmp_path / "codes.bin"


@pytest.fixture
def small_appends(monkeypatch):
    monkeypatch.setitem(Appender.__init__.__kwdefaults__, "segment_rows", 5)


def test_what_is_not_there_yet_is_added(codec, photos, some, tmp_path):
    told = []
    edit = stochcl.append(some, photos, codec, progress=lambda *args: told.append(args), batch_size=10)
    assert told == [(0, 18), (10, 18), (18, 18)]
    assert edit.before[0] == 9
    assert (edit.report.images, edit.report.encoded) == (27, 18)
    assert edit.to_json("append")["added"] == 18
    assert edit.to_json("append")["there"] == 9
    codec.compress(photos, tmp_path / "whole.bin")
    np.testing.assert_array_equal(read(some).packed, read(tmp_path / "whole.bin").packed)
    assert read(some).names == read(tmp_path / "whole.bin").names
    with Archive(some) as a, Archive(tmp_path / "whole.bin") as b:
        assert a.source_bytes == b.source_bytes
    before = some.read_bytes()
    again = stochcl.append(some, photos, codec)
    assert some.read_bytes() == before
    assert again.facts == {"added": 0, "there": 27}


def test_width_and_names_stay_what_they_are(codec, photos, some, tmp_path):
    stochcl.transcode(some, tmp_path / "narrow.bin", latents=7)
    stochcl.transcode(some, tmp_path / "chosen.bin", select=[30, 2, 5])
    stochcl.append(some, photos, codec)
    for name, columns in (("narrow.bin", range(7)), ("chosen.bin", [2, 5, 30])):
        stochcl.append(tmp_path / name, photos, codec)
        np.testing.assert_array_equal(read(tmp_path / name).symbols(), read(some).symbols()[:, list(columns)])


def test_bad_images_are_skipped_and_tried_again(codec, photos, some):
    (photos / "dogs" / "00.png").rename(photos / "good.png")
    (photos / "dogs" / "00.png").write_bytes(b"bad")
    (photos / "lost.png").symlink_to("nowhere")
    edit = stochcl.append(some, photos, codec)
    assert edit.report.images == 27
    assert [name for name, _ in edit.report.skipped] == ["lost.png", "dogs/00.png"]
    assert edit.skipped == edit.report.skipped
    before = some.read_bytes()
    assert stochcl.append(some, photos, codec).facts["added"] == 0  # still bad: nothing to add, and no error
    assert some.read_bytes() == before
    (photos / "good.png").rename(photos / "dogs" / "00.png")
    edit = stochcl.append(some, photos, codec)
    assert edit.facts["added"] == 1
    assert [name for name, _ in edit.report.skipped] == ["lost.png"]
    dogs = stochcl.append(some, photos / "dogs", codec)  # other names, other images
    assert (dogs.facts["added"], dogs.skipped, len(dogs.report.skipped)) == (9, (), 1)


def test_strict_adds_nothing(codec, photos, some, small_appends):
    before = some.read_bytes()
    (photos / "fische" / "süß" / "07.jpg").write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"süß/07\.jpg: .*strict=True"):
        stochcl.append(some, photos, codec, strict=True, batch_size=3)
    assert some.read_bytes() == before


def test_none_that_can_be_read_is_an_error(codec, photos, some, tmp_path):
    before = some.read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"bad")
    with pytest.raises(SourceError, match="none of its images can be read"):
        stochcl.append(some, tmp_path / "bad", codec)
    assert some.read_bytes() == before


@pytest.mark.parametrize("stop_at", [3, 12, 15])
def test_an_interruption_is_gone_on_with(codec, photos, some, small_appends, stop_at):
    def stop(done, total):
        if done >= stop_at:
            raise KeyboardInterrupt

    before = some.read_bytes()
    stochcl.append(some, photos, codec, batch_size=3)
    whole = some.read_bytes()
    some.write_bytes(before)
    with pytest.raises(KeyboardInterrupt) as caught:
        stochcl.append(some, photos, codec, progress=stop, batch_size=3)
    assert f"done, {stop_at} images, is kept" in caught.value.__notes__[0]
    assert len(read(some)) == 9
    encoded = []
    edit = stochcl.append(some, photos, codec, progress=lambda done, total: encoded.append(done))
    assert encoded[0] == stop_at
    assert edit.facts == {"added": 18, "there": 9}
    assert some.read_bytes() == whole


def test_what_was_interrupted_is_not_gone_on_with_where_the_source_is_another(codec, photos, some, small_appends):
    def stop(done, total):
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stochcl.append(some, photos, codec, progress=stop, batch_size=3)
    (photos / "fische" / "süß" / "07.jpg").unlink()
    encoded = []
    stochcl.append(some, photos, codec, progress=lambda done, total: encoded.append(done))
    assert encoded[0] == 0
    assert len(read(some)) == 26


def test_an_interruption_before_anything_is_done_changes_nothing(codec, photos, some):
    def stop(done, total):
        raise KeyboardInterrupt

    before = some.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        stochcl.append(some, photos, codec, progress=stop, batch_size=3)
    assert some.read_bytes() == before


def test_labels_are_as_in_the_archive(codec, photos, some, tmp_path):
    with pytest.raises(UsageError, match="stores no labels"):
        stochcl.append(some, photos, codec, labels=tmp_path / "labels.csv")
    names = [p.relative_to(photos).as_posix() for p in photos.rglob("*.*g")]
    table = tmp_path / "labels.csv"
    table.write_text("name,label\n" + "".join(f"{name},{name[-5]}\n" for name in names), encoding="utf-8")
    stochcl.transcode(some, tmp_path / "labelled.bin", labels=table)
    with pytest.raises(UsageError, match="it stores labels; give those of the new images with labels"):
        stochcl.append(tmp_path / "labelled.bin", photos, codec)
    stochcl.append(tmp_path / "labelled.bin", photos, codec, labels=table)
    codes = read(tmp_path / "labelled.bin")
    assert codes.labels == tuple(name[-5] for name in codes.names)
    assert len(codes) == 27


def test_uncertainty_is_as_in_the_archive(codec, photos, tmp_path):
    path = tmp_path / "stream.bin"
    with stochcl.writer(path, codec, uncertainty=True) as out:
        out.add(replace(codec.encode([photos / "cats" / "00.png"]), names=("cats/00.png",)))
    stochcl.append(path, photos, codec)
    codes = read(path)
    assert len(codes) == 27
    assert (codes.uncertainty > 0).all()


def test_what_does_not_belong_to_the_archive_is_refused(codec, photos, some, tmp_path):
    before = some.read_bytes()
    other = make_model(tmp_path / "other.safetensors", photos / "dogs")
    with pytest.raises(ModelMismatch, match=r"codes\.bin: it was made by the model tiny .* not by other .* as model"):
        stochcl.append(some, photos, stochcl.load(other, device="cpu"))
    stochcl.transcode(some, tmp_path / "nameless.bin", names=False)
    with pytest.raises(UsageError, match=r"nameless\.bin: its rows have no names .*stochcl merge"):
        stochcl.append(tmp_path / "nameless.bin", photos, codec)
    with Archive(some) as archive:
        for change, said in [
            ({"precision": "fp8"}, "its precision is fp8"),
            ({"preprocess": {}}, "not made squares"),
        ]:
            path = tmp_path / f"{len(said)}.bin"
            with Writer(path, replace(archive.header, **change), archive.tables, embed_tables=True) as out:
                out.add(archive[:1])
            with pytest.raises(UsageError, match=said):
                stochcl.append(path, photos, codec)
    with pytest.raises(SourceError, match="there is no such file"):
        stochcl.append(tmp_path / "missing.bin", photos, codec)
    assert some.read_bytes() == before


def test_images_of_one_name_are_counted(codec, photos, tmp_path):
    import tarfile

    def archive(path, *images):
        with tarfile.open(path, "w") as tar:
            for image in images:
                tar.add(photos / "dogs" / image, "dog.png")
        return path

    path = tmp_path / "codes.bin"
    codec.compress(archive(tmp_path / "1.tar", "00.png"), path)
    assert stochcl.append(path, archive(tmp_path / "2.tar", "00.png", "02.png"), codec).facts["added"] == 1
    np.testing.assert_array_equal(
        read(path).symbols(), codec.encode([photos / "dogs" / "00.png", photos / "dogs" / "02.png"]).symbols()
    )


# Merge and split


def test_merging_and_splitting(tmp_path):
    path = write(tmp_path / "codes.v2.bin", CODES, TABLES, segment_rows=20)
    reports = stochcl.split(path, tmp_path / "parts", rows=20)
    assert [report.images for report in reports] == [20, 20, 20]
    parts = sorted((tmp_path / "parts").iterdir())
    assert [p.name for p in parts] == [f"codes.v2-000{i}.bin" for i in (1, 2, 3)]
    edit = stochcl.merge(parts, tmp_path / "again.bin")
    assert blocks(tmp_path / "again.bin") == blocks(path)
    assert edit.before == (60, sum(p.stat().st_size for p in parts))
    with pytest.raises(UsageError, match=r"codes\.v2-0001\.bin: this file exists already"):
        stochcl.split(path, tmp_path / "parts", parts=7)
    reports = stochcl.split(path, tmp_path / "parts", parts=7, force=True)
    assert [report.images for report in reports] == [8, 9, 8, 9, 8, 9, 9]
    assert Codes.concatenate([read(r.path) for r in reports]).names == CODES.names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either rows"), ({"rows": 1, "parts": 1}, "either rows"), ({"rows": 0}, "rows must be at least 1"),
        ({"parts": 0}, "not 0"), ({"parts": 61}, "it holds 60 rows; ask for 1 to 60 parts, not 61"),
    ],
)  # fmt: skip
def test_splits_that_make_no_sense(tmp_path, options, said):
    path = write(tmp_path / "codes.bin", CODES, TABLES)
    with pytest.raises(UsageError, match=said):
        stochcl.split(path, tmp_path / "parts", **options)
    assert not (tmp_path / "parts").exists()
    write(tmp_path / "empty.bin", CODES[:0], TABLES)
    with pytest.raises(UsageError, match="holds no rows"):
        stochcl.split(tmp_path / "empty.bin", tmp_path / "parts", rows=1)
    with pytest.raises(UsageError, match="this is a file"):
        stochcl.split(path, path, rows=1)


def test_outputs_are_not_replaced_unasked(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    out = tmp_path / "out.bin"
    out.write_bytes(b"precious")
    for verb in (lambda **o: stochcl.merge([a], out, **o), lambda **o: stochcl.transcode(a, out, **o)):
        with pytest.raises(UsageError, match="exists already; pass force=True"):
            verb()
        assert out.read_bytes() == b"precious"
    for verb in (lambda: stochcl.merge([a], a, force=True), lambda: stochcl.transcode(a, a, force=True)):
        with pytest.raises(UsageError, match="would replace the source"):
            verb()
    with pytest.raises(UsageError, match="nothing to merge"):
        stochcl.merge([], out)
    assert stochcl.merge([a], out, force=True).notes == ()
    assert read(out).names == CODES.names
    with pytest.raises(OutputError, match="the folder to write to does not exist"):
        stochcl.transcode(a, tmp_path / "none" / "out.bin")


def test_an_archive_that_is_merged_twice_is_warned_of(tmp_path):
    path = write(tmp_path / "a.bin", CODES, TABLES)
    edit = stochcl.merge([path, tmp_path / "." / "a.bin"], tmp_path / "b.bin")
    assert edit.report.images == 2 * len(CODES)
    assert edit.notes == (f"warning: {path} is given 2 times, and so are its rows",)


# Transcode


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 40), st.integers(1, 9), st.sampled_from([2, 5]), st.integers(1, 12), st.booleans(), st.booleans(),
    st.data(),
)  # fmt: skip
def test_whatever_is_kept_comes_back(tmp_path_factory, rows, latents, alphabet, segment, names, refit, data):
    folder = tmp_path_factory.mktemp("transcode")
    codes = make_codes(rows, latents, alphabet, names=make_names(rows))
    path = write(folder / "a.bin", codes, make_tables(latents, alphabet), segment_rows=segment, skipped=[("x", "y")])
    keep = data.draw(st.sets(st.integers(0, latents - 1), min_size=1), label="keep")
    how = data.draw(st.sampled_from(["latents", "select", "nothing"]), label="how")
    options = {"latents": {"latents": len(keep)}, "select": {"select": list(keep)}, "nothing": {}}[how]
    columns = {"latents": range(len(keep)), "select": sorted(keep), "nothing": range(latents)}[how]
    out = folder / "b.bin"
    stochcl.transcode(path, out, names=names, refit=refit, **options)
    with Archive(out) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols()[:, list(columns)])
        assert archive.skipped == [("x", "y")]
        assert archive.source_bytes == 100 * rows
        if rows:
            assert archive.names == (codes.names if names else None)
        if columns == list(range(len(columns))):
            assert archive.header.selection is None
    if how == "nothing" and not refit:
        assert blocks(out) == blocks(path)


def test_a_selection_of_a_selection_is_by_the_model_s_numbers(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    (tmp_path / "l.json").write_text("[9, 2, 5, 7]")
    stochcl.transcode(a, tmp_path / "b.bin", select=tmp_path / "l.json")
    stochcl.transcode(tmp_path / "b.bin", tmp_path / "c.bin", select=[5, 9])
    stochcl.transcode(tmp_path / "b.bin", tmp_path / "d.bin", latents=2)
    for name, columns in (("b", [2, 5, 7, 9]), ("c", [5, 9]), ("d", [2, 5])):
        with Archive(tmp_path / f"{name}.bin") as archive:
            assert archive.header.selection == tuple(columns)
            np.testing.assert_array_equal(archive.to_numpy(), CODES.symbols()[:, columns])
            assert archive.to_vectors().shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("[1, 1]", UsageError, "selected twice"), ("[12]", UsageError, "does not have latent 12; it has latents 0"),
        ("[-1]", UsageError, "does not have latent -1"), ("[]", UsageError, "a selection must be a list"),
        ("[1.5]", UsageError, "a selection must be a list"), ("[true]", UsageError, "a selection must be a list"),
        ('{"a": 1}', UsageError, "a selection must be a list"), ("[1", SourceError, "not a JSON list"),
        ("[" * 100_000, SourceError, "not a JSON list"), ("\xff", SourceError, "not a JSON list"),
    ],
)  # fmt: skip
def test_selections_that_make_no_sense(tmp_path, text, error, said):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    (tmp_path / "l.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=said):
        stochcl.transcode(a, tmp_path / "b.bin", select=tmp_path / "l.json")
    with pytest.raises(SourceError, match=r"none\.json: the selection cannot be read"):
        stochcl.transcode(a, tmp_path / "b.bin", select=str(tmp_path / "none.json"))
    assert not (tmp_path / "b.bin").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latents": 0}, "keep 1 to 12, not 0"), ({"latents": 13}, "keep 1 to 12, not 13"),
        ({"latents": 1, "rate": 1}, "latents and rate"), ({"select": [1], "rate": 1}, "omit latents and rate"),
        ({"rate": float("nan")}, "more than 0"), ({"rate": -1}, "more than 0"),
        ({"self_contained": True, "external_tables": True}, "contradict each other"),
        ({"rate": 3, "resume": True}, "omit resume=True"), ({"rate": 0.01}, "no width fits"),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense(tmp_path, options, said):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    with pytest.raises(UsageError, match=said):
        stochcl.transcode(a, tmp_path / "b.bin", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("rate", [2.5, 4, 6.5, 9, 100])
def test_a_rate_is_kept_by_the_widest_rung_that_does(tmp_path, rate):
    codes = make_codes(3000, 12)
    a = write(tmp_path / "a.bin", codes, TABLES)
    edit = stochcl.transcode(a, tmp_path / "b.bin", rate=rate)
    kept = edit.report.latents
    assert edit.report.parts["codes"] * 8 / 3000 <= rate
    np.testing.assert_array_equal(read(tmp_path / "b.bin").symbols(), codes.symbols()[:, :kept])
    assert kept in TABLES.ladder
    if kept < 12:
        stochcl.transcode(a, tmp_path / "c.bin", latents=TABLES.ladder[TABLES.ladder.index(kept) + 1])
        with Archive(tmp_path / "c.bin") as archive:
            assert archive.parts()["codes"] * 8 / 3000 > rate
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def correlated(rows, copies=4, groups=12, seed=0):
    """Codes of which all but the first of each group are copies of it, with some noise."""
    rng = np.random.default_rng(seed)
    first = rng.random((rows, groups)) < 0.5
    noise = rng.random((rows, groups, copies)) < 0.03
    return Codes.from_symbols((first[:, :, None] ^ noise).reshape(rows, -1).astype(np.uint8))


def test_refitting_pays_on_correlated_codes_and_is_decoded_by_all(tmp_path):
    codes, tables = correlated(20_000), make_tables(48)
    a = write(tmp_path / "a.bin", codes, tables)
    told = []
    edit = stochcl.transcode(a, tmp_path / "b.bin", refit=True, progress=lambda *args: told.append(args))
    assert told[-1] == (20_000, 20_000)
    np.testing.assert_array_equal(read(tmp_path / "b.bin").packed, codes.packed)
    with Archive(tmp_path / "b.bin") as archive:
        assert {head.model for _, head in archive._index.segments} == {FITTED}
    assert edit.report.bytes < 0.6 * edit.before[1]  # 22 bits of 48 are there
    again = stochcl.transcode(tmp_path / "b.bin", tmp_path / "c.bin", refit=True)
    assert again.report.bytes <= edit.report.bytes + 64 * 2
    narrow = stochcl.transcode(tmp_path / "b.bin", tmp_path / "d.bin", latents=24)
    assert narrow.report.parts["codes"] < 0.6 * edit.report.parts["codes"]
    np.testing.assert_array_equal(read(tmp_path / "d.bin").symbols(), codes.symbols()[:, :24])
    at_rate = stochcl.transcode(tmp_path / "b.bin", tmp_path / "e.bin", rate=12)
    assert at_rate.report.latents > 20


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 400), st.integers(1, 14), st.sampled_from([2, 5]), st.integers(1, 200), st.booleans())
def test_refitting_makes_nothing_larger(tmp_path_factory, rows, latents, alphabet, segment, like):
    folder = tmp_path_factory.mktemp("refit")
    codes = make_codes(rows, latents, alphabet)
    if like:  # all latents the same
        codes = Codes.from_symbols(np.repeat(codes.symbols()[:, :1], latents, axis=1), alphabet=alphabet)
    a = write(folder / "a.bin", codes, make_tables(latents, alphabet), segment_rows=segment)
    segments = -(-rows // segment)
    edit = stochcl.transcode(a, folder / "b.bin", refit=True)
    assert edit.report.bytes <= edit.before[1] + 64 * segments
    np.testing.assert_array_equal(read(folder / "b.bin").packed, codes.packed)


def test_labels_are_stored(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=20)
    table = tmp_path / "l.csv"
    table.write_text("name,label\n" + "".join(f"{name},{i % 5}\n" for i, name in enumerate(CODES.names)))
    labels = tuple(str(i % 5) for i in range(ROWS))
    for name, options in [
        ("b", {}),
        ("c", {"names": False}),
        ("d", {"latents": 4}),
        ("e", {"latents": 4, "rate": None}),
    ]:
        stochcl.transcode(a, tmp_path / f"{name}.bin", labels=table, **options)
        codes = read(tmp_path / f"{name}.bin")
        assert codes.labels == labels
        assert codes.names == (None if name == "c" else CODES.names)
    assert blocks(tmp_path / "b.bin") == blocks(tmp_path / "c.bin") == blocks(a)
    stochcl.transcode(tmp_path / "c.bin", tmp_path / "f.bin", latents=3)
    assert read(tmp_path / "f.bin").labels == labels  # kept without names
    with pytest.raises(LabelsError, match="its rows have no names to find labels by"):
        stochcl.transcode(tmp_path / "c.bin", tmp_path / "g.bin", labels=table)
    table.write_text(f"name,label\n{CODES.names[0]},1\n")
    with pytest.raises(LabelsError, match="have no row here"):
        stochcl.transcode(a, tmp_path / "g.bin", labels=table)
    assert not list(tmp_path.glob("g.bin*"))


def test_tables_go_in_and_out(tmp_path, monkeypatch):
    monkeypatch.delenv("STOCHCL_MODELS", raising=False)
    a = write(tmp_path / "a.bin", CODES, TABLES)
    (tmp_path / "there").mkdir()
    edit = stochcl.transcode(a, tmp_path / "there" / "b.bin", external_tables=True)
    kept = tmp_path / "there" / f"{TABLES.sha256}.tables"
    assert kept.read_bytes() == TABLES.data  # or nobody would have them any more
    assert str(kept) in edit.lines()[-1]
    assert edit.report.bytes < edit.before[1] - len(TABLES.data)
    (tmp_path / "kept").mkdir()
    kept = kept.rename(tmp_path / "kept" / kept.name)
    with pytest.raises(ModelMismatch, match="neither in the archive nor in this version"):
        stochcl.transcode(tmp_path / "there" / "b.bin", tmp_path / "c.bin", self_contained=True)
    stochcl.transcode(tmp_path / "there" / "b.bin", tmp_path / "c.bin", self_contained=True, tables=[kept])
    assert (tmp_path / "c.bin").read_bytes() == a.read_bytes()
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path / "kept"))
    assert read(tmp_path / "there" / "b.bin").names == CODES.names


def test_an_interrupted_transcoding_goes_on_to_the_same_bytes(tmp_path, small_segments):
    a = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=7)
    small_segments(10)
    out, whole = tmp_path / "out.bin", tmp_path / "whole.bin"
    for options in ({"latents": 5}, {"names": False}):
        stochcl.transcode(a, whole, force=True, **options)

        def stop(done, total):
            if done >= 35:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stochcl.transcode(a, out, progress=stop, **options)
        assert (tmp_path / "out.bin.partial").exists()
        stochcl.transcode(a, out, resume=True, **options)
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()


def test_what_is_damaged_leaves_nothing_behind(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=10)
    data = bytearray(a.read_bytes())
    with Archive(a) as archive:
        offset, head = archive._index.segments[-1]
    data[offset + head.size - 1] ^= 1
    a.write_bytes(data)
    for options in ({}, {"latents": 5}, {"rate": 3}, {"refit": True}):
        with pytest.raises(FormatError, match=r"a\.bin: "):
            stochcl.transcode(a, tmp_path / "b.bin", **options)
        assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_only_appending_needs_torch(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    code = f"""
import sys, stochcl
stochcl.transcode({str(a)!r}, {str(tmp_path / "b.bin")!r}, latents=4, refit=True)
stochcl.split({str(tmp_path / "b.bin")!r}, {str(tmp_path / "p")!r}, parts=2)
stochcl.merge([{str(a)!r}, {str(a)!r}], {str(tmp_path / "c.bin")!r})
print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_reports_are_json(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES, skipped=[("bad", "why")])
    said = stochcl.transcode(a, tmp_path / "b.bin", latents=4).to_json("transcode")
    assert json.loads(json.dumps(said)) == said
    assert said["schema"] == "stochcl.transcode/0"
    assert said["before"] == {
        "images": ROWS, "bytes": a.stat().st_size, "bits_per_image": round(a.stat().st_size * 8 / ROWS, 3),
    }  # fmt: skip
    assert (said["latents"], said["bytes"]) == (4, (tmp_path / "b.bin").stat().st_size)


def test_a_task_takes_whole_names_of_residual_codes_and_then_the_signs_that_tell_it(tmp_path):
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 2, (300, 8)).astype(np.uint8)
    words = [
        rng.normal(0, 1, (4, 5)),
        rng.normal(0, 1, (4, 5)),
        *(np.stack([-v, v]) for v in rng.normal(0, 1, (4, 5))),
    ]
    names = [f"{a}{b}/{i}.png" for i, (a, b) in enumerate(zip(symbols[:, 0], symbols[:, 6], strict=True))]
    codes = Codes.from_symbols(symbols, names=names)
    tables = Tables((8,), IndependentModel.fit(codes), ResidualDecoder.of_stages(words))
    write(tmp_path / "codes.bin", codes, tables)
    found = select(tmp_path / "codes.bin", tmp_path / "chosen.json", latents=5)
    assert found["order"] == [0, 1, 2, 3, 6]
    stochcl.transcode(tmp_path / "codes.bin", tmp_path / "out.bin", select=tmp_path / "chosen.json")
    with stochcl.open(tmp_path / "out.bin") as archive:
        np.testing.assert_array_equal(archive.to_numpy(), symbols[:, [0, 1, 2, 3, 6]])
