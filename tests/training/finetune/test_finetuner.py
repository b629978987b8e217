"""Runs of fine-tuning: they learn, stop anywhere and go on to the same weights."""

import csv
import json
import math
import signal

import numpy as np
import pytest
import torch

from stochcl.encoders.encoder import Encoder
from stochcl.errors import TrainingError, UsageError
from stochcl.training.finetune import Finetuner, class_indices, class_scores, starting_point, top1
from stochcl.training.options import FinetuneOptions
from tests.encoders.making import make_config, make_encoder, weights
from tests.training.making import digits, make_set

CPU = torch.device("cpu")
CATEGORICAL = {"posterior": "categorical", "alphabet": 5, "latents": 3}
RESIDUAL = {"posterior": "residual", "latents": 4, "stages": (3, 1), "reduced": 3, "decoder": (), "ladder": ()}
SEED_BASE = "0" * 64


@pytest.fixture
def tuner(tmp_path):
    def make(data, name="run", base=None, log=None, report=None, sha256=SEED_BASE, **options):
        given = {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu", "lr": 0.05} | options
        classes = tuple(sorted(set(data.train_labels)))
        extra = {} if report is None else {"report": report}
        settings = FinetuneOptions(**given)
        begin = starting_point(make_encoder() if base is None else base, settings)
        return Finetuner(
            begin, sha256, settings, data, classes, checkpoint=tmp_path / f"{name}.checkpoint", log=log, **extra,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(("native", "used"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_what_the_processor_computes_in_and_a_checkpoint_keeps_to_it(tuner, monkeypatch, native, used):
    def processor(native):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)

    processor(native)
    first = tuner(make_set(16), precision="auto")
    seen = []
    first.encoder.head.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    first.run()
    assert seen[0] == used
    assert first.precision == {torch.bfloat16: "bf16", torch.float32: "fp32"}[used]
    assert tuner(make_set(16), precision=first.precision).step == 2
    processor(not native)
    with pytest.raises(
        TrainingError, match=rf"another precision; give the same options \(precision {first.precision}\)"
    ):
        tuner(make_set(16), precision="auto")


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def interruption():
    raise KeyboardInterrupt


def stop_at(step, how):
    def report(progress):
        if getattr(progress, "step", None) == step:
            how()

    return report


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, ctrl_c), ({"precision": "bf16"}, interruption), ({"average": 0.0}, ctrl_c),
        ({"deterministic": True}, ctrl_c), ({"from_scratch": True}, ctrl_c),
        ({"optimizer": "adamw", "lr": 0.003, "crop": (8, 16), "area": 0.5, "frozen": 1, "latents": 24}, ctrl_c),
    ],
    ids=str,
)  # fmt: skip
def test_an_interrupted_run_goes_on_to_the_same_weights(tuner, monkeypatch, options, how):
    monkeypatch.setattr(Finetuner, "log_every", 10)
    options = {
        "epochs": 5,
        "batch_size": 16,
        "nested": 0.3,
        "beta": 0.001,
    } | options  # 20 steps; half within an epoch
    data = make_set(68)
    whole = tuner(data, "whole", **options)
    encoder = whole.run()
    assert whole.step == 20
    with pytest.raises(KeyboardInterrupt):
        tuner(data, "parts", report=stop_at(10, how), **options).run()
    second = tuner(data, "parts", **options)
    assert second.step == 10
    assert weights(second.run()) == weights(encoder)
    assert second.step == 20


def test_runs_are_reproducible_and_seeds_differ(tuner):
    data = make_set(32)
    first, again, other = (weights(tuner(data, f"{i}", seed=s).run()) for i, s in enumerate([0, 0, 1]))
    assert first == again != other


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.1}, "lr"), ({"seed": 3}, "seed"), ({"sha256": "1" * 64}, "model"), ({"deterministic": True}, "det"),
        ({"mixup": 0.0}, "mixup"),
    ],
)  # fmt: skip
def test_another_run_s_checkpoint_is_refused(tuner, changes, named):
    data = make_set(16)
    tuner(data).run()
    with pytest.raises(TrainingError, match=f"belongs to a run with another .*{named}"):
        tuner(data, **changes)


def test_a_longer_run_goes_on_from_a_shorter_one(tuner):
    data = make_set(16)
    assert tuner(data).run() is not None
    longer = tuner(data, epochs=3)
    assert longer.step == 2
    longer.run()
    assert longer.step == 6


def test_a_damaged_checkpoint_is_refused(tuner, tmp_path):
    data = make_set(16)
    tuner(data).run()
    path = tmp_path / "run.checkpoint"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrainingError, match=r"run\.checkpoint: this checkpoint is damaged"):
        tuner(data)


def test_the_time_may_end_it(tuner, monkeypatch):
    clock = iter(range(100_000))
    monkeypatch.setattr("stochcl.training.loop.time.monotonic", lambda: next(clock) / 10)
    run = tuner(make_set(16), epochs=10_000, max_time=9.0)
    run.run()
    assert 0 < run.step < 60
    assert run.fraction == 1


def test_the_learning_rate_rises_and_falls(tuner):
    told = []
    run = tuner(make_set(80), epochs=10, warmup=1, report=told.append, batch_size=8)
    run.log_every = 1
    run.run()
    rates = [p.lr for p in told]
    assert len(rates) == 100
    assert rates.index(max(rates)) == 10
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(0.05, rel=0.05)
    assert rates[-1] < 1e-4


def test_only_weights_of_layers_decay(tuner):
    run = tuner(make_set(16))
    named = {id(p): name for name, p in run.encoder.named_parameters()}
    decay = {named[id(p)]: group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(named)
    for name, parameter in run.encoder.named_parameters():
        assert decay[name] == (5e-4 if parameter.ndim in (2, 4) else 0.0), name


def test_a_prior_of_any_shape_does_not_decay(tuner):
    run = tuner(make_set(16), base=make_encoder(posterior="categorical", alphabet=4))
    (decay,) = {g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"] if p is run.encoder.prior}
    assert decay == 0
    assert run.encoder.prior.ndim == 2


def test_every_epoch_draws_anew(tuner, monkeypatch):
    seen = []
    run = tuner(make_set(20), epochs=3)
    take = run.order.take
    monkeypatch.setattr(run.order, "take", lambda step: seen.append(take(step)) or take(step))
    run.run()
    rows, keys = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert len(keys) == len(set(keys.tolist())) == 48
    assert (keys % 20 == rows).all()
    assert not np.array_equal(rows[:16], rows[16:32])


def test_gradients_are_bounded_and_the_prior_s_is_not_among_them(tuner, monkeypatch):
    base = make_encoder()
    monkeypatch.setattr(Finetuner, "max_gradient", 1e-9)
    encoder = tuner(make_set(16), base=base, decay=0.0, average=0.0).run()
    moved = {n: float((p - dict(base.named_parameters()).get(n, p)).detach().abs().max())
             for n, p in encoder.named_parameters()}  # fmt: skip
    assert moved.pop("prior") > 1e-3
    assert max(moved.values()) < 1e-7
    assert float(encoder.classifier.weight.detach().abs().max()) < 1e-7


def test_a_twin_trains_what_features_need_and_nothing_else(tuner):
    base = make_encoder()
    encoder = tuner(make_set(16), base=base, deterministic=True, average=0.0).run()
    assert encoder.config.classifies == "features"
    before = base.state_dict()
    for name, tensor in encoder.state_dict().items():
        same = name in before and torch.equal(tensor, before[name])
        trained = name.startswith(("backbone.", "classifier.", "norm.")) or name == "ones"
        assert same != trained, name


def test_the_model_that_it_begins_with_is_left_alone(tuner):
    base = make_encoder()
    before = weights(base)
    tuned = tuner(make_set(16), base=base).run()
    assert weights(base) == before
    assert base.config == make_config()
    assert not tuned.training


def test_from_scratch_is_of_the_seed_and_not_of_the_model(tuner):
    data = make_set(16)
    runs = [
        weights(tuner(data, f"{i}", base=make_encoder(seed), from_scratch=True).run())
        for i, seed in enumerate([0, 5])
    ]
    assert runs[0] == runs[1]


def test_a_loss_that_is_not_finite_ends_it_before_the_weights_change(tuner, tmp_path):
    base = make_encoder()
    with torch.no_grad():
        base.head.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="not finite at step 1; try a lower learning rate"):
        tuner(make_set(16), base=base).run()
    assert not (tmp_path / "run.checkpoint").exists()


def test_an_unknown_device_is_refused(tuner):
    with pytest.raises(UsageError, match="no device 'abacus'"):
        tuner(make_set(16), device="abacus")


def test_progress_is_logged_and_told(tuner, tmp_path, monkeypatch):
    monkeypatch.setattr(Finetuner, "log_every", 1)
    monkeypatch.setattr(Finetuner, "measure_every", -1.0)
    told = []
    tuner(make_set(16, held=8), log=tmp_path / "log.jsonl", report=told.append).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[-1]["fraction"] == 1
    assert 0 <= lines[0]["held_top1"] <= 1
    assert told[0].line().startswith("step 1, epoch 0.5, loss ")
    assert "held-out top-1 " in told[0].line()


def test_the_log_may_be_a_table(tuner, tmp_path):
    tuner(make_set(16), log=tmp_path / "log.csv").run()
    with (tmp_path / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "1"
    assert float(row["loss"]) > 0
    assert row["held_top1"] == ""


PLAIN = {"flip": False, "operations": 0, "cutout": 0.0, "mixup": 0.0, "padding": 0.0625, "average": 0.95}


@pytest.mark.parametrize(
    "options", [{"epochs": 4}, {"epochs": 2, "deterministic": True}, {"epochs": 4, "from_scratch": True}], ids=str
)
def test_digits_are_learned_through_32_latents(tuner, options):
    data = digits()
    base = make_encoder(width=8, latents=32, decoder=(32,))
    run = tuner(data, base=base, batch_size=32, lr=0.1, warmup=1, **PLAIN | options)
    encoder = run.run()
    labels = class_indices(data.held_labels, encoder.config.classes)
    found = top1(class_scores(encoder, data.held, CPU), labels)
    assert found == run.held_top1()
    assert found > 0.9


@pytest.mark.parametrize(
    ("base", "asked", "found"),
    [
        ({}, {"latents": 24}, ("bernoulli", 24, 2, (8, 16, 24), (8,))),
        ({}, CATEGORICAL, ("categorical", 3, 5, (3,), (8,))),
        ({}, {"posterior": "gaussian"}, ("gaussian", 16, 3, (8, 16), (8,))),
        (RESIDUAL, {}, ("gaussian", 16, 4, (8, 16), ())),
        (RESIDUAL, {"from_scratch": True}, ("gaussian", 16, 4, (8, 16), ())),
        (RESIDUAL, {"posterior": "bernoulli", "latents": 32}, ("bernoulli", 32, 2, (8, 16, 32), ())),
        (RESIDUAL, {"posterior": "categorical", "alphabet": 16, "latents": 8}, ("categorical", 8, 16, (8,), ())),
        (CATEGORICAL, {"latents": 4}, ("categorical", 4, 5, (4,), (8,))),
    ],
    ids=str,
)  # fmt: skip
def test_latents_may_be_fresh_and_take_the_place_of_residual_ones(base, asked, found):
    base = make_encoder(**base)
    encoder = starting_point(base, FinetuneOptions(**asked))
    config = encoder.config
    assert (config.posterior, config.latents, config.alphabet, config.ladder, config.decoder) == found
    for name in ("backbone", "norm"):
        kept = [torch.equal(a, b) for a, b in zip(
            getattr(base, name).state_dict().values(), getattr(encoder, name).state_dict().values(), strict=True
        )]  # fmt: skip
        assert all(kept) == ("from_scratch" not in asked)
    again = starting_point(base, FinetuneOptions(**asked))
    assert weights(again) == weights(encoder)


def test_latents_are_the_model_s_where_nothing_else_is_asked():
    base = make_encoder()
    encoder = starting_point(base, FinetuneOptions(size=24))
    assert weights(encoder) == weights(base)
    assert (encoder.config.size, base.config.size) == (24, 16)
    assert starting_point(base, FinetuneOptions()).config == base.config


def test_views_grow_in_equal_parts_of_the_run(tuner, monkeypatch):
    seen = []
    run = tuner(make_set(48), crop=(8, 12, 16), epochs=2)
    normalise = run.encoder.normalise
    monkeypatch.setattr(run.encoder, "normalise", lambda views: seen.append(views.shape[-1]) or normalise(views))
    run.run_steps()
    assert seen == [8] * 4 + [12] * 4 + [16] * 4


def test_the_backbone_may_learn_more_slowly(tuner):
    run = tuner(make_set(16), optimizer="adamw", lr=0.01, backbone_lr=0.1)
    named = {id(p): name for name, p in run.encoder.named_parameters()}
    rates = {named[id(p)]: group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(named)
    for name, rate in rates.items():
        assert rate == pytest.approx(0.001 if name.startswith("backbone.") else 0.01), name


@pytest.mark.parametrize(
    ("backbone", "first"),
    [
        ({}, ("conv1.", "bn1.", "layer1.", "layer2.")),
        ({"backbone": "efficientnet-lite0"}, ("_conv_stem.", "_bn0.", "_blocks.0.", "_blocks.1.", "_blocks.2.")),
    ],
    ids=str,
)  # fmt: skip
def test_first_stages_may_stay_as_they_are(tuner, backbone, first):
    base = make_encoder(**backbone)
    run = tuner(make_set(16), base=base, frozen=2, average=0.0)
    run.run_steps()
    before = base.backbone.state_dict()
    same = {name for name, tensor in run.encoder.backbone.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith(first)} <= same
    moved = {name for name in before if name.endswith("running_mean") and not name.startswith(first)}
    assert moved
    assert not moved & same


def test_stages_of_a_network_that_has_none_cannot_stay(tuner, monkeypatch):
    monkeypatch.setattr("stochcl.training.finetune.ResNet", Encoder)
    with pytest.raises(UsageError, match="resnet10 has no stages to freeze"):
        tuner(make_set(16), frozen=1)


def test_the_network_of_other_codes_is_not_taken_along(tuner):
    base = Encoder(make_config(entropy="autoregressive"))
    assert base.entropy is not None
    run = tuner(make_set(16), base=base)
    assert run.encoder.entropy is None
    assert run.run().config.entropy == "independent"  # too few codes for one of its own


def test_tables_are_refitted_to_the_new_codes(tuner):
    from stochcl.encoders.inference import encode
    from stochcl.entropy.model import measure_ones

    data = make_set(40)
    encoder = tuner(data, entropy="independent").run()
    assert encoder.ones.numpy().tolist() == measure_ones(encode(encoder, data.train, CPU).codes).tolist()
