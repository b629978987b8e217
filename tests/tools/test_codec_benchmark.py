"""benchmarks/codec.py: a row for every method, sets that are what they say, and no wrong answer."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import stochcl
from stochcl.codes import Codes
from stochcl.entropy.independent import IndependentModel
from stochcl.errors import MissingExtraError, SourceError, UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import codec as benchmark
from codec import CodeSet, Measurement, PerSymbol, Zlib, entries_of, measure, symbol_probabilities

OURS = {"independent", "archive"}
OTHERS = {
    "packed", "zlib -9, rows", "zlib -9, columns", "xz -9e, rows", "xz -9e, columns", "zstd -19, rows",
    "zstd -19, columns", "brotli -11, rows", "brotli -11, columns", "constriction, perfect=True",
    "constriction, perfect=False",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("STOCHCL_DATA", raising=False)


@pytest.fixture
def run():
    """Run the script in this process; it must end by itself, with this exit code."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(benchmark.main, list(map(os.fspath, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def few_methods(monkeypatch):
    """Processes take their time to start; where the methods do not matter, one is enough."""
    every = benchmark.entries_of
    monkeypatch.setattr(benchmark, "entries_of", lambda *given: every(*given)[:1])


def test_every_method_stands_beside_ours(run, codes, tmp_path):
    folder = tmp_path / "new" / "results"
    result = run(codes, "-o", folder, "--repeat", "1", "--latents", "16", "--seed", "7")
    written = json.loads((folder / "codec.json").read_text("utf-8"))
    assert written["schema"] == "stochcl.benchmark.codec/0"
    assert written["command"] == ("python benchmarks/codec.py codes.bin --latents 16 --repeat 1 --seed 7 -o results/")
    assert written["seed"] == 7
    assert written["n"] == {"codes.bin": 42}
    assert written["hardware"]["threads"] == 1
    assert {"python", "numpy", "constriction", "stochcl", "zstandard", "brotli"} <= set(written["versions"])
    rows = {row["method"]: row for row in written["rows"]}
    assert set(rows) - {"autoregressive"} == OURS | OTHERS
    assert all(row["correct"] for row in rows.values())
    assert rows["packed"]["bytes_per_image"] == 2
    for row in rows.values():
        assert row["bytes_per_image"] == pytest.approx(row["bytes"] / 42, abs=1e-4)
        assert (row["n"], row["latents"]) == (42, 16)
        assert min(row["encode_images_per_second"], row["decode_images_per_second"]) > 0
        assert row["ours"] == (row["method"] in OURS | {"autoregressive"})
    for method in rows:
        assert f"  {method} " in result.stdout
    with (folder / "codec.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == list(rows)
    assert {row["command"] for row in table} == {written["command"]}
    assert all(row["hardware"] and row["versions"] and row["seed"] == "7" and row["n"] == "42" for row in table)


def test_no_folder_of_the_machine_stands_in_the_results(run, codes, tmp_path, few_methods):
    run(codes, "-o", tmp_path / "r")
    for name in ("codec.json", "codec.csv"):
        text = (tmp_path / "r" / name).read_text("utf-8")
        assert str(tmp_path) not in text
        assert str(Path(codes).parent) not in text


def test_built_in_sets_and_what_is_left_out(run, tmp_path, few_methods):
    options = ["--rows", "40", "--latents", "16", "--repeat", "1", "--json"]
    result = run("-o", tmp_path, *options)
    found = json.loads(result.stdout)
    assert [(row["set"], row["n"]) for row in found["rows"]] == [("skewed", 40), ("correlated", 40), ("opq", 40)]
    sentence = "cifar10-16 was left out: $STOCHCL_DATA names no folder that holds cifar10-test.zip."
    assert sentence in found["left_out"]
    assert sentence in result.stderr
    kinds = {entry["set"]: entry["alphabet"] for entry in found["sets"]}
    assert kinds == {"skewed": 2, "correlated": 2, "opq": 256}


def test_a_missing_extra_is_one_sentence_and_its_rows_are_left_out(run, tmp_path, monkeypatch):
    def find_spec(name):
        return None if name in {"zstandard", "brotli", "faiss"} else object()

    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", find_spec)
    options = ["--rows", "9", "--latents", "8", "--repeat", "1", "--only", "skewed", "--only", "opq", "--json"]
    result = run("-o", tmp_path, *options)
    found = json.loads(result.stdout)
    install = "install it with: pip install 'stochcl[bench]'."
    assert f"zstd -19 was left out: it needs zstandard; {install}" in found["left_out"]
    assert f"brotli -11 was left out: it needs brotli; {install}" in found["left_out"]
    assert f"opq was left out: it needs faiss-cpu; {install}" in found["left_out"]
    assert not [row for row in found["rows"] if "zstd" in row["method"] or row["set"] == "opq"]
    assert {"xz -9e, rows", "independent"} <= {row["method"] for row in found["rows"]}


@pytest.mark.parametrize(
    ("latents", "alphabet", "message"),
    [
        (7, 2, "zlib on skewed: it gave back other codes than it was given; no figure of this run counts."),
        (80, 2, "zlib on skewed: its process ended by exit status 1 (ValueError"),
    ],
)
def test_a_wrong_method_fails_the_run(run, tmp_path, monkeypatch, latents, alphabet, message):
    def entries(code_set, leave_out):
        return [benchmark.Entry(Zlib("zlib", len(code_set.codes), latents, alphabet, "rows"))]

    monkeypatch.setattr(benchmark, "entries_of", entries)
    monkeypatch.setattr(benchmark, "fitted", lambda rows: {"independent": _independent(rows)})
    options = ["--only", "skewed", "--rows", "9", "--latents", "8"]
    assert message in run("-o", tmp_path, *options, code=1).stderr
    assert not (tmp_path / "codec.json").exists()


def _independent(rows):
    return benchmark.EntropyModel.of(IndependentModel.fit(rows), "fitted")


def test_what_it_refuses(run, codes, tmp_path):
    assert "--only chooses among" in run(codes, "--only", "opq", "-o", tmp_path, code=2).stderr
    np.save(tmp_path / "one.npy", np.zeros((1, 8), np.uint8))
    assert "fewer than two rows" in run(tmp_path / "one.npy", "-o", tmp_path, code=1).stderr
    (tmp_path / "file").touch()
    assert "this folder cannot be made" in run(codes, "-o", tmp_path / "file", code=1).stderr
    for words, options in {"'skewed'": ["--only", "x"], "--rows": ["--rows", "1"]}.items():
        assert words in run("-o", tmp_path, *options, code=2).stderr


MAKERS = [benchmark.skewed, benchmark.correlated, benchmark.opq]


@pytest.mark.parametrize("make", MAKERS)
def test_sets_are_seeded_and_of_the_size_asked_for(make):
    first, again, other = make(60, 16, 1), make(60, 16, 1), make(60, 16, 2)
    assert len(first.codes) == 60
    assert first.codes.decisions_per_row == 16
    assert (first.codes.packed == again.codes.packed).all()
    assert (first.codes.packed != other.codes.packed).any()


def test_the_ideal_of_skewed_bits_is_the_entropy_of_their_distribution():
    made = benchmark.skewed(4000, 32, 0)
    bits, kind = made.ideal
    assert kind in made.models
    assert bits / 4000 == pytest.approx(made.source_bits, rel=0.02)


def test_correlated_bits_cost_less_than_independent_ones():
    made = benchmark.correlated(4000, 64, 0)
    assert made.source_bits < 0.8 * made.models["independent"].model.ideal_bits(made.codes) / 4000


def test_the_probability_of_a_mixture_adds_up_to_one():
    p = np.random.default_rng(0).random((5, 3))
    every = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(bool)
    bits = [benchmark._mixture_bits(row[None], p) for row in every]
    assert sum(2.0**-b for b in bits) == pytest.approx(1)


def read(path, **options):
    return benchmark.read_source(path, **({"latents": None, "rows": None, "refit": False, "seed": 0} | options))


def test_an_archive_is_coded_with_its_own_tables(codes):
    made = read(codes)
    with stochcl.open(codes) as archive:
        assert (made.codes.packed == archive[:].packed).all()
        assert made.tables.sha256 == archive.header.tables_sha256
    assert made.codes.names is None
    assert len(read(codes, rows=5, latents=8).codes) == 5
    assert read(codes, latents=8).header.latents == 8


def test_refit_codes_other_rows_than_it_fits(codes):
    made = read(codes, refit=True)
    with stochcl.open(codes) as archive:
        assert (made.codes.packed == archive[:][::2].packed).all()
    assert made.models["independent"].origin == "fitted"
    assert "every second row" in made.notes[0]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_symbols_of_an_array(tmp_path, rng, ending):
    path = tmp_path / f"symbols.{ending}"
    symbols = rng.integers(0, 7, (21, 4), dtype=np.uint8)
    symbols[0, 0] = 6
    if ending == "npy":
        np.save(path, symbols)
    else:
        np.savez(path, symbols=symbols, names=np.array(["x"] * 21))
    made = read(path)
    assert made.codes.alphabet == 7
    assert (made.codes.symbols() == symbols[::2]).all()


def test_features_become_opq_indices(tmp_path, rng):
    path = tmp_path / "features.npy"
    np.save(path, rng.normal(size=(600, 10)).astype(np.float16))
    made = read(path, latents=32)
    assert (made.codes.alphabet, made.codes.latents, len(made.codes)) == (256, 4, 300)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "not uint8 of shape (4, 4, 4)"),
        (np.array([[0, -1], [1, 0]]), "not in -1 to 1"),
        (np.array([[0, 4096], [1, 0]]), "symbols lie in 0 to 4095"),
        (np.zeros((1, 4), np.uint8), "fewer than two rows"),
        (np.zeros((0, 4), np.uint8), "it is empty"),
        (np.zeros((4, 5000), np.uint8), "4096 binary decisions"),
        (np.zeros((40, 4), np.float32), "needs 512 rows or more"),
        (np.full((600, 4), np.nan), "not finite"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, message):
    path = tmp_path / "array.npy"
    np.save(path, array)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert message in str(caught.value)


def test_other_files_that_are_refused(tmp_path, codes):
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "no.npy")
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "no.bin")
    (tmp_path / "bad.npy").write_bytes(b"text")
    with pytest.raises(SourceError, match="no NumPy file"):
        read(tmp_path / "bad.npy")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(SourceError, match="no array called symbols"):
        read(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="32 latents, not 33"):
        read(codes, latents=33)


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"faiss-cpu; install it with: pip install 'stochcl\[bench\]'\."):
        benchmark.opq(10, 16, 0)


def test_codes_of_cifar10_are_made_once_and_made_again_for_another_model(tmp_path, images, codec, monkeypatch):
    made = []

    class Codec:
        def __init__(self, device):
            self.model, self.tables = codec.model, codec.tables

        def compress(self, source, path, **options):
            made.append(source)
            return codec.compress(images, path, **options)

    monkeypatch.setattr("stochcl.api.codec.Codec", Codec)
    monkeypatch.setenv("STOCHCL_DATA", str(tmp_path))
    (tmp_path / benchmark.CIFAR10_ZIP).touch()

    def take():
        return benchmark.cifar10(tmp_path, latents=16, rows=None, refit=False, say=lambda line: None)

    assert take().name == "cifar10-16"
    assert len(take().codes) == 42
    assert made == [tmp_path / benchmark.CIFAR10_ZIP]
    (tmp_path / benchmark.CIFAR10_CODES).write_bytes(b"of another version")
    assert len(take().codes) == 42
    assert len(made) == 2


SHAPES = [(2, 1, 2), (50, 13, 2), (300, 16, 2), (40, 3, 256), (30, 5, 5), (20, 2, 4096)]


def some_codes(rng, rows, latents, alphabet):
    symbols = np.minimum(rng.geometric(2 / alphabet, (rows, latents)) - 1, alphabet - 1)
    return Codes.from_symbols(symbols, alphabet=alphabet)


def code_set(codes):
    return CodeSet("some", codes, benchmark.fitted(codes), "for a test")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [benchmark.ROWS, benchmark.COLUMNS, benchmark.PLANES])
def test_layouts_can_be_taken_up_again(rng, shape, layout):
    codes = some_codes(rng, *shape)
    data = benchmark.lay_out(codes, layout)
    again = benchmark.take_up(data, layout, *shape)
    assert (again.packed == codes.packed).all()
    assert (again.latents, again.alphabet) == shape[1:]


def test_columns_put_equal_latents_side_by_side():
    codes = Codes.from_symbols([[1, 0, 1]] * 16)
    assert benchmark.lay_out(codes, benchmark.COLUMNS) == bytes([255, 255, 0, 0, 255, 255])
    wide = Codes.from_symbols([[7, 200], [8, 201]], alphabet=256)
    assert benchmark.lay_out(wide, benchmark.COLUMNS) == bytes([7, 8, 200, 201])
    assert benchmark.lay_out(wide, benchmark.ROWS) == bytes([7, 200, 8, 201])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_gives_the_codes_back(rng, shape):
    codes = some_codes(rng, *shape)
    for entry in entries_of(code_set(codes), pytest.fail):
        data = entry.method.encode(codes)
        again = entry.method.decode(data)
        assert (again.packed == codes.packed).all(), entry.method.name
        assert (again.latents, again.alphabet) == shape[1:], entry.method.name


def test_blocks_hold_all_rows_where_there_are_many_blocks(rng):
    codes = Codes.from_symbols(rng.random((3000, 64)) < 0.5)
    entry = entries_of(code_set(codes), pytest.fail)[0]
    assert entry.method.rows_per_block == pytest.approx(1024, rel=0.01)
    data = entry.method.encode(codes)
    assert (entry.method.decode(data).packed == codes.packed).all()
    assert len(data) * 8 <= 1.001 * entry.method.model.ideal_bits(codes) + 64


@pytest.mark.parametrize(("make", "fitted"), [(benchmark.correlated, 1), (benchmark.skewed, 0)])
def test_the_file_of_codes_without_a_model_holds_the_models_that_pay(make, fitted):
    made = make(4000, 32, 0)
    (entry,) = [entry for entry in entries_of(made, print) if entry.method.name == "archive"]
    assert len(entry.method.fitted) == fitted  # none for independent bits: a table of the segment itself does as well
    assert len(entry.method.encode(made.codes)) < 0.95 * made.codes.packed.nbytes


def test_a_stream_is_the_same_whatever_the_size_of_calls(rng, monkeypatch):
    codes = some_codes(rng, 100, 7, 6)
    method = PerSymbol("x", 100, 7, 6, IndependentModel.fit(codes), perfect=True)
    at_once = method.encode(codes)
    monkeypatch.setattr("codec._PARAMETERS", 7 * 6 * 9)
    assert method.encode(codes) == at_once
    assert (method.decode(at_once).packed == codes.packed).all()


def test_probabilities_of_symbols_are_products_of_decisions(rng):
    codes = some_codes(rng, 500, 3, 5)
    model = IndependentModel.fit(codes)
    p = symbol_probabilities(model)
    assert p.shape == (3, 5)
    assert p.sum(axis=1) == pytest.approx([1, 1, 1])
    bits = -np.log2(p[np.arange(3), codes.symbols()]).sum()
    assert bits == pytest.approx(model.ideal_bits(codes), rel=0.01)


def test_a_measurement_has_sizes_times_and_memory(rng, monkeypatch):
    monkeypatch.setattr(benchmark, "stay_on_one_core", lambda: None)
    codes = some_codes(rng, 50, 8, 2)
    for entry in entries_of(code_set(codes), pytest.fail):
        found = measure(Measurement(entry.method, entry.method, codes, 2))
        assert found["correct"] is True
        assert found["bytes"] == len(entry.method.encode(codes))
        for way in ("encode", "decode"):
            assert found[way]["repeats"] == 2
            assert found[way]["seconds"] > 0
            assert found[way]["peak_bytes"] >= 0
