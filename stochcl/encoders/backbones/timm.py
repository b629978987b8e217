"""Backbones of the timm package, by the name that it knows them by: ``timm:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from stochcl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "timm:"
"""What a configuration writes before the name of a timm model."""


class TimmBackbone(nn.Module):
    """A network of timm without its classifier: images to pooled features.

    Its weights begin random: published ones come from a safetensors file, see
    :func:`stochcl.encoders.backbones.published.init_backbone`. Nothing is downloaded.

    Parameters
    ----------
    name : str
        What ``timm.create_model`` takes, without ``timm:``.

    Attributes
    ----------
    features : int
        V, the width of its features, as the network says.

    Raises
    ------
    MissingExtraError
        If timm is not installed.
    UsageError
        If it has no such model, or one without pooled features.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            self.network: Any = _timm().create_model(name, pretrained=False, num_classes=0)
        except (RuntimeError, TypeError, ValueError) as exc:
            reason = str(exc).partition("\n")[0]
            raise UsageError(
                f"timm cannot make a model {name!r} ({reason}); timm.list_models() has its names."
            ) from exc
        # Some networks (MobileNetV3, for one) widen their features after pooling, and say so under another name.
        features = getattr(self.network, "head_hidden_size", None) or getattr(self.network, "num_features", None)
        if not isinstance(features, int) or features < 1:
            raise UsageError(f"timm's {name!r} does not say how wide its features are; take another model.")
        self.features: int = features

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, float, shape (B, features), of images, float, shape (B, 3, S, S)."""
        out: Tensor = self.network(images)
        return out


def _timm() -> Any:
    try:
        import timm
    except ImportError as exc:
        msg = "backbones called timm:NAME need the timm package; install it with `pip install 'stochcl[timm]'`."
        raise MissingExtraError(msg) from exc
    return timm
