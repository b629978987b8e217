import pytest
import torch

from stochcl.encoders.backbones import Features, ResNet, check_backbone, feature_width, make_backbone
from stochcl.errors import UsageError


def test_residual_networks_get_their_width_and_stem():
    backbone = make_backbone("resnet18", width=4, stem="small")
    assert isinstance(backbone, ResNet)
    assert (backbone.features, backbone.conv1.kernel_size) == (32, (3, 3))


@pytest.mark.parametrize("name", ["features:7", "timm:vit_small"])
def test_stages_are_pooled_where_there_are_stages(name):
    assert make_backbone("resnet18", width=4, pooling="stages").features == 60
    with pytest.raises(UsageError, match=f"the backbone {name} has no stages to pool; stages is for resnet10"):
        make_backbone(name, pooling="stages")


def test_vectors_are_their_own_features():
    backbone = make_backbone("features:7")
    assert isinstance(backbone, Features)
    vectors = torch.rand(3, 7)
    assert backbone.features == 7
    assert backbone(vectors) is vectors
    assert backbone.state_dict() == {}


@pytest.mark.parametrize(
    "name", ["resnet10", "resnet50", "timm:vit_small", "open_clip:RN50", "features:1", "features:65536"]
)
def test_what_may_be_a_backbone_is_told_without_making_it(name):
    check_backbone(name)


@pytest.mark.parametrize("name", ["vgg", "", "timm:", "open_clip:", "timm", "Resnet18"])
def test_what_is_no_backbone_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError, match=r"resnet50, efficientnet-lite0, .*, timm:NAME, open_clip:NAME and"):
        check_backbone(name)


@pytest.mark.parametrize("width", ["", "0", "012", "-3", "65537", "9" * 30, "1.5", "x", "²"])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(UsageError, match=r"is not features:W with a width W of 1 to 65,536"):
        feature_width(f"features:{width}")
