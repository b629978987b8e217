"""The latent stage at the end of training on images."""

import numpy as np
import pytest
import torch

from stochcl.encoders.inference import encode
from stochcl.errors import UsageError
from stochcl.training.options import TrainOptions, options_from
from tests.encoders.making import make_config, weights
from tests.training.making import digits, make_trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = run_of(tmp_path_factory.mktemp("run"), rate=16.0, latent_steps=200)
    return trainer, trainer.run()


@pytest.fixture(scope="module")
def without_stage(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("without"), latent_steps=0).run()


def run_of(folder, **options):
    config = make_config(width=8, latents=32, decoder=(32,))
    return make_trainer(folder, digits(600, 300), config, epochs=2, batch_size=64, lr=3e-3, **options)


def test_hard_codes_of_held_out_images_cost_what_was_asked_for(trained):
    trainer, encoder = trained
    held = encode(encoder, trainer.data.held, CPU).codes
    bits = encoder.bits_by_latent(held).sum()
    assert bits == pytest.approx(16, rel=0.05)
    assert trainer.latents.rate == pytest.approx(bits, rel=1e-3)


def test_posterior_is_calibrated_on_views_of_held_out_images(trained):
    trainer, encoder = trained
    record = trainer.latents.record["calibration"]
    assert record["views"] == "augmented"
    assert record["ece"] < record["ece_uncalibrated"]
    assert record["predicted_change"] == pytest.approx(record["measured_change"], abs=0.1)
    assert encoder.config.temperature == record["temperature"] != 1


def test_backbone_is_what_the_steps_on_images_made_of_it(trained, without_stage):
    _, encoder = trained
    assert weights(encoder.backbone) == weights(without_stage.backbone)
    assert not torch.equal(encoder.head.weight, without_stage.head.weight)


def test_untrained_networks_are_left_as_they_are(tmp_path):
    trainer = make_trainer(tmp_path, digits(200, 20), epochs=0, latent_steps=500)
    trainer.run()
    assert trainer.latents is None


def test_codes_have_twice_the_bits_of_their_rate():
    config, options = options_from({"rate": 40.0})
    assert (config.latents, options.rate) == (128, 40)
    assert options_from({"rate": 40.0, "latents": 50})[0].latents == 50
    assert options_from({})[0].latents == 1024


def test_negative_steps_are_refused():
    with pytest.raises(UsageError, match="latent_steps must be at least 0"):
        TrainOptions(latent_steps=-1)


def test_decoded_codes_are_nearer_than_without_the_stage(trained, without_stage):
    trainer, encoder = trained

    def error(model):
        found = encode(model, trainer.data.held, CPU)
        with torch.no_grad():
            guess = model.decode(torch.from_numpy(found.codes.symbols()).float()).numpy()
        return float(np.square(guess - found.features).mean() / found.features.var())

    assert error(encoder) < 0.8 * error(without_stage)
