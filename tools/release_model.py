"""Put a trained model into the package: its file with the measured figures in it, and its decoding tables.

    python tools/release_model.py MODEL RESULTS.json

RESULTS.json is what tools/measure_model.py wrote about this model. Tables of earlier models stay where they are, so
that archives made with them decode for ever.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stochcl.api.codec import Codec
from stochcl.compress import save_tables
from stochcl.encoders.modelfile import load_model, save_model

PACKAGE = Path(__file__).parents[1] / "stochcl"


def figures(results: dict) -> dict[str, str]:
    """What `stochcl models` shows, one line for each row that a user would ask for."""
    out = {}
    for row in results["rows"]:
        if row["method"] == "codes" and row["input"] == "symbols":
            continue
        width = f", {row['latents']:,} latents" if "latents" in row else ""
        name = f"{results['test']['name'].removesuffix('.zip')}, {row['method']} ({row['input']}){width}"
        out[name] = f"{row['accuracy']:.2%} at {row['bits_per_image']:,.1f} bits per image"
    return out


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, results = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    loaded = load_model(source)
    if results["model"]["sha256"] != loaded.sha256:
        sys.exit(f"{sys.argv[2]}: these figures are of another model than {source}.")
    target = PACKAGE / "models" / source.name
    for folder in (target.parent, PACKAGE / "tables"):
        folder.mkdir(exist_ok=True)
    save_model(loaded.encoder, target, loaded.record | {"figures": figures(results)})
    codec = Codec(target, device="cpu")
    if codec.model.sha256 != loaded.sha256:
        sys.exit(f"{target}: its hash is not that of {source}; the file was not copied faithfully.")
    tables = save_tables(codec.tables, PACKAGE / "tables")
    for path in (target, tables):
        print(f"{path.relative_to(PACKAGE.parent)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
