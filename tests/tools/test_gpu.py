"""Tools for a short lease of a GPU, tried on the processor from packing to the table."""

import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.making import make_set, make_trainer

TOOLS = Path(__file__).parents[2] / "tools" / "gpu"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def call(name, *words, code=0, **environment):
    command = [sys.executable, TOOLS / name, *words]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture
def files(tmp_path, rng):
    """A folder with a file larger than a part, one in a folder of it, and an empty one."""
    root = tmp_path / "results"
    (root / "work").mkdir(parents=True)
    (root / "large.safetensors").write_bytes(rng.bytes(300_000))
    (root / "work" / "result.json").write_text("{}\n")
    (root / "empty.log").write_bytes(b"")
    return root


def test_what_is_exported_comes_back_the_same_in_parts_of_the_size_that_was_asked_for(files, tmp_path):
    call("export.py", files, "-o", tmp_path / "out", "--limit-mib", "0.1")
    assert max(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 0.1 * 2**20
    assert len(list((tmp_path / "out").glob("large.safetensors.*"))) == 3
    call("join.py", tmp_path / "out", "-o", tmp_path / "back")
    for path in (p for p in files.rglob("*") if p.is_file()):
        assert (tmp_path / "back" / path.relative_to(files)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "this part is damaged"),
        (lambda part: part.write_bytes(b"x" + part.read_bytes()[1:]), "this part is damaged"),
        (lambda part: part.unlink(), "this part is missing"),
    ],
)
def test_a_part_that_did_not_arrive_whole_is_refused_and_nothing_is_written(tool, files, tmp_path, harm, said):
    parts = tool("parts")
    found = {"large.safetensors": files / "large.safetensors"}
    parts.write_parts(found, tmp_path / "out", 0.1)
    harm(tmp_path / "out" / "large.safetensors.001")
    with pytest.raises(parts.PartsError, match=said):
        parts.join_parts([tmp_path / "out"], tmp_path / "back")
    assert [p for p in (tmp_path / "back").rglob("*") if p.is_file()] == []


def test_parts_may_lie_in_several_folders_and_no_name_climbs_out(tool, files, tmp_path):
    parts = tool("parts")
    parts.write_parts({"a.safetensors": files / "large.safetensors"}, tmp_path / "one", 0.1)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "a.safetensors.002").rename(tmp_path / "two" / "a.safetensors.002")
    (tmp_path / "two" / "manifest.json").write_text(json.dumps({"schema": parts.SCHEMA, "files": []}))
    parts.join_parts([tmp_path / "one", tmp_path / "two"], tmp_path / "back")
    assert (tmp_path / "back" / "a.safetensors").read_bytes() == (files / "large.safetensors").read_bytes()
    parts.write_parts({"../../a": files / "empty.log"}, tmp_path / "bad")
    with pytest.raises(parts.PartsError, match="does not lie in a folder of the output"):
        parts.join_parts([tmp_path / "bad"], tmp_path / "back")


@pytest.mark.parametrize("moments", ["none", "second", "all"])
def test_training_goes_on_from_a_checkpoint_that_travelled(tool, tmp_path, moments):
    shrinking, data = tool("shrinking"), make_set(32)
    first = make_trainer(tmp_path, data, epochs=2, batch_size=8, precision="fp32")
    first.run()
    path = first.checkpoint_path
    before, state = path.stat().st_size, first.optimizer.state_dict()["state"]
    weights = {n: p.detach().clone() for n, p in first.encoder.named_parameters()}
    shrinking.shrink(path, tmp_path / "small", moments)
    # A weight has 12 bytes with its moments; matrices and convolutions are most of it.
    assert (tmp_path / "small").stat().st_size < before * {"none": 0.35, "second": 0.5, "all": 0.65}[moments]
    (tmp_path / "small").rename(path)
    assert shrinking.grow(path)
    assert not shrinking.grow(path)
    second = make_trainer(tmp_path, data, epochs=4, batch_size=8, precision="fp32")
    assert second.step == first.step == 8
    for name, parameter in second.encoder.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-3, atol=1e-6)
    slots = second.optimizer.state_dict()["state"]
    large = [i for i, slot in state.items() if slot["exp_avg_sq"].ndim > 1]
    for i in large:
        kept = {"exp_avg": moments == "all", "exp_avg_sq": moments != "none"}
        for name, there in kept.items():
            wanted = state[i][name] if there else torch.zeros_like(state[i][name])
            torch.testing.assert_close(slots[i][name], wanted, rtol=1e-2, atol=0)
        assert slots[i]["step"] == (0 if moments == "none" else 8)
    second.run()
    assert second.step == 16
    assert all(tensor.isfinite().all() for tensor in second.encoder.state_dict().values())


def test_a_file_larger_than_a_load_is_spread_over_several(files, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"a" * 1000)
    large = files / "large.safetensors"
    given = ["--data", tmp_path / "a.zip", "--checkpoints", files, "--no-wheels", "--limit-mib", "0.1"]
    call("pack.py", "-o", tmp_path / "loads", *given)
    loads = sorted((tmp_path / "loads").iterdir())
    assert len(loads) == 4
    for load in loads:
        assert sum(p.stat().st_size for p in load.iterdir() if p.name != "manifest.json") <= 0.1 * 2**20
    call("unpack.py", *loads, "-o", tmp_path / "work", "--results", tmp_path / "results-again")
    assert (tmp_path / "results-again" / "large.safetensors").read_bytes() == large.read_bytes()
    assert (tmp_path / "work" / "data" / "a.zip").read_bytes() == b"a" * 1000


def write_list(path, *jobs):
    lines = []
    for job in jobs:
        lines += ["[[job]]", *(f"{key} = {json.dumps(value)}" for key, value in job.items())]
    path.write_text("\n".join(lines))
    return path


def states(out):
    return {name: facts["state"] for name, facts in json.loads((out / "jobs.json").read_text())["jobs"].items()}


MAKE = "{python} -c \"import sys; open(sys.argv[1], 'w').write('{{}}')\" {out}/"


def test_jobs_run_by_priority_and_wait_for_what_they_need(tmp_path):
    out = tmp_path / "out"
    second, never = {"priority": 2, "needs": ["first"]}, {"priority": 0, "needs": ["x.zip"]}
    jobs = write_list(
        tmp_path / "jobs.toml",
        {"name": "second", "command": MAKE + "b.json", "minutes": 1, "result": "b.json"} | second,
        {"name": "first", "command": MAKE + "a.json", "minutes": 1, "priority": 1, "result": "a.json"},
        {"name": "never", "command": MAKE + "c.json", "minutes": 1, "result": "c.json"} | never,
        {"name": "failing", "command": "{python} -c 1/0", "minutes": 1, "priority": 3, "result": "d.json"},
        {"name": "idle", "command": "{python} -c 0", "minutes": 1, "priority": 3, "result": "e.json"},
        {"name": "later", "command": "{python} -c exit(75)", "minutes": 1, "priority": 3, "result": "f.json"},
    )  # fmt: skip
    said = call("jobs.py", jobs, "-o", out, "--data", tmp_path, code=1)
    assert states(out) == {
        "first": "done", "second": "done", "never": "left out", "failing": "failed", "idle": "failed",
        "later": "not finished",
    }  # fmt: skip
    assert said.index("first: done") < said.index("second: running")
    assert "it needs x.zip" in said
    assert "exit code 0, and no e.json" in said
    assert "ZeroDivisionError" in (out / "failing.log").read_text()
    (out / "a.json").write_text("kept")
    call("jobs.py", jobs, "-o", out, "--data", tmp_path, "--only", "first", "--only", "second")
    assert (out / "a.json").read_text() == "kept"


def test_a_job_s_time_ends_it_with_an_interruption_and_it_goes_on_the_next_time(tmp_path):
    out, script = tmp_path / "out", tmp_path / "job.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "if '--resume' in sys.argv: (out / 'r.json').write_text('{}'); sys.exit()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: (out / 'c').write_text(''); raise\n"
    )
    job = {
        "name": "long", "command": f"{{python}} {script} {{out}} {{resume}}", "minutes": 0.02, "result": "r.json",
        "checkpoint": "c",
    }  # fmt: skip
    jobs = write_list(tmp_path / "jobs.toml", job)
    call("jobs.py", jobs, "-o", out, code=1)
    assert states(out) == {"long": "not finished"}
    assert "--resume" in call("jobs.py", jobs, "-o", tmp_path / "out", "--dry-run")
    call("jobs.py", jobs, "-o", out)
    assert states(out) == {"long": "done"}


def test_a_job_that_keeps_time_itself_stops_before_it_is_interrupted(tool, tmp_path):
    jobs = tool("jobs")
    job = jobs.Job("a", "x {minutes}", 10, "r")
    words = [jobs.Runner([job], tmp_path, tmp_path, None).words(job, seconds)[1] for seconds in (600, 60)]
    assert words == ["9.50", "0.80"]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"name": "a", "command": "x", "minutes": 1}, "'a': result unknown or missing"),
        ({"name": "a", "command": "x", "minutes": 1, "result": "y", "colour": 1}, "colour"),
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path, job, said):
    assert said in call("jobs.py", write_list(tmp_path / "jobs.toml", job), "-o", tmp_path / "out", code=1)


@pytest.mark.parametrize("path", sorted(TOOLS.joinpath("jobs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_lists_that_come_along_ask_for_options_that_there_are(tool, path, tmp_path, monkeypatch):
    from stochcl.cli.main import main as cli

    jobs, cifar10 = tool("jobs"), tool("cifar10")
    for job in jobs.read_jobs(path):
        words = jobs.Runner([job], tmp_path, tmp_path, None).words(job, 60)
        for source in re.findall(r"{data}/([\w.-]+)", job.command):
            (tmp_path / source).touch()
        if Path(words[1]).parent.name == "benchmarks":
            assert Path(words[1]).is_file()
            monkeypatch.syspath_prepend(str(Path(words[1]).parent))
            importlib.import_module(Path(words[1]).stem).main.make_context("job", words[2:])
        elif words[1:3] == ["-m", "stochcl"]:
            command, rest = cli, words[3:]
            while hasattr(command, "commands"):
                command, rest = command.get_command(None, rest[0]), rest[1:]
            command.make_context("job", rest, help_option_names=["-h", "--help"])  # as below its group
        else:
            options = cifar10.parse(words[2:])
            assert job.result == f"cifar10-{options.arm}-{options.backbone}-{options.seed}.json"
            assert job.name == Path(job.result).stem


def write_zip(path, per_class, seed):
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(("blue", "green", "red")):
            for i in range(per_class):
                pixels = rng.integers(0, 80, (32, 32, 3), np.uint8)
                pixels[..., 2 - k] += 150
                file = BytesIO()
                Image.fromarray(pixels).save(file, "JPEG")
                archive.writestr(f"{name}/{i:03d}.jpg", file.getvalue())


def test_from_packing_to_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "train.zip", 12, 0)
    write_zip(tmp_path / "test.zip", 4, 1)
    call("pack.py", "-o", "loads", "--data", "train.zip", "test.zip", "--no-wheels", "--limit-mib", "0.05")
    loads = sorted(Path("loads").iterdir())
    environment = os.environ | {
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "STOCHCL_DATA": str(tmp_path / "other"),
    }
    begin = ["sh", TOOLS / "start.sh", *loads, "--", TOOLS / "jobs" / "dry-run.toml", "results", "5"]
    subprocess.run(begin, check=True, env=environment, capture_output=True)
    said = call("wait.py", "results", "--seconds", "120", "--every", "0.5", "--export", "exported")
    assert states(Path("results")) == dict.fromkeys(
        ("cifar10-latent-resnet10-0", "cifar10-scratch-resnet10-0", "speed"), "done"
    ), said
    call("join.py", "exported", "-o", "back")
    made = Path("back/cifar10-latent-resnet10-0.json")
    assert made.read_bytes() == Path("results", made.name).read_bytes()
    found = json.loads(made.read_text())
    assert found["test"] == {"name": "test.zip", "images": 12}
    assert found["test_top1_interval"][0] <= found["test_top1"] <= found["test_top1_interval"][1]
    assert set(found["before_finetuning"]) == {
        f"{a}_{b}" for a in ("features", "vectors", "symbols") for b in ("linear", "knn")
    }
    assert str(tmp_path) not in made.read_text()

    from stochcl.api.finetune import score

    again = score("back/work/cifar10-latent-resnet10-0.finetuned.safetensors", "test.zip", device="cpu")
    assert (again.test_top1, again.codes_top1) == (found["test_top1"], found["codes_top1"])
    table = call("table.py", "back")
    assert "| resnet10, width 4 | pre-trained and through the latents | 0 | " in table
    assert "latent less scratch, by seed: " in table
