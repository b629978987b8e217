"""A matrix of embeddings compressed by a model of vectors: rows by number, in parts, resumed, appended, decoded."""

import subprocess
import sys

import numpy as np
import pytest

import stochcl
from stochcl.api.archives import decompress, info
from stochcl.api.evaluate import evaluate
from stochcl.errors import ImageError, SourceError, UsageError
from tests.making import LATENTS, Interrupted, make_head, stop_after

WIDTH = 12


def make(rows, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (rows, 3)) @ rng.normal(0, 2, (3, WIDTH)) + 1).astype(dtype)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A model of vectors."""
    folder = tmp_path_factory.mktemp("head")
    return stochcl.load(make_head(folder / "head.safetensors", make(500)), device="cpu")


@pytest.fixture
def matrix(tmp_path):
    """Write rows to a file and return its path."""

    def write(array, name="vectors.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return write


def with_gaps(rows, bad):
    array = make(rows)
    array[bad, 3] = np.nan
    return array


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_archive_of_a_matrix_has_its_rows_by_number(head, matrix, tmp_path, dtype):
    array = make(70, dtype=dtype)
    report = head.compress(matrix(array), tmp_path / "codes.bin")
    assert (report.images, report.skipped, report.source_bytes) == (70, (), array.nbytes)
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert tuple(archive.names) == tuple(f"{i:07d}" for i in range(70))
        assert (archive.to_numpy() == head.encode(array).symbols()).all()
        assert archive.header.source_kind == "matrix"
        assert (archive.header.feature_dim, archive.header.input_bytes) == (WIDTH, 4 * WIDTH)
        assert archive.header.preprocess == {}
        vectors = archive.to_vectors()
    assert (vectors.shape, vectors.dtype) == ((70, WIDTH), np.float32)


def test_vectors_come_back_in_the_units_of_the_input(matrix, tmp_path):
    array = make(400) * 50 + 300
    far = stochcl.load(make_head(tmp_path / "far.safetensors", array), device="cpu")
    far.compress(matrix(array), tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        vectors = archive.to_vectors()
    assert vectors.mean(axis=0) == pytest.approx(
        array.mean(axis=0), abs=float(array.std())
    )  # untrained, but around there


def test_rows_that_are_not_finite_are_named_counted_and_skipped(head, matrix, tmp_path):
    source = matrix(with_gaps(30, [0, 7, 29]))
    report = head.compress(source, tmp_path / "codes.bin")
    assert [name for name, _ in report.skipped] == ["0000000", "0000007", "0000029"]
    assert all("not a finite float32" in reason for _, reason in report.skipped)
    assert report.images == 27
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert archive.names[0] == "0000001"
        assert (archive.to_numpy() == head.encode(np.load(source)[[*range(1, 7), *range(8, 29)]]).symbols()).all()
    with pytest.raises(ImageError, match=r"0000000: the row holds .*; strict=True stops at rows"):
        head.compress(source, tmp_path / "strict.bin", strict=True)
    assert not (tmp_path / "strict.bin").exists()
    with pytest.raises(SourceError, match="none of its rows can be read; the first is 0000000"):
        head.compress(matrix(np.full((5, WIDTH), np.inf)), tmp_path / "none.bin")


def interrupted(head, source, path, at, monkeypatch, **options):
    """Compress in parts of 8 rows and stop after so many rows."""
    monkeypatch.setattr("stochcl.api.source._MATRIX_ROWS", 8)

    with pytest.raises(Interrupted):
        head.compress(source, path, progress=stop_after(at), **options)


def test_resuming_gives_the_same_bytes(head, matrix, tmp_path, small_segments, monkeypatch):
    small_segments(10)
    source, path = matrix(with_gaps(60, [3, 31])), tmp_path / "codes.bin"
    interrupted(head, source, path, 40, monkeypatch)
    told = []
    head.compress(source, path, resume=True, progress=lambda done, total: told.append(done))
    assert told[0] > 20
    head.compress(source, tmp_path / "whole.bin")
    assert path.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_a_changed_matrix_cannot_be_resumed(head, matrix, tmp_path, small_segments, monkeypatch):
    small_segments(10)
    source, path = matrix(make(60)), tmp_path / "codes.bin"
    interrupted(head, source, path, 40, monkeypatch)
    matrix(make(60, seed=1))
    with pytest.raises(UsageError, match="another source"):
        head.compress(source, path, resume=True)


def test_a_rate_takes_the_widest_prefix_that_keeps_to_it(head, matrix, tmp_path):
    source = matrix(make(3000))
    full = head.compress(source, tmp_path / "full.bin")
    bits = full.parts["codes"] * 8 / 3000
    report = head.compress(source, tmp_path / "rate.bin", rate=bits / 2)
    assert report.latents < LATENTS
    assert report.parts["codes"] * 8 / 3000 <= bits / 2
    assert head.compress(source, tmp_path / "k.bin", latents=5).latents == 5
    with stochcl.open(tmp_path / "k.bin") as archive:
        assert (archive.to_numpy() == head.encode(np.load(source), latents=5).symbols()).all()


def test_an_interrupted_rate_goes_on_with_all_latents(head, matrix, tmp_path, monkeypatch):
    source, path = matrix(make(3000)), tmp_path / "codes.bin"

    def fail(*args, **options):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("stochcl.api.compress.write_widest", fail)
        with pytest.raises(Interrupted):
            head.compress(source, path, rate=9)
    assert (tmp_path / "codes.bin.full").exists()
    assert head.compress(source, path, rate=9, resume=True).encoded == 0
    with monkeypatch.context() as patch:
        patch.setattr("stochcl.api.compress.write_widest", fail)
        with pytest.raises(Interrupted):
            head.compress(source, path, rate=8, force=True)
    for other in (make(3000, seed=1), make(2999)):
        matrix(other)
        with pytest.raises(UsageError, match="another source"):
            head.compress(source, path, rate=8, resume=True, force=True)


def test_append_adds_the_rows_by_which_a_matrix_has_grown(head, matrix, tmp_path):
    path = tmp_path / "codes.bin"
    array = with_gaps(50, [4])
    head.compress(matrix(array[:20]), path)
    edit = stochcl.append(path, matrix(array), head)
    assert edit.facts == {"added": 30, "there": 19}
    with stochcl.open(path) as archive:
        finite = np.isfinite(array).all(axis=1)
        assert (archive.to_numpy() == head.encode(array[finite]).symbols()).all()
        assert archive.names[-1] == "0000049"
    assert "  added      30 rows; 19 rows had been there already" in edit.lines()
    assert stochcl.append(path, matrix(array), head).facts["added"] == 0
    with pytest.raises(UsageError, match=r"it has 20 rows, and .* row 49; .* `stochcl merge`"):
        stochcl.append(path, matrix(array[:20]), head)


def test_merging_joins_archives_of_two_matrices(head, matrix, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        head.compress(matrix(make(20, seed)), tmp_path / f"{name}.bin")
    stochcl.merge([tmp_path / "a.bin", tmp_path / "b.bin"], tmp_path / "both.bin")
    with stochcl.open(tmp_path / "both.bin") as archive:
        assert (archive.to_numpy() == head.encode(np.concatenate([make(20, 1), make(20, 2)])).symbols()).all()


def test_models_take_what_they_are_made_for(head, codec, matrix, images, tmp_path):
    source, out = matrix(make(20)), tmp_path / "codes.bin"
    with pytest.raises(UsageError, match=r"embeddings \(20 x 12\), and the model tiny takes images; .*"
                       r"`stochcl train .*vectors.npy -o head.safetensors --rate 64`"):  # fmt: skip
        codec.compress(source, out)
    with pytest.raises(UsageError, match="these are images, and the model head takes rows of 12 numbers"):
        head.compress(images, out)
    with pytest.raises(UsageError, match=r"embeddings \(20 x 5\), and the model head takes rows of 12 numbers"):
        head.compress(matrix(make(20)[:, :5]), out)
    with pytest.raises(UsageError, match="fit is for images"):
        head.compress(source, out, fit="pad")
    assert not out.exists()


def test_encode_takes_vectors_and_says_what_it_does_not_take(head):
    vectors = make(10)
    codes = head.encode(vectors)
    assert (codes.latents, len(codes), codes.uncertainty.shape) == (LATENTS, 10, (10,))
    assert (head.encode(vectors.tolist()).packed == codes.packed).all()
    assert (head.encode(vectors, latents=7).packed == codes.prefix(7).packed).all()
    for wrong in (vectors[0], vectors[:, :5], vectors.astype(int), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(UsageError, match=r"float vectors of shape \(B, 12\)"):
            head.encode(wrong)
    with pytest.raises(UsageError, match="row 3 of the vectors"):
        head.encode(with_gaps(5, [3]))


def test_codes_of_rows_are_written_batch_by_batch(head, tmp_path):
    rows = make(50)
    with stochcl.writer(tmp_path / "codes.bin", head) as out:
        for start in range(0, 50, 20):
            out.add(head.encode(rows[start : start + 20]))
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert (archive.to_numpy() == head.encode(rows).symbols()).all()
        assert archive.header.input_bytes == 4 * WIDTH
    assert info(tmp_path / "codes.bin").unit == "row"


def test_a_report_compares_with_the_rows(head, matrix, tmp_path):
    array = make(64, dtype=np.float64)
    head.compress(matrix(array), tmp_path / "codes.bin")
    report = info(tmp_path / "codes.bin")
    assert report.reduction["features"] == pytest.approx(64 * WIDTH * 4 / report.bytes)
    assert report.reduction["source"] == pytest.approx(array.nbytes / report.bytes)
    lines = "\n".join(report.lines())
    assert "64 rows" in lines
    assert "bits per row" in lines
    assert f"float32 rows ({64 * WIDTH * 4:,} bytes)" in lines
    assert "image" not in lines
    assert "pixels" not in lines


def test_codes_of_rows_export_and_are_evaluated_with_labels_by_row(head, matrix, tmp_path):
    array = make(120)
    head.compress(matrix(array), tmp_path / "codes.bin")
    decompress(tmp_path / "codes.bin", tmp_path / "vectors.npz")
    with np.load(tmp_path / "vectors.npz") as stored:
        assert stored["names"][5] == "0000005"
    labels = tmp_path / "labels.csv"
    labels.write_text("name,label\n" + "".join(f"{i:07d},{'ab'[int(row[0] > 1)]}\n" for i, row in enumerate(array)))
    evaluation, facts = evaluate(tmp_path / "codes.bin", labels=labels)
    assert facts["input"] == "vectors"
    assert evaluation.n_test == 120


@pytest.mark.parametrize(("measured", "said"), [("independent_bits", True), ("autoregressive_bits", False)])
def test_rows_of_another_kind_are_warned_of(matrix, tmp_path, measured, said):
    """By what the model's own tables made of its training rows: this one has no network."""
    record = {"entropy": {measured: {LATENTS: 2.0}}}
    model = make_head(tmp_path / "head.safetensors", make(500), record=record)
    report = stochcl.load(model, device="cpu").compress(matrix(make(200)), tmp_path / "codes.bin")
    assert any("the model's training rows 2: the rows may be of a kind" in text for text in report.warnings) == said


MEASURE = """
import resource, sys
import stochcl
codec = stochcl.load(sys.argv[1], device="cpu")
codec.compress(sys.argv[2], sys.argv[2] + ".small", force=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = codec.compress(sys.argv[3], sys.argv[3] + ".bin", force=True)
print(report.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_matrix(tmp_path):
    width = 2048
    few = np.random.default_rng(0).normal(size=(400, width)).astype(np.float32)
    model = make_head(tmp_path / "wide.safetensors", few)
    np.save(tmp_path / "small.npy", few)
    large = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (16_000, width))  # a sparse file
    large.flush()
    del large
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / n) for n in (model.name, "small.npy", "large.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, grown = map(int, done.stdout.split())
    assert rows == 16_000
    assert grown * 1024 < 0.6 * (tmp_path / "large.npy").stat().st_size  # 131 MB; mapped and kept, it would be all
