"""Every committed result is named by a command that there is; the runner makes inputs and results once."""

import importlib
import json
import re
import shlex
import zipfile
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from stochcl.cli.main import main as stochcl

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("measure")


def commands_of(tool):
    entries, inputs = tool.read_table()
    return [*inputs.values(), *(command for entry in entries.values() for command in entry.expanded())]


def test_every_committed_result_has_a_command(tool):
    entries, _ = tool.read_table()
    named = {tool.RECORD, *(file for entry in entries.values() for file in entry.named())}
    there = {path.relative_to(tool.RESULTS).as_posix() for path in tool.RESULTS.rglob("*") if path.is_file()}
    assert there - named == set(), "name it in benchmarks/measure.toml, with the command that makes it"


def test_records_are_of_results_that_there_are(tool):
    entries, _ = tool.read_table()
    path = tool.RESULTS / tool.RECORD
    records = json.loads(path.read_text("utf-8")) if path.exists() else {}
    assert set(records) <= set(entries)
    assert not any(str(record["commit"]).endswith("-dirty") for record in records.values())


def test_commands_and_their_options_exist(tool):
    for command in commands_of(tool):
        program, *words = shlex.split(command.partition(" > ")[0])
        if program == "stochcl":
            group, context = stochcl, click.Context(stochcl)
            while isinstance(group, click.Group):
                group = group.get_command(context, words.pop(0))
            known = {option for parameter in group.params for option in parameter.opts + parameter.secondary_opts}
            assert {word for word in words if re.fullmatch("--?[a-z][a-z-]*", word)} <= known, command
        else:
            program = words[1].replace(".", "/") if words[0] == "-m" else words[0].removesuffix(".py")
            assert (ROOT / f"{program}.py").exists() or (ROOT / program / "__main__.py").exists(), command


def test_what_an_entry_repeats_is_each_of_the_products(tool):
    entry = tool.Entry(["a"], 1, ["x {arm} {seed}", "y"], {"arm": ["b", "c"], "seed": [0, 1]})
    assert list(entry.expanded()) == ["x b 0", "x b 1", "x c 0", "x c 1", "y"]
    assert tool.Entry(["results.json as rate/a.json"], 1, []).named() == {"rate/a.json": "results.json"}


def test_a_list_says_what_there_is(tool, capsys, tmp_path):
    (tmp_path / "decoding.json").touch()
    tool.main(["--list", "--results", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(tool.read_table()[0])
    assert "not measured" not in lines["decoding"]
    assert "not measured" in lines["general"]


@pytest.mark.parametrize("arguments", [["nothing"], [], ["decoding"]])
def test_what_cannot_be_measured_is_a_usage_error(tool, arguments, monkeypatch):
    monkeypatch.delenv("STOCHCL_DATA", raising=False)
    with pytest.raises(SystemExit) as found:
        tool.main(arguments)
    assert found.value.code == 2


def test_a_result_is_made_once_and_again_by_force(tool, tmp_path, capfd):
    with zipfile.ZipFile(tmp_path / "cifar10-test.zip", "w") as file:
        for i in range(6):
            data = BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(data, "PNG")
            file.writestr(f"class{i % 2}/{i}.png", data.getvalue())
    given = ["decoding", "--data", str(tmp_path), "--work", str(tmp_path / "w"), "--results", str(tmp_path / "r")]
    tool.main(given)
    record = json.loads((tmp_path / "r" / tool.RECORD).read_text())["decoding"]
    assert record["commands"] == [
        "python tools/measure_decoding.py WORK/cifar10-test.bin WORK/cifar10-test-32.bin -o OUT/decoding.json"
    ]
    whole, few = json.loads((tmp_path / "r" / "decoding.json").read_text())["archives"]
    assert (whole["rows"], whole["latents"], few["latents"]) == (6, 256, 32)
    assert "stochcl compress" in capfd.readouterr().err
    tool.main(given)
    assert "--force" in capfd.readouterr().err
    tool.main([*given, "--force"])
    err = capfd.readouterr().err
    assert "measure_decoding" in err
    assert "stochcl compress" not in err
