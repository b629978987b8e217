"""`stochcl search`: a table, JSON, a page, and in a process of its own."""

import json

from tests.making import process


def test_a_table_for_each_query(run, codes, images, model, tmp_path):
    photo = sorted((images / "cats").iterdir())[0]
    result = run("search", codes, photo, "--row", "3", "-m", model, "-k", "4", "--html", tmp_path / "found.html",
                 "--images", images)  # fmt: skip
    lines = result.stdout.splitlines()
    assert "42 rows by vectors; distance: 1 - cosine" in lines
    assert sum("cats/" in line for line in lines) >= 2
    assert "found.html" in result.stderr
    assert (tmp_path / "found.html").stat().st_size > 5000


def test_json_and_bad_requests(run, codes):
    found = json.loads(run("search", codes, "--row", "0", "-k", "2", "--json").stdout)
    assert set(found) == {"schema", "path", "images", "model", "by", "unit", "queries"}
    assert set(found["queries"][0]["neighbours"][0]) == {"row", "name", "label", "distance"}
    assert "what to search for" in run("search", codes, code=2).stderr
    assert "name it with --html" in run("search", codes, "--row", "0", "--images", codes.parent, code=2).stderr
    assert "no row named" in run("search", codes, "--name", "x", code=2).stderr


def test_rows_are_searched_without_torch(codes):
    before = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    result = process("search", codes, "--row", "1", "-k", "2", before=before)
    assert (result.returncode, result.stderr) == (0, "False\n")
    assert "42 rows" in result.stdout
