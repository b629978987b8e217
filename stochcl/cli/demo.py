"""``stochcl demo``."""

from __future__ import annotations

import click

from stochcl.cli.output import JSON, say, show


@click.command()
@click.option("-m", "--model", default="general", show_default=True, help="An embedded model or a model file.")
@JSON
def demo(*, model: str, as_json: bool) -> None:
    """Compress example images, train a classifier on the codes, and compare it with one on raw pixels.

    \b
    Example:
      stochcl demo
    """
    from stochcl.api.demo import demonstrate

    result = demonstrate(model, say=(lambda line: None) if as_json else say)
    show(result.to_json(), result.lines(), as_json=as_json)
