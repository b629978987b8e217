"""What a figure was measured on: processor, versions, and one core for the one who measures."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from stochcl import __version__

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "1",
)
"""Variables that keep numerical libraries to one thread; they are read when a library is first loaded."""

_DISTRIBUTIONS = ("numpy", "constriction", "zstandard", "brotli", "faiss-cpu", "scikit-learn", "torch")


def hardware() -> dict[str, Any]:
    """Return processor, cores and system, under fixed keys; nothing that names the machine or its user."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads": 1,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, stochcl and whatever of the compared packages is installed."""
    found = {"python": platform.python_version(), "stochcl": __version__}
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """Return the commit that runs, with ``-dirty`` behind it where files were changed; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # installed into somebody else's checkout, it is not ours
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return None


def stay_on_one_core() -> None:
    """Keep this process to the first core that it may run on, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
