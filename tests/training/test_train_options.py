import math

import pytest

from stochcl.encoders.config import EncoderConfig
from stochcl.errors import UsageError
from stochcl.training.options import TrainOptions, options_from


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1}, {"crop": 0}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}, {"temperature": -1.0},
        {"epochs": -1}, {"rate": 0.0}, {"rate": math.nan}, {"beta": -1.0}, {"decay": math.nan}, {"seed": -1},
        {"seed": 1 << 63}, {"precision": "fp16"}, {"max_time": 0.0}, {"max_time": -5.0}, {"max_time": math.nan},
        {"entropy": "psychic"}, {"entropy_hidden": -1}, {"entropy_hidden": 4097},
        {"deterministic": True, "objective": "reconstruct"},
        {"whitening": 0.6},
        {"whitening": -0.1},
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
    # What is asked of the entropy network is known when it is fitted: until then the encoder has none.
    config, options = options_from({"entropy": "autoregressive", "entropy_hidden": 7})
    assert (config.entropy, config.entropy_hidden) == ("independent", 0)
    assert (options.entropy, options.entropy_hidden) == ("autoregressive", 7)
    with pytest.raises(UsageError, match="no training option colour, speed"):
        options_from({"speed": 1, "colour": 2})
