"""Starting from weights in a file: every name it may come with, every way in which it may be another network's."""

import re
import shlex
import sys

import pytest
import torch
from safetensors.torch import save_file

from stochcl.encoders.backbones import ResNet
from stochcl.encoders.modelfile import save_model
from stochcl.encoders.pretrained import init_backbone
from stochcl.errors import ModelError
from tests.encoders.making import make_encoder


def published(name="resnet18", width=4, stem="imagenet", fc=False):
    """A state dict as torchvision's files have it, of other weights than those of a fresh encoder."""
    torch.manual_seed(7)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v + 5
             for k, v in ResNet(name, width=width, stem=stem).state_dict().items()}  # fmt: skip
    if fc:
        state |= {"fc.weight": torch.rand(1000, 8 * width), "fc.bias": torch.rand(1000)}
    return state


@pytest.fixture
def weights(tmp_path):
    def write(state, metadata=None):
        save_file(state, tmp_path / "weights.safetensors", metadata)
        return tmp_path / "weights.safetensors"

    return write


def encoder(**changes):
    return make_encoder(**{"backbone": "resnet18", "stem": "imagenet"} | changes)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.encoder_q."])
@pytest.mark.parametrize("fc", [False, True])
def test_weights_are_loaded_whatever_they_are_called(weights, prefix, fc):
    state = published(fc=fc)
    made = encoder()
    head = made.head.weight.clone()
    report = init_backbone(made, weights({prefix + k: v for k, v in state.items()}))
    for name, tensor in made.backbone.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(made.head.weight, head)
    assert report.tensors == len(made.backbone.state_dict())
    assert report.unused == ((f"{prefix}fc.bias", f"{prefix}fc.weight") if fc else ())
    assert report.fresh == ()


def test_the_report_says_what_was_loaded_and_what_was_not(weights):
    path = weights(published(fc=True))
    report = init_backbone(encoder(), path)
    numbers = sum(v.numel() for v in published().values())
    assert report.line() == f"{path}: 120 tensors loaded ({numbers:,} numbers); not used: fc.bias, fc.weight"
    assert len(report.sha256) == 64
    assert report.to_json()["unused"] == ["fc.bias", "fc.weight"]


def test_half_precision_weights_and_those_without_counters_are_loaded(weights):
    state = {k: v.half() for k, v in published().items() if not k.endswith("num_batches_tracked")}
    made = encoder()
    report = init_backbone(made, weights(state))
    assert made.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(made.backbone.conv1.weight, state["conv1.weight"].float())
    assert report.tensors == len(state)


@pytest.mark.parametrize(("theirs", "ours"), [("imagenet", "small"), ("small", "imagenet")])
def test_a_stem_of_another_kind_stays_fresh_and_it_is_said(weights, theirs, ours):
    state = published(stem=theirs)
    made = encoder(stem=ours)
    before = {k: v.clone() for k, v in made.backbone.state_dict().items()}
    report = init_backbone(made, weights(state))
    for name, tensor in made.backbone.state_dict().items():
        stem = name.startswith(("conv1", "bn1"))
        assert torch.equal(tensor, before[name] if stem else state[name]), name
    assert report.fresh[0] == "conv1.weight"
    assert "the stem stays fresh, its kernel has another size (conv1.weight, bn1.weight, " in report.line()
    assert "conv1.weight" in report.unused


def test_a_model_of_ours_brings_the_statistics_of_its_features(tmp_path):
    theirs, made = encoder(seed=1), encoder(seed=2)
    save_model(theirs, tmp_path / "m.safetensors", {})
    report = init_backbone(made, tmp_path / "m.safetensors")
    assert torch.equal(made.norm.running_var, theirs.norm.running_var)
    assert torch.equal(made.backbone.layer4[1].conv2.weight, theirs.backbone.layer4[1].conv2.weight.half().float())
    assert "head.weight" in report.unused
    assert not any(name.startswith(("norm.", "backbone.")) for name in report.unused)


def test_statistics_of_other_features_stay_behind(tmp_path):
    theirs, made = encoder(seed=1), encoder(seed=2, pooling="stages")
    before = made.norm.running_var.clone()
    save_model(theirs, tmp_path / "m.safetensors", {})
    report = init_backbone(made, tmp_path / "m.safetensors")
    assert torch.equal(made.norm.running_var, before)
    assert {"norm.running_mean", "norm.running_var"} <= set(report.unused)
    assert torch.equal(made.backbone.conv1.weight, theirs.backbone.conv1.weight.half().float())


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            {"name": "resnet50"},
            r"layer1\.0\.conv1\.weight is \[4, 4, 1, 1\] in the file and \[4, 4, 3, 3\] in the back",
        ),
        ({"name": "resnet10"}, r"the backbone's layer1\.1\.conv1\.weight \[4, 4, 3, 3\] is not in the file\."),
        ({"name": "resnet34"}, r"the file's layer1\.2\.\S+ has no place in the backbone\."),
        ({"width": 6}, r"conv1\.weight is \[6, 3, 7, 7\] in the file and \[4, 3, 7, 7\] in the backbone\."),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_tensor_that_differs(weights, theirs, said):
    made = encoder()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    with pytest.raises(ModelError, match=f"these weights are of another network: {said}"):
        init_backbone(made, weights(published(**theirs)))
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_a_file_of_something_else_is_refused(weights):
    with pytest.raises(
        ModelError, match=r"no tensor of this file .* such as conv1\.weight; it holds embedding, head\."
    ):
        init_backbone(encoder(), weights({"embedding": torch.zeros(2), "head": torch.zeros(2)}))


def test_two_networks_in_one_file_are_refused(weights):
    state = published()
    both = {f"{p}.{k}": v.clone() for k, v in state.items() for p in ("encoder_q", "encoder_k")}
    with pytest.raises(ModelError, match=r"several networks, below 'encoder_k\.' and 'encoder_q\.'; keep one"):
        init_backbone(encoder(), weights(both))


def test_numbers_that_are_not_finite_are_refused(weights):
    state = published()
    state["layer2.0.bn1.bias"][1] = float("nan")
    with pytest.raises(ModelError, match=r"layer2\.0\.bn1\.bias holds"):
        init_backbone(encoder(), weights(state))


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{", b"text"])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.safetensors: this is not a safetensors file, or it is damaged"):
        init_backbone(encoder(), path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.safetensors: the weights cannot be read: "):
        init_backbone(encoder(), tmp_path / "none.safetensors")


@pytest.mark.parametrize(("wrapped", "zipped"), [("bare", False), ("state_dict", True)])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch, wrapped, zipped):
    state = published()
    path = tmp_path / "my weights.pth"
    torch.save(state if wrapped == "bare" else {wrapped: state, "epoch": 3}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(ModelError, match="this is a pickle, which could run any program") as refusal:
        init_backbone(encoder(), path)
    command = re.search("`(python -c .*)`", str(refusal.value))[1]
    python, option, code, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-c")
    monkeypatch.setattr(sys, "argv", [option, *arguments])
    exec(code, {})  # as python would, without its starting
    made = encoder()
    init_backbone(made, tmp_path / "my weights.safetensors")
    assert torch.equal(made.backbone.conv1.weight, state["conv1.weight"])


def test_vectors_have_no_backbone_to_load(weights):
    from stochcl.encoders.backbones import make_backbone
    from stochcl.errors import UsageError

    made = encoder()
    made.backbone = make_backbone("features:4")
    with pytest.raises(UsageError, match="an encoder of vectors has no backbone"):
        init_backbone(made, weights(published()))
