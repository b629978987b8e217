"""What a newcomer sees first: help with an example, and usage errors that point to it."""

import pytest

from stochcl import __version__
from stochcl.cli.main import COMMANDS, SECTIONS


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example(run, command, option):
    result = run(command, option)
    assert result.stderr == ""
    assert f"Usage: stochcl {command}" in result.stdout.replace("Usage: main", "Usage: stochcl")
    assert f"Example:\n    stochcl {command}" in result.stdout
    assert "--json" in result.stdout


def test_the_group_lists_every_command_in_the_order_of_a_user_s_day(run):
    text = run("--help").stdout
    places = [text.index(f"\n  {command} ", text.index("Make codes:")) for command in COMMANDS]
    assert places == sorted(places)
    said = " ".join(text.split())
    for _, line in COMMANDS.values():
        assert line in said
    titles = [text.index(f"\n{title}:\n") for title in SECTIONS]
    assert titles == sorted(titles)


def test_every_line_of_the_help_begins_with_a_verb_and_ends_with_a_full_stop(run):
    verbs = {
        "Add", "Apply", "Check", "Choose", "Compare", "Compress", "Cut", "Estimate", "Explain", "Export", "Find",
        "Fit", "Join", "List", "Measure", "Rewrite", "Run", "Show", "Test", "Train",
    }  # fmt: skip
    for command, (_, line) in COMMANDS.items():
        first = run(command, "--help").stdout.split("\n\n")[1].strip()
        for text in (line, first):
            assert text.partition(" ")[0] in verbs
            assert text.endswith((".", ".)"))


def test_the_first_lines_show_what_to_do(run):
    text = run("--help").stdout
    assert "stochcl compress images/ -o codes.bin" in text


def test_version(run):
    assert run("--version").stdout == f"stochcl, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres", "x"], "No such command 'compres'"),
        (
            ["compress", "-o", "y"],
            "there is nothing to compress: name a SOURCE, or a list of files with --files-from.",
        ),
        (["compress", "x"], "Missing option '-o'"),
        (["info"], "Missing argument 'CODES'"),
        (["compress", "x", "-o", "y", "--latents", "0"], "--latents"),
        (["compress", "x", "-o", "y", "--rate", "0"], "--rate"),
        (["compress", "x", "-o", "y", "--batch-size", "0"], "--batch-size"),
        (["compress", "x", "-o", "y", "--workers", "-1"], "--workers"),
        (["compress", "x", "-o", "y", "--fit", "squeeze"], "--fit must be crop, pad or stretch"),
        (["evaluate", "--task", "ranking"], "--task must be classification or regression, got 'ranking'."),
        (["evaluate", "--test-size", "1"], "--test-size"),
        (["evaluate", "--folds", "1"], "--folds"),
        (["train", "-o", "y", "--max-time", "soon"], "--max-time must be a time"),
        (["train", "-o", "y"], "training needs at least one source of images; `--preset digits` brings its own."),
        (["finetune", "general", "-o", "y"], "Missing argument 'SOURCE...'"),
        (["finetune", "general", "-o", "y", "--cutout", "2"], "--cutout"),
        (["models", "info"], "Missing argument 'MODEL'"),
    ],
)
def test_a_wrong_request_is_a_usage_error(run, arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_without_a_command_there_is_help(run):
    result = run(code=2)
    assert "Make codes:" in result.output
