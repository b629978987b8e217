"""`--init` of train and finetune, as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from stochcl.encoders.backbones import ResNet

FAST = ["--batch-size", "16", "--epochs", "1", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = {f"module.{k}": v for k, v in ResNet("resnet10", width=4).state_dict().items()}
    save_file(state | {"module.fc.bias": torch.zeros(1000)}, path)
    return path


def test_train_says_what_it_took_and_what_it_did_not(run, images, weights, tmp_path):
    tiny = ["--width", "4", "--size", "32", "--latents", "16", "--crop", "32"]
    stdout = run("train", images, "-o", tmp_path / "m.safetensors", *FAST, *tiny, "--init", weights).stdout
    assert f"  begun from {weights}: 72 tensors loaded (" in stdout
    assert "; not used: module.fc.bias\n" in stdout


def test_a_finished_network_gets_latents_at_another_rate(run, images, weights, tmp_path):
    tiny = ["--width", "4", "--size", "32", "--crop", "32"]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    run("train", images, "-o", first, *FAST, *tiny, "--latents", "16", "--latent-steps", "0")
    given = ["--init", first, *FAST, *tiny, "--latents", "8", "--epochs", "0", "--rate", "5", "--latent-steps", "60"]
    stdout = run("train", images, "-o", second, *given).stdout
    assert "8 latents; 42 images, " in stdout
    assert f"  begun from {first}: " in stdout
    record = json.loads(run("models", "info", second, "--json").stdout)["record"]
    assert (record["latents"]["options"]["rate"], record["latents"]["options"]["steps"]) == (5, 60)


def test_finetune_says_it_too(run, model, images, weights, tmp_path):
    stdout = run("finetune", model, images, "-o", tmp_path / "m.safetensors", *FAST, "--init", weights).stdout
    assert f"  begun from {weights}: 72 tensors loaded (" in stdout


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_pickle_is_refused_in_one_sentence_with_the_command_that_converts_it(
    refused, model, images, tmp_path, command
):
    path = tmp_path / "weights.pth"
    torch.save(ResNet("resnet10", width=4).state_dict(), path)
    begin = [model] if command == "finetune" else []
    said = refused(command, *begin, images, "-o", tmp_path / "m.safetensors", "--epochs", "1", "--init", path)
    assert said.startswith(f"{path}: this is a pickle, which could run any program when it is loaded; if you trust ")
    assert said.endswith(f" {path} {path.with_suffix('.safetensors')}`.")
