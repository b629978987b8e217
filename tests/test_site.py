"""The site builds without a warning, which checks its links; the notebook runs."""

import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "folder_to_report.ipynb"


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.skipif(not installed("mkdocs", "material", "mkdocstrings"), reason="needs the extra docs")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "index.html").read_text("utf-8")
    assert not re.findall(r"<(?:script|img)[^>]*src=\"?https?:|<link[^>]*stylesheet[^>]*https?:", start)
    reference = (tmp_path / "reference" / "api" / "index.html").read_text("utf-8")
    for inherited in ("api.codec.Codec.encode", "compress.archive.Archive.to_vectors", "compress.writer.Writer.add"):
        assert f'id="stochcl.{inherited}"' in reference
    assert "path - like" not in re.sub("<[^>]*>", "", reference)


def test_every_name_in_the_reference_exists():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference" / "api.md").read_text("utf-8"), re.MULTILINE)
    assert names
    for name in names:
        pkgutil.resolve_name(name)


def test_the_notebook_stores_no_output():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.skipif(not installed("nbclient", "ipykernel"), reason="needs the extra docs")
def test_the_notebook_runs_from_a_folder_to_a_report(tmp_path):
    code = (
        "import sys, nbformat, nbclient\n"
        "book = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(book, timeout=600, resources={'metadata': {'path': sys.argv[2]}}).execute()\n"
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", code, str(NOTEBOOK), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "</html>" in (tmp_path / "report.html").read_text("utf-8")
