"""benchmarks/codec.py: a row for every method, sets that are what they say, and no wrong answer."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import stochcl
from stochcl.benchmarks.run import BenchmarkError
from stochcl.codes import Codes
from stochcl.entropy.independent import IndependentModel
from stochcl.errors import MissingExtraError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import code_sets
import codec as benchmark
from code_sets import CodecConfig, CodeSet, NoDataError
from codec import Method, measure, methods_of, symbol_probabilities

OURS = {"independent", "archive"}
OTHERS = {
    "packed", "zlib -9, rows", "zlib -9, columns", "xz -9e, rows", "xz -9e, columns", "zstd -19, rows",
    "zstd -19, columns", "brotli -11, rows", "brotli -11, columns", "constriction, perfect=True",
    "constriction, perfect=False",
}  # fmt: skip


RNG = np.random.default_rng(0)


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
def one_process(monkeypatch):
    """Processes take their time to start; where it does not matter, the methods run in this one."""
    monkeypatch.setattr(benchmark, "stay_on_one_core", lambda: None)
    monkeypatch.setattr(benchmark, "restart_peak", benchmark.peak)
    monkeypatch.setattr(benchmark, "call_in_child", lambda function, *given: function(*given))


@pytest.mark.usefixtures("one_process")
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
    for name in ("codec.json", "codec.csv"):  # no folder of this machine
        text = (folder / name).read_text("utf-8")
        assert str(tmp_path) not in text
        assert str(Path(codes).parent) not in text


def test_every_method_runs_in_a_process_of_its_own(rng):
    made = code_set(some_codes(rng, 20, 4, 2))
    (method,) = (one for one in methods_of(made, pytest.fail) if one.name == "zlib -9, rows")
    assert benchmark.run(method, made, 1)["correct"]


@pytest.mark.usefixtures("one_process")
def test_built_in_sets_and_what_is_left_out(run, tmp_path, monkeypatch):
    every = benchmark.methods_of
    monkeypatch.setattr(benchmark, "methods_of", lambda *given: every(*given)[:1])
    monkeypatch.setattr(code_sets, "call_in_child", lambda *given: [some_codes(RNG, 40, 2, 256)] * 2)
    result = run("-o", tmp_path, "--rows", "40", "--latents", "16", "--repeat", "1", "--json")
    found = json.loads(result.stdout)
    assert [(row["set"], row["n"]) for row in found["rows"]] == [("skewed", 40), ("correlated", 40), ("opq", 40)]
    sentence = "cifar10-16 was left out: $STOCHCL_DATA names no folder that holds cifar10-test.zip."
    assert sentence in found["left_out"]
    assert sentence in result.stderr
    kinds = {entry["set"]: entry["alphabet"] for entry in found["sets"]}
    assert kinds == {"skewed": 2, "correlated": 2, "opq": 256}


@pytest.mark.usefixtures("one_process")
def test_a_missing_extra_is_one_sentence_and_its_rows_are_left_out(run, tmp_path, monkeypatch):
    def find_spec(name):
        return None if name in {"zstandard", "brotli", "faiss"} else object()

    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", find_spec)
    options = ["--rows", "9", "--latents", "8", "--repeat", "1", "--only", "skewed,opq", "--json"]
    found = json.loads(run("-o", tmp_path, *options).stdout)
    install = "install it with: pip install 'stochcl[bench]'."
    assert f"zstd -19 was left out: it needs zstandard; {install}" in found["left_out"]
    assert f"brotli -11 was left out: it needs brotli; {install}" in found["left_out"]
    assert f"opq was left out: it needs faiss-cpu; {install}" in found["left_out"]
    assert not [row for row in found["rows"] if "zstd" in row["method"] or row["set"] == "opq"]
    assert {"xz -9e, rows", "independent"} <= {row["method"] for row in found["rows"]}


def reversed_rows(codes):
    return codes[::-1].packed.tobytes()


def no_rows(data):
    raise ValueError("no rows")


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        (reversed_rows, lambda data: Codes(np.frombuffer(data, np.uint8)[:, None], 8, 2), "gave back other codes"),
        (reversed_rows, no_rows, r"its process ended by exit status 1 \(ValueError"),
    ],
)
def test_a_wrong_method_fails_the_run(monkeypatch, encode, decode, message):
    if "other codes" in message:
        monkeypatch.setattr(benchmark, "call_in_child", lambda function, *given: function(*given))
        monkeypatch.setattr(benchmark, "stay_on_one_core", lambda: None)
    made = code_sets.skewed(9, 8, 0)
    with pytest.raises(BenchmarkError, match=f"wrong on skewed: .*{message}"):
        benchmark.run(Method("wrong", encode, decode), made, 1)


def test_what_it_refuses(run, codes, tmp_path):
    assert "--only chooses among" in run(codes, "--only", "opq", "-o", tmp_path, code=2).stderr
    assert "32 latents, not 33" in run(codes, "--latents", "33", "-o", tmp_path, code=2).stderr
    assert "no such file" in run(tmp_path / "no.bin", "-o", tmp_path, code=1).stderr
    (tmp_path / "file").touch()
    assert "this is a file" in run(codes, "-o", tmp_path / "file", code=2).stderr
    for words, options in {"--only must be": ["--only", "x"], "--rows": ["--rows", "1"]}.items():
        assert words in run("-o", tmp_path, *options, code=2).stderr


MAKERS = [code_sets.skewed, code_sets.correlated, code_sets.opq]


@pytest.mark.parametrize("make", MAKERS)
def test_sets_are_seeded_and_of_the_size_asked_for(make, monkeypatch):
    monkeypatch.setattr(code_sets, "call_in_child", lambda function, *given: function(*given))
    monkeypatch.setattr(code_sets, "_TRAINING", 400)
    first, again, other = make(60, 16, 1), make(60, 16, 1), make(60, 16, 2)
    assert len(first.codes) == 60
    assert first.codes.decisions_per_row == 16
    assert (first.codes.packed == again.codes.packed).all()
    assert (first.codes.packed != other.codes.packed).any()


def test_the_ideal_of_skewed_bits_is_the_entropy_of_their_distribution():
    made = code_sets.skewed(4000, 32, 0)
    bits, kind = made.ideal
    assert kind in made.models
    assert bits / 4000 == pytest.approx(made.source_bits, rel=0.02)


def test_correlated_bits_cost_less_than_independent_ones():
    made = code_sets.correlated(4000, 64, 0)
    assert made.source_bits < 0.8 * made.models["independent"].model.ideal_bits(made.codes) / 4000


def test_the_probability_of_a_mixture_adds_up_to_one():
    p = np.random.default_rng(0).random((5, 3))
    every = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(bool)
    bits = [code_sets.mixture_bits(row[None], p) for row in every]
    assert sum(2.0**-b for b in bits) == pytest.approx(1)


def read(path, latents=None, **options):
    with stochcl.open(path) as archive:
        return code_sets.of_archive("codes", archive, CodecConfig(**options), latents)


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


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"faiss-cpu; install it with: pip install 'stochcl\[bench\]'\."):
        code_sets.opq(10, 16, 0)


def test_codes_of_cifar10_are_made_once_and_made_again_for_another_model(tmp_path, images, codec, monkeypatch):
    made = []

    class Codec:
        def __init__(self, device):
            self.model, self.tables = codec.model, codec.tables

        def compress(self, source, path, **options):
            made.append(source)
            return codec.compress(images, path, **options)

    monkeypatch.setattr("stochcl.api.codec.Codec", Codec)
    with pytest.raises(NoDataError, match="cifar10-test"):
        code_sets.cifar10(tmp_path, CodecConfig(), 16, print)
    monkeypatch.setenv("STOCHCL_DATA", str(tmp_path))
    (tmp_path / code_sets.CIFAR10_ZIP).touch()

    def take():
        return code_sets.cifar10(tmp_path, CodecConfig(), 16, lambda line: None)

    assert take().name == "cifar10-16"
    assert len(take().codes) == 42
    assert made == [tmp_path / code_sets.CIFAR10_ZIP]
    (tmp_path / code_sets.CIFAR10_CODES).write_bytes(b"of another version")
    assert len(take().codes) == 42
    assert len(made) == 2


SHAPES = [(2, 1, 2), (50, 13, 2), (300, 16, 2), (40, 3, 256), (30, 5, 5), (20, 2, 4096)]


def some_codes(rng, rows, latents, alphabet):
    symbols = np.minimum(rng.geometric(2 / alphabet, (rows, latents)) - 1, alphabet - 1)
    return Codes.from_symbols(symbols, alphabet=alphabet)


def code_set(codes):
    return CodeSet("some", codes, code_sets.fitted(codes), "for a test")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [benchmark.ROWS, benchmark.COLUMNS, benchmark.PLANES])
def test_layouts_can_be_taken_up_again(rng, shape, layout):
    codes = some_codes(rng, *shape)
    data = benchmark.serialize(layout, codes)
    again = benchmark.deserialize(layout, shape, data)
    assert (again.packed == codes.packed).all()
    assert (again.latents, again.alphabet) == shape[1:]


def test_columns_put_equal_latents_side_by_side():
    codes = Codes.from_symbols([[1, 0, 1]] * 16)
    assert benchmark.serialize(benchmark.COLUMNS, codes) == bytes([255, 255, 0, 0, 255, 255])
    wide = Codes.from_symbols([[7, 200], [8, 201]], alphabet=256)
    assert benchmark.serialize(benchmark.COLUMNS, wide) == bytes([7, 8, 200, 201])
    assert benchmark.serialize(benchmark.ROWS, wide) == bytes([7, 200, 8, 201])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_gives_the_codes_back(rng, shape):
    codes = some_codes(rng, *shape)
    for method in methods_of(code_set(codes), pytest.fail):
        again = method.decode(method.encode(codes))
        assert (again.packed == codes.packed).all(), method.name
        assert (again.latents, again.alphabet) == shape[1:], method.name


def test_blocks_hold_all_rows_where_there_are_many_blocks(rng):
    codes = Codes.from_symbols(rng.random((3000, 64)) < 0.5)
    model = IndependentModel.fit(codes)
    assert benchmark.block_rows(64, 64) == 1024
    data = benchmark.encode_blocks(model, 1024, codes)
    assert (benchmark.decode_blocks(model, 1024, (3000, 64, 2), data).packed == codes.packed).all()
    assert len(data) * 8 <= 1.001 * model.ideal_bits(codes) + 64


@pytest.mark.parametrize(("make", "fitted"), [(code_sets.correlated, 1), (code_sets.skewed, 0)])
def test_the_file_of_codes_without_a_model_holds_the_models_that_pay(make, fitted):
    made = make(4000, 32, 0)
    (method,) = [method for method in methods_of(made, print) if method.name == "archive"]
    fits = method.encode.args[2]
    assert len(fits) == fitted  # none for independent bits: a table of the segment itself does as well
    assert len(method.encode(made.codes)) < 0.95 * made.codes.packed.nbytes


def test_a_stream_is_the_same_whatever_the_size_of_calls(rng, monkeypatch):
    codes = some_codes(rng, 100, 7, 6)
    probabilities = symbol_probabilities(IndependentModel.fit(codes))
    at_once = benchmark.encode_each(probabilities, True, codes)
    monkeypatch.setattr("codec._PARAMETERS", 7 * 6 * 9)
    assert benchmark.encode_each(probabilities, True, codes) == at_once
    assert (benchmark.decode_each(probabilities, True, (100, 7, 6), at_once).packed == codes.packed).all()


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
    method = methods_of(code_set(codes), pytest.fail)[0]
    found = measure(method.encode, method.decode, codes, 2)
    assert found["correct"] is True
    assert found["bytes"] == len(method.encode(codes))
    for way in ("encode", "decode"):
        assert found[way]["repeats"] == 2
        assert found[way]["seconds"] > 0
        assert found[way]["peak_bytes"] >= 0
