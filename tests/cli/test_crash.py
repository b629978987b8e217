"""A handful of the kills that `python -m tests.crash` deals by the hundred."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")
def test_what_is_killed_leaves_the_old_the_complete_or_what_can_be_gone_on_with():
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--times", "4", "--seed", "7"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)["left"]
    assert sum(sum(states.values()) for states in left.values()) == 4
