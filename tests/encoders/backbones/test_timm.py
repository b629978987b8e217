"""`timm:NAME` backbones, with a stand-in for timm, and with timm itself where it can be imported."""

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stochcl.encoders.backbones import TimmBackbone, make_backbone
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.encoders.pretrained import init_backbone
from stochcl.errors import MissingExtraError, UsageError
from tests.encoders.making import make_encoder


class Network(nn.Module):
    """As timm's networks are: pooled features, and their width in an attribute."""

    def __init__(self, num_features, **more):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 20 if more else num_features, 3, bias=False)
        self.classifier = nn.Identity()  # what timm leaves of it with num_classes=0
        self.num_features = num_features
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.conv_stem(x).mean(dim=(2, 3))


@pytest.fixture
def timm(monkeypatch):
    """A package of three models; what it was asked for stands in ``asked``."""
    module = ModuleType("timm")
    module.asked = []
    models = {"tiny": lambda: Network(12), "wider": lambda: Network(12, head_hidden_size=20),
              "mute": lambda: Network(12, head_hidden_size="wide")}  # fmt: skip

    def create_model(name, **options):
        module.asked.append((name, options))
        if name not in models:
            raise RuntimeError(f"Unknown model ({name})")
        return models[name]()

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.mark.parametrize(("name", "width"), [("tiny", 12), ("wider", 20)])
def test_the_width_is_the_network_s(timm, name, width):
    backbone = make_backbone(f"timm:{name}")
    assert backbone.features == width
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, width)


def test_nothing_is_downloaded_and_there_is_no_classifier(timm):
    make_backbone("timm:tiny")
    assert timm.asked == [("tiny", {"pretrained": False, "num_classes": 0})]


def test_its_weights_have_timm_s_names_below_network(timm):
    assert list(make_backbone("timm:tiny").state_dict()) == ["network.conv_stem.weight"]


def test_a_name_that_timm_does_not_know_is_refused(timm):
    with pytest.raises(UsageError, match=r"timm cannot make a model 'huge' \(Unknown model \(huge\)\); timm\.list_"):
        make_backbone("timm:huge")


def test_a_model_that_does_not_say_its_width_is_refused(timm):
    with pytest.raises(UsageError, match="'mute' does not say how wide its features are"):
        make_backbone("timm:mute")


def test_a_model_on_one_is_written_and_read(timm, tmp_path, monkeypatch):
    made = make_encoder(backbone="timm:tiny")
    save_model(made, tmp_path / "m.safetensors", {})
    read = load_model(tmp_path / "m.safetensors").encoder
    assert read.feature_dim == 12
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(read.features(images), made.features(images), atol=1e-2, rtol=1e-2)

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="timm"):
        load_model(tmp_path / "m.safetensors").encoder  # noqa: B018


def test_weights_of_timm_are_loaded_under_its_own_names(timm, tmp_path):
    save_file({"conv_stem.weight": torch.rand(12, 3, 3, 3), "classifier.bias": torch.zeros(3)}, tmp_path / "w")
    made = make_encoder(backbone="timm:tiny")
    assert init_backbone(made, tmp_path / "w").unused == ("classifier.bias",)
    assert torch.equal(made.backbone.network.conv_stem.weight, load_file(tmp_path / "w")["conv_stem.weight"])


def test_without_timm_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm:NAME needs timm.*'stochcl\[timm\]'"):
        make_backbone("timm:resnet18")


def test_timm_is_imported_when_asked_for_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert make_backbone("resnet10", width=4).features == 32


def test_a_network_of_timm_itself():
    pytest.importorskip("timm", reason="timm is not installed: its own networks are not tested")
    backbone = TimmBackbone("resnet18")
    assert backbone.features == 512
    assert backbone.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
