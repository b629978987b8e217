"""What the benchmark is asked to measure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.benchmarks.baselines import BASELINES, FLOATS
from stochcl.benchmarks.rate_accuracy.pixels import FORMATS
from stochcl.errors import UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = ("features", "quantisers", "pixels")
"""Of what stands beside ours: the network's features as numbers, features quantised, and small images."""

PROBES = ("logistic", "knn", "svm")

METHODS = (*FLOATS, *BASELINES, *FORMATS)
"""By name, what :data:`GROUPS` are made of."""

DEFAULT_MODEL = "general"

FIT_IMAGES = 20_000
"""Images of other sources that quantisers are fitted to, at most, where nobody says how many."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Parameters
    ----------
    sources : tuple of Path
        Labelled images (folders of classes, zips or tars, or ``digits``, which scikit-learn has), or a matrix of
        embeddings, .npy.
    test : Path, optional
        More of the same, to score on.
    hold_out : int
        Without ``test``: score on the last so many images of each class of each source, which is what training with
        ``--hold-out`` leaves alone; 0 for a fifth of each class, drawn by the seed.
    labels, test_labels : Path, optional
        Labels in a CSV file ``name,label``; of a matrix also an array, .npy. Images have those of their first
        folders by default.
    models : tuple of str
        Names or files of ours. The first one's features are what all others quantise.
    probe : str
        One of :data:`PROBES`.
    ladder : tuple of int
        Prefixes of ours; all that the model is nested at by default.
    bits : tuple of int
        What quantisers are made for.
    baselines : tuple of str
        ``all``, ``none``, or names of :data:`GROUPS` and :data:`METHODS`.
    train_images, test_images : int, optional
        At most so many, the same share of every class.
    fit : tuple of Path
        More of what the sources are, without labels: quantisers are measured a second time, fitted (and the entropy
        models of their codes) to these instead of the images that the probe learns from, as a model that was trained
        elsewhere is.
    fit_images : int
        At most so many of them, drawn by the seed.
    fit_hold_out : int
        Without the last so many images of each class (first folder) of each of them.
    precision : str
        Of the networks.
    seed : int
    """

    sources: tuple[Path, ...]
    test: Path | None = None
    hold_out: int = 0
    labels: Path | None = None
    test_labels: Path | None = None
    models: tuple[str, ...] = ()
    probe: str = "logistic"
    ladder: tuple[int, ...] = ()
    bits: tuple[int, ...] = (16, 32, 64, 128, 256)
    baselines: tuple[str, ...] = ("all",)
    train_images: int | None = None
    test_images: int | None = None
    fit: tuple[Path, ...] = ()
    fit_images: int = FIT_IMAGES
    fit_hold_out: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        if self.probe not in PROBES:
            raise UsageError(f"there is no probe {self.probe!r}; there are {', '.join(PROBES)}.")
        known = ("all", "none", *GROUPS, *METHODS)
        if unknown := [name for name in self.baselines if name not in known]:
            raise UsageError(f"there is no baseline {unknown[0]!r}; there are {', '.join(known)}.")
        if {"all", "none"} & set(self.baselines) and len(self.baselines) > 1:
            raise UsageError("--baselines all or none stands alone; leave the other names out.")
        if not self.sources:
            raise UsageError("name a source to measure on.")
        if self.hold_out < 0:
            raise UsageError(f"--hold-out is 0 or more images of each class, not {self.hold_out}.")
        if self.hold_out and self.test is not None:
            raise UsageError("--test and --hold-out both say what is scored on; give one of them.")
        if self.test_labels is not None and self.test is None:
            raise UsageError("--test-labels are those of --test; name that, too.")
        for name in ("ladder", "bits"):
            if any(value < 1 for value in getattr(self, name)):
                raise UsageError(f"--{name} are numbers of 1 or more.")
        for name in ("train_images", "test_images"):
            if (value := getattr(self, name)) is not None and value < 2:
                raise UsageError(f"--{name.replace('_', '-')} is 2 or more, not {value}.")
        self._check_fit()

    def _check_fit(self) -> None:
        """Raise UsageError where what is fitted to elsewhere does not go together with the rest."""
        if not self.fit:
            if self.fit_images != FIT_IMAGES or self.fit_hold_out:
                raise UsageError("--fit-images and --fit-hold-out are of --fit-to; name that, too.")
            return
        if self.fit_images < 2:
            raise UsageError(f"--fit-images is 2 or more, not {self.fit_images}.")
        if self.fit_hold_out < 0:
            raise UsageError(f"--fit-hold-out is 0 or more images of each class, not {self.fit_hold_out}.")
        if not set(self.methods) & set(BASELINES):
            raise UsageError(
                "--fit-to is what quantisers are fitted to, and --baselines names none; name quantisers, or one of "
                f"{', '.join(BASELINES)}."
            )
        # Not elsewhere, and images that are scored on would be fitted to.
        measured = {path.resolve() for path in (*self.sources, self.test) if path is not None}
        if same := [path for path in self.fit if path.resolve() in measured]:
            raise UsageError(f"{printable(same[0])}: this is measured on, too; --fit-to names other images.")

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of :data:`METHODS` that are asked for."""
        groups = {"features": tuple(FLOATS), "quantisers": tuple(BASELINES), "pixels": tuple(FORMATS)}
        asked: set[str] = set()
        for name in self.baselines:
            asked |= set(METHODS if name == "all" else groups.get(name, (name,)))
        return tuple(name for name in METHODS if name in asked)

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "rate-accuracy", *(printable(path.name) for path in self.sources)]
        words += ["--hold-out", str(self.hold_out)] if self.hold_out else []
        for name in ("test", "labels", "test_labels"):
            path = getattr(self, name)
            words += [] if path is None else [f"--{name.replace('_', '-')}", printable(path.name)]
        words += [word for model in self.models for word in ("--model", printable(model.rpartition("/")[2]))]
        words += [] if self.probe == "logistic" else ["--probe", self.probe]
        for name in ("ladder", "bits", "baselines"):
            given, default = getattr(self, name), Request.__dataclass_fields__[name].default
            words += [] if given == default else [f"--{name}", ",".join(map(str, given))]
        for name in ("train_images", "test_images"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        words += [word for path in self.fit for word in ("--fit-to", printable(path.name))]
        words += [] if self.fit_images == FIT_IMAGES else ["--fit-images", str(self.fit_images)]
        words += ["--fit-hold-out", str(self.fit_hold_out)] if self.fit_hold_out else []
        words += [] if self.precision == "fp32" else ["--precision", self.precision]
        return shlex.join([*words, "--seed", str(self.seed), "-o", "results/"])
