"""``stochcl models``."""

from __future__ import annotations

import click

from stochcl.api.models import model_cards
from stochcl.cli.output import JSON, say, show
from stochcl.data import printable


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def models(ctx: click.Context, *, as_json: bool) -> None:
    """List the models that come with stochcl, what each was trained on, and its measured figures.

    \b
    Example:
      stochcl models
      stochcl models info general
      stochcl models info mine.safetensors --json
    """
    if ctx.invoked_subcommand:
        return
    cards, damaged = model_cards()
    for _, error in damaged:
        say(f"skipped {error}")
    reasons = [{"path": printable(path), "reason": str(error)} for path, error in damaged]
    result = {"schema": "stochcl.models/0", "models": [card.to_json() for card in cards], "damaged": reasons}
    lines = [line for card in cards for line in card.lines()]
    show(result, lines or ["stochcl brings no models; train one with `stochcl train`"], as_json=as_json)


@models.command()
@click.argument("model")
@JSON
def info(model: str, *, as_json: bool) -> None:
    """Say what a model is: its code, its input, its hashes, how it was trained.

    MODEL is a model file, or the name of a model.

    \b
    Example:
      stochcl models info general
    """
    from stochcl.api.model_info import model_info

    found = model_info(model)
    show(found.to_json(), found.lines(), as_json=as_json)
