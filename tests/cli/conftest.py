"""Running a command as click's own tests do, with what must be true of every run."""

import os

import pytest
from click.testing import CliRunner

from stochcl.cli.main import main


@pytest.fixture
def run():
    """Run a command in this process and return its result; it must end by itself, with this exit code."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(main, list(map(os.fspath, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def refused(run):
    """Run a command that must refuse; return the one sentence that it says, and see that it prints no result."""

    def invoke(*arguments, code=1):
        result = run(*arguments, code=code)
        assert result.stdout == ""
        assert result.stderr.startswith("stochcl: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith(".\n")
        return result.stderr.removeprefix("stochcl: ").strip()

    return invoke


@pytest.fixture
def compress(run, model, tmp_path):
    """Compress a source with the tiny model and return the archive's path."""

    def invoke(source, *options, name="codes.bin"):
        run("compress", source, "-m", model, "-o", tmp_path / name, "--device", "cpu", *options)
        return tmp_path / name

    return invoke
