import json
import math
import signal
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stochcl.encoders.augment import Augmentation
from stochcl.encoders.inference import encode_images
from stochcl.encoders.measure import measure_ones
from stochcl.encoders.model import EncoderConfig
from stochcl.encoders.train import Progress, TrainOptions, options_from
from stochcl.errors import OutputError, TrainingError, UsageError
from tests.encoders.making import digits, make_config, make_images, make_set, make_trainer, weights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Return a new folder below the test's, by name."""

    def make(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


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


@pytest.mark.parametrize(("precision", "how"), [("fp32", ctrl_c), ("fp32", interruption), ("bf16", ctrl_c)])
def test_an_interrupted_run_goes_on_to_the_same_weights(folder, precision, how, monkeypatch):
    monkeypatch.setattr("stochcl.encoders.train.Trainer.log_every", 10)
    options = {"epochs": 5, "batch_size": 16, "precision": precision, "rate": 12.0}  # 20 steps; half within an epoch
    data = make_set(68)
    whole = make_trainer(folder("whole"), data, **options)
    encoder = whole.run()
    assert whole.step == 20
    place = folder("parts")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(place, data, report=interrupt_at(10, how), **options).run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second = make_trainer(place, data, **options)
    assert second.step == 10
    assert weights(second.run()) == weights(encoder)
    assert second.step == 20
    assert second.controller.beta == whole.controller.beta != 1e-4


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
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    second = make_trainer(place, data, **options)
    assert second.step == 3
    assert weights(second.run()) == expected


def test_a_second_interruption_does_not_wait_and_saves_no_half_step(folder, monkeypatch):
    place = folder("run")
    trainer = make_trainer(place, make_set(16), epochs=3)

    def twice():
        ctrl_c()
        ctrl_c()

    monkeypatch.setattr(trainer.optimizer, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert list(place.iterdir()) == []


def test_the_seed_decides_the_model(folder):
    data = make_set(32)
    runs = [make_trainer(folder(f"{i}"), data, seed=seed).run() for i, seed in enumerate([4, 4, 5])]
    first, again, other = map(weights, runs)
    assert first == again
    assert all(first[k] != other[k] for k in first if k.endswith("weight") or k == "prior")


def test_the_checkpoint_of_other_options_is_refused(folder):
    place, data = folder("run"), make_set(32)
    make_trainer(place, data).run()
    for changes in ({"lr": 0.1}, {"seed": 3}, {"precision": "bf16"}, {"config": make_config(latents=8)}):
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
    monkeypatch.setattr("stochcl.encoders.train.save_checkpoint", save_with(changes))
    trainer.save()
    with pytest.raises(TrainingError, match="checkpoint: this checkpoint is damaged"):
        make_trainer(place, data)


def save_with(changes):
    from stochcl.encoders.checkpoint import save_checkpoint

    return lambda path, modules, optimizer, state: save_checkpoint(path, modules, optimizer, state | changes)


def test_without_epochs_the_untrained_network_is_calibrated(folder):
    data = digits(200, 50)
    trainer = make_trainer(folder("run"), data, epochs=0, batch_size=64)
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in trainer.encoder.named_parameters()}
    encoder = trainer.run()
    assert (trainer.step, encoder.training, trainer.checkpoint_path.exists()) == (0, False, False)
    assert all(torch.equal(before[k], v) for k, v in encoder.named_parameters())
    features = encode_images(encoder, data.train, CPU).features
    assert np.abs(features.mean(0)).max() < 0.2
    assert features.std(0).mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_table_is_measured_on_the_codes_of_the_training_images(folder, epochs):
    data = make_set(40, 10)
    encoder = make_trainer(folder("run"), data, epochs=epochs).run()
    expected = measure_ones(encode_images(encoder, data.train, CPU).codes)
    assert np.array_equal(encoder.ones.numpy(), expected)
    assert encoder.ones.min() >= 1


def test_training_learns_codes_of_digits(folder):
    data, config = digits(), make_config(width=8, latents=64, decoder=(32,))

    def accuracy(encoder):
        train, held = (encode_images(encoder, part, CPU).codes.symbols() for part in (data.train, data.held))
        probe = LogisticRegression(max_iter=200, C=0.1).fit(train, data.train_labels)
        return probe.score(held, data.held_labels)

    untrained = make_trainer(folder("untrained"), data, config, epochs=0).run()
    losses = []
    place = folder("trained")
    options = {"epochs": 14, "batch_size": 100, "lr": 5e-3}
    make_trainer(place, data, config, report=lambda p: losses.append(p.loss), **options).run()
    trained = make_trainer(place, data, config, **options).run()
    assert losses[-1] < 0.75 * losses[0]
    assert accuracy(trained) > accuracy(untrained) + 0.03


def test_a_target_brings_the_rate_towards_it(folder):
    data, config = digits(400, 0), make_config(latents=32)
    options = {"epochs": 30, "batch_size": 50, "beta": 1e-2, "lr": 5e-3}
    rates = {}
    for target in (None, 8.0):
        told = []
        trainer = make_trainer(folder(f"{target}"), data, config, report=told.append, rate=target, **options)
        trainer.run()
        rates[target] = told[-1].rate
    assert rates[8.0] < 0.7 * rates[None]
    assert trainer.controller.beta > 1e-2


def test_time_ends_a_run_and_the_rate_of_learning_with_it(folder, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("stochcl.encoders.train.time.monotonic", lambda: next(clock) / 10)
    monkeypatch.setattr("stochcl.encoders.train.Trainer.log_every", 1)
    told = []
    trainer = make_trainer(folder("run"), make_set(16), epochs=1000, max_time=20, report=told.append)
    trainer.run()
    assert 4 < trainer.step < 100
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1, abs=0.1)
    assert told[-1].lr / (trainer.step / 200) < 0.05 * trainer.options.lr


def test_the_log_holds_the_figures_one_json_object_a_line(folder):
    place = folder("run")
    log = place / "log.jsonl"
    log.write_text('{"earlier": true}\n')
    told = []
    make_trainer(place, make_set(64, 16), log=log, report=told.append, batch_size=2, epochs=2).run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0] == {"earlier": True}
    assert [line["step"] for line in lines[1:]] == [1, 20, 40, 60] == [p.step for p in told]
    for line, progress in zip(lines[1:], told, strict=True):
        assert line == {k: round(v, 6) for k, v in asdict(progress).items() if math.isfinite(v)}
        assert {"loss", "contrast", "contrast_codes", "reconstruction", "rate", "kl", "beta", "lr"} <= set(line)
    assert lines[1]["held_rate"] > 0
    assert 0 <= lines[1]["knn"] <= 1
    assert "knn" not in lines[2]  # measured every ten minutes
    assert [line["epoch"] for line in lines[1:]] == [0.03125, 0.625, 1.25, 1.875]


@pytest.mark.parametrize(("held", "labels"), [(16, ("",)), (0, ("a", "b"))])
def test_without_labels_of_held_out_images_no_accuracy_is_told(folder, held, labels):
    told = []
    make_trainer(folder("run"), make_set(16, held, labels=labels), report=told.append).run()
    assert told[0].held_rate > 0
    assert math.isnan(told[0].knn)
    assert "kNN" not in told[0].line()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_spoils_no_checkpoint(folder, where, monkeypatch):
    place = folder("run")
    trainer = make_trainer(place, make_set(64), batch_size=8, lr=1e-3)
    trainer.save_every = -1.0  # after every step
    normalise = trainer.encoder.normalise

    def poisoned(images):
        if trainer.step == 5 and where == "loss":
            images = images * math.nan
        if trainer.step == 5 and where == "gradient":
            trainer.encoder.head.weight.register_hook(lambda gradient: gradient * math.inf)
        return normalise(images)

    monkeypatch.setattr(trainer.encoder, "normalise", poisoned)
    with pytest.raises(TrainingError, match="the loss is not finite at step 6; try a lower learning rate"):
        trainer.run()
    restored = make_trainer(place, make_set(64), batch_size=8, lr=1e-3)
    assert restored.step == 5
    assert all(tensor.isfinite().all() for tensor in restored.encoder.state_dict().values())


def test_a_log_that_cannot_be_written_is_said(folder):
    place = folder("run")
    with pytest.raises(OutputError, match=r"none/log: the log cannot be written: No such file or directory\."):
        make_trainer(place, make_set(16), log=place / "none" / "log").run()


def test_every_image_is_trained_on_once_an_epoch_with_keys_of_its_own(folder, monkeypatch):
    seen = []

    def note(self, images, keys, seed, stream):
        if stream == 0:
            seen.append((keys.tolist(), images.clone()))
        return call(self, images, keys, seed, stream)

    call = Augmentation.__call__
    monkeypatch.setattr(Augmentation, "__call__", note)
    data = make_set(30, 10)
    make_trainer(folder("run"), data, epochs=3, batch_size=10).run()
    keys = [key for batch, _ in seen for key in batch]
    assert sorted(keys) == list(range(90))
    assert [sorted(k % 30 for k in keys[i : i + 30]) for i in (0, 30, 60)] == [list(range(30))] * 3
    assert keys[:30] != [k - 30 for k in keys[30:60]]
    for batch, images in seen:
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), data.train[[k % 30 for k in batch]])


def test_a_set_smaller_than_a_batch_is_one_batch(folder):
    trainer = make_trainer(folder("run"), make_set(5), batch_size=256, epochs=2)
    trainer.run()
    assert (trainer.batch, trainer.step) == (5, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1}, {"crop": 0}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}, {"temperature": -1.0},
        {"epochs": -1}, {"rate": 0.0}, {"rate": math.nan}, {"beta": -1.0}, {"decay": math.nan}, {"seed": -1},
        {"seed": 1 << 63}, {"precision": "fp16"}, {"max_time": 0.0}, {"max_time": -5.0}, {"max_time": math.nan},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        TrainOptions(**options)


def test_options_are_sorted_into_encoder_and_training():
    config, options = options_from({"latents": 32, "size": 96, "lr": 0.1, "rate": None, "epochs": 0})
    assert config == EncoderConfig(latents=32, size=96)
    assert options == TrainOptions(lr=0.1, epochs=0, crop=72)
    assert options_from({"crop": 40})[1].crop == 40
    assert options_from({"size": 16})[1].crop == 16
    with pytest.raises(UsageError, match="no training option colour, speed"):
        options_from({"speed": 1, "colour": 2})


def test_a_line_of_progress_has_its_figures_with_units():
    progress = Progress(0.5, 1200, 2.5, 60.0, loss=7.1234, rate=1013.4, images_per_second=316.2, knn=0.4321)
    expected = "step 1,200, epoch 2.5, loss 7.123 nats, rate 1,013 bits/image, 316 images/s, kNN 43.2%"
    assert progress.line() == expected


def test_pixels_of_any_kind_give_a_finite_first_step(folder):
    data = make_set(16)
    data.train[:] = make_images(1)[0, 0, 0]  # one colour everywhere
    trainer = make_trainer(folder("run"), data)
    assert all(t.isfinite().all() for t in trainer.run().state_dict().values())
