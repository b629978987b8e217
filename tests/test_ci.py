"""What .ci/run takes from README.md; the whole of it runs where there is time to install everything."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"
COMMAND = "pip install -c constraints.txt -e '.[test]' && pytest"

pytestmark = pytest.mark.skipif(
    not RUN.exists() or sys.platform == "win32", reason="needs a checkout, and a system with bash"
)


def printed(readme: str | None, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci" / "run")
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme.encode())
    return subprocess.run([tmp_path / ".ci" / "run", "--print"], capture_output=True, text=True, check=False)


def block(text: str, *, language: str = "sh", fence: str = "```") -> str:
    return f"# Title\n\nWords.\n\n{fence}{language}\n{text}\n{fence}\n\nMore words.\n"


@pytest.mark.parametrize(
    "readme",
    [
        block(COMMAND),
        block(f"$ {COMMAND}", language="console"),
        block(COMMAND, fence="~~~~"),
        block(COMMAND, language=" bash title=x"),
        block(COMMAND).replace("\n", "\r\n"),
        block(f"{COMMAND}   # about five minutes"),
        block("pip install -c constraints.txt \\\n    -e '.[test]' && pytest"),
        block("pip install -c constraints.txt -e '.[test]' &&\n  pytest"),
        block("pip install stochcl\nstochcl demo\n") + block(f"git clone x && cd stochcl\n# then\n{COMMAND}"),
        block(COMMAND) + block(COMMAND),
        block("```sh\npip install other && pytest\n```", language="markdown", fence="````") + block(COMMAND),
        f"Indented in a list:\n\n  ```sh\n  {COMMAND}\n  ```\n",
        block(COMMAND) + block("pip install wrong && pytest", language="python"),
    ],
)
def test_the_command_is_found_however_it_is_written(readme, tmp_path):
    done = printed(readme, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (COMMAND + "\n", "", 0)


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        (None, "there is no README.md"),
        ("", "README.md has no sh block"),
        (f"Run `{COMMAND}`.\n\n{COMMAND}\n", "README.md has no sh block"),
        (block(COMMAND, language="python"), "README.md has no sh block"),
        (block("pip install -e . && pytest-of-another-kind"), "README.md has no sh block"),
        (block(f"# {COMMAND}"), "README.md has no sh block"),
        (block(COMMAND) + block("pip install -e . && pytest tests"), "several test commands"),
    ],
)
def test_without_one_command_nothing_runs(readme, message, tmp_path):
    done = printed(readme, tmp_path)
    assert message in done.stderr
    assert done.stdout == ""
    assert done.returncode == 1
