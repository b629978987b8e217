"""Backbones: networks from images to features, and published weights for them."""

from __future__ import annotations

from stochcl.encoders.backbones.making import Features, check_backbone, feature_width, make_backbone
from stochcl.encoders.backbones.resnet import BACKBONES, POOLINGS, STEMS, ResNet
from stochcl.encoders.backbones.timm import TimmBackbone

__all__ = [
    "BACKBONES",
    "POOLINGS",
    "STEMS",
    "Features",
    "ResNet",
    "TimmBackbone",
    "check_backbone",
    "feature_width",
    "make_backbone",
]
