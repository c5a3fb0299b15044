"""SSIM and PSNR against scipy's Gaussian filter, loops and closed forms."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from holdfast.faces import ssim as module
from holdfast.faces.ssim import Reference, psnr, ssim

C1, C2 = 6.5025, 58.5225  # Wang et al.: (0.01 * 255)^2 and (0.03 * 255)^2


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 255, shape)


def pictures(*shape: int) -> tuple[Tensor, Tensor]:
    clean = ndimage.gaussian_filter(noise(*shape), (0, 0, 2, 2)) * 1.5
    return torch.from_numpy(clean), torch.from_numpy(clean + noise(*shape, seed=1) / 10)


def by_scipy(clean: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map of one channel, whole windows only."""

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ndimage.gaussian_filter(x, 1.5, radius=5, mode="constant")[5:-5, 5:-5]
        return found

    a, b = mean(clean), mean(other)
    aa, bb, ab = mean(clean**2) - a * a, mean(other**2) - b * b, mean(clean * other) - a * b
    return (2 * a * b + C1) * (2 * ab + C2) / ((a * a + b * b + C1) * (aa + bb + C2))


@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 1, 11, 11), (1, 1, 14, 530)])  # the last: by convolution
def test_the_map_is_that_of_scipys_gaussian(shape: tuple[int, ...]) -> None:
    clean, other = pictures(*shape)
    found = Reference(clean).map(other).numpy()
    assert found.shape == (*shape[:2], shape[2] - 10, shape[3] - 10)
    for n in range(shape[0]):
        for channel in range(shape[1]):
            expected = by_scipy(clean[n, channel].numpy(), other[n, channel].numpy())
            np.testing.assert_allclose(found[n, channel], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ssim(clean, other).numpy(), found.mean((1, 2, 3)), rtol=1e-12)
    assert 0.2 < float(ssim(clean, other).min()) < 0.99


def test_one_window_by_a_loop() -> None:
    clean, other = pictures(1, 1, 11, 11)
    weight = [math.exp(-((place - 5) ** 2) / 4.5) for place in range(11)]
    total = sum(weight) ** 2
    sums = dict.fromkeys(("x", "y", "xx", "yy", "xy"), 0.0)
    for row in range(11):
        for column in range(11):
            w = weight[row] * weight[column] / total
            x, y = float(clean[0, 0, row, column]), float(other[0, 0, row, column])
            for name, value in zip(sums, (x, y, x * x, y * y, x * y), strict=True):
                sums[name] += w * value
    x, y = sums["x"], sums["y"]
    cross, spread = sums["xy"] - x * y, sums["xx"] - x * x + sums["yy"] - y * y
    expected = (2 * x * y + C1) * (2 * cross + C2) / ((x * x + y * y + C1) * (spread + C2))
    assert float(ssim(clean, other)) == pytest.approx(expected, rel=1e-10)


def test_closed_forms() -> None:
    """Flat pictures have no variance: only brightness counts. A picture against its negative: only structure."""
    flat = torch.full((1, 3, 20, 20), 100.0, dtype=torch.float64)
    assert float(ssim(flat, flat + 30)) == pytest.approx((2 * 100 * 130 + C1) / (100**2 + 130**2 + C1), rel=1e-9)
    # A chessboard has the same mean in every window (to 1e-6), and its variance is its swing squared.
    board = (torch.arange(30)[:, None] + torch.arange(30)) % 2 * 2.0 - 1
    board = board.double()[None, None]
    for swing in (20.0, -40.0):
        found = Reference(128 + 40 * board).map(128 + swing * board)
        expected = (2 * 40 * swing + C2) / (40**2 + swing**2 + C2)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert float(ssim(board, board)) == pytest.approx(1, abs=1e-9)


def test_dssim_is_half_of_what_is_missing() -> None:
    clean, other = pictures(3, 3, 30, 30)
    torch.testing.assert_close(Reference(clean).dssim(other), (1 - ssim(clean, other)) / 2)
    assert torch.equal(Reference(clean).dssim(clean).abs() < 1e-12, torch.ones(3, dtype=torch.bool))


def test_chosen_pictures_keep_their_own_reference() -> None:
    clean, other = pictures(3, 3, 30, 30)
    whole = Reference(clean)
    part = whole[torch.tensor([2, 0, 2])]
    torch.testing.assert_close(part.ssim(other[[2, 0, 2]]), whole.ssim(other)[[2, 0, 2]])
    assert torch.equal(part.clean, clean[[2, 0, 2]])


def test_its_slope_is_that_of_finite_differences() -> None:
    clean, other = pictures(2, 2, 16, 18)
    assert torch.autograd.gradcheck(
        Reference(clean).dssim, (other.requires_grad_(True),), eps=1e-3, atol=1e-9, rtol=1e-4
    )


def test_bands_kept_from_inference_mode_take_part_in_gradients() -> None:
    module._band.cache_clear()
    clean, other = pictures(1, 1, 21, 23)
    with torch.inference_mode():
        first = float(ssim(clean, other))
    leaf = other.clone().requires_grad_(True)
    ssim(clean, leaf).sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0
    assert float(ssim(clean, other)) == first


def test_what_is_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("at least 11 pixels a side")):
        Reference(torch.zeros(1, 3, 10, 40))
    assert Reference(torch.zeros(1, 3, 11, 40)).mean.shape[-2:] == (1, 30)


def test_psnr_by_its_definition() -> None:
    clean = torch.full((2, 3, 8, 8), 100.0)
    other = clean.clone()
    other[0] += 16
    found = psnr(clean, other)
    assert float(found[0]) == pytest.approx(20 * math.log10(255 / 16), rel=1e-6)
    assert math.isinf(float(found[1]))
