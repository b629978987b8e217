"""The lines of docs/PIPELINES.md run as they stand, one block after the other, in a folder with some images."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stochcl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "PIPELINES.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell as Unix has it")
def test_every_block_runs(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for label in ("china", "flower"):
        (photos / label).mkdir(parents=True)
        for path in sorted((ROOT / "examples" / "images" / label).glob("*.jpg"))[:6]:
            shutil.copy(path, photos / label)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    names = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "docs/PIPELINES.md", "exec"), names)
        else:
            script = f"set -euo pipefail\nstochcl() {{ '{sys.executable}' -m stochcl \"$@\"; }}\n{block}"
            done = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False, env=os.environ
            )
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
    whole = stochcl.open("codes.bin")
    assert (len(whole), len(set(whole.labels))) == (12, 2)
    assert Path("streamed.bin").read_bytes() == Path("codes.bin").read_bytes()
    for name in ("streamed.bin", "listed.bin", "mine.bin", "again.bin", "columns.bin"):
        with stochcl.open(name) as archive:
            found = dict(zip(archive.names, map(bytes, archive.to_numpy()), strict=True))
            known = dict(zip(whole.names, map(bytes, whole.to_numpy()), strict=True))
            assert {name.removeprefix("photos/"): code for name, code in found.items()} == known
    assert len(stochcl.open("shards.bin")) == 24
    np.testing.assert_array_equal(names["codes"].symbols(), whole.to_numpy())
