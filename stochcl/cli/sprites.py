"""``stochcl sprites``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api.sprites import write_sprites
from stochcl.cli.main import JSON, show


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--images", required=True, type=click.IntRange(1), metavar="N", help="How many.")
@click.option("--size", type=click.IntRange(8, 512), default=64, show_default=True, metavar="PIXELS", help="Side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the factors.")
@click.option("--colour", is_flag=True, help="In colours, not greys.")
@click.option("--plain", is_flag=True, help="White on black: nothing but the factors varies.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@JSON
def sprites(output: Path, *, as_json: bool, **options: Any) -> None:
    """Make images of one figure each from known factors: shape, scale, rotation, x and y.

    The folder gets images.npy, which train and compress take, and factors.csv, whose columns evaluate asks for.

    \b
    Example:
      stochcl sprites -o sprites --images 4000 --size 32
      stochcl train sprites/images.npy --preset keep-position -o sprites.safetensors
      stochcl compress sprites/images.npy -m sprites.safetensors -o codes.bin
      stochcl evaluate codes.bin --labels sprites/factors.csv --task regression --column x --column rotation
    """
    found = write_sprites(output, **options)
    facts = f"{found['images']:,} images of {found['size']} pixels, {found['bytes']:,} bytes"
    show(found, [*found["paths"], f"  {facts}; {', '.join(found['columns'])}"], as_json=as_json)
