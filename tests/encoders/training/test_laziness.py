"""What only some runs need is not imported before they do, and says nothing when it is."""

import subprocess
import sys

import pytest


def said_by(code):
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.split()


def test_importing_training_imports_neither_fabric_nor_kornia_nor_tensorboard():
    found = said_by("import sys, stochcl.training.pretrain; print(*sorted({m.split('.')[0] for m in sys.modules}))")
    assert "torch" in found
    assert not {"lightning_fabric", "kornia", "tensorboard"} & set(found)


@pytest.mark.parametrize("module", ["lightning_fabric", "kornia.filters"])
def test_importing_them_warns_of_nothing(module):
    assert said_by(f"import torch, {module}; print('well')") == ["well"]
