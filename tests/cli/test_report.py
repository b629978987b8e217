"""`stochcl report`: lines, JSON, what is refused, and in a process without torch."""

import json

from tests.making import process


def test_a_page_and_lines_for_people(run, codes, images, tmp_path):
    out = tmp_path / "report.html"
    result = run("report", codes, "--images", images, "-o", out)
    size = out.stat().st_size
    assert result.stdout.startswith(f"{out}: {size:,} bytes, ")
    assert "strongest latents: " in result.stdout
    assert "with logistic on folder (guessing: " in result.stdout
    assert size < 600_000


def test_an_existing_page_is_kept_unless_forced(run, refused, codes, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine")
    assert "--force" in refused("report", codes, "-o", out, code=2)
    assert out.read_text() == "mine"
    run("report", codes, "-o", out, "--force")
    assert "would replace the source" in refused("report", codes, "-o", codes, "--force", code=2)
    assert "the folder to write to does not exist" in refused("report", codes, "-o", tmp_path / "none" / "a.html")


def test_images_that_are_gone_are_said_and_no_error(run, codes, tmp_path):
    out = tmp_path / "report.html"
    result = run("report", codes, "--images", tmp_path / "gone", "-o", out, "--json")
    assert "no such file or folder" in json.loads(result.stdout)["notes"][0]
    assert out.exists()


def test_what_is_no_archive_or_lacks_its_tables_is_refused(run, refused, compress, images, model, tmp_path):
    (tmp_path / "no.bin").write_bytes(b"no archive at all")
    assert "not an archive of codes" in refused("report", tmp_path / "no.bin", "-o", tmp_path / "a.html")
    path = compress(images, "--external-tables")
    (tables,) = path.parent.glob("*.tables")
    away = tmp_path / "away"
    away.mkdir()
    tables.rename(away / tables.name)
    assert "the decoder" in refused("report", path, "-o", tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
    run("report", path, "-o", tmp_path / "a.html", "-m", away / tables.name)


def test_a_report_needs_no_torch(codes, images, tmp_path):
    before = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    result = process("report", codes, "--images", images, "-o", tmp_path / "a.html", before=before)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"
