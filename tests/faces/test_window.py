"""Where a mask may be, and what becomes of its colours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from faces import toy
from holdfast.faces.window import calmed, flatness, grey_mask, luma, window

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def brightness(pixels: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.einsum("ncyx,c->nyx", pixels.double().numpy(), LUMA)
    return found


def test_the_oval_is_whole_in_the_face_and_nothing_at_the_edge() -> None:
    oval = window("oval")[0, 0]
    assert oval.shape == (112, 112)
    for edge in (oval[0], oval[-1], oval[:, 0], oval[:, -1]):
        assert float(edge.abs().max()) == 0
    assert float(oval.min()) >= 0
    assert float(oval.max()) <= 1
    for x, y in ((38, 52), (74, 52), (56, 72), (42, 92), (71, 92)):  # the landmarks
        assert float(oval[y, x]) > 0.97
    assert float(oval[5, 5]) < 0.01
    # Half of it at the ellipse with half axes 46 and 56 around (55.5, 58), falling outwards everywhere.
    assert float(oval[58, 9]) == pytest.approx(0.5, abs=0.1)
    assert float(oval[58, 102]) == pytest.approx(0.5, abs=0.1)
    # By hand, above the middle: at row 10 the radius is 48 / 56; at row 3 it is 55 / 56, three of four pixels in.
    for row, ramp in ((10, 1.0), (3, 0.75), (1, 0.25)):
        radius = math.hypot(0.5 / 46, (58 - row) / 56)
        assert float(oval[row, 55]) == pytest.approx(ramp / (1 + math.exp(-(1 - radius) * 2 * 46 / 6)), rel=1e-4)
    torch.testing.assert_close(oval, oval.flip(1))
    assert bool((oval[58, :55].diff() >= 0).all())
    assert bool((oval[:58, 55].diff() >= -1e-6).all())
    # No seam: from one pixel to the next it changes by a quarter at most.
    assert float(oval.diff(dim=0).abs().max()) <= 0.26
    assert float(oval.diff(dim=1).abs().max()) <= 0.26


def test_the_box_is_the_square_of_the_paper_and_none_is_everywhere() -> None:
    box = window("box")[0, 0]
    assert box.unique().tolist() == [0, 1]
    assert float(box.sum()) == 94 * 94
    assert float(box[9:103, 9:103].min()) == 1
    # A margin of 30 pixels of a box of 150 to 220: 112 * 15 / side = 7.6 to 11.2 pixels on each side.
    assert 112 * 15 / 220 < 9 < 112 * 15 / 150
    assert torch.equal(window("none"), torch.ones(1, 1, 112, 112))


def test_luma_is_rec_601() -> None:
    pixels = torch.rand(2, 3, 4, 5, generator=toy.generator())
    np.testing.assert_allclose(luma(pixels)[:, 0].numpy(), brightness(pixels), rtol=1e-6)
    assert luma(pixels.double()).dtype == torch.float64
    assert luma(torch.ones(1, 3, 7)).shape == (1, 1, 7)


def test_calming_keeps_brightness_and_scales_colour() -> None:
    mask = torch.randn(2, 3, 112, 112, generator=toy.generator()) * 10
    share = torch.rand(1, 1, 112, 112, generator=toy.generator(1))
    made = calmed(mask, share)
    np.testing.assert_allclose(brightness(made), brightness(mask), atol=1e-4)
    before, after = mask - luma(mask), made - luma(made)
    torch.testing.assert_close(after, share * before, atol=1e-4, rtol=0)
    torch.testing.assert_close(calmed(mask, torch.ones(1)), mask)
    torch.testing.assert_close(calmed(mask, torch.zeros(1)), grey_mask(mask))


def test_a_grey_mask_has_three_equal_channels_of_its_brightness() -> None:
    mask = torch.randn(2, 3, 112, 112, generator=toy.generator())
    made = grey_mask(mask)
    assert made.shape == mask.shape
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])
    np.testing.assert_allclose(made[:, 0].numpy(), brightness(mask), atol=1e-6)
    assert float(made.abs().max()) <= float(mask.abs().max())


def test_flatness_is_one_on_flat_skin_and_falls_with_texture() -> None:
    crops = torch.full((1, 3, 112, 112), 100.0)
    assert torch.equal(flatness(crops), torch.ones(1, 1, 112, 112))
    # A chessboard of +-s has deviation s (but for one pixel of 49): flatness 1 / (1 + (s / 6)^2).
    board = ((torch.arange(112)[:, None] + torch.arange(112)) % 2 * 2 - 1).float()
    for swing in (3.0, 6.0, 30.0):
        found = flatness(crops + swing * board)
        assert float(found[0, 0, 50, 50]) == pytest.approx(1 / (1 + (swing / 6) ** 2), rel=2e-3)
        assert float(found[0, 0, 0, 0]) == pytest.approx(1 / (1 + (swing / 6) ** 2), rel=0.02)  # edges count themselves
    # The mean is over photos' deviations: one rough photo among three flat ones.
    several = torch.cat([crops + 24 * board, crops, crops, crops])
    assert float(flatness(several)[0, 0, 50, 50]) == pytest.approx(0.5, abs=2e-3)
    # Colour alone is no texture.
    colours = crops.clone()
    colours[:, 0] += 0.587 * 30 * board
    colours[:, 1] -= 0.299 * 30 * board
    assert float(flatness(colours).min()) > 0.999
