import math

import numpy as np
import pytest
import torch

from stochcl.errors import TrainingError
from stochcl.training.loop import NonFiniteGuard
from stochcl.training.runtime import DeviceImages, to_device
from tests.encoders.making import make_images
from tests.training.making import make_set, make_trainer

CPU = torch.device("cpu")


def test_a_batch_is_the_same_wherever_the_images_are_kept():
    images, rows = make_images(20), np.array([7, 0, 19])
    there, here = (DeviceImages(images, CPU, resident=resident).take(rows) for resident in (True, False))
    assert torch.equal(there, here)
    assert np.array_equal(there.permute(0, 2, 3, 1).numpy(), images[rows])
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_device(here, CPU), here)


def test_numbers_that_are_not_finite_are_noticed_when_it_is_time_to_ask():
    guard = NonFiniteGuard(CPU, every=5)
    for step in range(1, 5):
        guard.observe(torch.tensor(math.nan if step == 3 else 1.0), step)
    with pytest.raises(TrainingError, match="not finite at step 3; try a lower learning rate"):
        guard.observe(torch.tensor(1.0), 5)
    guard.observe(torch.tensor(math.inf), 6)
    with pytest.raises(TrainingError, match="at step 6"):
        guard.check()
    guard.check()


def test_on_a_cpu_every_step_is_looked_at_and_elsewhere_one_of_twenty():
    assert (NonFiniteGuard(CPU).every, NonFiniteGuard(torch.device("cuda")).every) == (1, 20)


def test_nothing_is_saved_of_a_run_that_is_asked_seldom(folder, monkeypatch):
    place = folder("run")
    trainer = make_trainer(place, make_set(64), batch_size=8, lr=1e-3)
    trainer.guard = NonFiniteGuard(CPU, every=1000)
    trainer.save_every = -1.0  # after every step
    normalise = trainer.encoder.normalise
    monkeypatch.setattr(
        trainer.encoder, "normalise", lambda images: normalise(images * (math.nan if trainer.step == 4 else 1))
    )
    with pytest.raises(TrainingError, match="the loss is not finite at step 5"):
        trainer.run()
    restored = make_trainer(place, make_set(64), batch_size=8, lr=1e-3)
    assert restored.step == 4
    assert all(tensor.isfinite().all() for tensor in restored.encoder.state_dict().values())


def test_a_run_that_is_asked_at_its_end_only_makes_no_model(folder, monkeypatch):
    trainer = make_trainer(folder("run"), make_set(16), batch_size=8)
    trainer.guard = NonFiniteGuard(CPU, every=1000)
    normalise = trainer.encoder.normalise
    monkeypatch.setattr(trainer.encoder, "normalise", lambda images: normalise(images * math.nan))
    with pytest.raises(TrainingError, match="the loss is not finite at step 1"):
        trainer.run()
    assert not trainer.checkpoint_path.exists()


@pytest.mark.parametrize("wanted", [True, False])
def test_the_backbone_is_compiled_where_that_is_asked_for(folder, monkeypatch, wanted):
    seen = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: seen.append((type(self).__name__, options))
    )
    place = folder("run")
    make_trainer(place, make_set(16), compile=wanted).run()
    assert seen == [("ResNet", {"dynamic": False})] * wanted
    make_trainer(place, make_set(16), compile=not wanted, epochs=2)  # another way to compute the same steps
