"""The benchmark of embeddings: figures of files that can be read again, judged on rows that nothing was fitted to."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import stochcl
from stochcl.benchmarks import embeddings, matrices, pricing, probing
from stochcl.benchmarks.embeddings import Request, benchmark_embeddings
from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.errors import SourceError, UsageError
from tests.making import make_head


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits as matrices and labels."""
    folder = tmp_path_factory.mktemp("digits")
    x, y = load_digits(return_X_y=True)
    for name, part in (("train", slice(1200)), ("test", slice(1200, None))):
        np.save(folder / f"{name}.npy", x[part].astype(np.float32))
        np.save(folder / f"{name}_y.npy", y[part])
    return folder


def request_of(folder, **changes):
    given = {"labels": folder / "train_y.npy", "test_labels": folder / "test_y.npy", "bits": (16,)} | changes
    return Request(folder / "train.npy", folder / "test.npy", **given)


def test_every_method_has_a_row_for_every_rate_and_coding(digits):
    notes = []
    result = benchmark_embeddings(
        request_of(digits, bits=(8, 16), methods=("itq", "pq", "float32")), say=notes.append
    )
    rows = result["rows"]
    found = [(row["method"], row["bits"], row["coding"]) for row in rows]
    codings = ("packed", "independent", "linear")
    assert found == [
        *((name, bits, coding) for name in ("ITQ", "PQ") for bits in (8, 16) for coding in codings),
        ("float32", 2048, "packed"),
    ]
    assert notes == result["left_out"] == []
    assert result["n"] == {"train": 1200, "test": 597, "queries": 597}
    for row in rows:
        assert row["bits_per_vector"] == pytest.approx(row["bytes"] * 8 / 597, abs=1e-3)
        side = row["side_bytes"] * 8
        assert row["bits_with_side"] == pytest.approx(row["bits_per_vector"] + side / 597, abs=1e-3)
        assert row["bits_with_side_of_a_million"] == pytest.approx(row["bits_per_vector"] + side / 1e6, abs=1e-3)
        assert row["recall"] >= row["recall_symmetric"] - 0.02
    exact = rows[-1]
    assert (exact["relative_error"], exact["recall"], exact["side_bytes"]) == (0, 1, 0)
    assert exact["accuracy"] > 0.88
    assert all(row["accuracy"] > 0.7 for row in rows)
    assert len({row["accuracy"] for row in rows if row["method"] == "ITQ"}) == 2  # judged once a rate
    assert all(
        row["bits_per_vector"] == pytest.approx(row["bits"], rel=0.01) for row in rows if row["coding"] == "packed"
    )


def test_side_information_is_that_of_the_decoder_and_of_the_entropy_model(digits):
    rows = benchmark_embeddings(request_of(digits, methods=("pq",)))["rows"]
    packed, independent, linear = (row["side_bytes"] for row in rows)
    assert packed == 256 * 64 * 2
    assert packed < independent < linear


def test_without_labels_there_is_no_accuracy_and_all_else(digits):
    (row,) = benchmark_embeddings(
        request_of(digits, labels=None, test_labels=None, methods=("itq",), codings=("packed",))
    )["rows"]
    assert row["accuracy"] is None
    assert row["recall"] > 0.1
    assert embeddings.lines({"rows": [row]})[0][6] == "-"


def test_what_cannot_be_done_is_left_out_with_a_sentence(digits):
    notes = []
    request = request_of(digits, bits=(100,), methods=("itq", "random-signs"), codings=("packed",))
    result = benchmark_embeddings(request, say=notes.append)
    assert [row["method"] for row in result["rows"]] == ["random signs"]
    assert result["left_out"] == notes == [
        "itq, 100 bits was left out: there is one bit for each of at most 64 principal directions, not 100."
    ]  # fmt: skip


def test_wide_rows_are_not_coded_with_networks():
    codes = Codes.from_symbols(np.zeros((2, 200), int), alphabet=256)
    assert pricing.codings_of(codes, pricing.CODINGS) == ("packed", "independent")
    assert pricing.codings_of(codes.prefix(128), pricing.CODINGS) == pricing.CODINGS


def test_a_file_costs_what_its_codes_do_under_a_model_of_other_rows():
    rng = np.random.default_rng(0)
    fitting, codes = (Codes.from_symbols(np.repeat(rng.random((4000, 16)) < 0.2, 2, axis=1)) for _ in range(2))
    sizes = {coding: pricing.price(fitting, codes, coding) for coding in pricing.CODINGS[:3]}
    entropy = -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8)) * 16  # every bit is there twice
    assert sizes["packed"].bytes == 4000 * 4
    assert sizes["packed"].model_bytes == 0
    assert sizes["independent"].bytes * 8 / 4000 == pytest.approx(
        2 * entropy, rel=0.08
    )  # a header and an index besides
    assert sizes["linear"].bytes < 0.85 * sizes["independent"].bytes
    assert sizes["linear"].model_bytes > sizes["independent"].model_bytes > 0


def test_a_penalty_is_chosen_without_the_test_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.normal(size=300) > 0).astype(int)
    accuracy, penalty = probing.linear_accuracy(x[:200], y[:200], x[200:], y[200:])
    assert accuracy > 0.8
    again = probing.linear_accuracy(x[:200], y[:200], x[200:], 1 - y[200:])
    assert again == (pytest.approx(1 - accuracy), penalty)
    noise = rng.integers(0, 2, 200)  # nothing to learn: the strongest penalty does best, or as well
    assert probing.linear_accuracy(x[:200], noise, x[200:], y[200:])[1] >= penalty


def test_neighbours_are_those_of_sorted_distances(monkeypatch):
    monkeypatch.setattr(probing, "_BLOCK", 7)
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    queries = np.arange(0, 60, 3)
    distances = np.linalg.norm(x[queries, None] - x[None], axis=2)
    distances[np.arange(20), queries] = np.inf
    found = probing.neighbours(x[queries], x, queries)
    assert (np.sort(found) == np.sort(np.argsort(distances)[:, :10])).all()
    assert probing.recall(found, found[:, ::-1]) == 1
    assert probing.recall(np.arange(20).reshape(2, 10), np.arange(5, 25).reshape(2, 10)) == 0.5


def test_the_mean_errs_by_one():
    x = np.random.default_rng(0).normal(3, 1, (50, 4)).astype(np.float32)
    mean = np.full(4, 3, np.float32)
    assert probing.relative_error(x, np.broadcast_to(mean, x.shape), mean) == pytest.approx(1)
    assert probing.relative_error(x, x, mean) == 0


def test_files_that_do_not_fit_are_refused(digits, tmp_path):
    narrow, few, bad = np.ones((20, 3), np.float32), np.ones((9, 64), np.float32), np.full((20, 64), np.nan)
    for array, message in (
        (narrow, "3 columns, and those of .*train.npy have 64"),
        (few, "too few"),
        (bad, "finite"),
    ):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(SourceError, match=message):
            matrices.Data.read(digits / "train.npy", tmp_path / "x.npy", None, None, 0)
    np.save(tmp_path / "images.npy", np.zeros((20, 4, 4, 3), np.uint8))
    with pytest.raises(SourceError, match="holds images"):
        matrices.Data.read(digits / "train.npy", tmp_path / "images.npy", None, None, 0)
    (tmp_path / "text.npy").write_text("7")
    for labels in (digits / "train_y.npy", digits / "test.npy", tmp_path / "text.npy"):
        with pytest.raises(SourceError, match="label"):
            matrices.Data.read(digits / "train.npy", digits / "test.npy", digits / "train_y.npy", labels, 0)


def test_requests_that_make_no_sense(digits):
    for changes, message in (
        ({"labels": None}, "belong together"),
        ({"methods": ("zip",)}, "no method 'zip'"),
        ({"bits": (0,)}, "1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            request_of(digits, **changes).check()


def test_our_models_stand_beside_the_others(digits, tmp_path):
    model = make_head(tmp_path / "head.safetensors", np.load(digits / "train.npy"), latents=32)
    request = request_of(digits, bits=(8, 1000), models=(model,), methods=("itq",), codings=("packed",))
    result = benchmark_embeddings(request)
    rows = [row for row in result["rows"] if row["ours"]]
    assert [(row["method"], row["bits"], row["coding"]) for row in rows] == [
        ("head", None, "32 latents"),
        ("head", 8, rows[1]["coding"]),
    ]  # at a thousand bits it is as wide as it is anyway
    assert [note.partition(":")[0] for note in result["left_out"]] == ["itq, 1000 bits was left out"]
    codec = stochcl.load(model, device="cpu")
    test = np.load(digits / "test.npy")
    whole, narrow = rows
    kept = int(narrow["coding"].split()[0])
    for row, latents in ((whole, 32), (narrow, kept)):
        options = {"latents": latents, "names": False, "external_tables": True, "force": True}
        codec.compress(digits / "test.npy", tmp_path / "codes.bin", **options)
        assert row["bytes"] == (tmp_path / "codes.bin").stat().st_size
        assert row["side_bytes"] == len(codec.tables.data)
        with Archive(tmp_path / "codes.bin", tables=[codec.tables]) as archive:
            decoded = codec.tables.decoder.decode(archive.to_numpy())
        mean = np.load(digits / "train.npy").mean(axis=0)
        assert row["relative_error"] == pytest.approx(probing.relative_error(test, decoded, mean), rel=1e-4)
        assert 0.1 < row["accuracy"] < 1
    assert f"--model {model.name}" in result["command"]


def test_a_model_of_other_rows_is_refused(digits, tmp_path):
    model = make_head(tmp_path / "head.safetensors", np.ones((20, 5), np.float32))
    with pytest.raises(UsageError, match="takes rows of 5 numbers"):
        benchmark_embeddings(request_of(digits, models=(model,), methods=("itq",)))
