"""Input diversity: seeded, of the sizes it says, and Admix as in its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from faces import toy
from holdfast.faces import transforms
from holdfast.faces.transforms import coarsened, mixed, moved


def blob(x: float, y: float, side: int = 112) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)


def centre(picture: Tensor) -> tuple[float, float]:
    side = picture.shape[-1]
    total = float(picture.sum())
    return (
        float((picture.sum(0) * torch.arange(side)).sum()) / total,
        float((picture.sum(1) * torch.arange(side)).sum()) / total,
    )


def similarity_of(crop: Tensor) -> tuple[complex, complex, bool]:
    """From a moved picture of three spots (one a channel): the complex factor and shift, and whether it is mirrored."""
    spots = [complex(*centre(channel)) - (55.5 + 55.5j) for channel in crop]
    given = [-20 + 0j, 20 + 0j, 0 + 20j]
    factor = (spots[1] - spots[0]) / 40
    mirrored = ((spots[2] - spots[0]) / (spots[1] - spots[0])).imag < 0
    middle = (spots[0] + spots[1]) / 2
    expected = given[2].conjugate() if mirrored else given[2]
    assert abs(spots[2] - middle - factor * expected) < 0.3, "no similarity"
    return factor, middle, mirrored


SPOTS = torch.stack([blob(35.5, 55.5), blob(75.5, 55.5), blob(55.5, 75.5)])


def test_crops_are_scaled_turned_shifted_and_half_of_them_mirrored() -> None:
    made = moved(SPOTS.expand(200, 3, 112, 112), toy.generator(0))
    found = [similarity_of(crop) for crop in made]
    # A mirrored face has its second spot at the left: its factor is turned by half a turn.
    turns = np.array([np.angle(-factor if mirrored else factor) for factor, _, mirrored in found])
    sizes = np.array([1 / abs(factor) for factor, _, _ in found])
    shifts = np.array([shift for _, shift, _ in found])
    assert 0.35 < np.mean([mirrored for _, _, mirrored in found]) < 0.65
    assert sizes.min() == pytest.approx(0.9, abs=0.015)
    assert sizes.max() == pytest.approx(1.1, abs=0.015)
    assert np.abs(turns).max() == pytest.approx(0.075, abs=0.006)
    assert abs(turns.mean()) < 0.015
    for part in (shifts.real, shifts.imag):  # 0.06 of half a side, times the scale
        assert np.abs(part).max() == pytest.approx(0.06 * 56, rel=0.15)
        assert abs(part.mean()) < 0.5


def test_moving_repeats_with_its_seed_and_leaves_the_crops() -> None:
    crops = toy.crops(4)
    before = crops.clone()
    made = moved(crops, toy.generator(1))
    assert torch.equal(made, moved(crops, toy.generator(1)))
    assert not torch.equal(made, moved(crops, toy.generator(2)))
    assert torch.equal(crops, before)
    assert made.shape == crops.shape
    assert float(made.max()) <= float(crops.max())
    assert float(made.min()) >= float(crops.min())


def test_the_chance_says_how_many_move() -> None:
    crops = toy.crops(1).expand(200, 3, 112, 112)
    for chance in (0.0, 0.3, 1.0):
        still = [(float((one - crops[0]).abs().max()) < 0.01) for one in moved(crops, toy.generator(3), chance)]
        assert np.mean(still) == pytest.approx(1 - chance, abs=0.1 if 0 < chance < 1 else 0)


def test_slopes_pass_through_transforms() -> None:
    leaf = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=toy.generator()).requires_grad_(True)
    others = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for change in (
            lambda x: moved(x, toy.generator(5)),
            lambda x: coarsened(x, toy.generator(5), 1.0),
            lambda x: mixed(x, others, 0.4, toy.generator(5)),
        ):
            assert torch.autograd.gradcheck(change, (leaf,), atol=1e-7)
    finally:
        torch.set_default_dtype(default)


def test_a_coarse_crop_has_lost_what_is_fine() -> None:
    board = ((torch.arange(112)[:, None] + torch.arange(112)) % 2 * 100.0).expand(1, 3, 112, 112)
    slow = (100 * torch.sin(torch.arange(112) / 25)).expand(1, 3, 112, 112)
    lost = []
    for seed in range(12):
        made = coarsened(board, toy.generator(seed), 1.0)
        assert made.shape == board.shape
        lost.append(float(made[..., 8:-8, 8:-8].std()) / float(board.std()))
        assert float((coarsened(slow, toy.generator(seed), 1.0) - slow)[..., 8:-8].abs().max()) < 5  # a pixel is 4
    assert max(lost) < 0.75
    assert min(lost) < 0.05
    assert coarsened(board, toy.generator(0), 0.0) is board
    assert np.mean([coarsened(board, toy.generator(seed), 0.3) is board for seed in range(300)]) == pytest.approx(0.7, abs=0.08)  # fmt: skip
    assert torch.equal(coarsened(board, toy.generator(4), 1.0), coarsened(board, toy.generator(4), 1.0))


def test_the_lower_resolution_is_between_half_and_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = transforms.functional.interpolate

    def noted(*args: object, **given: object) -> Tensor:
        if "scale_factor" in given:
            sizes.append(given["scale_factor"])
        found: Tensor = original(*args, **given)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(transforms.functional, "interpolate", noted)
    for seed in range(60):
        coarsened(toy.crops(1), toy.generator(seed), 1.0)
    found = np.array(sizes, float)
    assert found.min() == pytest.approx(0.5, abs=0.05)
    assert found.max() == pytest.approx(0.95, abs=0.05)


def test_admix_is_equation_3_at_the_same_brightness() -> None:
    """Wang et al.: gamma (x + eta x'), with x' of another category; here gamma is 1 / (1 + eta)."""
    crops, others = toy.crops(6), toy.crops(3, 9)
    eta = 0.4
    made = mixed(crops, others, eta, toy.generator(0))
    chosen = []
    for one, crop in zip(made, crops, strict=True):
        gaps = [float((one - (crop + eta * other) / (1 + eta)).abs().max()) for other in others]
        assert min(gaps) < 1e-4
        chosen.append(gaps.index(min(gaps)))
    assert len(set(chosen)) > 1
    flat = torch.full((1, 3, 112, 112), 90.0)
    torch.testing.assert_close(mixed(flat, flat, eta, toy.generator(0)), flat)
    assert torch.equal(made, mixed(crops, others, eta, toy.generator(0)))
    assert not torch.equal(made, mixed(crops, others, eta, toy.generator(1)))
    assert mixed(crops, others, 0.0, toy.generator(0)) is crops
    assert mixed(crops, others[:0], eta, toy.generator(0)) is crops
    assert math.isclose(float(mixed(flat, flat * 0, 1.0, toy.generator(0)).mean()), 45.0)
