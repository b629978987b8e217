"""A handful of killed writers; ``python -m tests.kill`` kills hundreds."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from stochcl.compress.journal import Journal, Record
from tests.compress.making import make_names
from tests.kill import OLD, ROWS, Broken, look_at_output, make_jobs

ROOT = Path(__file__).parents[1]
ROUNDS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and forks as Unix has them")


def test_what_is_killed_leaves_the_old_or_the_new_and_what_was_done(tmp_path):
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "tests.kill",
        "--times",
        str(ROUNDS),
        "--seed",
        "3",
        "--no-programs",
        "--report",
        report,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert (result["rounds"], result["broken"]) == (ROUNDS, [])
    assert result["kills"] >= ROUNDS // 2  # a fast machine may be done before


@pytest.fixture
def job(tmp_path):
    """A job that is done, its folder and the path that it writes."""
    (tmp_path / "made").mkdir()
    found = make_jobs(tmp_path / "made", random.Random(0))["compress"]
    found.expected, found.names = (tmp_path / "made" / "whole").read_bytes(), make_names(ROWS)
    return found, tmp_path, tmp_path / "out.bin"


def test_what_must_not_be_after_a_kill_is_seen(job):
    job, folder, path = job
    for there, old in ((job.expected[:-1], None), (b"", OLD), (OLD, None), (None, OLD)):
        path.unlink(missing_ok=True)
        if there is not None:
            path.write_bytes(there)
        with pytest.raises(Broken, match="neither absent nor old nor complete"):
            look_at_output(job, path, old, folder)
    path.write_bytes(job.expected)
    assert look_at_output(job, path, OLD, folder) == "complete"
    partial = path.with_name("out.bin.partial")
    partial.write_bytes(job.expected[:-40])
    with pytest.raises(Broken, match="and there is a partial file"):
        look_at_output(job, path, OLD, folder)
    path.unlink()
    journal = Journal(folder / "out.bin.partial.journal")
    journal.start({})
    assert look_at_output(job, path, None, folder) == "begun"
    journal.append(Record(0, 0, ROWS, 0, 0))
    assert look_at_output(job, path, None, folder) == "partial"
    journal.append(Record(0, 0, 1, 0, 0))
    journal.close()
    with pytest.raises(Broken, match=f"{ROWS} rows were salvaged, and {ROWS + 1} are in the journal"):
        look_at_output(job, path, None, folder)
