"""``stochcl models``."""

from __future__ import annotations

import click

from stochcl.api.models import model_cards
from stochcl.cli.output import JSON, show


@click.command()
@JSON
def models(*, as_json: bool) -> None:
    """List the models that come with stochcl, what each was trained on, and its measured figures.

    \b
    Example:
      stochcl models
    """
    cards = model_cards()
    result = {"schema": "stochcl.models/0", "models": [card.to_json() for card in cards]}
    lines = [line for card in cards for line in card.lines()]
    show(result, lines or ["stochcl brings no models; train one with `stochcl train`"], as_json=as_json)
