"""Imports run downwards only, and what needs no torch does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stochcl

ROOT = Path(stochcl.__file__).parent

FOUNDATIONS = {"errors", "codes", "atomic"}
MAY_IMPORT = {
    "errors": set(),
    "atomic": set(),
    "codes": {"errors"},
    "data": FOUNDATIONS,
    "encoders": FOUNDATIONS | {"data"},
    "compress": FOUNDATIONS | {"data"},
    "downstream": FOUNDATIONS | {"compress"},
    "api": FOUNDATIONS | {"data", "encoders", "compress", "downstream"},
    "cli": FOUNDATIONS | {"data", "api", "downstream"},
}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of stochcl that a file imports, anywhere in it, also for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {m.split(".")[1] for m in modules if m.startswith("stochcl.")}
    return found - {"__version__"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != ROOT or p.stem in MAY_IMPORT], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_room_imports_only_what_lies_below_it(path):
    room = room_of(path)
    assert imports(path) <= MAY_IMPORT[room] | {room}


def test_torch_is_imported_in_the_encoders_room_only():
    users = {
        room_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "torch" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch")
    }
    assert users <= {"encoders", "api"}


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_imports_next_to_nothing():
    heavy = {"torch", "numpy", "sklearn", "constriction", "PIL", "click", "rich"}
    assert not modules_after("import stochcl") & heavy


@pytest.mark.parametrize(
    "module", ["stochcl.compress", "stochcl.downstream", "stochcl.data", "stochcl.api.archives", "stochcl.cli"]
)
def test_what_needs_no_torch_does_not_import_it(module):
    assert not modules_after(f"import {module}") & {"torch", "sklearn", "matplotlib"}


def test_reading_an_archive_and_training_on_it_never_imports_torch(tmp_path):
    golden = Path(__file__).parent / "golden" / "binary.bin"
    code = f"""
import stochcl
from stochcl.api.archives import evaluate, decompress
archive = stochcl.open({str(golden)!r})
assert archive.to_vectors().shape == (30, 3)
evaluate({str(golden)!r})
decompress({str(golden)!r}, {str(tmp_path / "codes.npz")!r})
"""
    loaded = modules_after(code)
    assert "sklearn" in loaded
    assert "torch" not in loaded
