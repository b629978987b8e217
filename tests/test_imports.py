"""Imports run downwards only, and what needs no torch does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stochcl

ROOT = Path(stochcl.__file__).parent

GROUND = {"errors", "codes", "lazy", "messages", "options"}
BASE = GROUND | {"files", "framing", "remote", "entropy"}
MAY_IMPORT = {
    "errors": set(),
    "lazy": set(),
    "messages": set(),
    "options": {"errors"},
    "codes": {"errors"},
    "framing": GROUND,
    "files": GROUND,
    "remote": GROUND,
    "data": GROUND | {"files", "remote"},
    "entropy": GROUND | {"files", "framing"},
    "compress": BASE,
    "encoders": BASE | {"data"},
    "training": BASE | {"data", "encoders"},
    "downstream": BASE | {"compress"},
    "api": BASE | {"data", "encoders", "compress", "downstream", "training"},
    "torch": BASE | {"compress"},
    "sklearn": BASE | {"data", "compress", "api"},
    "ray": BASE | {"data", "compress", "api"},
    "sentence_transformers": BASE | {"api"},
    "report": BASE | {"data", "compress", "downstream", "api"},
    "benchmarks": BASE | {"data", "encoders", "compress", "downstream", "training", "api", "report"},
    "cli": BASE | {"data", "compress", "training", "api", "report", "benchmarks", "ray"},
    "__init__": BASE | {"compress", "api"},
    "__main__": {"cli"},
}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules(source: str) -> set[str]:
    """What a source imports, anywhere in it, also for types only, also by ``import_module``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively, which hides what it imports"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "/" not in node.value:
            # names of modules that are imported later; with a slash they are of schemas
            parts = node.value.split(".")
            if parts[0] == "stochcl" and parts[1:] and parts[1] and (ROOT / parts[1]).is_dir():
                found.add(node.value)
    return found


def rooms(source: str) -> set[str]:
    """Rooms of stochcl that a source imports."""
    found = {module.split(".")[1] for module in modules(source) if module.startswith("stochcl.")}
    return found - {"__version__"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import stochcl.codes", {"codes"}),
        ("from stochcl.data import Failure", {"data"}),
        ("from stochcl import downstream, __version__", {"downstream"}),
        ("from stochcl.api.codec import Codec as C", {"api"}),
        ("def f():\n    if TYPE_CHECKING:\n        from stochcl.cli.main import main", {"cli"}),
        ("import_module('stochcl.encoders.train')", {"encoders"}),
        ("import numpy, stochclever.codes; 'stochcl.data.verify/0'; 'stochcl compress'", set()),
    ],
)
def test_this_test_sees_every_way_to_import(source, found):
    assert rooms(source) == found


def test_every_room_has_its_directions():
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT)


def test_directions_have_no_circle():
    below = {room: set(others) for room, others in MAY_IMPORT.items()}
    while below:
        free = {room for room, others in below.items() if not others & set(below)}
        assert free, f"a circle among {sorted(below)}"
        below = {room: others for room, others in below.items() if room not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path):
    room = room_of(path)
    assert rooms(path.read_text(encoding="utf-8")) <= MAY_IMPORT[room] | {room}


FREE_OF_CIRCLES = set(MAY_IMPORT)


def imports_of(path: Path, names: set[str]) -> set[str]:
    """Modules among ``names`` that a file imports, also for types only."""
    return {name for name in modules(path.read_text(encoding="utf-8")) if name in names}


@pytest.mark.parametrize("room", sorted(FREE_OF_CIRCLES))
def test_no_file_of_a_room_imports_itself_in_a_circle(room):
    files = {"stochcl." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    below = {name: imports_of(path, set(files)) for name, path in files.items() if room_of(path) == room}
    while below:
        free = {name for name, others in below.items() if not others & set(below)}
        assert free, f"a circle among {sorted(below)}"
        below = {name: others for name, others in below.items() if name not in free}


def test_torch_is_imported_where_encoders_run_or_are_timed_only():
    users = {
        room_of(path)
        for path in FILES
        if any(module.split(".")[0] in {"torch", "safetensors"} for module in modules(path.read_text("utf-8")))
    }
    assert users <= {
        "encoders",
        "training",
        "api",
        "torch",
        "benchmarks",
    }  # the bare passes that throughput is held against


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_imports_next_to_nothing():
    heavy = {"torch", "numpy", "sklearn", "constriction", "PIL", "click", "rich"}
    assert not modules_after("import stochcl; stochcl.open, stochcl.load, stochcl.writer") & heavy


def test_what_needs_no_torch_does_not_import_it():
    rooms = "compress", "downstream", "data", "codes", "api.archives", "cli"
    loaded = modules_after("\n".join(f"import stochcl.{room}" for room in rooms))
    assert not loaded & {"torch", "sklearn", "scipy", "matplotlib", "pyarrow"}


def test_reading_an_archive_and_training_on_it_never_imports_torch(tmp_path):
    golden = Path(__file__).parent / "golden" / "binary.bin"
    code = f"""
import numpy as np
import stochcl
from stochcl.api.archives import decompress
from stochcl.api.evaluate import evaluate
from stochcl.downstream import ESTIMATORS, evaluate as score
archive = stochcl.open({str(golden)!r})
assert archive.to_vectors().shape == (30, 3)
evaluate({str(golden)!r})
decompress({str(golden)!r}, {str(tmp_path / "codes.npz")!r})
x = np.random.default_rng(0).normal(size=(40, 4))
for task, names in ESTIMATORS.items():
    for name in names:
        score(x, [0, 1] * 20, task=task, estimator=name, folds=2)
"""
    loaded = modules_after(code)
    assert "sklearn" in loaded
    assert "torch" not in loaded
