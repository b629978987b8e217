import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stochcl.encoders.inference import encode
from stochcl.entropy.model import measure_ones
from stochcl.errors import OutputError, TrainingError
from stochcl.training.augment import Augmentation
from stochcl.training.objectives import Losses
from stochcl.training.pretrain import TrainProgress
from tests.encoders.making import make_config, make_images, weights
from tests.training.making import digits, make_set, make_trainer

CPU = torch.device("cpu")


def test_the_seed_decides_the_model(folder):
    data = make_set(32)
    runs = [make_trainer(folder(f"{i}"), data, seed=seed).run() for i, seed in enumerate([4, 4, 5])]
    first, again, other = map(weights, runs)
    assert first == again
    assert all(first[k] != other[k] for k in first if k.endswith("weight") or k == "prior")


def test_without_epochs_the_untrained_network_is_calibrated(folder):
    data = digits(200, 50)
    trainer = make_trainer(folder("run"), data, epochs=0, batch_size=64)
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in trainer.encoder.named_parameters()}
    encoder = trainer.run()
    assert (trainer.step, encoder.training, trainer.checkpoint_path.exists()) == (0, False, False)
    assert all(torch.equal(before[k], v) for k, v in encoder.named_parameters())
    features = encode(encoder, data.train, CPU).features
    assert np.abs(features.mean(0)).max() < 0.2
    assert features.std(0).mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_table_is_measured_on_the_codes_of_the_training_images(folder, epochs):
    data = make_set(40, 10)
    encoder = make_trainer(folder("run"), data, epochs=epochs).run()
    expected = measure_ones(encode(encoder, data.train, CPU).codes)
    assert np.array_equal(encoder.ones.numpy(), expected)
    assert encoder.ones.min() >= 1


def test_training_learns_codes_of_digits(folder):
    data, config = digits(600, 400), make_config(width=8, stem="imagenet", latents=64, decoder=(32,))

    def accuracy(encoder):
        train, held = (encode(encoder, part, CPU).codes.symbols() for part in (data.train, data.held))
        probe = LogisticRegression(max_iter=200, C=0.1).fit(train, data.train_labels)
        return probe.score(held, data.held_labels)

    untrained = make_trainer(folder("untrained"), data, config, epochs=0).run()
    told = []
    options = {"epochs": 10, "batch_size": 50, "lr": 1e-2, "report": told.append}
    trained = make_trainer(folder("trained"), data, config, **options).run()
    assert told[-1].loss < 0.95 * told[0].loss
    assert told[-1].contrast < 0.95 * told[0].contrast
    assert accuracy(trained) > accuracy(untrained) + 0.05


def test_a_target_brings_the_rate_towards_it(folder):
    # Without the controller's work this run ends at 28 bits.
    data, config, told = digits(400, 0), make_config(stem="imagenet", latents=32), []
    options = {"rate": 8.0, "epochs": 20, "batch_size": 40, "beta": 1e-2, "lr": 0.1}
    make_trainer(folder("run"), data, config, report=told.append, **options).run()
    assert told[0].rate == pytest.approx(32, abs=0.1)
    assert told[-1].rate < 14
    assert told[-1].beta > 10 * told[0].beta


def test_time_ends_a_run_and_the_rate_of_learning_with_it(folder, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("stochcl.training.loop.time.monotonic", lambda: next(clock) / 10)
    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 1)
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


def test_live_figures_come_the_sooner_the_less_they_cost_and_every_ten_minutes_at_least(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("stochcl.training.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("stochcl.training.loop.TrainingLoop.log_every", 1)
    for cost, expected in [(0.0, 15.0), (3.0, 100.0), (60.0, 600.0)]:
        told, trainer = [], None

        def report(progress, told=told):
            now[0] += 5
            told.append((now[0], not math.isnan(progress.held_rate)))

        trainer = make_trainer(folder(str(cost)), make_set(400, 4), batch_size=2, report=report)

        def measure(encoder, device, cost=cost):
            now[0] += cost
            return {"rate": 1.0}

        def descend(factor, trainer=trainer):  # a step that costs nothing
            trainer.step += 1
            return Losses(*[torch.zeros(())] * len(Losses._fields))

        monkeypatch.setattr(trainer, "monitor", measure)
        monkeypatch.setattr(trainer, "descend", descend)
        trainer.run()
        times = [at for at, measured in told if measured]
        assert times[1] - times[0] - cost == pytest.approx(expected, abs=6)


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
    with pytest.raises(OutputError, match=r"none/log: the log cannot be written: no such file or directory\."):
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


def test_a_line_of_progress_has_its_figures_with_units():
    progress = TrainProgress(0.5, 1200, 2.5, 60.0, loss=7.1234, rate=1013.4, images_per_second=316.2, knn=0.4321)
    expected = "step 1,200, epoch 2.5, loss 7.123 nats, rate 1,013 bits/image, 316 images/s, kNN 43.2%"
    assert progress.line() == expected


def test_pixels_of_any_kind_give_a_finite_first_step(folder):
    data = make_set(16)
    data.train[:] = make_images(1)[0, 0, 0]  # one colour everywhere
    trainer = make_trainer(folder("run"), data)
    assert all(t.isfinite().all() for t in trainer.run().state_dict().values())
