"""Scoring a fine-tuned model on labelled images, and what survives in a file of its codes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stochcl.api.labelling import labeller
from stochcl.api.training import _images
from stochcl.compress import Archive
from stochcl.data import Preprocess, printable
from stochcl.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from stochcl.api.codec import Codec
    from stochcl.data import ImageSource
    from stochcl.encoders.configuration import EncoderConfig
    from stochcl.encoders.imageset import ImageSet


@dataclass(frozen=True)
class Scores:
    """How well test images are classified; accuracies in percent.

    Parameters
    ----------
    source : str
    images : int
    test_top1 : float
        From hard codes (of a deterministic twin: from features), without test-time augmentation.
    test_top1_mirrored : float
        The mean of an image's probabilities and its mirror image's.
    codes_top1 : float or None
        From a file of codes, read back, decoded in numpy, and classified by the stored linear classifier.
    codes_bits_per_image : float or None
        What that file takes for codes alone, without names, tables and index.
    codes_file_bytes : int or None
        All of that file.
    codes_top1_by_latents : dict of int to float
        The same of the first so many latents.
    skipped : tuple of (str, str)
    """

    source: str
    images: int
    test_top1: float
    test_top1_mirrored: float
    codes_top1: float | None
    codes_bits_per_image: float | None
    codes_file_bytes: int | None
    codes_top1_by_latents: dict[int, float]
    skipped: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """Return the scores for people."""
        read = "features" if self.codes_top1 is None else "hard codes"
        out = [
            f"top-1 of {self.images:,} test images ({self.source})",
            f"  from {read}: {self.test_top1:.2f} %",
            f"  with mirroring: {self.test_top1_mirrored:.2f} %",
        ]
        if self.codes_top1 is not None:
            out.append(
                f"  from codes.bin: {self.codes_top1:.2f} % at {self.codes_bits_per_image:,.1f} bits per image"
            )
        return out + [f"    first {k:,} latents: {top1:.2f} %" for k, top1 in self.codes_top1_by_latents.items()]

    def figures(self) -> dict[str, str]:
        """Return the scores as a model's record keeps them."""
        name = self.source.partition(".")[0]
        out = {
            f"{name}, top-1": f"{self.test_top1:.2f}%",
            f"{name}, top-1, mirrored": f"{self.test_top1_mirrored:.2f}%",
        }
        if self.codes_top1 is not None:
            bits = f"{self.codes_bits_per_image:,.1f} bits per image"
            out[f"{name}, top-1 from codes"] = f"{self.codes_top1:.2f}% at {bits}"
        return out


def score(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    workers: int = 1,
    device: str = "auto",
) -> Scores:
    """Classify images with a fine-tuned model, from its codes in memory and from those in a file.

    Raises
    ------
    UsageError
        If the model has no classifier.
    LabelsError
        If images have no label, or one that the classifier does not know.
    SourceError, ModelError
    """
    from stochcl.api.codec import Codec
    from stochcl.encoders.finetuning.scoring import class_indices, class_scores, top1, with_mirrored

    codec = Codec(model, device=device)
    encoder = codec.model.encoder
    config = encoder.config
    if encoder.classifier is None:
        raise UsageError(f"{printable(model)}: this model has no classifier; `stochcl finetune` makes one that has.")
    images = _images(source)
    label = labeller([images], labels)
    data = read_labelled(config, [images], label, workers=workers)
    truth = class_indices(data.train_labels, config.classes)
    plain = class_scores(encoder, data.train, codec.device)
    mirrored = with_mirrored(encoder, data.train, codec.device, plain)
    stored = _score_file(codec, source, label, workers) if config.classifies == "vectors" else _Stored(None, None, {})
    return Scores(
        source=printable(Path(source).name),
        images=len(data.train),
        test_top1=100 * top1(plain, truth),
        test_top1_mirrored=100 * top1(mirrored, truth),
        codes_top1=stored.top1_by_latents.get(config.latents),
        codes_bits_per_image=stored.bits_per_image,
        codes_file_bytes=stored.bytes,
        codes_top1_by_latents=stored.top1_by_latents,
        skipped=tuple((failure.name, failure.reason) for failure in data.skipped),
    )


def read_labelled(
    config: EncoderConfig, sources: Sequence[ImageSource], label: Callable[[str], str], *, hold_out: int = 0,
    workers: int = 1, cache: Path | None = None,
) -> ImageSet:  # fmt: skip
    """Decode labelled images to an encoder's size."""
    from stochcl.encoders.imageset import read_images

    return read_images(
        sources, Preprocess(config.size, config.fit), hold_out=hold_out, workers=workers, label=label, cache=cache
    )


class _Stored(NamedTuple):
    """What a file of codes takes, and how well its vectors are classified."""

    bits_per_image: float | None
    bytes: int | None
    top1_by_latents: dict[int, float]


def _score_file(codec: Codec, source: str | os.PathLike[str], label: Callable[[str], str], workers: int) -> _Stored:
    """Write a file of codes as `stochcl compress` does, read it back, and classify the vectors that it decodes to."""
    from stochcl.encoders.finetuning.scoring import class_indices, top1

    config, state = codec.model.encoder.config, codec.model.encoder.state_dict()
    weight, bias = (state[f"classifier.{name}"].float().cpu().numpy() for name in ("weight", "bias"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "codes.bin")
        codec.compress(source, path, workers=workers)
        with Archive(path, tables=[codec.tables]) as archive:
            truth = class_indices([label(name) for name in archive.names or ()], config.classes)
            found = {rung: 100 * top1(archive.to_vectors(rung) @ weight.T + bias, truth) for rung in config.ladder}
            return _Stored(archive.parts()["codes"] * 8 / len(archive), archive.size, found)
