"""What other programs make of the files: the magic lines for `file`, as contrib has them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import GOLDEN

LINES = Path(__file__).parents[2] / "contrib" / "stochcl.magic"

pytestmark = pytest.mark.skipif(shutil.which("file") is None, reason="needs `file`")


def told(*options: str) -> str:
    command = ["file", "-b", "-m", str(LINES), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "version"),
    [("binary.bin", 1), ("uncertainty.bin", 2), ("v3-one.bin", 3), ("v3-appended.bin", 3), ("v4-labels.bin", 4)],
)
def test_an_archive_is_told_with_its_version(name, version):
    assert told(str(GOLDEN / name)).startswith(f"stochcl archive of codes, version {version}, header of ")
    assert told("--mime-type", str(GOLDEN / name)) == "application/vnd.stochcl"


def test_tables_are_told():
    assert told(str(GOLDEN / "binary.tables")) == "stochcl decoding tables, version 1, 20 latents of 2 values"
    assert told("--mime-type", str(GOLDEN / "binary.tables")) == "application/vnd.stochcl.tables"
