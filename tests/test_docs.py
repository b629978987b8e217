"""Every example in the pages runs, and prints what the page shows; the command reference is that of the program."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import stochcl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
run_pages = importlib.import_module("run_pages")
make_reference = importlib.import_module("make_reference")
sys.path.remove(str(ROOT / "tools"))

LANGUAGES = {"sh", "python", "text", "toml", "json", "bibtex"}

FOLDERS = ("docs", "examples", "stochcl", "tools")
TEXTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell as Unix has it")
@pytest.mark.parametrize("page", run_pages.pages(), ids=name_of)
def test_the_examples_of_a_page_run(page):
    wrong = run_pages.check(page)
    assert not wrong, "\n".join(["Run python tools/run_pages.py --write, and look at the difference.", *wrong])


@pytest.mark.parametrize("page", run_pages.pages(), ids=name_of)
def test_every_block_is_found_and_every_exception_has_a_reason(page):
    text = page.read_text("utf-8")
    opened = re.findall(r"^ *```(\S+)$", text, re.MULTILINE)
    assert set(opened) <= LANGUAGES
    assert sum(language in {"sh", "python"} for language in opened) == len(list(run_pages.BLOCK.finditer(text)))


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_an_example_that_fails_or_prints_something_else_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pages, "ROOT", tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('one 1')\n```\n\n```text\ntwo 2\n```\n")
    assert len(run_pages.check(page)) == 1
    assert len(run_pages.check(page, write=True)) == 1
    assert "```text\none 1\n```" in page.read_text()
    assert not run_pages.check(page)
    page.write_text("```sh\nstochcl info missing.bin\n```\n")
    with pytest.raises(RuntimeError, match="there is no such file"):
        run_pages.check(page)


def test_the_command_reference_is_what_the_program_says():
    page = make_reference.PAGE.read_text("utf-8")
    assert page == make_reference.reference(), "run python tools/make_reference.py"


def test_the_citation_has_the_version():
    assert f"\nversion: {stochcl.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
