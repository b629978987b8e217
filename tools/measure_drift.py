"""Measure how well code lengths tell images of another kind: scikit-learn's digits beside CIFAR-10's test images.

    stochcl compress cifar10-test.zip -o cifar10-test.bin
    python tools/measure_drift.py cifar10-test.bin -o benchmarks/results/drift.json

The score is the area under the ROC curve of `stochcl uncertainty --outside`, for the first latents of a code and for
more of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import stochcl
from stochcl.api.codec import codec_of
from stochcl.api.uncertainty import measure_uncertainty
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.data.builtin import DigitsSource

LATENTS = (8, 16, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inside", type=Path, help="an archive of a packaged model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    started, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.bin"
        codec_of(options.inside).compress(DigitsSource(), digits)
        for count in LATENTS:
            told = measure_uncertainty(options.inside, outside=[digits], latents=count, seed=options.seed)
            outside = [one | {"what": Path(one["what"]).name} for one in told["outside"]]
            found[count] = {"images": told["images"], "outside": outside}
            print(f"{count} latents: {told['outside'][0]['scores']['code length']['auroc']:.3f}", file=sys.stderr)
    result = {
        "schema": "stochcl.benchmark.drift/1",
        "command": shlex.join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)]),
        "commit": commit(), "seed": options.seed, "hardware": hardware(), "versions": versions(),
        "precision": stochcl.open(options.inside).header.precision, "latents": found,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
