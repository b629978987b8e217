"""The model that made an archive is found by its hash: in the package, in the archive's folder, or in this one."""

import json
import shutil

import pytest

import stochcl


@pytest.fixture
def elsewhere(codes, tmp_path, monkeypatch):
    """A copy of the archive in a folder of its own, and another one to be in."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("STOCHCL_MODELS", raising=False)
    return shutil.copy(codes, tmp_path / "archive" / "codes.bin")


@pytest.mark.parametrize("folder", ["archive", "here", "models"])
def test_a_model_of_any_name_is_found(run, refused, elsewhere, images, model, tmp_path, monkeypatch, folder):
    query = ["search", elsewhere, images / "cats" / "03.jpg", "-k", "1", "--by", "symbols"]
    assert "give it with -m" in refused(*query, code=2)
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "another.safetensors").write_bytes(b"no model")
    shutil.copy(model, tmp_path / folder / "renamed.safetensors")
    if folder == "models":
        monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path / "models"))
    found = json.loads(run(*query, "--json").stdout)
    assert found["queries"][0]["neighbours"][0]["distance"] == 0


def test_append_takes_the_archive_s_own_model(run, elsewhere, images, model, tmp_path):
    shutil.copy(model, tmp_path / "archive" / "renamed.safetensors")
    more = shutil.copytree(images / "cats", tmp_path / "more" / "birds")
    assert "added      14 images" in run("append", elsewhere, more.parent).stdout
    assert len(stochcl.open(elsewhere)) == 42 + 14
    stochcl.append(elsewhere, more.parent)


def test_a_decoder_that_is_nowhere_is_made_of_the_model(run, refused, compress, images, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = compress(images, "--external-tables")
    (tables,) = tmp_path.glob("*.tables")
    tables.unlink()
    assert "give the model with -m" in refused("evaluate", path)
    with pytest.raises(stochcl.errors.ModelMismatch, match="give the model as model"):
        stochcl.open(path).to_vectors()
    assert len(stochcl.open(path, model=model).to_vectors()) == 42
    shutil.copy(model, tmp_path / "renamed.safetensors")
    assert "accuracy" in run("evaluate", path, "--folds", "3").stdout
    assert "kept outside the archive (not counted)" in run("info", path).stdout


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_lies_here_under_the_name_of_a_model_does_not_shadow_it(run, images, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "general").mkdir() if kind == "folder" else (tmp_path / "general").write_bytes(b"no model")
    (tmp_path / "general.safetensors").write_bytes(b"no model")
    run("compress", images / "cats", "-m", "general", "-o", "a.bin")
    run("compress", images / "cats", "-m", "general", "-o", "b", "--shard-images", "7")
    run("search", "a.bin", images / "cats" / "00.png", "-k", "1")
    assert run("models", "info", "general").stdout.startswith("general: ")
