"""Backbones: networks from images to features, and published weights for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from stochcl.encoders.efficientnet import EFFICIENTNETS, MEAN, SIZE, STD, EfficientNetLite
from stochcl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


PREFIX = "timm:"
"""What a configuration writes before the name of a timm model."""


class TimmBackbone(nn.Module):
    """A network of timm without its classifier: images to pooled features.

    Its weights begin random: published ones come from a safetensors file, see
    :func:`stochcl.encoders.pretrained.init_backbone`. Nothing is downloaded.

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
        timm = _timm()
        try:
            self.network: Any = timm.create_model(name, pretrained=False, num_classes=0)
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


_NARROW = 8  # channels


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al., arXiv 1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (it strides, as in torchvision), 1 x 1 convolutions around a shortcut (figure 5 right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return out


class _NarrowShortcut(nn.Conv2d):
    """A 1 x 1 convolution that drops places first and strides by 1: the same numbers.

    On a processor without AVX-512, oneDNN 3.12 (PyTorch 2.13) writes past its memory where it computes the gradient
    of a strided one over 4 to 6 channels (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    convolution = _NarrowShortcut if inputs < _NARROW else nn.Conv2d
    return nn.Sequential(convolution(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


@dataclass(frozen=True)
class _Shape:
    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


BACKBONES = {
    "resnet10": _Shape(BasicBlock, (1, 1, 1, 1)),
    "resnet18": _Shape(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _Shape(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _Shape(Bottleneck, (3, 4, 6, 3)),
}
"""Residual networks by name: the block and how many of it each of the four stages has."""

STEMS = ("imagenet", "small")
"""First layers: 7 x 7 by 2 and a pooling by 2 (torchvision's); 3 x 3 by 1 for images of 32 to 64 pixels."""


POOLINGS = ("mean", "stages", "moments")
"""What features are: the last stage's mean over places; those of all four stages side by side; or the moments of the
first three beside the last's mean."""

MOMENTS = 6
"""Numbers that a channel of a stage gives: see :func:`moments`."""


def moments(responses: Tensor) -> Tensor:
    """Return how much each channel answers, where, and how widely, float32, shape (B, 6 C).

    With what a channel answers taken for mass: its mean, the centre of mass from the middle, and the variances and
    the covariance of places around it (across, down, both), in units of half the image. A channel that is silent has
    its mass in the middle. The centre is what a spatial soft argmax is after (Finn et al., arXiv 1509.06113), without
    its softmax.

    Examples
    --------
    >>> image = torch.zeros(1, 1, 4, 4)
    >>> image[0, 0, 1, 3] = 8
    >>> moments(image)[0, :3].round(decimals=3).tolist()
    [0.5, 0.75, -0.25]
    """
    height, width = responses.shape[-2:]
    down, across = (torch.arange(n, device=responses.device).add(0.5).mul(2 / n).sub(1) for n in (height, width))
    x, y = across.expand(height, width), down[:, None].expand(height, width)
    basis = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=-1).flatten(0, 1)
    with torch.autocast(responses.device.type, enabled=False):  # differences of squares
        mass, *sums = (responses.float().flatten(2) @ basis).unbind(-1)
    x, y, xx, yy, xy = (part / (mass + _NOTHING) for part in sums)
    return torch.cat([mass / (height * width), x, y, xx - x * x, yy - y * y, xy - x * y], dim=1)


_NOTHING = 1e-4  # mass of a whole stage that is as good as none


class ResNet(nn.Module):
    """A residual network without its classifier: images to pooled features.

    Parameters
    ----------
    name : str
        A key of ``BACKBONES``.
    width : int
        Channels of the first stage; 64 is torchvision's. Each of the three later stages doubles it.
    stem : str
        One of ``STEMS``.
    pooling : str
        One of ``POOLINGS``. What training without labels makes invariant is the last stage; earlier stages still tell
        apart what it has given up, so all four together suit tasks that nobody has thought of yet. A mean knows where
        something is by what the edges' padding lets through only; moments say it.

    Raises
    ------
    UsageError
        If there is no such backbone, stem or pooling.
    """

    def __init__(self, name: str, *, width: int = 64, stem: str = "imagenet", pooling: str = "mean") -> None:
        super().__init__()
        if name not in BACKBONES:
            raise UsageError(f"there is no backbone {name!r}; there are {', '.join(BACKBONES)}.")
        if stem not in STEMS:
            raise UsageError(f"there is no stem {stem!r}; there are {', '.join(STEMS)}.")
        if pooling not in POOLINGS:
            raise UsageError(f"there is no pooling {pooling!r}; there are {', '.join(POOLINGS)}.")
        shape = BACKBONES[name]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        inputs, widths = width, []
        for stage, depth in enumerate(shape.depths):
            blocks = []
            for i in range(depth):
                block = shape.block(inputs, width << stage, stride=2 if stage and i == 0 else 1)
                inputs = (width << stage) * shape.block.expansion
                blocks.append(block)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            widths.append(inputs)
        self.pooling = pooling
        early = {"mean": 0, "stages": 1, "moments": MOMENTS}[pooling]  # numbers that a channel of theirs gives
        self.features = early * sum(widths[:-1]) + widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, float, shape (B, features), of images, float, shape (B, 3, S, S)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        pooled = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage == 4 or self.pooling == "stages":
                pooled.append(x.mean(dim=(2, 3)))
            elif self.pooling == "moments":
                pooled.append(moments(x))
        return torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]

    def first_stages(self, count: int) -> list[nn.Module]:
        """Return what runs before and in the first stages."""
        return [self.conv1, self.bn1, *(self.get_submodule(f"layer{i + 1}") for i in range(count))]


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
    """Refuse what cannot be the name of a backbone; timm's own names are timm's to know."""
    text = isinstance(name, str)  # a model file may hold anything
    known = (*BACKBONES, *EFFICIENTNETS)
    if text and (name in known or feature_width(name) or (name.startswith(PREFIX) and len(name) > len(PREFIX))):
        return
    raise UsageError(f"there is no backbone {name!r}; there are {', '.join(known)}, timm:NAME and features:W.")


def input_size(name: str) -> int:
    """Return the side, in pixels, that images are brought to for a backbone if nobody says otherwise."""
    return SIZE if name in EFFICIENTNETS else 64


def input_colours(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and deviation of each colour channel, of values in 0..1, that a backbone expects."""
    return (MEAN, STD) if name in EFFICIENTNETS else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_backbone(
    name: str, *, width: int = 64, stem: str = "imagenet", pooling: str = "mean"
) -> ResNet | EfficientNetLite | TimmBackbone | Features:
    """Return a fresh backbone; its ``features`` says how wide its features are."""
    check_backbone(name)
    if name in BACKBONES:
        return ResNet(name, width=width, stem=stem, pooling=pooling)
    if name in EFFICIENTNETS:
        return EfficientNetLite(name, pooling=pooling)
    if pooling != "mean":
        raise UsageError(f"the backbone {name} has no stages to pool; {pooling} is for {', '.join(BACKBONES)}.")
    if columns := feature_width(name):
        return Features(columns)
    return TimmBackbone(name.removeprefix(PREFIX))
