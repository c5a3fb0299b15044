"""How visible a mask is: structural similarity and peak signal-to-noise ratio, on torch tensors.

SSIM of Wang et al. 2004 ("Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4),
equation 13) with their constants: an 11-tap Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, dynamic
range 255, and no padding (only whole windows count), averaged over channels, as ``tf.image.ssim`` does and Chameleon
uses it. DSSIM = (1 - SSIM) / 2.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

TAPS, DEVIATION = 11, 1.5
RANGE = 255.0
_SMALL = 512
_C1, _C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


def _window() -> Tensor:
    place = torch.arange(TAPS, dtype=torch.float64) - TAPS // 2
    weight = torch.exp(-(place**2) / (2 * DEVIATION**2))
    return weight / weight.sum()


@lru_cache(maxsize=16)
def _band(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window at every place of one axis as a banded matrix, shape (side - 10, side)."""
    with torch.inference_mode(False):  # kept for later calls, which may need gradients through it
        band = torch.zeros(side - TAPS + 1, side, dtype=torch.float64)
        for place in range(len(band)):
            band[place, place : place + TAPS] = _window()
        return band.to(dtype=dtype, device=device)


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means over whole windows, shape (n, channels, height - 10, width - 10)."""
    n, channels, height, width = maps.shape
    if max(height, width) <= _SMALL:
        # As matrix products: on crops ten times faster, backward too, than convolutions of one channel.
        found: Tensor = _band(height, maps.dtype, maps.device) @ maps @ _band(width, maps.dtype, maps.device).mT
        return found
    kernel = _window().to(maps)
    flat: Tensor = maps.reshape(n * channels, 1, height, width)
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return flat.reshape(n, channels, *flat.shape[-2:])


class Reference:
    """Clean pictures whose own means and variances are computed once: learning compares with them at every step.

    Args:
        clean: shape (n, channels, height, width), 0..255, at least 11 pixels a side.

    Raises:
        ValueError: the pictures are smaller than one window.
    """

    def __init__(self, clean: Tensor) -> None:
        if min(clean.shape[-2:]) < TAPS:
            raise ValueError(f"SSIM needs pictures of at least {TAPS} pixels a side, not {tuple(clean.shape[-2:])}")
        self.clean = clean
        self.mean = _blurred(clean)
        self.square = _blurred(clean * clean)

    def __getitem__(self, chosen: Tensor) -> Reference:
        part = object.__new__(Reference)
        part.clean, part.mean, part.square = self.clean[chosen], self.mean[chosen], self.square[chosen]
        return part

    def map(self, other: Tensor) -> Tensor:
        """SSIM at each window, shape (n, channels, height - 10, width - 10); differentiable in ``other``."""
        n = len(other)
        mean, square, cross = _blurred(torch.cat([other, other * other, other * self.clean])).split(n)
        product = self.mean * mean
        power = self.mean**2 + mean**2
        spread = self.square + square - power
        found: Tensor = (2 * product + _C1) * (2 * (cross - product) + _C2) / ((power + _C1) * (spread + _C2))
        return found

    def ssim(self, other: Tensor) -> Tensor:
        """Mean SSIM of each picture, shape (n,)."""
        return self.map(other).mean((1, 2, 3))

    def dssim(self, other: Tensor) -> Tensor:
        """(1 - SSIM) / 2 of each picture, shape (n,)."""
        return (1 - self.ssim(other)) / 2


def ssim(clean: Tensor, other: Tensor) -> Tensor:
    """Mean SSIM of each pair of pictures (n, channels, height, width), 0..255, shape (n,)."""
    return Reference(clean).ssim(other)


def psnr(clean: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels of each pair, shape (n,); infinite where nothing differs."""
    error = ((clean - other) ** 2).flatten(1).mean(1)
    found: Tensor = 10 * torch.log10(RANGE**2 / error)
    return found
