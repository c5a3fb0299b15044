"""Where a mask may change a face, and how much of it may be colour.

Two things made the first masks of this kind ugly (measured on photos; people complained of both in peers' issue
trackers): a square seam around the face, and coloured blotches on smooth skin. Both are decided here, once per person,
so that the mask stays a constant that its owner can take away again:

    window   1 inside the face, falling to 0 before the crop ends; "oval" is soft, "box" is the square of the paper
    calm     how far colour differences are reduced where the person's photos are flat (cheeks, forehead)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.faces.align import SIDE
from holdfast.faces.method import WindowKind

LUMA = (0.299, 0.587, 0.114)
_CENTRE, _RADII, _SOFT = (55.5, 58.0), (46.0, 56.0), 6.0
_BOX = 9  # pixels that the paper's square leaves out on each side of a crop of 112, at its margin of 30 of 250 pixels
_FLAT = 6.0  # standard deviation in grey levels within 7 x 7 pixels below which skin counts as flat


def window(kind: WindowKind) -> Tensor:
    """Weights in [0, 1], shape (1, 1, 112, 112)."""
    if kind == "none":
        return torch.ones(1, 1, SIDE, SIDE)
    if kind == "box":
        inside = torch.zeros(1, 1, SIDE, SIDE)
        inside[..., _BOX : SIDE - _BOX, _BOX : SIDE - _BOX] = 1
        return inside
    y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    radius = (((x - _CENTRE[0]) / _RADII[0]) ** 2 + ((y - _CENTRE[1]) / _RADII[1]) ** 2).sqrt()
    soft = torch.sigmoid((1 - radius) * _RADII[0] / _SOFT * 2)
    # A sigmoid never reaches zero, and a hundredth of a seam is a seam on a large photo.
    edge = torch.minimum(torch.minimum(x, SIDE - 1 - x), torch.minimum(y, SIDE - 1 - y)) / 4
    weights: Tensor = soft * edge.clamp(max=1)
    return weights[None, None]


def luma(pixels: Tensor) -> Tensor:
    """Brightness (Rec. 601) of RGB pixels (n, 3, ...), shape (n, 1, ...)."""
    weights = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device).view(1, 3, *[1] * (pixels.ndim - 2))
    return (pixels * weights).sum(1, keepdim=True)


def flatness(crops: Tensor) -> Tensor:
    """Where a person's photos have no texture: 1 flat, 0 structured, shape (1, 1, 112, 112), mean over photos.

    Args:
        crops: aligned photos, shape (n, 3, 112, 112), 0..255.
    """
    grey = luma(crops)
    mean = functional.avg_pool2d(grey, 7, 1, 3, count_include_pad=False)
    square = functional.avg_pool2d(grey * grey, 7, 1, 3, count_include_pad=False)
    deviation = (square - mean * mean).clamp(min=0).sqrt().mean(0, keepdim=True)
    return 1 / (1 + (deviation / _FLAT) ** 2)


def calmed(mask: Tensor, colour: Tensor) -> Tensor:
    """A mask whose colour differences are scaled and whose brightness stays.

    Args:
        mask: shape (n, 3, 112, 112).
        colour: share of the colour differences that stays, shape (1, 1, 112, 112) or one number.
    """
    grey = luma(mask)
    return grey + colour * (mask - grey)


def grey_mask(mask: Tensor) -> Tensor:
    """The mask for a photo without colours: its brightness in every channel, shape as given."""
    return luma(mask).expand_as(mask)
