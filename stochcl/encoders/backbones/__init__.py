"""Backbones: networks from images to features, and published weights for them."""

from __future__ import annotations

from stochcl.encoders.backbones.resnet import BACKBONES, STEMS, ResNet

__all__ = ["BACKBONES", "STEMS", "ResNet"]
