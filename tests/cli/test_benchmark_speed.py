import json

from tests.making import json_of


def test_throughput_is_shown_and_written(run, images, model, tmp_path):
    options = ["-m", model, "--device", "cpu", "--repeat", "1", "-o", tmp_path / "results"]
    result = run("benchmark", "throughput", images, *options)
    assert "floors / whole (core seconds)" in result.stdout
    assert "entropy-code" in result.stdout
    written = json.loads((tmp_path / "results" / "throughput.json").read_text())
    assert [row["stage"] for row in written["rows"]][:3] == ["read", "decode", "resize"]
    assert (tmp_path / "results" / "throughput.csv").read_text().count("\n") == 11
    shown = json_of(run("benchmark", "throughput", images, *options, "--json"))
    assert set(shown) == set(written)
    assert run("benchmark", "throughput", images, *options, "--size", "64", code=2).stderr.count("\n") == 1
