"""The whole story on example images: compress, look, train on the codes, compare with pixels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import downstream
from stochcl.api.codec import Codec
from stochcl.api.evaluate import evaluate
from stochcl.codes import folder_label
from stochcl.data import ImageSource, open_source
from stochcl.data.builtin import write_examples
from stochcl.errors import SourceError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.api.summary import Report
    from stochcl.downstream import Evaluation


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration found: the archive's figures, and two classifiers of the same kind."""

    report: Report
    codes: Evaluation
    pixels: Evaluation

    @property
    def pixel_bits(self) -> float:
        """Bits of one image's raw pixels at the model's input size."""
        return self.report.pixel_bytes * 8 / self.report.images

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return self.report.to_json("demo") | {
            "accuracy": {"codes": self.codes.score, "pixels": self.pixels.score, "baseline": self.codes.baseline},
            "pixel_bits_per_image": self.pixel_bits,
        }

    def lines(self) -> list[str]:
        """Return the figures for people."""
        low, high = self.codes.interval or (0.0, 1.0)
        classes = f"{len(self.codes.classes)} classes (guessing: {self.codes.baseline:.1%})"
        table = [
            f"  {'':<12} {'bits per image':>16} {'accuracy':>10}",
            f"  {'codes':<12} {self.report.bits_per_image:>16,.1f} {self.codes.score:>10.1%}",
            f"  {'raw pixels':<12} {self.pixel_bits:>16,.1f} {self.pixels.score:>10.1%}",
        ]
        return [
            *self.report.lines(),
            "",
            f"{self.codes.estimator} regression, cross-validated over {self.codes.n_test} images of {classes}:",
            *table,
            f"  with so few images the accuracy of the codes is known to lie between {low:.1%} and {high:.1%}",
        ]


def demonstrate(model: str, *, say: Callable[[str], None] = lambda line: None) -> Demonstration:
    """Run the demonstration in a temporary folder.

    Parameters
    ----------
    model : str
        A packaged model or a model file.
    say : callable
        Told what is being done, a line at a time.
    """
    codec = Codec(model, device="cpu")
    with tempfile.TemporaryDirectory(prefix="stochcl-demo-") as folder:
        images, path = Path(folder, "images"), Path(folder, "codes.bin")
        images.mkdir()
        count = write_examples(images)
        say(f"made {count} example images: digits, and patches of two photographs, from scikit-learn")
        with_model = f"(model {printable(codec.model.name)}, {codec.latents:,} latents)"
        say(f"stochcl compress images/ -o codes.bin    {with_model}")
        report = replace(codec.compress(images, path), path=path.name)
        say("stochcl evaluate codes.bin")
        codes, _ = evaluate(path)
        say("the same classifier on raw pixels")
        pixels = _on_pixels(images, codec)
    return Demonstration(report, codes, pixels)


def _on_pixels(images: Path, codec: Codec) -> Evaluation:
    source = open_source(images)
    if not isinstance(source, ImageSource):
        raise SourceError(f"{images}: these are not images.")
    (batch,) = source.batches(codec.preprocess, batch_size=len(source))
    x = batch.images.reshape(len(batch.images), -1).astype("float32")
    return downstream.evaluate(x, [folder_label(name) for name in batch.names])
