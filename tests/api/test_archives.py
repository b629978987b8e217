"""The verbs on archives, as Python calls them: info, verify, decompress, evaluate."""

import numpy as np
import pytest

import stochcl
from stochcl.api import archives, evaluate
from stochcl.errors import BadMagic, LabelsError, ModelMismatch, SourceError, UsageError
from tests.compress.making import make_codes, make_names, make_tables, write


def test_info_is_the_report_of_the_file(codes):
    report = archives.info(codes)
    assert report.bytes == sum(report.parts.values()) == codes.stat().st_size
    assert (report.images, report.latents, report.model) == (42, 32, "tiny")
    assert report.seconds is None
    assert "images_per_second" not in report.to_json("info")


def test_verify_tells_how_far_it_is(codes):
    told = []
    stochcl.open(codes).verify(lambda *args: told.append(args))
    assert told == [(42, 42)]


def test_tables_outside_the_archive_are_counted_and_can_be_given(tmp_path):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(9, 6), tables, embed=False)
    with pytest.raises(ModelMismatch, match=r"a: the decoder .* neither in the archive"):
        archives.info(path)
    (tmp_path / "t.tables").write_bytes(tables.data)
    report = archives.info(path, tables=[tmp_path / "t.tables"])
    assert report.external_bytes == len(tables.data)
    assert "(not counted)" in "\n".join(report.lines())


def test_tables_are_found_in_the_folders_of_the_environment(tmp_path, monkeypatch):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(9, 6), tables, embed=False)
    (tmp_path / f"{tables.sha256}.tables").write_bytes(tables.data)
    monkeypatch.setenv("STOCHCL_MODELS", f"/nowhere:{tmp_path}")
    assert archives.info(path).external_bytes


def test_decompress_says_what_it_wrote(codes, tmp_path):
    found = archives.decompress(codes, tmp_path / "a.npz")
    assert found.holds == ("symbols", "vectors", "names", "labels")
    assert (found.rows, found.bytes) == (42, (tmp_path / "a.npz").stat().st_size)


def test_without_a_decoder_symbols_are_learned_from(tmp_path):
    names = make_names(40)
    path = write(tmp_path / "a", make_codes(40, 6, names=names), make_tables(6, decoder=False))
    result, facts = evaluate.evaluate(path)
    assert (facts["input"], facts["latents"]) == ("symbols", 6)
    assert result.classes == ("cat", "dog")
    with pytest.raises(UsageError, match=r"a: its model has no vector decoder; use the symbols\."):
        evaluate.evaluate(path, output="vectors")


def test_evaluate_gives_what_the_probe_would(codes):
    from stochcl import downstream

    with stochcl.open(codes) as archive:
        expected = downstream.evaluate(archive.to_numpy(8), archive.labels, estimator="knn", seed=3, folds=4)
    result, facts = evaluate.evaluate(codes, estimator="knn", output="symbols", latents=8, seed=3, folds=4)
    assert (result.score, result.folds) == (expected.score, expected.folds)
    assert facts == {
        "schema": "stochcl.evaluate/0", "path": str(codes), "images": 42, "input": "symbols", "latents": 8,
        "model": "tiny", "labels_from": "folder 1 of each name",
    }  # fmt: skip


def test_archives_of_two_widths_are_compared_on_the_narrower_s_latents(codec, images, codes, tmp_path):
    narrow = tmp_path / "narrow.bin"
    codec.compress(images, narrow, latents=8)
    with pytest.raises(UsageError, match=r"narrow\.bin: it has 8 latents; ask for 1 to 8, not 16"):
        evaluate.evaluate(codes, test=narrow, latents=16)
    result, _ = evaluate.evaluate(codes, test=narrow, latents=8, output="symbols")
    assert (result.n_train, result.n_test) == (42, 42)
    same, facts = evaluate.evaluate(codes, test=narrow, output="symbols")
    assert (same.score, facts["latents"]) == (result.score, 8)
    assert any("first 8 of both" in note for note in same.notes)


def test_labels_that_the_archive_stores_are_used(tmp_path):
    labels = [str(i % 3) for i in range(30)]
    codes = make_codes(30, 6, labels=labels)
    result, _ = evaluate.evaluate(write(tmp_path / "a", codes, make_tables(6)))
    assert result.classes == ("0", "1", "2")
    result, _ = evaluate.evaluate(tmp_path / "a", task="regression")
    assert np.isfinite(result.score)


def test_an_archive_of_no_images(tmp_path):
    path = write(tmp_path / "a", make_codes(0, 6), make_tables(6))
    report = archives.info(path)
    assert (report.images, report.bits_per_image) == (0, 0)
    assert report.lines()[0].startswith(f"{path}: 0 images, ")
    with pytest.raises(LabelsError, match="a: "):
        evaluate.evaluate(path)
    stochcl.open(path).verify()


@pytest.mark.parametrize("verb", [archives.info, evaluate.evaluate, stochcl.open])
def test_no_archive(verb, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere: there is no such file\."):
        verb(tmp_path / "nowhere")
    (tmp_path / "text").write_text("words")
    with pytest.raises(BadMagic, match="give a file that `stochcl compress` wrote"):
        verb(tmp_path / "text")


def test_open_takes_file_objects(codes):
    with codes.open("rb") as file, stochcl.open(file) as archive:
        assert len(archive) == 42
        assert archive[3:5].names == archive.names[3:5]
