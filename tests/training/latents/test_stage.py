import math

import numpy as np
import pytest
import torch

from stochcl.errors import TrainingError, UsageError
from stochcl.training.entropy import hard_codes
from stochcl.training.latents import LatentStage
from stochcl.training.options import LatentOptions
from tests.training.latents.making import make_encoder, make_features, make_stage


def decoded_error(stage, latents=None):
    """Error of decoded hard codes of held-out inputs, relative to their variance."""
    with torch.no_grad():
        symbols = torch.from_numpy(hard_codes(stage.encoder, stage.held).symbols())
        guess = stage.encoder.decode(stage.encoder.embed(symbols), latents).numpy()
    return float(np.square(guess - stage.held).sum() / np.square(stage.held - stage.held.mean(0)).sum())


def coded_bits(stage):
    codes = hard_codes(stage.encoder, stage.held)
    return float(stage.encoder.bits_by_latent(codes).sum())


@pytest.mark.parametrize(("rate", "rows", "steps"), [(9.5, 1200, 200), (8, 800, 300)])
def test_rate_of_hard_codes_is_what_was_asked_for(rate, rows, steps):
    stage = make_stage(rate=rate, rows=rows, steps=steps)
    assert (stage.prior is not None) == (rows == 1200)
    fitted = stage.run()
    assert fitted.rate == pytest.approx(rate, rel=0.05)
    assert coded_bits(stage) == pytest.approx(fitted.rate, rel=1e-6)
    assert decoded_error(stage) < 0.5


@pytest.mark.parametrize("steps", [250, 400])
def test_the_price_of_a_bit_waits_until_the_prior_has_learned_to_charge_it(steps):
    class SeenEnough(Exception):
        pass

    def note(progress):
        beta[stage.step] = stage.controller.beta
        if stage.step == 150:
            raise SeenEnough

    beta, stage = {}, make_stage(rate=4, rows=1200, steps=steps, lr=1e-3)
    start, stage.report = stage.controller.beta, note
    with pytest.raises(SeenEnough):
        stage.run()
    assert beta[50] == start  # a prior that knows nothing charges much more than 4 bits
    assert beta[150] > start


def test_without_a_target_beta_stays():
    stage = make_stage(beta=0.003, steps=60)
    assert stage.prior is None
    assert stage.run().record["beta"] == 0.003


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("bernoulli", {}),
        ("categorical", {"latents": 4, "alphabet": 8}),
        ("gaussian", {"latents": 6, "alphabet": 16}),
    ],
)
@pytest.mark.parametrize("estimator", ["straight-through", "relaxed"])
def test_every_family_learns(family, config, estimator):
    before = decoded_error(make_stage(make_encoder(posterior=family, **config)))
    stage = make_stage(make_encoder(posterior=family, **config), estimator=estimator)
    stage.run()
    assert decoded_error(stage) < 0.4 < 0.8 < before


def test_prefixes_on_the_ladder_are_codes_in_themselves():
    nested, whole = make_stage(steps=200), make_stage(steps=200, nested=False)
    nested.run(), whole.run()
    errors = [decoded_error(nested, k) for k in (4, 8, 16)]
    assert errors[0] > errors[1] > errors[2]
    assert decoded_error(nested, 8) < 0.7 * decoded_error(whole, 8)


def test_same_seed_gives_the_same_encoder_and_another_another():
    first, second, other = (make_stage(steps=40, seed=seed) for seed in (3, 3, 4))
    for stage in (first, second, other):
        stage.run()
    states = [stage.encoder.state_dict() for stage in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_reconstruction_alone_compares_plain_distances():
    plain, contrast = make_stage(objective="reconstruct"), make_stage()
    assert plain.agree is None
    assert contrast.agree is not None
    assert plain.metric.weight.unique().numel() == 1  # variance to the power of zero
    assert contrast.metric.weight.unique().numel() > 1
    plain.run()
    assert decoded_error(plain) < 0.5


def test_everything_else_stays_as_it_was():
    stage = make_stage(steps=30)
    before = {name: tensor.clone() for name, tensor in stage.encoder.norm.state_dict().items()}
    stage.run()
    assert all(torch.equal(before[name], tensor) for name, tensor in stage.encoder.norm.state_dict().items())
    assert not stage.encoder.training
    assert all(p.requires_grad for p in stage.encoder.parameters())


def test_record_says_what_was_done():
    fitted = make_stage(rate=8, steps=60).run()
    assert fitted.record["options"]["rate"] == 8
    assert fitted.record["calibration"]["temperature"] == pytest.approx(fitted.record["calibration"]["temperature"])
    assert {"rounds", "steps", "beta", "rate", "entropy", "seconds"} <= set(fitted.record)
    assert fitted.record["steps"] >= 60


def test_progress_is_told():
    seen = []
    encoder = make_encoder()
    features, held = (encoder.features(torch.from_numpy(make_features(n)[0])).numpy() for n in (400, 100))
    LatentStage(
        encoder, features, held, LatentOptions(steps=100, batch_size=32, prior_hidden=0), report=seen.append
    ).run()
    lines = [progress.line() for progress in seen]
    assert [line.partition(",")[0] for line in lines] == ["latents: step 50", "latents: step 100"]
    assert all("bits" in line and "nan" not in line for line in lines)


def test_time_ends_it():
    stage = make_stage(steps=10**6, max_time=0.5)
    stage.run()
    assert 0 < stage.step < 10**5


def test_one_input_is_refused():
    encoder = make_encoder()
    with pytest.raises(TrainingError, match="fewer than two"):
        LatentStage(encoder, np.zeros((1, 12), np.float32), np.zeros((0, 12), np.float32), LatentOptions())


def test_a_loss_that_is_not_finite_ends_it():
    with pytest.raises(TrainingError, match="not finite"):
        make_stage(lr=1e30, steps=50).run()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": math.nan}, "lr"),
        ({"temperature": 0.0}, "temperature"),
        ({"rate": -1}, "rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"estimator": "reinforce"}, "reinforce"),
        ({"objective": "guess"}, "guess"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_options_that_make_no_sense_are_refused(option, said):
    with pytest.raises(UsageError, match=said):
        LatentOptions(**option)


def test_errors_are_whitened_as_the_option_says_and_by_default_as_the_objective_does():
    def power(**options):
        metric = make_stage(**options).metric
        wide = metric.deviation[:6].log().numpy(), metric.weight[:6].log().numpy()  # shrinkage spares the narrow ones
        return float(np.polyfit(*wide, 1)[0]) / -2

    assert power(whitening=0.5) == pytest.approx(0.5, abs=0.05)
    assert power() == pytest.approx(0.125, abs=0.03)
    assert power(objective="reconstruct") == 0
    with pytest.raises(UsageError, match="whitening must be"):
        make_stage(whitening=0.7)
