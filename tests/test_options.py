"""Options: bounds, types and names are checked from the fields' metadata, in Python, TOML and on the command line."""

import math
import re
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from stochcl.api.compress import CompressOptions
from stochcl.api.evaluate import EvaluateOptions, ProbeOptions, SelectOptions
from stochcl.api.search import SearchOptions
from stochcl.cli import main
from stochcl.cli.options import given, options_of
from stochcl.errors import UsageError, command_line
from stochcl.options import Options, check_names, declared, kind_of, option, option_of
from stochcl.training.options import EncoderConfig, FinetuneOptions, LatentOptions, TrainOptions

CLASSES = (
    CompressOptions, EncoderConfig, EvaluateOptions, FinetuneOptions, LatentOptions, SearchOptions, SelectOptions,
    TrainOptions, ProbeOptions,
)  # fmt: skip


def wrong_values(one):
    """Values just outside the bounds of a field, and of other types."""
    made, kind = option_of(one), kind_of(one)
    step = 1 if kind == "int" else 0.01
    yield from [] if made.at_least is None else [made.at_least - step]
    yield from [] if made.more_than is None else [made.more_than, made.more_than - step]
    yield from [] if made.at_most is None else [made.at_most + step]
    yield from [] if made.less_than is None else [made.less_than]
    yield from [math.nan, math.inf] if kind in ("int", "float") else []
    yield from ["none of these"] if made.choices else []
    yield {"int": 1.5, "float": "many", "bool": 1, "str": 3}.get(kind, ("a",))


CASES = [
    (cls, name, value)
    for cls in CLASSES for name, one in declared(cls).items() if name != "classes" for value in wrong_values(one)
]  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_option_refuses_values_outside_its_bounds(cls, name, value):
    with pytest.raises(UsageError, match=rf"^{name} must be "):
        cls(**({"latents": 8} if cls is SelectOptions else {}) | {name: value})


def test_an_option_that_is_required_is_asked_for():
    with pytest.raises(UsageError, match="latents must be a whole number, got None"):
        SelectOptions()


COMMANDS = {
    "compress": [CompressOptions], "evaluate": [EvaluateOptions], "finetune": [FinetuneOptions],
    "search": [SearchOptions], "select": [SelectOptions], "train": [TrainOptions, EncoderConfig],
    "uncertainty": [ProbeOptions],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_in_one_section_of_its_help(command):
    found = main.get_command(click.Context(main), command)
    names = [param.name for param in found.params]
    assert len(names) == len(set(names))
    for cls in COMMANDS[command]:
        assert {one.name for one in declared(cls).values() if option_of(one).help} <= set(names)
    text = CliRunner().invoke(main, [command, "--help"]).output
    for param in found.params:
        if isinstance(param, click.Option):
            assert len(re.findall(rf"\n  {', '.join(param.opts)}[ \n]", text)) == 1


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_takes_its_bounds(cls):
    defaults = cls(**({"latents": 8} if cls is SelectOptions else {}))
    for one in declared(cls).values():
        made = option_of(one)
        for value in (made.at_least, made.at_most):
            if value is not None:
                option_of(one).allows(value)
        unset = made.required or one.default == ()  # which may be filled in
        assert unset or getattr(defaults, one.name) == one.default


@dataclass(frozen=True)
class Decoding(Options):
    beam: int = option(8, "Hypotheses that are kept.", at_least=1, at_most=64)
    share: float | None = option(None, "Share of them.", more_than=0, at_most=1, shown="all")
    mode: str = option("fast", "How to decode.", choices=("fast", "exact"))
    widths: tuple[int, ...] = option((4, 2), "Layers.", unit="WIDTHS")
    merge: bool = option(True, "Merge equal ones.")
    silent: int = option(0)


@click.command()
@options_of(Decoding)
def decode(**options):
    click.echo(Decoding(**given(options)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam", "0"], "--beam must be between 1 and 64, got 0."),
        (["--beam", "many"], "--beam must be a whole number, got 'many'."),
        (["--share", "0"], "--share must be more than 0 and at most 1, got 0.0."),
        (["--share", "nan"], "--share must be more than 0 and at most 1, got nan."),
        (["--mode", "slow"], "--mode must be fast or exact, got 'slow'."),
    ],
)
def test_a_wrong_value_on_the_command_line_is_one_sentence_that_names_the_flag(arguments, message):
    with command_line():
        result = CliRunner().invoke(decode, arguments)
        assert isinstance(result.exception, UsageError)
        assert str(result.exception) == message


def test_values_of_the_command_line_are_those_of_the_fields():
    result = CliRunner().invoke(decode, ["--beam", "3", "--widths", "8,16", "--no-merge", "--mode", "exact"])
    assert result.output == f"{Decoding(beam=3, widths=(8, 16), merge=False, mode='exact')}\n"
    assert CliRunner().invoke(decode, []).output == f"{Decoding()}\n"


def test_help_shows_text_unit_and_default_of_every_option_that_has_a_text():
    text = " ".join(CliRunner().invoke(decode, ["--help"], terminal_width=200).output.split())
    assert "--beam INTEGER Hypotheses that are kept. [default: 8]" in text
    assert "--share NUMBER Share of them. [default: all]" in text
    assert "--widths WIDTHS Layers. [default: 4,2]" in text
    assert "--mode [fast|exact]" in text
    assert "--merge / --no-merge Merge equal ones. [default: merge]" in text
    assert "silent" not in text


def test_a_name_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="training has no option 'bacth_size'; did you mean 'batch_size'"):
        check_names(["epochs", "bacth_size"], declared(TrainOptions), "training")
    with pytest.raises(UsageError, match=r"has no option 'zzz'\.$"):
        check_names(["zzz"], declared(TrainOptions), "training")
