"""`open_clip:NAME` backbones, with a stand-in for open_clip, and with open_clip itself where it can be imported."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stochcl.encoders.backbones import OpenClipBackbone, make_backbone
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.encoders.pretrained import init_backbone
from stochcl.errors import MissingExtraError, ModelError, UsageError
from tests.encoders.making import make_encoder


class Tower(nn.Module):
    """As open_clip's image towers are: embeddings, and their width in an attribute."""

    def __init__(self, output_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, bias=False)
        self.output_dim = output_dim

    def forward(self, x):
        return self.conv1(x).mean(dim=(2, 3))


@pytest.fixture
def open_clip(monkeypatch):
    """A package of two models; what it was asked for stands in ``asked``."""
    module = ModuleType("open_clip")
    module.asked, widths = [], {"tiny": 12, "mute": None}

    def create_model(name, **options):
        module.asked.append((name, options))
        return SimpleNamespace(visual=Tower(widths[name]), transformer=nn.Linear(2, 2))

    module.create_model, module.list_models = create_model, lambda: list(widths)
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


def test_the_image_tower_alone_is_kept_and_nothing_is_downloaded(open_clip):
    backbone = make_backbone("open_clip:tiny")
    assert backbone.features == 12
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, 12)
    assert list(backbone.state_dict()) == ["visual.conv1.weight"]
    assert open_clip.asked == [("tiny", {"pretrained": None})]


@pytest.mark.parametrize(("name", "said"), [("huge", "has no model 'huge'"), ("mute", "does not say how wide")])
def test_models_that_cannot_be_used_are_refused(open_clip, name, said):
    with pytest.raises(UsageError, match=said):
        make_backbone(f"open_clip:{name}")


def test_a_model_on_one_is_written_and_read(open_clip, tmp_path, monkeypatch):
    made = make_encoder(backbone="open_clip:tiny")
    save_model(made, tmp_path / "m.safetensors", {})
    read = load_model(tmp_path / "m.safetensors").encoder
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(read.features(images), made.features(images), atol=1e-2, rtol=1e-2)

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"open_clip.*'stochcl\[open-clip\]'"):
        load_model(tmp_path / "m.safetensors").encoder  # noqa: B018


def test_published_weights_are_loaded_and_the_text_tower_s_are_left(open_clip, tmp_path):
    text = {"transformer.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)}
    save_file(text | {"visual.conv1.weight": torch.rand(12, 3, 3, 3)}, tmp_path / "w")
    made = make_encoder(backbone="open_clip:tiny")
    assert set(init_backbone(made, tmp_path / "w").unused) == set(text)
    assert torch.equal(made.backbone.visual.conv1.weight, load_file(tmp_path / "w")["visual.conv1.weight"])
    save_file(text, tmp_path / "w")
    with pytest.raises(ModelError, match=r"visual\.conv1"):
        init_backbone(made, tmp_path / "w")


def test_a_tower_of_open_clip_itself():
    pytest.importorskip("open_clip", reason="open_clip is not installed: its own towers are not tested")
    backbone = OpenClipBackbone("RN50")
    assert backbone.features == 1024
    assert backbone.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1024)
