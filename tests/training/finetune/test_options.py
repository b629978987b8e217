import math
from dataclasses import fields

import pytest

from stochcl.errors import UsageError
from stochcl.training.options import FinetuneOptions
from stochcl.training.options import finetune_preset_names as preset_names
from stochcl.training.options import load_finetune_preset as load_preset


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"lr": math.inf}, {"momentum": 1.0},
        {"momentum": 0.0}, {"decay": -1},
        {"warmup": -1}, {"smoothing": 1.5}, {"mixup": -0.1}, {"average": 1.0}, {"crop": 4}, {"padding": -1},
        {"area": 0}, {"area": 1.1}, {"operations": 15}, {"strength": 2}, {"cutout": 1.5}, {"nested": -1},
        {"beta": math.nan}, {"max_time": 0}, {"seed": -1}, {"precision": "fp64"},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=rf"^{name} is .*, not {wrong[name]}\.$"):
        FinetuneOptions(**wrong)


def test_the_recipe_for_cifar10_is_what_it_says():
    options = FinetuneOptions(**load_preset("cifar10-finetune"))
    assert (options.epochs, options.lr, options.decay, options.warmup) == (200, 0.1, 5e-4, 5)
    assert (options.cutout, options.mixup, options.smoothing, options.average) == (0.5, 0.2, 0.1, 0.999)
    assert not options.deterministic
    assert not options.from_scratch


def test_every_recipe_of_the_package_is_one():
    assert preset_names() == ("cifar10-finetune", "imagenet-finetune")
    for name in preset_names():
        FinetuneOptions(**load_preset(name))


def test_a_recipe_may_be_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('# mine\nepochs = 3\nlr = 1\nflip = false\nprecision = "fp32"\nmax_time = 20\n')
    assert load_preset(str(path)) == {"epochs": 3, "lr": 1, "flip": False, "precision": "fp32", "max_time": 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs =", "this is not TOML"),
        ("epoch = 3", "fine-tuning has no option 'epoch'"),
        ("epochs = 2.5", "epochs is of the type int, not 2.5"),
        ("epochs = true", "epochs is of the type int, not True"),
        ("flip = 1", "flip is of the type bool, not 1"),
        ("crop = 'big'", "crop is of the type int | None, not 'big'"),
        ("[sgd]\nlr = 3", "fine-tuning has no option 'sgd'"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        load_preset(str(path))
    assert f"mine.toml: {message}" in str(refusal.value)


def test_recipes_that_are_not_there_are_refused_with_those_that_are(tmp_path):
    with pytest.raises(UsageError, match=r"no preset 'cifar'; there are .*cifar10-finetune.*, or name a \.toml file"):
        load_preset("cifar")
    with pytest.raises(UsageError, match=r"none\.toml: the preset cannot be read"):
        load_preset(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(UsageError, match=r"latin\.toml: the preset is not UTF-8"):
        load_preset(str(tmp_path / "latin.toml"))


def test_every_option_has_a_word_of_explanation():
    said = FinetuneOptions.__doc__
    for name in {f.name for f in fields(FinetuneOptions)}:
        assert name in said
