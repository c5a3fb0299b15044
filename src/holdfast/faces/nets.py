"""Architectures of recognisers, as plain modules: weights are loaded into them, nothing is fetched.

    mobilefacenet  Chen, Liu, Gao and Han, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
                   Mobile Devices", CCBR 2018, arXiv:1804.07573, table 1
    iresnet        the residual network of Deng, Guo, Xue and Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep
                   Face Recognition", CVPR 2019, arXiv:1801.07698, section 3.1 (improved residual units of Han, Kim and
                   Kim, CVPR 2017). Tensors are named as in insightface's ``iresnet.py``, whose weights load
    plain          convolutions, group normalisation, max pooling, in the manner of Simonyan and Zisserman, ICLR 2015
    patch          a transformer over patches: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, with normalisation first

Each takes prepared pixels (n, 3, size, size) and returns (n, embedding), not normalised. ``width`` and ``layers``
make a network slim or shallow; the defaults are the papers'. ``plain`` and ``patch`` are small, for variety in a team
of recognisers, and follow no paper's sizes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import ModelError, nearest, unknown

SIDE = 112


def build_network(architecture: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with fresh weights.

    Args:
        architecture: a name of :data:`ARCHITECTURES`.
        options: arguments of its class.

    Raises:
        UsageError: no such architecture.
        ModelError: it has no such option, or not with such a value.
    """
    if architecture not in ARCHITECTURES:
        raise unknown("architecture of a recogniser", architecture, ARCHITECTURES)
    made, given = ARCHITECTURES[architecture], dict(options or {})
    valid = list(inspect.signature(made).parameters)
    for name in given:
        if name not in valid:
            raise ModelError(
                f"{architecture} has no option {name!r}", hint=f"{nearest(name, valid)}options: {', '.join(valid)}"
            )
    try:
        return made(**given)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{architecture} cannot be built with {given}: {error}", hint=f"options: {', '.join(valid)}"
        ) from error


def _channels(count: float) -> int:
    """A width that is a multiple of four, at least eight."""
    return max(8, 4 * round(count / 4))


# -- MobileFaceNet ------------------------------------------------------------------------------------


class _Conv(nn.Module):
    """Convolution, batch normalisation and, unless linear, a PReLU for each channel."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, linear: bool = False,
        padding: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        around = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, around, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.Identity() if linear else nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the next layer."""
        found: Tensor = self.prelu(self.bn(self.conv(x)))
        return found


class _Bottleneck(nn.Module):
    """Inverted residual: widen, convolve in depth, narrow; added to its input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.wide = _Conv(inputs, inner, 1)
        self.depth = _Conv(inner, inner, 3, stride, inner)
        self.narrow = _Conv(inner, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features of the next layer."""
        found: Tensor = self.narrow(self.depth(self.wide(x)))
        return x + found if self.residual else found


class MobileFaceNet(nn.Module):
    """MobileFaceNet (arXiv:1804.07573, table 1): 0.99 million parameters at width 1 and 128 dimensions.

    Args:
        embedding: dimensions of the result.
        width: factor on all channel counts but the result's.
        size: side of the input in pixels, a multiple of 16.
    """

    def __init__(self, embedding: int = 128, width: float = 1.0, size: int = SIDE) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f"size {size} is no multiple of 16")
        # Expansion, channels, repeats, stride of the first: the paper's table.
        table = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
        channels = _channels(64 * width)
        self.stem = nn.Sequential(_Conv(3, channels, 3, 2), _Conv(channels, channels, 3, 1, channels))
        units: list[nn.Module] = []
        for expansion, outputs, repeats, stride in table:
            for place in range(repeats):
                units.append(_Bottleneck(channels, _channels(outputs * width), stride if place == 0 else 1, expansion))
                channels = _channels(outputs * width)
        self.body = nn.Sequential(*units)
        last = _channels(512 * width)
        self.conv = _Conv(channels, last, 1)
        # Global depthwise convolution: a weight for each place, because an aligned face's places differ in worth.
        self.gather = _Conv(last, last, size // 16, 1, last, linear=True, padding=0)
        self.out = _Conv(last, embedding, 1, linear=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (n, embedding) of prepared pixels."""
        found: Tensor = self.out(self.gather(self.conv(self.body(self.stem(pixels)))))
        return found.flatten(1)


# -- IResNet ------------------------------------------------------------------------------------------


class _Unit(nn.Module):
    """Improved residual unit: BN, conv, BN, PReLU, conv, BN. Names are insightface's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, eps=1e-5)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features of the next layer."""
        found: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return found + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """ArcFace's residual network.

    Args:
        layers: units in each of the four stages: (2, 2, 2, 2) is IR-18, (3, 4, 6, 3) IR-34, (3, 4, 14, 3) IR-50 and
            (3, 13, 30, 3) IR-100.
        embedding: dimensions of the result.
        width: channels of the first stage, at least 16; each later one has twice as many.
        size: side of the input in pixels, a multiple of 16.
        dropout: before the last layer, in training.
    """

    def __init__(
        self, layers: Sequence[int] = (3, 4, 14, 3), embedding: int = 512, width: int = 64, size: int = SIDE,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if size % 16 or len(layers) != 4 or min(layers) < 1:
            raise ValueError("size must be a multiple of 16, and layers four counts of at least 1")
        if width < 16:
            # torch 2.13 corrupts memory on a CPU in the gradient of strided 1x1 convolutions of fewer channels whose
            # input is laid out channels last, which is how recognisers are run.
            raise ValueError("width must be at least 16")
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-5)
        self.prelu = nn.PReLU(width)
        stages, inputs = [], width
        for number, count in enumerate(layers):
            outputs = width * 2**number
            units = [
                _Unit(inputs if place == 0 else outputs, outputs, 2 if place == 0 else 1) for place in range(count)
            ]
            stages.append(nn.Sequential(*units))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs * (size // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding, eps=1e-5)
        # A scale here would be learned against the margin; ArcFace's code holds it at one.
        self.features.weight.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (n, embedding) of prepared pixels."""
        x = self.prelu(self.bn1(self.conv1(pixels)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        found: Tensor = self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))
        return found


# -- small ones of other families ---------------------------------------------------------------------


class Plain(nn.Module):
    """Convolutions and max pooling, no shortcuts, no statistics of a batch.

    Args:
        embedding: dimensions of the result.
        channels: of the convolutions; pooling halves the sides after each.
        size: side of the input in pixels.
    """

    def __init__(self, embedding: int = 64, channels: Sequence[int] = (16, 24, 32, 48), size: int = SIDE) -> None:
        super().__init__()
        if size // 2 ** len(channels) < 1 or not channels or any(count % 4 for count in channels):
            raise ValueError("channels must be multiples of four, and not so many that nothing of the picture is left")
        parts: list[nn.Module] = []
        inputs, side = 3, size
        for number, outputs in enumerate(channels):
            kernel = 5 if number == 0 else 3
            parts += [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.MaxPool2d(2), nn.GroupNorm(4, outputs),
                nn.ReLU(),
            ]  # fmt: skip
            inputs, side = outputs, side // 2
        self.features = nn.Sequential(*parts)
        self.fc = nn.Linear(inputs * side**2, embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (n, embedding) of prepared pixels."""
        found: Tensor = self.fc(self.features(pixels).flatten(1))
        return found


class _Block(nn.Module):
    """Attention over the patches, then a two-layer network on each; both added to what came in."""

    def __init__(self, dimension: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.mixed, self.joined = nn.Linear(dimension, 3 * dimension), nn.Linear(dimension, dimension)
        self.widened, self.narrowed = nn.Linear(dimension, hidden), nn.Linear(hidden, dimension)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (n, patches, dimension) of the next layer."""
        n, patches, dimension = x.shape
        parts = self.mixed(self.before(x)).reshape(n, patches, 3, self.heads, dimension // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.joined(seen.transpose(1, 2).reshape(n, patches, dimension))
        found: Tensor = x + self.narrowed(functional.gelu(self.widened(self.between(x))))
        return found


class Patch(nn.Module):
    """A transformer over patches.

    Args:
        embedding: dimensions of the result.
        patch: pixels on a side of a patch.
        dimension: of a patch's vector.
        depth: blocks.
        heads: of attention.
        hidden: width of the networks between.
        size: side of the input in pixels.
    """

    def __init__(
        self, embedding: int = 64, patch: int = 8, dimension: int = 64, depth: int = 4, heads: int = 4,
        hidden: int = 128, size: int = SIDE,
    ) -> None:  # fmt: skip
        super().__init__()
        if size % patch or dimension % heads:
            raise ValueError("size must be a multiple of patch, and dimension one of heads")
        count = (size // patch) ** 2
        self.patches = nn.Conv2d(3, dimension, patch, patch)
        self.places = nn.Parameter(torch.randn(1, count, dimension) * 0.02)
        self.blocks = nn.Sequential(*(_Block(dimension, heads, hidden) for _ in range(depth)))
        self.last = nn.LayerNorm(dimension)
        # Eight weighted sums over the places: an aligned face's places differ in worth.
        self.worth = nn.Parameter(torch.randn(8, count) / math.sqrt(count))
        self.fc = nn.Linear(8 * dimension, embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (n, embedding) of prepared pixels."""
        x = self.patches(pixels).flatten(2).mT + self.places
        found: Tensor = self.fc((self.worth @ self.last(self.blocks(x))).flatten(1))
        return found


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mobilefacenet": MobileFaceNet,
    "iresnet": IResNet,
    "plain": Plain,
    "patch": Patch,
}
