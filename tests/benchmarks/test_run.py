"""What benchmarks share: options, jobs that are kept, processes that may die, and files."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from stochcl.benchmarks import run
from stochcl.benchmarks.run import Cache, ChildDiedError, Config, Job, Measured, call_in_child, run_jobs
from stochcl.errors import SourceError
from stochcl.options import option


@dataclass(frozen=True)
class Options(Config):
    command_name: ClassVar[str] = "stochcl benchmark it"

    sources: tuple[Path, ...] = option(())
    model: tuple[Path, ...] = option((), "A model.")
    bits: tuple[int, ...] = option((16, 32), "Bits.")
    probe: str = option("knn", "A probe.")
    compile: bool = option(False, "Compile it.")
    seed: int = option(0, "Seed.")


def test_the_command_line_names_what_is_not_the_default_and_no_folder():
    assert Options().command == "stochcl benchmark it --seed 0 -o results/"
    models = Path("/x/m.safetensors"), Path("general")
    asked = Options((Path("/a/b c.zip"),), models, (8, 9), "svm", True, seed=3)
    assert asked.command == (
        "stochcl benchmark it 'b c.zip' --model m.safetensors --model general --bits 8,9 --probe svm --compile "
        "--seed 3 -o results/"
    )


def kill_myself(number):
    os.kill(os.getpid(), number)


def refuse(sentence):
    raise SourceError(sentence)


def divide():
    return 1 / 0


def test_a_child_answers_refuses_or_dies_and_the_caller_lives():
    assert call_in_child(np.add, np.arange(3), 1).tolist() == [1, 2, 3]
    with pytest.raises(SourceError, match="no rows"):
        call_in_child(refuse, "no rows")
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV):
        with pytest.raises(ChildDiedError, match=number.name):
            call_in_child(kill_myself, number)
    with pytest.raises(ChildDiedError, match=r"exit status 1 .*ZeroDivisionError"):
        call_in_child(divide)


def measured(*scores):
    return Measured([{"method": "m"}], {"accuracy": np.array([scores], bool)})


def outcome_of(jobs, folder):
    said = []
    found = run_jobs(jobs, Cache(folder), ("key",), progress=lambda *told: None, say=said.append)
    return found, said


def test_a_death_is_a_row_and_the_rest_goes_on(tmp_path):
    jobs = [
        Job("OPQ", "8 bits", (1,), lambda told: call_in_child(kill_myself, signal.SIGKILL)),
        Job("PQ", "8 bits", (2,), lambda told: measured(1, 0), facts={"fitted_to": "here"}),
    ]
    found, said = outcome_of(jobs, tmp_path)
    (died,) = found.failed
    assert (died["method"], died["code"]) == ("OPQ", "8 bits")
    assert "SIGKILL" in died["reason"]
    assert "SIGKILL" in said[0]
    assert [one.rows for one in found.measured] == [[{"method": "m", "fitted_to": "here"}]]
    assert len(list(tmp_path.iterdir())) == 1  # a death is not kept: another run tries again


def test_needs_that_are_not_met_are_one_line_a_reason_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda module: None)

    def rows():
        raise SourceError("too few rows.")

    def never(told):
        raise AssertionError("this was refused")

    jobs = [Job(name, f"{bits} bits", (), never, lambda: run.need("faiss")) for name in ("PQ", "RQ") for bits in "12"]
    jobs += [Job("JXL", "8 x 8", (), never, lambda: run.need("pillow_jxl"))]
    jobs += [Job("ITQ", f"{bits} bits", (), never, rows) for bits in "12"]
    found, said = outcome_of(jobs, tmp_path)
    assert said == found.left_out == [
        "left out: PQ, RQ, JXL: needs faiss-cpu and pillow-jxl-plugin; install with: pip install 'stochcl[bench]'.",
        "left out: ITQ (1 bits, 2 bits): too few rows.",
    ]  # fmt: skip


def test_what_was_measured_is_taken_and_what_changed_is_measured_again(tmp_path):
    calls = []

    def job(depends):
        return Job("m", "c", (depends,), lambda told: calls.append(depends) or measured(1, 1))

    first, _ = outcome_of([job(1)], tmp_path)
    again, _ = outcome_of([job(1), job(2)], tmp_path)
    assert calls == [1, 2]
    assert again.measured[0].rows == first.measured[0].rows
    assert again.measured[0].values["accuracy"].tolist() == [[True, True]]


def test_what_cannot_be_read_of_a_cache_is_not_there(tmp_path):
    cache = Cache(tmp_path)
    cache.put("a", {"x": 1}, right=np.ones(3, bool))
    arrays, facts = cache.get("a")
    assert facts == {"x": 1}
    assert arrays["right"].all()
    assert cache.get("b") is None
    whole = (tmp_path / "a.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.npz").write_bytes(whole[:cut])
        assert cache.get("a") is None


def test_every_line_of_the_table_carries_what_it_was_measured_with():
    result = run.record(
        "s/0", Options(seed=4), rows=[{"method": "m", "bits": 1}], failed=[{"method": "d", "reason": "r"}]
    )
    assert set(result) == {"schema", "command", "commit", "seed", "hardware", "versions", "rows", "failed"}
    rows = list(csv.DictReader(io.StringIO(run.to_csv(result))))
    assert [(row["method"], row["bits"], row["reason"]) for row in rows] == [("m", "1", ""), ("d", "", "r")]
    assert all(row["seed"] == "4" and row["hardware"] and row["command"] == result["command"] for row in rows)


def test_a_commit_is_dirty_by_changed_code_and_not_by_results(tmp_path, monkeypatch):
    code, result = tmp_path / "stochcl" / "benchmarks" / "__init__.py", tmp_path / "benchmarks" / "results" / "a.json"
    for path in (code, result):
        path.parent.mkdir(parents=True)
        path.write_text("1\n")

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *name, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setattr(run, "__file__", str(code.with_name("run.py")))
    clean = run.commit()
    assert len(clean) == 40
    result.write_text("2\n")
    assert run.commit() == clean
    code.write_text("2\n")
    assert run.commit() == f"{clean}-dirty"
