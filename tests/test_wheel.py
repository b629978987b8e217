"""What the wheel holds: all that a user needs, at its size, and nothing else."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from stochcl import __version__
from stochcl.entropy.tables import Tables

ROOT = Path(__file__).parents[1]
LIMIT = 30 * 10**6  # bytes; what the package index and a newcomer's patience allow
MODELS = {"stochcl/models/general.safetensors", "stochcl/models/fast.safetensors"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of what the checkout keeps, with the builder that pip would call."""
    from hatchling.builders.wheel import WheelBuilder

    source = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    for name in ("stochcl", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (built,) = WheelBuilder(str(source)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(built)


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_its_name_says_that_it_runs_everywhere(wheel):
    assert wheel.name == f"stochcl-{__version__}-py3-none-any.whl"


def test_the_models_are_in_it(names):
    # Files that git ignores are left out of a wheel without a word.
    assert set(names) >= MODELS


def test_the_recipes_are_in_it(names):
    folder = ROOT / "stochcl" / "training" / "presets"
    assert {f"stochcl/training/presets/{path.name}" for path in folder.glob("*.toml")} <= set(names)
    assert "stochcl/training/presets/cifar10-finetune.toml" in names


def test_the_templates_of_pages_are_in_it(names):
    there = {f"stochcl/report/{path.name}" for path in (ROOT / "stochcl" / "report").glob("*.html")}
    assert "stochcl/report/report.html" in there
    assert there <= set(names)


def test_the_tables_of_the_default_model_are_in_it(names, wheel):
    import stochcl

    codec = stochcl.load("general", device="cpu")
    path = f"stochcl/tables/{codec.tables.sha256}.tables"
    assert path in names
    with zipfile.ZipFile(wheel) as archive:
        assert Tables.from_bytes(archive.read(path)).sha256 == codec.tables.sha256
    assert codec.has_packaged_tables


def test_all_tables_have_the_names_that_their_bytes_give_them(names, wheel):
    tables = [name for name in names if name.startswith("stochcl/tables/") and name.endswith(".tables")]
    assert tables
    with zipfile.ZipFile(wheel) as archive:
        for name in tables:
            assert name == f"stochcl/tables/{Tables.from_bytes(archive.read(name)).sha256}.tables"


def test_every_module_and_the_mark_of_types_are_in_it(names):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "stochcl").rglob("*.py")}
    assert modules <= set(names)
    assert "stochcl/py.typed" in names


def test_every_recipe_of_training_and_fine_tuning_is_in_it(names):
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "stochcl").rglob("*.toml")}
    assert "stochcl/training/presets/digits.toml" in recipes
    assert recipes <= set(names)


def test_nothing_else_is_in_it(names):
    strange = [
        name
        for name in names
        if not re.match(rf"stochcl/|stochcl-{re.escape(__version__)}\.dist-info/", name)
        or re.search(r"test_|conftest|__pycache__|\.pyc$|\.checkpoint$|\.partial|\.log", name)
    ]
    assert strange == []
    assert len(names) == len(set(names))


def test_it_is_small_enough(wheel):
    assert wheel.stat().st_size < LIMIT


def test_it_brings_the_command_and_the_licence(wheel, names):
    info = f"stochcl-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    assert f"{info}/licenses/stochcl/models/NOTICE" in names
    with zipfile.ZipFile(wheel) as archive:
        assert "stochcl = stochcl.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
