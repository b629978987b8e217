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
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.entropy.tables import save_tables

PACKAGE = Path(__file__).parents[1] / "stochcl"
NAMES = {"logistic": "linear", "knn": "nearest neighbours", "svm": "linear SVM"}


def figures(results: dict) -> dict[str, str]:
    """Return the lines of `stochcl models`: one per set and rung, with each probe's accuracy."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    bits = {}
    for row in results["rows"]:
        if row["model"] == "model" and row["input"] != "symbols" and "accuracy" in row:
            what = "features (float32)" if row["group"] == "features" else f"codes, {row['code']}"
            scores.setdefault((row["set"], what), {})[NAMES[row["probe"]]] = row["accuracy"]
            bits[row["set"], what] = row["bits_per_image"]
    return {
        f"{name}, {what}": ", ".join(f"{probe} {score:.2%}" for probe, score in found.items())
        + f" at {bits[name, what]:,.1f} bits per image"
        for (name, what), found in scores.items()
    }


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, results = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    loaded = load_model(source)
    if results["models"]["model"]["sha256"] != loaded.sha256:
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
