"""A few steps of training for every objective, alone or as one of several processes that torchrun started."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stochcl.training.objectives import OBJECTIVES
from stochcl.training.options import TrainOptions
from stochcl.training.pretrain import Trainer, TrainProgress
from stochcl.training.runtime import Runtime, rank
from tests.encoders.making import make_config
from tests.training.making import make_set

STEPS = 4


class Noting(Trainer):
    """A trainer that keeps the gradients of the first step, and ends after a few."""

    log_every = 1

    def descend(self, factor):
        losses = super().descend(factor)
        if self.step == 1:
            self.gradients = {n: p.grad.clone() for n, p in self.loss.named_parameters() if p.grad is not None}
        return losses

    def _finish(self):
        """Do nothing: one process does that."""


class Lasting(Runtime):
    """A runtime for several runs, one after the other."""

    def close(self):
        pass


def steps_of(objective: str, folder: Path, runtime: Runtime, options: TrainOptions) -> dict[str, torch.Tensor]:
    """Return gradients of the first step, the weights after the last, and all figures that are logged."""
    told = []
    trainer = Noting(
        make_config(), options, make_set(50, labels=("a",)), checkpoint=folder / f"{objective}-{rank()}",
        report=told.append, runtime=runtime,
    )  # fmt: skip
    trainer.run()
    assert trainer.step == STEPS
    found = {f"gradient.{n}": g for n, g in trainer.gradients.items()}
    found |= {f"weight.{n}": w for n, w in trainer.encoder.state_dict().items()}
    figures = ("loss", "contrast", "contrast_codes", "decorrelation", "reconstruction", "rate", "kl", "beta")
    found["figures"] = torch.tensor([[getattr(p, f) for f in figures] for p in told if isinstance(p, TrainProgress)])
    return {f"{objective}.{n}": t.contiguous() for n, t in found.items()}


def main(folder: Path) -> None:
    """Write what all objectives give, from the first process."""
    given = {"batch_size": 12, "epochs": 1, "crop": 16, "lr": 1e-3, "precision": "fp32", "device": "cpu", "rate": 8.0}
    made = {name: TrainOptions(objective=name, **given) for name in OBJECTIVES}
    runtime = Lasting(made["nt-xent"])
    found = {}
    for name, options in made.items():
        found |= steps_of(name, folder, runtime, options)
    if rank() == 0:
        save_file(found, folder / "found.safetensors")
    # Together, and in order: a process that just ends takes threads of the group down with it, sometimes by abort.
    runtime.wait()
    Runtime.close(runtime)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
