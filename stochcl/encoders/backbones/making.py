"""Backbones by the name that a configuration holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from stochcl.encoders.backbones.resnet import BACKBONES, ResNet
from stochcl.encoders.backbones.timm import PREFIX, TimmBackbone
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FEATURES_PREFIX = "features:"
"""What a configuration writes before the width of vectors that are the features themselves."""

MAX_FEATURES = 1 << 16
"""Widest vectors: what an archive's decoder can give back."""


class Features(nn.Module):
    """The backbone of vectors that are features already: it hands them on.

    Parameters
    ----------
    features : int
        W, their width.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the vectors, float, shape (B, W)."""
        return vectors


def feature_width(name: str) -> int | None:
    """Return W of ``features:W``, or None for a backbone that takes images.

    Raises
    ------
    UsageError
        If W is not a width.

    Examples
    --------
    >>> feature_width("features:512"), feature_width("resnet18")
    (512, None)
    """
    if not name.startswith(FEATURES_PREFIX):
        return None
    digits = name.removeprefix(FEATURES_PREFIX)
    if not (digits.isascii() and digits.isdecimal() and 1 <= int(digits[:9]) <= MAX_FEATURES and digits[0] != "0"):
        raise UsageError(f"the backbone {name!r} is not features:W with a width W of 1 to {MAX_FEATURES:,}.")
    return int(digits)


def check_backbone(name: str) -> None:
    """Refuse what cannot be the name of a backbone; timm's own names are timm's to know.

    Raises
    ------
    UsageError
    """
    text = isinstance(name, str)  # a model file may hold anything
    if text and (name in BACKBONES or feature_width(name) or (name.startswith(PREFIX) and len(name) > len(PREFIX))):
        return
    raise UsageError(f"there is no backbone {name!r}; there are {', '.join(BACKBONES)}, timm:NAME and features:W.")


def make_backbone(
    name: str, *, width: int = 64, stem: str = "imagenet", pooling: str = "mean"
) -> ResNet | TimmBackbone | Features:
    """Return a fresh backbone; its ``features`` says how wide its features are.

    Parameters
    ----------
    name : str
        ``resnet10|18|34|50``, ``timm:NAME`` or ``features:W``.
    width, stem, pooling
        Of residual networks, see :class:`~stochcl.encoders.backbones.resnet.ResNet`.

    Raises
    ------
    UsageError
        If there is no such backbone, or it has one way of pooling and another is asked for.
    MissingExtraError
        If it needs timm, and timm is not installed.
    """
    check_backbone(name)
    if name in BACKBONES:
        return ResNet(name, width=width, stem=stem, pooling=pooling)
    if pooling != "mean":
        raise UsageError(f"the backbone {name} has no stages to pool; {pooling} is for {', '.join(BACKBONES)}.")
    if columns := feature_width(name):
        return Features(columns)
    return TimmBackbone(name.removeprefix(PREFIX))
