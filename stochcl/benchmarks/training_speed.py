"""How fast a training step is, beside the bare forward and backward pass."""

from __future__ import annotations

import shlex
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks import machine, setting
from stochcl.benchmarks.clock import interleave, ratio, row
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = "stochcl.benchmark.training/0"
FLOOR, STEP = "floor: forward and backward", "whole step"
PARTS = ("augmentation", "loss, forward and backward", "optimiser")

_LR = 1e-12
_OPTIONS = ("backbone", "size", "crop", "batch_size", "precision", "device")


@dataclass(frozen=True)
class Request:
    """What to measure; fields of the same names are those of :class:`stochcl.training.options.TrainOptions`.

    Parameters
    ----------
    preset : str, optional
    backbone, size, crop, batch_size, precision : optional
        In place of the preset's, or of the defaults.
    device : str
    compile : bool
        Whether torch.compile makes the network's kernels.
    seed, repeat : int
        Of images and network; steps that are measured.
    """

    preset: str | None = None
    backbone: str | None = None
    size: int | None = None
    crop: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    device: str = "auto"
    compile: bool = False
    seed: int = 0
    repeat: int = 5

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "training"]
        words += [] if self.preset is None else ["--preset", printable(Path(self.preset).name)]
        for name in (*_OPTIONS, "seed", "repeat"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*words, *(["--compile"] if self.compile else []), "-o", "results/"])


def benchmark_training(
    request: Request, *, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure the parts of a step, the step and the bare pass, interleaved."""
    from stochcl.training.options import load_preset, options_from

    given = load_preset(request.preset) if request.preset else {}
    given = {name: value for name, value in given.items() if name not in ("source", "hold_out")}
    given |= {name: getattr(request, name) for name in _OPTIONS if getattr(request, name) is not None}
    # So slow a rate changes no weight to speak of: what is measured again and again is one and the same step.
    config, options = options_from(given | {"seed": request.seed, "lr": _LR})
    with tempfile.TemporaryDirectory(prefix="stochcl-") as name, setting.one_thread():
        trainer = _trainer(config, options, Path(name))
        if request.compile:
            setting.compiled(trainer.encoder.backbone)
        wait = setting.waiting_for(trainer.device)
        times = interleave(_work(trainer, options), request.repeat, wait=wait, progress=progress)
    views = 2 * options.batch_size
    clock = "wall" if trainer.device.type == "cuda" else "core"
    beside = {part: statistics.median(getattr(times[part], clock)) for part in PARTS}
    beside["loss, forward and backward"] -= statistics.median(getattr(times[FLOOR], clock))
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "n": views,
        "network": config.backbone,
        "size": config.size,
        "crop": options.crop,
        "batch_size": options.batch_size,
        "precision": trainer.runtime.precision,
        "compile": request.compile,
        "hardware": setting.facts(trainer.device),
        "versions": machine.versions(),
        "ratios": {f"{FLOOR} / {STEP}, {name}": ratio(times, (FLOOR,), STEP, name) for name in ("core", "wall")},
        "limit": max(beside, key=lambda part: beside[part]),
        "rows": [row(part, taken, views) for part, taken in times.items()],
    }


def _trainer(config: Any, options: Any, folder: Path) -> Any:
    from stochcl.training.images import ImageSet
    from stochcl.training.pretrain import Trainer

    rng = np.random.default_rng(options.seed)
    images = rng.integers(0, 256, (options.batch_size, config.size, config.size, 3), dtype=np.uint8)
    labels = ("made",) * len(images)
    trainer = Trainer(config, options, ImageSet(images, images[:0], labels, (), ()), checkpoint=folder / "checkpoint")
    trainer.log_every, trainer.save_every = 1 << 60, float("inf")
    trainer.step = 1  # the first step is logged and measured, which no other is
    return trainer


def _work(trainer: Any, options: Any) -> dict[str, Callable[[], object]]:
    import torch

    rows = np.arange(trainer.batch)
    keys = torch.from_numpy(rows).to(trainer.device)
    images = torch.from_numpy(trainer.data.train).to(trainer.device).permute(0, 3, 1, 2)
    parameters = [p for p in trainer.encoder.parameters() if p.requires_grad]

    def augment() -> torch.Tensor:
        return torch.cat([trainer.augmentation(images, keys, options.seed, stream) for stream in (0, 1)])

    views = trainer.encoder.normalise(augment())

    def bare() -> None:
        with setting.autocast(trainer.device, options.precision):
            value = trainer.encoder.backbone(views).float().square().mean()
        value.backward()
        clear()

    def loss() -> None:
        # What a step computes, less its views: those are taken ready-made.
        made, trainer.augmentation = trainer.augmentation, lambda _images, _keys, _seed, stream: ready[stream]
        try:
            trainer.backward(trainer.losses().total)
        finally:
            trainer.augmentation = made

    ready = augment().chunk(2)

    def optimise() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1e3)
        trainer.optimizer.step()

    def clear() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)

    return {
        "augmentation": augment,
        FLOOR: bare,
        "loss, forward and backward": loss,
        "optimiser": optimise,
        STEP: trainer.run_step,
    }


def title(result: dict[str, Any]) -> str:
    """Return what stands above the table: the setting, the ratio that counts on this device, what limits it."""
    clock = "wall" if result["hardware"]["device"] == "cuda" else "core"
    found = result["ratios"][f"{FLOOR} / {STEP}, {clock}"]
    return (
        f"{result['n']:,} views a step, {result['network']} at {result['crop']} px, {result['precision']}; "
        f"bare pass / step ({clock} seconds) {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f}); "
        f"most beside it: {result['limit']}"
    )
