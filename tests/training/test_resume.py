import math
import signal

import pytest
import torch

from stochcl.errors import TrainingError
from stochcl.training.objectives import OBJECTIVES
from tests.encoders.making import make_config, weights
from tests.training.making import make_set, make_trainer


def interrupt_at(step, how):
    """Return a report that interrupts the run when it is told of a step."""

    def report(progress):
        if progress.step == step:
            how()

    return report


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def interruption():
    raise KeyboardInterrupt


def sigterm():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("precision", "how"), [("fp32", sigterm), ("fp32", interruption), ("bf16", ctrl_c)])
def test_an_interrupted_run_goes_on_to_the_same_weights(folder, precision, how, monkeypatch):
    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 10)
    options = {"epochs": 5, "batch_size": 16, "precision": precision, "rate": 12.0}  # 20 steps; half within an epoch
    data = make_set(68)
    whole = make_trainer(folder("whole"), data, **options)
    encoder = whole.run()
    assert whole.step == 20
    place = folder("parts")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(place, data, report=interrupt_at(10, how), **options).run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    second = make_trainer(place, data, **options)
    assert second.step == 10
    assert weights(second.run()) == weights(encoder)
    assert second.step == 20
    assert second.controller.beta == whole.controller.beta != 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_twenty_steps_are_ten_and_ten_whatever_the_objective(folder, objective, monkeypatch):
    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 10)
    options = {"epochs": 5, "batch_size": 16, "objective": objective, "average": 0.9, "estimator": "relaxed"}
    data = make_set(68)
    whole = make_trainer(folder("whole"), data, **options)
    encoder = whole.run()
    assert whole.step == 20
    assert encoder is whole.ema.network
    place = folder("parts")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(place, data, report=interrupt_at(10, ctrl_c), **options).run()
    second = make_trainer(place, data, **options)
    assert second.step == 10
    assert weights(second.run()) == weights(encoder)
    for mine, theirs in zip(second.loss.state_dict().values(), whole.loss.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_a_network_draws_itself_is_drawn_alike_after_an_interruption(folder, monkeypatch):
    class Dropping(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone, self.features = backbone, backbone.features

        def forward(self, images):
            return torch.nn.functional.dropout(self.backbone(images), 0.5, self.training)

    def begin(encoder):
        encoder.backbone = Dropping(encoder.backbone)

    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 2)
    data, options = make_set(16), {"epochs": 2, "batch_size": 8, "initialise": begin}
    whole = make_trainer(folder("whole"), data, **options).run()
    place = folder("parts")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(place, data, report=interrupt_at(2, ctrl_c), **options).run()
    torch.rand(3)
    assert weights(make_trainer(place, data, **options).run()) == weights(whole)


def test_a_handler_that_says_what_it_raises_waits_for_the_end_of_a_step_too(folder, monkeypatch):
    class Ended(KeyboardInterrupt):
        pass

    def end(number, frame):
        raise Ended

    end.raises = Ended
    trainer = make_trainer(folder("run"), make_set(16), epochs=3, batch_size=8)
    step = trainer.optimizer.step

    def ended(*args, **kwargs):
        if trainer.step == 2:
            sigterm()
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer.optimizer, "step", ended)
    signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended) as raised:
            trainer.run()
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert raised.value.__notes__ == [f"Step 3 is kept in {trainer.checkpoint_path}; pass resume=True to continue."]


def test_the_step_that_is_kept_is_the_last_that_was_written(folder, monkeypatch):
    trainer = make_trainer(folder("run"), make_set(16), epochs=3, batch_size=8)
    step = trainer.optimizer.step

    def interrupted(*args, **kwargs):
        if trainer.step == 2:
            trainer.save()
        if trainer.step == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.run()
    assert raised.value.__notes__ == [f"Step 2 is kept in {trainer.checkpoint_path}; pass resume=True to continue."]


def test_an_interruption_in_the_middle_of_a_step_waits_for_its_end(folder, monkeypatch):
    data, options = make_set(16), {"epochs": 3, "batch_size": 8}
    expected = weights(make_trainer(folder("whole"), data, **options).run())
    place = folder("parts")
    trainer = make_trainer(place, data, **options)
    step = trainer.optimizer.step

    def interrupted(*args, **kwargs):
        if trainer.step == 2:
            ctrl_c()
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.run()
    assert raised.value.__notes__ == [f"Step 3 is kept in {trainer.checkpoint_path}; pass resume=True to continue."]
    second = make_trainer(place, data, **options)
    assert second.step == 3
    assert weights(second.run()) == expected


def test_a_second_interruption_does_not_wait_and_saves_no_half_step(folder, monkeypatch):
    place = folder("run")
    trainer = make_trainer(place, make_set(16), epochs=3)
    step = trainer.optimizer.step

    def twice():
        step()
        if trainer.step == 1:
            ctrl_c()
            ctrl_c()

    monkeypatch.setattr(trainer.optimizer, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert list(place.iterdir()) == []


def test_the_checkpoint_of_other_options_is_refused(folder):
    place, data = folder("run"), make_set(32)
    make_trainer(place, data).run()
    for changes in (
        {"lr": 0.1},
        {"seed": 3},
        {"precision": "bf16"},
        {"objective": "byol"},
        {"average": 0.5},
        {"config": make_config(latents=8)},
    ):
        with pytest.raises(TrainingError, match="belongs to a run with another"):
            make_trainer(place, data, **changes)
    with pytest.raises(TrainingError, match="another images"):
        make_trainer(place, make_set(33))
    assert make_trainer(place, data, epochs=2, max_time=60).step == 4  # how long it takes is free to change


def test_a_run_goes_on_where_more_epochs_are_asked_for(folder):
    place, data = folder("run"), make_set(32)
    make_trainer(place, data, epochs=1).run()
    trainer = make_trainer(place, data, epochs=2)
    trainer.run()
    assert trainer.step == 8


@pytest.mark.parametrize("changes", [{"step": -1}, {"step": "x"}, {"beta": None}, {"elapsed": math.nan}])
def test_a_checkpoint_with_a_damaged_counter_is_refused(folder, changes, monkeypatch):
    place, data = folder("run"), make_set(32)
    trainer = make_trainer(place, data)
    trainer.run()
    monkeypatch.setattr("stochcl.training.loop.save_checkpoint", save_with(changes))
    trainer.save()
    with pytest.raises(TrainingError, match="checkpoint: this checkpoint is damaged"):
        make_trainer(place, data)


def save_with(changes):
    from stochcl.training.outputs import save_checkpoint

    return lambda path, modules, optimizer, state: save_checkpoint(path, modules, optimizer, state | changes)


def test_an_interruption_of_the_last_stage_keeps_the_steps(folder, monkeypatch):
    data, options = make_set(16), {"epochs": 2}
    expected = weights(make_trainer(folder("whole"), data, **options).run())
    place = folder("parts")
    trainer = make_trainer(place, data, **options)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.run()
    assert "pass resume=True" in raised.value.__notes__[0]
    second = make_trainer(place, data, **options)
    assert second.step == trainer.step
    assert weights(second.run()) == expected


def test_a_twin_goes_on_too_and_its_checkpoint_is_no_other_s(folder, monkeypatch):
    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 2)
    data, options = make_set(32), {"epochs": 2, "batch_size": 16, "deterministic": True}
    whole = make_trainer(folder("whole"), data, **options).run()
    place = folder("parts")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(place, data, report=interrupt_at(2, ctrl_c), **options).run()
    with pytest.raises(TrainingError, match="belongs to a run with another deterministic"):
        make_trainer(place, data, epochs=2, batch_size=16)
    assert weights(make_trainer(place, data, **options).run()) == weights(whole)


@pytest.mark.parametrize("options", [{"deterministic": True}, {"average": 0.5}, {}], ids=str)
def test_the_latent_stage_trains_what_the_steps_on_images_left_without_gradients(folder, options):
    data = make_set(64, 16)
    before = make_trainer(folder("without"), data, **options).run()
    after = make_trainer(folder("with"), data, latent_steps=20, **options).run()
    same = {n.split(".")[0]: torch.equal(p, dict(before.named_parameters())[n]) for n, p in after.named_parameters()}
    assert same == {"backbone": True, "head": False, "prior": False, "decoder": False}
