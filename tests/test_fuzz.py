"""The fuzzer finds nothing, and finds what is put there for it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs limits and forks as Linux has them"
)


def fuzz(*arguments, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom tests.fuzz.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_damaged_and_forged_archives_do_what_they_must(tmp_path):
    report = tmp_path / "report.json"
    done = fuzz("--cases", 6000, "--seed", 1, "--report", report)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert (result["cases"], result["findings"]) == (6000, [])
    assert min(result["damaged"], result["forged"]) > 2800
    kinds = {kind.split(":")[1].strip() for kind in result["outcomes"]}
    assert {"ChecksumMismatch on reading", "FormatError on opening", "LimitExceeded on reading", "read"} <= kinds


def test_what_guided_fuzzing_kept_is_read_or_refused():
    """In a process of its own, as checksums are not looked at there; atheris is not needed."""
    code = """
import warnings
from collections import Counter
import stochcl.compress
from tests.fuzz import guided
guided.without_checksums()
warnings.simplefilter("error")
print(Counter(guided.read(path.read_bytes()).split()[-1] for path in sorted(guided.CORPUS.iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {"rows", "latents", "FormatError", "LimitExceeded", "Truncated"} <= set(
        re.findall(r"'(\w+)'", done.stdout)
    )


def test_the_corpus_is_small():
    files = list((ROOT / "tests" / "fuzz" / "corpus").iterdir())
    assert 20 < len(files) < 200
    assert sum(path.stat().st_size for path in files) < 150_000


PLANTED = {
    "AssertionError: other rows were read": "judge.check_crc = lambda *a: None",
    "KeyError": "sometimes(lambda: {}[1])",
    "MemoryError": "sometimes(lambda: bytearray(90 << 20))",
    "Hang": "judge.SECONDS = 0.3\nsometimes(lambda: time.sleep(9))",
    "the process died": "sometimes(os.abort)",
}

PREPARED = """
import itertools, os, time
import stochcl.compress.segment as segment, tests.fuzz.judge as judge
calls, decode = itertools.count(), segment.decode_blocks
def sometimes(do):
    def replaced(*arguments):
        if next(calls) == 500:
            do()
        return decode(*arguments)
    segment.decode_blocks = replaced
"""


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(what):
    done = fuzz("--cases", 3000, before=PREPARED + PLANTED[what])
    assert done.returncode == 1, done.stdout + done.stderr
    assert f": {what}" in done.stdout
