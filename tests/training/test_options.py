"""Options of training, and the preset files that hold them."""

import pytest

from stochcl.encoders import latents, posteriors
from stochcl.encoders.config import ENTROPY, EncoderConfig
from stochcl.errors import UsageError
from stochcl.training import objectives
from stochcl.training import options as training
from stochcl.training.options import (
    FinetuneOptions,
    LatentOptions,
    TrainOptions,
    finetune_options,
    load_finetune_preset,
    load_preset,
    options_from,
    preset_names,
    preset_text,
)

NAMES = ("cifar10-resnet50", "digits", "imagenet-resnet50", "keep-position", "tiny-imagenet-resnet18")
FOR_A_GPU = ("cifar10-resnet50", "imagenet-resnet50", "tiny-imagenet-resnet18")


@pytest.mark.parametrize(
    ("cls", "name", "known"),
    [
        (TrainOptions, "objective", objectives.OBJECTIVES), (LatentOptions, "objective", objectives.OBJECTIVES),
        (TrainOptions, "estimator", posteriors.ESTIMATORS), (LatentOptions, "estimator", posteriors.ESTIMATORS),
        (TrainOptions, "entropy", ENTROPY), (EncoderConfig, "posterior", latents.FAMILIES),
    ],
)  # fmt: skip
def test_choices_are_those_that_the_code_has(cls, name, known):
    assert set(training.declared(cls)[name].metadata["option"].choices) == set(known)


def test_options_are_sorted_into_encoder_and_training():
    config, options = options_from({"latents": 32, "size": 96, "lr": 0.1, "rate": None, "epochs": 0})
    assert config == EncoderConfig(latents=32, size=96)
    assert options == TrainOptions(lr=0.1, epochs=0, crop=72)
    assert options_from({"crop": 40})[1].crop == 40
    assert options_from({"size": 16})[1].crop == 16
    # The entropy network that is asked for is known when it is fitted: until then the encoder has none.
    config, options = options_from({"entropy": "autoregressive", "entropy_hidden": 7})
    assert (config.entropy, config.entropy_hidden) == ("independent", 0)
    assert (options.entropy, options.entropy_hidden) == ("autoregressive", 7)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: options_from({"speed": 1}), "training has no option 'speed'"),
        (lambda: options_from({"objectiv": "byol"}), "did you mean 'objective'"),
        (lambda: finetune_options(None, {"epoch": 1}), "did you mean 'epochs'"),
        (lambda: TrainOptions(deterministic=True, objective="reconstruct"), "deterministic"),
    ],
)
def test_requests_that_make_no_sense_are_refused(make, hint):
    with pytest.raises(UsageError, match=hint):
        make()


@pytest.mark.parametrize("name", ["classes", "classifies", "ladders"])
def test_what_only_a_trained_encoder_has_is_nothing_to_ask_for(name):
    with pytest.raises(UsageError, match=f"no option '{name}'"):
        options_from({name: "vectors"})


def test_the_presets_of_the_package():
    assert preset_names() == NAMES
    assert preset_names(finetune=True) == ("cifar10-finetune", "cifar10-lite0-finetune", "imagenet-finetune")
    for name in preset_names(finetune=True):
        FinetuneOptions(**load_finetune_preset(name))


@pytest.mark.parametrize("name", NAMES)
def test_each_makes_sense_and_says_in_words_what_it_is_for(name):
    found = load_preset(name)
    own = {key: found.pop(key) for key in ("source", "hold_out") if key in found}
    config, options = options_from(found)
    assert options.crop <= config.size
    assert own == ({"source": "digits", "hold_out": 30} if name == "digits" else {})
    text = preset_text(name)
    assert text.startswith("# ")
    assert f"--preset {name}" in text
    if name in FOR_A_GPU:
        assert config.backbone == name.rpartition("-")[2]
        assert "has not been run yet" in text


def test_a_view_has_eight_pixels_or_more():
    with pytest.raises(UsageError, match="crop must be 8 pixels or more, got 4"):
        FinetuneOptions(crop=(64, 4))


def test_the_preset_that_keeps_position_shows_whole_images_as_they_are():
    config, options = options_from(load_preset("keep-position"))
    assert (options.crop, options.area, options.flip) == (config.size, 1.0, False)


def test_the_recipe_for_cifar10_is_what_it_says():
    options = finetune_options("cifar10-finetune", {"seed": 3, "lr": None})
    assert (options.epochs, options.lr, options.decay, options.warmup) == (200, 0.1, 5e-4, 5)
    assert (options.cutout, options.mixup, options.smoothing, options.average) == (0.5, 0.2, 0.1, 0.999)
    assert (options.deterministic, options.from_scratch, options.seed) == (False, False, 3)


def test_a_preset_may_be_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("decoder = [64, 32]\nlr = 1\nflip = false\n")
    config, options = options_from(load_preset(str(path)))
    assert (config.decoder, options.lr, options.flip) == ((64, 32), 1, False)
    path.write_text('# mine\nepochs = 3\nlr = 1\nflip = false\nprecision = "fp32"\nmax_time = 20\n')
    assert load_finetune_preset(str(path)) == {
        "epochs": 3, "lr": 1, "flip": False, "precision": "fp32", "max_time": 20,
    }  # fmt: skip


@pytest.mark.parametrize("load", [load_preset, load_finetune_preset])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "not TOML"),
        ("epoch = 3", "did you mean 'epochs'"),
        ("[sgd]\nlr = 3", "has no option 'sgd'"),
        ("epochs = 1.5", "epochs must be a whole number, got 1.5"),
        ("epochs = true", "epochs must be a whole number, got True"),
        ("flip = 1", "flip must be true or false, got 1"),
        ("entropy_hidden = 'many'", "entropy_hidden must be a whole number, got 'many'"),
        ("area = 2", "area must be more than 0 and at most 1, got 2"),
        ("device = 3", "device must be text, got 3"),
    ],
)
def test_a_file_of_one_s_own_that_is_wrong_is_named(tmp_path, load, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        load(str(path))
    assert str(refusal.value).startswith(str(path))
    assert message in str(refusal.value)


def test_layers_and_sources_of_a_preset_are_checked(tmp_path):
    path = tmp_path / "mine.toml"
    for text, message in [("decoder = ['wide']", "whole numbers"), ("source = 'photos'", "'digits'")]:
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_preset(str(path))


@pytest.mark.parametrize(("load", "known"), [(load_preset, NAMES), (load_finetune_preset, ("cifar10-finetune",))])
def test_a_preset_that_is_not_there_is_refused_with_those_that_are(tmp_path, load, known):
    with pytest.raises(UsageError, match="no preset 'fast'") as refusal:
        load("fast")
    assert all(name in str(refusal.value) for name in known)
    with pytest.raises(UsageError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(UsageError, match="UTF-8"):
        load(str(tmp_path / "latin.toml"))
