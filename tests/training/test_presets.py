import pytest

from stochcl.errors import UsageError
from stochcl.training.options import load_preset, options_from, preset_names, preset_text

NAMES = ("cifar10-resnet50", "digits", "imagenet-resnet50", "keep-position", "tiny-imagenet-resnet18")
FOR_A_GPU = ("cifar10-resnet50", "imagenet-resnet50", "tiny-imagenet-resnet18")


def test_there_are_these():
    assert preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_makes_sense_and_says_in_words_what_it_is_for(name):
    given = load_preset(name)
    own = {key: given.pop(key) for key in ("source", "hold_out") if key in given}
    config, options = options_from(given)
    assert options.crop <= config.size
    assert own == ({"source": "digits", "hold_out": 30} if name == "digits" else {})
    text = preset_text(name)
    assert text.startswith("# ")
    assert f"--preset {name}" in text
    if name in FOR_A_GPU:
        assert config.backbone == name.rpartition("-")[2]
        assert "has not been run yet" in text


def test_the_one_that_keeps_position_shows_whole_images_as_they_are():
    config, options = options_from(load_preset("keep-position"))
    assert (options.crop, options.area, options.flip) == (config.size, 1.0, False)


def test_layers_are_lists_in_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("decoder = [64, 32]\nlr = 1\nflip = false\n")
    config, options = options_from(load_preset(str(path)))
    assert (config.decoder, options.lr, options.flip) == ((64, 32), 1, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr = ", "this is not TOML"),
        ("speed = 1", "training has no option 'speed'"),
        ("entropy_hidden = 'many'", "entropy_hidden is of the type"),
        ("epochs = 1.5", "epochs is of the type int, not 1.5"),
        ("epochs = true", "epochs is of the type int, not True"),
        ("flip = 1", "flip is of the type bool, not 1"),
        ("decoder = ['wide']", "decoder is of the type"),
        ("source = 'photos'", "the source of a preset can only be 'digits'"),
    ],
)
def test_a_file_of_one_s_own_that_is_wrong_is_named(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"mine.toml: {said}"):
        load_preset(str(path))


def test_what_is_no_preset_is_said(tmp_path):
    with pytest.raises(UsageError, match="there is no preset 'fast'; there are cifar10-resnet50, digits"):
        load_preset("fast")
    with pytest.raises(UsageError, match="the preset cannot be read"):
        load_preset(str(tmp_path / "none.toml"))
