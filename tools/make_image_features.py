"""Make labelled matrices of image features: CIFAR-10, as the head of the packaged backbone sees it.

    python tools/make_image_features.py DATA -o features/

A row is an image at 128 pixels: the 1,280 means of EfficientNet-Lite0's last layer, float32, computed in fp32.
train.npy has 20,000 images, drawn from the first 2,500 of each class of DATA/cifar10-train.zip; test.npy has the
10,000 of DATA/cifar10-test.zip. Labels are beside them (train-labels.npy, test-labels.npy), indices of the sorted
classes.

The recorded rows came from the published weights in float32. The package has them in float16: from those, values of 0
to 6 differ by at most 0.08.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from stochcl.api.codec import Codec
from stochcl.encoders.modelfile import load_model

MODEL = Path(__file__).parents[1] / "stochcl" / "models" / "general.safetensors"
HEAD = 1_280
FIRST_OF_CLASS, TRAIN_ROWS = 2_500, 20_000
OTHER_IMAGES = 60_000  # the recorded rows also drew an order of these, so the random state matches
BATCH = 250


def names(path: Path, most: int) -> list[str]:
    seen: Counter[str] = Counter()
    kept = []
    for name in sorted(zipfile.ZipFile(path).namelist()):
        label = name.partition("/")[0]
        if name.endswith(".jpg") and seen[label] < most:
            seen[label] += 1
            kept.append(name)
    return kept


@torch.inference_mode()
def features(codec: Codec, path: Path, rows: list[str]) -> np.ndarray:
    encoder = load_model(MODEL).encoder.eval()
    out = np.empty((len(rows), HEAD), np.float32)
    with zipfile.ZipFile(path) as images:
        for start in range(0, len(rows), BATCH):
            pixels = np.stack([codec.preprocess.decode(images.read(name)) for name in rows[start : start + BATCH]])
            views = encoder.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
            # The packaged model pools all stages; its head comes last.
            out[start : start + BATCH] = encoder.backbone(views)[:, -HEAD:].numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train, test = options.data / "cifar10-train.zip", options.data / "cifar10-test.zip"
    rng = np.random.default_rng(0)
    taken, scored = names(train, FIRST_OF_CLASS), names(test, FIRST_OF_CLASS)
    taken = [taken[i] for i in rng.permutation(len(taken))][:TRAIN_ROWS]
    rng.permutation(OTHER_IMAGES)
    scored = [scored[i] for i in rng.permutation(len(scored))]
    classes = sorted({name.partition("/")[0] for name in scored})
    codec = Codec("general", precision="fp32")
    for path, rows, name in ((train, taken, "train"), (test, scored, "test")):
        np.save(options.output / f"{name}.npy", features(codec, path, rows))
        np.save(options.output / f"{name}-labels.npy", [classes.index(row.partition("/")[0]) for row in rows])


if __name__ == "__main__":
    main()
