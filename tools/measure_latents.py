"""Measure what latents are worth: every family under every objective, nested prefixes, rates that were asked for.

    python tools/measure_latents.py SECTION... -o latents.json [--train TRAIN.npy --labels L.npy --test TEST.npy
        --test-labels L.npy] [--steps 1000] [--seed 0]

SECTION is one of

- digits: three families by three objectives, networks trained on the digits that scikit-learn carries;
- features: the same on a matrix of features that stand still, trained to the rate that untrained codes take;
- nested: one nested code beside codes trained for each of its rungs alone, with the same steps;
- rates: models of the matrix, of bits, trained to rates, and the rate of its TEST rows.

Accuracy is that of logistic regression on TEST, from decoded vectors and from symbols. Sections are added to those
that the file has. An untrained code is one whose head is as it was drawn, with tables fitted to its codes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stochcl
from stochcl.api import train as training
from stochcl.api.embedding_model import train_head
from stochcl.benchmarks.probes import answers
from stochcl.data import Preprocess
from stochcl.data.builtin import DigitsSource
from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder, Standardise
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import load_model
from stochcl.training.entropy import fit_code_tables
from stochcl.training.images import read_images
from stochcl.training.monitor import code_health

CPU = torch.device("cpu")
FAMILIES: dict[str, dict[str, Any]] = {
    "bernoulli": {"posterior": "bernoulli", "latents": 64},
    "categorical": {"posterior": "categorical", "latents": 8, "alphabet": 256},
    "gaussian": {"posterior": "gaussian", "latents": 24, "alphabet": 16},
}
OBJECTIVES = ("nt-xent", "byol", "vicreg")
RUNGS = (8, 16, 32, 64, 128)
RATES = (32, 64, 128, 256)


class Data:
    """Inputs with labels: what is learned from and what is measured on."""

    def __init__(self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> None:
        self.train, self.labels, self.test, self.test_labels = train, labels, test, test_labels

    def row(self, encoder: Encoder, latents: int | None = None, **facts: Any) -> dict[str, Any]:
        """Measure an encoder's codes of the test inputs."""
        latents = latents or encoder.config.latents
        found = [encode(encoder, inputs, CPU).codes for inputs in (self.train, self.test)]
        bits = float(encoder.bits_by_latent(found[1])[:latents].sum())
        vectors = [decoded(encoder, codes, latents) for codes in found]
        symbols = [codes.prefix(latents).symbols() for codes in found]
        if encoder.config.posterior == "categorical":  # a linear probe makes nothing of the numbers of symbols
            eye = np.eye(encoder.config.alphabet, dtype=np.float32)
            symbols = [eye[s].reshape(len(s), -1) for s in symbols]
        row = facts | {
            "bits_per_input": round(bits, 2),
            "accuracy_vectors": self._accuracy(*vectors),
            "accuracy_symbols": self._accuracy(*(s.astype(np.float32) for s in symbols)),
            "health": code_health(found[1], encoder.config.posterior),
        }
        row["accuracy"] = max(row["accuracy_vectors"], row["accuracy_symbols"])
        print(json.dumps({k: v for k, v in row.items() if k != "health"}), flush=True)
        return row

    def _accuracy(self, train: np.ndarray, test: np.ndarray) -> float:
        return round(float(answers("logistic", train, self.labels, test, self.test_labels)[0].mean()), 4)


@torch.no_grad()
def decoded(encoder: Encoder, codes: stochcl.Codes, latents: int) -> np.ndarray:
    """Return what codes decode to, shape (N, V)."""
    parts = []
    for start in range(0, len(codes), 4096):
        symbols = torch.from_numpy(codes[start : start + 4096].symbols().astype(np.int64))
        parts.append(encoder.decode(encoder.embed(symbols), latents).numpy())
    return np.concatenate(parts)


def digits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on images of digits; every family, every objective."""
    images = read_images([DigitsSource()], Preprocess(32), hold_out=30)
    data = Data(images.train, np.array(images.train_labels), images.held, np.array(images.held_labels))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family, shape in FAMILIES.items():
            for objective in (*OBJECTIVES, None):
                out = Path(folder, f"{family}-{objective}.safetensors")
                given = shape | ({"objective": objective, "epochs": options.epochs} if objective else {"epochs": 0})
                training.train([], out, preset="digits", seed=options.seed, **given)
                facts = {"posterior": family, "objective": objective or "untrained"}
                rows.append(data.row(load_model(out).encoder, **facts))
    return rows


def features(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train heads on frozen features, every family, every objective, to the rate that its untrained code takes."""
    data, rows = matrix(options), []
    for family, shape in FAMILIES.items():
        rows.append(data.row(untrained(data, options, **shape), posterior=family, objective="untrained"))
        rate = rows[-1]["bits_per_input"]
        for objective in OBJECTIVES:
            encoder = head(data, options, rate=rate, objective=objective, **shape)
            rows.append(data.row(encoder, posterior=family, objective=objective))
    return rows


def nested(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One nested code, and a code of its own for each of its rungs."""
    data = matrix(options)
    encoder = head(data, options, latents=RUNGS[-1])
    rows = [data.row(encoder, k, rung=k, trained_for="the ladder") for k in RUNGS]
    for k in RUNGS:
        encoder = head(data, options, latents=k, nested=False)
        rows += [data.row(encoder, rung=k, trained_for="this rung alone")]
    return rows


def rates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Models trained to a rate: what the rate of held-out rows is, and that of the test rows."""
    data, rows = matrix(options), []
    for rate in RATES:
        started = time.monotonic()
        encoder, record = fit(data, options, rate=float(rate), posterior="bernoulli", latents=2 * rate)
        stage = record["latents"]
        facts = {"asked": rate, "held_out": stage["rate"], "rounds": stage["rounds"], "posterior": "bernoulli"}
        facts |= {"seconds": round(time.monotonic() - started), "calibration": stage["calibration"]}
        rows.append(data.row(encoder, **facts))
    return rows


def matrix(options: argparse.Namespace) -> Data:
    """Read the matrices that the command names."""
    paths = (options.train, options.labels, options.test, options.test_labels)
    if None in paths:
        sys.exit("this section needs --train, --labels, --test and --test-labels.")
    train, labels, test, test_labels = (np.load(path) for path in paths)
    rows = np.random.default_rng(options.seed).permutation(len(train))[: options.rows]
    return Data(train[rows], labels[rows], test, test_labels)


def fit(data: Data, options: argparse.Namespace, **given: Any) -> tuple[Encoder, dict[str, Any]]:
    """Train a head on nine tenths of the training rows; a tenth is held out."""
    out = np.arange(len(data.train)) % 10 == 9
    config = {k: given.pop(k) for k in ("posterior", "alphabet") if k in given}
    given = {"steps": options.steps, "seed": options.seed, "precision": "bf16"} | given
    return train_head(data.train[~out], data.train[out], config=config, **given)


def head(data: Data, options: argparse.Namespace, **given: Any) -> Encoder:
    """Return just the encoder."""
    return fit(data, options, **given)[0]


def untrained(data: Data, options: argparse.Namespace, **shape: Any) -> Encoder:
    """Return an encoder whose head is as it was drawn."""
    torch.manual_seed(options.seed)
    encoder = Encoder(EncoderConfig(backbone=f"features:{data.train.shape[1]}", **shape)).eval()
    assert isinstance(encoder.norm, Standardise)
    encoder.norm.fit(data.train)
    fit_code_tables(encoder, encode(encoder, data.train, CPU).codes, passes=5, seed=options.seed)
    return encoder


SECTIONS = {"digits": digits, "features": features, "nested": nested, "rates": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name in ("train", "labels", "test", "test-labels"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--rows", type=int, help="So many rows of TRAIN only, drawn by the seed.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12, help="Of networks on digits.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for section in options.sections:
        started = time.monotonic()
        rows = SECTIONS[section](options)
        result = json.loads(options.output.read_text()) if options.output.exists() else {}
        result[section] = {
            "command": f"python tools/measure_latents.py {section} --steps {options.steps} --seed {options.seed}",
            "rows_trained_on": options.rows or "all",
            "epochs": options.epochs,
            "versions": {"stochcl": stochcl.__version__, "torch": torch.__version__},
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
            "seconds": round(time.monotonic() - started),
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
