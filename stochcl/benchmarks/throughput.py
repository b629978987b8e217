"""How fast ``stochcl compress`` is: every stage and the whole, beside what cannot be done without."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks import machine, setting
from stochcl.benchmarks.clock import interleave, ratio, row
from stochcl.data import ImageSource, open_source
from stochcl.errors import UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = "stochcl.benchmark.throughput/0"
FLOORS = ("floor: decode", "floor: forward", "floor: code")
"""Bare image decoding, the bare forward pass on tensors in memory, and the bare coder."""

STAGES = ("read", "decode", "resize", "encode", "entropy-code", "write")
WHOLE = "whole"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Parameters
    ----------
    source : Path, optional
        A folder, archive or array of images; without one, images are made.
    model : str, optional
        A model's name or file; the default one where no backbone is named either.
    backbone : str, optional
        An untrained network in place of a model, at ``size`` pixels.
    size : int, optional
        Side that its images are brought to; 64 by default.
    images, image_size, seed : int
        How many images are made or taken of a source, their side in pixels (by default one and a half times
        the network's), and the seed of them and of an untrained network.
    device, precision : str
        auto, cpu, cuda...; fp32 or bf16 (autocast).
    compile : bool
        Whether torch.compile makes the network's kernels.
    repeat : int
        Rounds that are measured.
    """

    source: Path | None = None
    model: str | None = None
    backbone: str | None = None
    size: int | None = None
    images: int = 512
    image_size: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    repeat: int = 5

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        setting.check_precision(self.precision)
        if self.model is not None and self.backbone is not None:
            raise UsageError("--model and --backbone both say which network; give one of them.")
        if self.size is not None and self.backbone is None:
            raise UsageError("--size is that of an untrained network; give --backbone too.")
        if self.source is not None and self.image_size is not None:
            raise UsageError("--image-size is that of images that are made; leave it out where a source is named.")
        if self.images < 1 or self.repeat < 1:
            raise UsageError("--images and --repeat are 1 or more.")

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "throughput"]
        words += [] if self.source is None else [printable(self.source.name)]
        words += [] if self.model is None else ["--model", printable(Path(self.model).name)]
        for name in ("backbone", "size", "images", "image_size", "device", "precision", "seed", "repeat"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*words, *(["--compile"] if self.compile else []), "-o", "results/"])


def benchmark_throughput(
    request: Request, *, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure stages, floors and the whole, interleaved, and see that the archive's codes are right."""
    from stochcl.api.codec import Codec
    from stochcl.benchmarks.stages import Stages
    from stochcl.encoders.backbones import input_size

    request.check()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stochcl-")))
        name = request.model
        if request.backbone is not None:
            name, size = str(folder / "untrained.safetensors"), request.size or input_size(request.backbone)
            setting.make_model(Path(name), request.backbone, size, request.seed)
        codec = Codec(device=request.device) if name is None else Codec(name, device=request.device)
        codec = codec.with_precision(request.precision)
        source = request.source or _made(request, folder, codec)
        stack.enter_context(setting.one_thread())
        stack.enter_context(setting.autocast(codec.device, request.precision))
        stages = Stages(codec, _images(source), source, folder, most=request.images)
        if request.compile:
            setting.compiled(codec._encoder.backbone)
        times = interleave(stages.work(), request.repeat, wait=setting.waiting_for(codec.device), progress=progress)
        same = stages.check()
    count = len(stages.data)
    ratios = {
        f"{what} / whole, {clock}": ratio(times, parts, WHOLE, clock)
        for clock in ("core", "wall")
        for what, parts in (("floors", FLOORS), ("forward", FLOORS[1:2]), ("stages", STAGES))
    }
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "n": count,
        "network": codec._encoder.config.backbone,
        "size": codec.size,
        "latents": codec.latents,
        "precision": request.precision,
        "compile": request.compile,
        "hardware": setting.facts(codec.device),
        "versions": machine.versions(),
        "agreement_with_fp32": round(same, 6),
        "ratios": ratios,
        "rows": [row(stage, taken, count) for stage, taken in times.items()],
    }


def _made(request: Request, folder: Path, codec: Any) -> Path:
    made = folder / "images"
    made.mkdir()
    setting.make_images(made, request.images, request.image_size or codec.size * 3 // 2, request.seed)
    return made


def _images(path: Path) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        raise UsageError(f"{printable(path)}: this is a matrix of embeddings; throughput is measured on images.")
    return source


def title(result: dict[str, Any]) -> str:
    """Return what stands above the table: whose speed it is, and the ratio that counts on this device."""
    clock = "wall" if result["hardware"]["device"] == "cuda" else "core"
    found = result["ratios"][f"floors / whole, {clock}"]
    return (
        f"{result['n']:,} images, {result['network']} at {result['size']} px, {result['precision']}; floors / whole "
        f"({clock} seconds) {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    )
