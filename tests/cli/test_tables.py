"""Where decoding tables are: in the file, beside it, or wherever -m says."""

import json

import pytest


@pytest.fixture
def apart(compress, images):
    """An archive without its tables, and where those were moved to."""
    path = compress(images, "--external-tables")
    (written,) = path.parent.glob("*.tables")
    (path.parent / "elsewhere").mkdir()
    return path, written.rename(path.parent / "elsewhere" / written.name)


def test_tables_that_are_left_out_are_written_beside_the_file(run, apart, compress, images):
    path, tables = apart
    whole = compress(images, name="whole.bin")
    assert whole.stat().st_size - path.stat().st_size >= tables.stat().st_size
    parts = json.loads(run("info", path, "-m", tables, "--json").stdout)
    assert parts["parts"]["tables"] == 0
    assert parts["external_bytes"] == tables.stat().st_size


def test_the_report_says_where_they_are(run, images, model, tmp_path):
    result = run("compress", images, "-m", model, "-o", tmp_path / "a.bin", "--external-tables")
    (tables,) = tmp_path.glob("*.tables")
    assert str(tables) in result.stdout


@pytest.mark.parametrize("command", ["info", "verify", "evaluate"])
def test_a_file_is_read_with_the_tables_or_the_model_that_are_given(run, refused, apart, model, command):
    path, tables = apart
    assert "the decoder" in refused(command, path)
    run(command, path, "-m", tables)
    run(command, path, "-m", model)


def test_tables_beside_the_file_or_in_the_current_folder_are_found(run, refused, apart, monkeypatch):
    path, tables = apart
    assert "-m" in refused("verify", path)
    monkeypatch.chdir(tables.parent)
    run("verify", path)
    monkeypatch.chdir("/")
    tables.rename(path.parent / tables.name)
    run("verify", path)


def test_so_it_is_decompressed_and_saved(run, refused, apart, tmp_path):
    path, tables = apart
    assert "the decoder" in refused("decompress", path, "-o", tmp_path / "a.npz")
    run("decompress", path, "-o", tmp_path / "a.npz", "-m", tables)
    run("verify", path, "--salvage", tmp_path / "b.bin", "-m", tables)
    run("verify", tmp_path / "b.bin", "-m", tables)


def test_a_file_that_must_hold_its_tables_and_leave_them_out_is_refused(refused, images, model, tmp_path):
    said = refused(
        "compress", images, "-m", model, "-o", tmp_path / "a.bin", "--self-contained", "--external-tables", code=2
    )
    assert "--self-contained and --external-tables" in said


def test_a_self_contained_file_of_the_default_model_holds_its_tables(run, images, tmp_path):
    run("compress", images, "-o", tmp_path / "a.bin", "--self-contained", "--latents", "8")
    result = json.loads(run("info", tmp_path / "a.bin", "--json").stdout)
    assert result["external_bytes"] == 0
    assert 50_000 < result["parts"]["tables"] < 300_000
