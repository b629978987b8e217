"""What only some runs need is not imported before they do, and says nothing when it is."""

import subprocess
import sys


def said_by(code):
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.split()


def test_importing_training_imports_neither_fabric_nor_tensorboard_and_fabric_warns_of_nothing():
    names = "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    found = said_by(f"import sys, stochcl.training.pretrain; {names}; import lightning_fabric")
    assert "torch" in found
    assert not {"lightning_fabric", "tensorboard"} & set(found)
