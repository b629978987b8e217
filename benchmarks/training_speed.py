"""Time a training step and its parts, beside the bare forward and backward pass on views in memory.

    python benchmarks/training_speed.py -o results/
    python benchmarks/training_speed.py --preset imagenet-resnet50 --device cuda --compile -o results/

Images are made: what they show makes no difference. What takes most beside the bare pass is named.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from script import command_of
from throughput import COLUMNS, facts, interleave, lines, one_thread, ratio, row, waiting_for

from stochcl.benchmarks.run import Config, record
from stochcl.options import option

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = "stochcl.benchmark.training/0"
FLOOR, STEP = "floor: forward and backward", "whole step"
PARTS = ("augmentation", "loss, forward and backward", "optimiser")

_LR = 1e-12
_OPTIONS = ("backbone", "size", "crop", "batch_size", "precision", "device")


@dataclass(frozen=True)
class TrainingSpeedConfig(Config):
    """What is timed; fields named like training options override the preset."""

    command_name: ClassVar[str] = "python benchmarks/training_speed.py"

    preset: str | None = option(None, "Options of training to begin with, as `stochcl train` has them.")
    backbone: str | None = option(None, "resnet10, 18, 34 or 50.", shown="the preset's, or resnet10")
    size: int | None = option(None, "Of images.", at_least=16, unit="PIXELS", shown="the preset's, or 64")
    crop: int | None = option(None, "Of views.", at_least=16, unit="PIXELS", shown="the preset's, or 3/4")
    batch_size: int | None = option(None, "Images a step.", at_least=2, shown="the preset's, or 256")
    precision: str | None = option(
        None, "As in training.", choices=("auto", "bf16", "fp32"), shown="the preset's, or auto"
    )
    device: str = option("auto", "cpu, cuda, ...")
    compile: bool = option(False, "Let torch.compile make the network's kernels.")
    repeat: int = option(5, "Steps that are measured.", at_least=1)
    seed: int = option(0, "Seed of everything random.", at_least=0)


def benchmark_training(
    config: TrainingSpeedConfig, *, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure the parts of a step, the step and the bare pass, interleaved; ``limit`` is the slowest other part."""
    from stochcl.training.options import load_preset, options_from

    given = load_preset(config.preset) if config.preset else {}
    given = {name: value for name, value in given.items() if name not in ("source", "hold_out")}
    given |= {name: getattr(config, name) for name in _OPTIONS if getattr(config, name) is not None}
    # This rate leaves the weights nearly unchanged, so that every repeat measures the same step.
    network, options = options_from(given | {"seed": config.seed, "lr": _LR})
    with tempfile.TemporaryDirectory(prefix="stochcl-") as name, one_thread():
        trainer = _trainer(network, options, Path(name))
        if config.compile:
            trainer.encoder.backbone.compile()
        wait = waiting_for(trainer.device)
        times = interleave(_work(trainer, options), config.repeat, wait=wait, progress=progress)
    views = 2 * options.batch_size
    clock = "wall" if trainer.device.type == "cuda" else "core"
    beside = {part: statistics.median(getattr(times[part], clock)) for part in PARTS}
    beside["loss, forward and backward"] -= statistics.median(getattr(times[FLOOR], clock))
    return record(
        SCHEMA,
        config,
        n=views,
        network=network.backbone,
        size=network.size,
        crop=options.crop,
        batch_size=options.batch_size,
        precision=trainer.runtime.precision,
        compile=config.compile,
        hardware=facts(trainer.device),
        ratios={f"{FLOOR} / {STEP}, {name}": ratio(times, (FLOOR,), STEP, name) for name in ("core", "wall")},
        limit=max(beside, key=lambda part: beside[part]),
        rows=[row(part, taken, views) for part, taken in times.items()],
    )


def _trainer(config: Any, options: Any, folder: Path) -> Any:
    from stochcl.training.images import ImageSet
    from stochcl.training.pretrain import Trainer

    rng = np.random.default_rng(options.seed)
    images = rng.integers(0, 256, (options.batch_size, config.size, config.size, 3), dtype=np.uint8)
    labels = ("made",) * len(images)
    trainer = Trainer(config, options, ImageSet(images, images[:0], labels, (), ()), checkpoint=folder / "checkpoint")
    trainer.log_every, trainer.save_every = 1 << 60, float("inf")
    trainer.step = 1  # only the first step is logged and measured
    return trainer


def _work(trainer: Any, options: Any) -> dict[str, Callable[[], object]]:
    import torch

    from stochcl.encoders.inference import computes_in_bf16

    bf16 = computes_in_bf16(options.precision, trainer.device.type)
    rows = np.arange(trainer.batch)
    keys = torch.from_numpy(rows).to(trainer.device)
    images = torch.from_numpy(trainer.data.train).to(trainer.device).permute(0, 3, 1, 2)
    parameters = [p for p in trainer.encoder.parameters() if p.requires_grad]

    def augment() -> torch.Tensor:
        return torch.cat([trainer.augmentation(images, keys, options.seed, stream) for stream in (0, 1)])

    views = trainer.encoder.normalise(augment())

    def bare() -> None:
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=bf16):
            value = trainer.encoder.backbone(views).float().square().mean()
        value.backward()
        clear()

    def loss() -> None:
        # A step without augmentation: it uses ready-made views.
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
    """Return the table's title: the setup, the main ratio on this device, and what limits it."""
    clock = "wall" if result["hardware"]["device"] == "cuda" else "core"
    found = result["ratios"][f"{FLOOR} / {STEP}, {clock}"]
    return (
        f"{result['n']:,} views a step, {result['network']} at {result['crop']} px, {result['precision']}; "
        f"bare pass / step ({clock} seconds) {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f}); "
        f"most beside it: {result['limit']}"
    )


main = command_of(
    TrainingSpeedConfig, "training", lambda command: command,
    lambda config, folder, *, progress, say: benchmark_training(config, progress=progress),
    lambda result: [(title(result), COLUMNS, lines(result))],
    help=__doc__, unit="rounds",
)  # fmt: skip

if __name__ == "__main__":
    main()
