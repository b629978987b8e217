"""`stochcl benchmark rate-accuracy`: a table, files, JSON, and bad requests in one sentence."""

import json

import pytest


@pytest.fixture
def asked(images, model, tmp_path):
    few = ["--baselines", "float32,jpeg", "--ladder", "8,32", "--seed", "3"]
    return ["benchmark", "rate-accuracy", images, "-m", model, *few, "-o", tmp_path / "new" / "results"]


def test_a_table_sentences_and_files(run, asked, tmp_path):
    result = run(*asked)
    folder = tmp_path / "new" / "results"
    names = {path.name for path in folder.iterdir()}
    assert {"results.json", "results.csv", "results.html", "plot.png", "plot.svg", "cache"} <= names
    written = json.loads((folder / "results.json").read_text("utf-8"))
    assert written["command"] == (
        "stochcl benchmark rate-accuracy photos --model tiny.safetensors --ladder 8,32 --baselines float32,jpeg "
        "--seed 3 -o results/"
    )
    ours = [row["code"] for row in written["rows"] if row["group"] == "ours"]
    assert ours == ["8 latents", "32 latents", "32 latents"]
    assert "bits per image" in result.stdout
    assert "float32" in result.stdout
    assert "written to" in result.stderr
    again = run(*asked, "--json")
    assert json.loads(again.stdout)["rows"] == written["rows"]


def test_quantisers_fitted_elsewhere(run, asked, tmp_path):
    asked[asked.index("float32,jpeg")] = "itq"
    result = run(*asked, "--bits", "8", "--fit-to", "digits", "--fit-images", "60", "--fit-hold-out", "20")
    written = json.loads((tmp_path / "new" / "results" / "results.json").read_text("utf-8"))
    assert "--fit-to digits --fit-images 60 --fit-hold-out 20" in written["command"]
    assert written["fit"] == {"sources": ["digits"], "images": 60, "hold_out": 20}
    assert "ITQ fitted elsewhere" in result.stdout
    assert "to 60 images of digits" in result.stdout


def test_without_extras_one_line_names_all_that_is_left_out(run, asked, monkeypatch):
    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", lambda module: None)
    asked[asked.index("float32,jpeg")] = "pq,opq,rq,rq-4bit,lsq,jxl"
    result = run(*asked)
    (line,) = [line for line in result.stderr.splitlines() if "left out" in line]
    assert "PQ, OPQ, RQ, RQ 4-bit, LSQ, JXL pixels: needs faiss-cpu and pillow-jxl-plugin" in line


def test_two_metrics_at_once(run, asked, images):
    result = run(*asked, "--test", images, "--metric", "recall@10", "--metric", "map@1000", "--queries", "5")
    assert "recall@10" in result.stdout
    assert "map@1000" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--bits", "32,many"], 2, "--bits must be whole numbers"),
        (["--baselines", "gif"], 2, "--baselines must be"),
        (["--probe", "forest"], 2, "forest"),
        (["--fit-to", "digits"], 2, "--fit-to needs quantisers to fit, and --baselines names none"),
        (["--fit-images", "50"], 2, "need --fit-to"),
        (["--baselines", "itq", "--fit-to", "missing.zip"], 1, "missing.zip"),
        (["--labels", "missing.csv"], 1, "missing.csv: "),
    ],
)
def test_bad_requests(run, asked, options, code, said):
    result = run(*asked, *options, code=code)
    assert said in result.stderr
