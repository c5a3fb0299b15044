"""Input diversity: what happens to a photo before a recogniser sees it, so that a mask must work through all of it.

Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity" (CVPR 2019, equation 5): each step
sees the photos through a random, differentiable transform. Here: scale, turn, shift and mirror (every recogniser
aligns a little differently), loss of resolution, and Admix (Wang et al., ICCV 2021, equation 3), a share of somebody
else's face laid over the photo. All draws come from the generator that is passed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SCALE, TURN, SHIFT = 0.2, 0.15, 0.12
"""Full ranges: relative size, radians, share of half the side."""
_COARSE, _FINEST = 0.5, 0.95


def moved(crops: Tensor, generator: torch.Generator, chance: float = 1.0) -> Tensor:
    """Each crop scaled, turned, shifted and (half of them) mirrored at random.

    Args:
        crops: shape (n, 3, side, side).
        generator: of the draws.
        chance: that a crop is changed at all.
    """
    n = len(crops)
    on = (torch.rand(n, generator=generator) < chance).float()
    size = 1 + (torch.rand(n, generator=generator) - 0.5) * SCALE * on
    angle = (torch.rand(n, generator=generator) - 0.5) * TURN * on
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * SHIFT * on[:, None]
    mirror = torch.where((torch.rand(n, generator=generator) < 0.5) & (on > 0), -1.0, 1.0)
    change = torch.zeros(n, 2, 3)
    change[:, 0, 0], change[:, 0, 1] = size * angle.cos() * mirror, -size * angle.sin()
    change[:, 1, 0], change[:, 1, 1] = size * angle.sin() * mirror, size * angle.cos()
    change[:, :, 2] = shift
    grid = functional.affine_grid(change.to(crops.device), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)


def coarsened(crops: Tensor, generator: torch.Generator, chance: float) -> Tensor:
    """With some chance, the whole batch at a lower resolution and back, as platforms do to photos."""
    draw, share = torch.rand(2, generator=generator).tolist()
    if draw >= chance:
        return crops
    factor = _COARSE + (_FINEST - _COARSE) * share
    small = functional.interpolate(crops, scale_factor=factor, mode="bilinear", align_corners=False, antialias=True)
    return functional.interpolate(small, list(crops.shape[-2:]), mode="bilinear", align_corners=False)


def mixed(crops: Tensor, others: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Admix: each crop with a share of a random other person's face over it, at the same brightness overall.

    Args:
        crops: shape (n, 3, side, side).
        others: faces of other people, shape (m, 3, side, side).
        share: of the other face; 0 changes nothing.
        generator: of the draws.
    """
    if not share or not len(others):
        return crops
    chosen = torch.randint(len(others), (len(crops),), generator=generator)
    return (crops + share * others[chosen].to(crops.device)) / (1 + share)
