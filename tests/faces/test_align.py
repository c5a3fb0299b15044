"""The transform by landmarks against other solvers, and a mask's way onto a photo and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize

from holdfast.core.errors import DataError
from holdfast.faces.align import SIDE, TEMPLATE, Alignment, align, crop, spread
from holdfast.faces.mask import removed
from holdfast.faces.protect import changed_pixels
from holdfast.faces.window import window

Floats = NDArray[np.float64]
ARCFACE = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]


def placed(scale: float, degrees: float, centre: tuple[float, float] = (200.0, 180.0)) -> Alignment:
    """A face of a given size (crop pixels per photo pixel) and turn whose crop's middle lies at a place of a photo."""
    made = Alignment(scale, math.radians(degrees), (0.0, 0.0))
    shift = np.array([55.5, 55.5]) - made.to_crop(np.array([centre]))[0]
    return Alignment(scale, made.angle, (float(shift[0]), float(shift[1])))


def by_svd(source: Floats, target: Floats) -> tuple[Floats, float]:
    """Umeyama's equations 38 to 43: matrix (2, 3) and the least mean squared error."""
    mu, nu = source.mean(0), target.mean(0)
    around, wanted = source - mu, target - nu
    n = len(source)
    u, d, vt = np.linalg.svd(wanted.T @ around / n)
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = u @ s @ vt
    power = (around**2).sum() / n
    c = float((np.diag(d) @ s).trace() / power)
    error = float((wanted**2).sum() / n - (np.diag(d) @ s).trace() ** 2 / power)
    return np.hstack([c * turn, (nu - c * turn @ mu)[:, None]]), error


@pytest.mark.parametrize("deviation", [0.0, 1.0, 6.0, 40.0])
def test_landmarks_go_to_the_template_as_by_umeyamas_svd(deviation: float) -> None:
    rng = np.random.default_rng(int(deviation))
    for _ in range(20):
        there = placed(rng.uniform(0.05, 2), rng.uniform(-180, 180), tuple(rng.uniform(0, 900, 2)))
        points = there.to_photo(TEMPLATE + rng.normal(0, deviation, (5, 2)))
        found = align(points)
        expected, error = by_svd(points, TEMPLATE)
        np.testing.assert_allclose(found.matrix, expected, atol=1e-8)
        assert np.mean(((found.to_crop(points) - TEMPLATE) ** 2).sum(1)) == pytest.approx(error, abs=1e-8)
        if not deviation:
            np.testing.assert_allclose(found.matrix, there.matrix, atol=1e-8)


def test_no_other_similarity_brings_landmarks_closer() -> None:
    points = np.array([(110.0, 95.0), (170.0, 101.0), (150.0, 130.0), (115.0, 160.0), (161.0, 170.0)])

    def error(x: Floats) -> float:
        turn = np.array([[x[0], -x[1]], [x[1], x[0]]])
        return float(((points @ turn.T + x[2:] - TEMPLATE) ** 2).sum())

    best = optimize.minimize(error, [0.5, 0.1, 0.0, 0.0], method="Nelder-Mead", options={"maxiter": 40000, "maxfev": 40000, "xatol": 1e-10, "fatol": 1e-12})  # fmt: skip
    found = align(points).matrix
    assert error(np.array([found[0, 0], found[1, 0], *found[:, 2]])) == pytest.approx(best.fun, rel=1e-6)


def test_a_mirrored_face_is_turned_and_never_mirrored() -> None:
    mirrored = TEMPLATE * [-1, 1] + [112, 0]
    found = align(mirrored)
    assert np.linalg.det(found.matrix[:, :2]) > 0
    np.testing.assert_allclose(found.matrix, by_svd(mirrored, TEMPLATE)[0], atol=1e-8)


def test_the_template_is_arcfaces() -> None:
    np.testing.assert_array_equal(TEMPLATE, ARCFACE)
    assert SIDE == 112


def test_landmarks_in_one_point_are_refused() -> None:
    with pytest.raises(DataError, match="fall into one point") as caught:
        align(np.full((5, 2), 17.0))
    assert caught.value.hint


def test_there_and_back_is_where_one_was() -> None:
    there = placed(0.31, 23)
    points = np.random.default_rng(0).uniform(-50, 400, (7, 2))
    np.testing.assert_allclose(there.to_photo(there.to_crop(points)), points, atol=1e-9)
    np.testing.assert_allclose(there.inverse[:, :2] @ there.matrix[:, :2], np.eye(2), atol=1e-12)
    # A quarter turn of twice the size, by hand: (x, y) -> (-2 y, 2 x).
    np.testing.assert_allclose(Alignment(2, math.pi / 2, (1, 5)).to_crop(np.array([[3.0, 4.0]])), [[-7.0, 11.0]])


def test_the_window_holds_the_crop_and_no_more() -> None:
    there = Alignment(0.5, 0.0, (-50.0, -30.0))  # crop pixel c lies at (c + 50) / 0.5, (c + 30) / 0.5
    assert there.window(1000, 1000) == (99, 59, 324, 284)
    assert there.window(100, 200) == (99, 59, 200, 100)
    left, top, right, bottom = there.window(20, 20)  # it lies outside
    assert (right - left) * (bottom - top) == 0
    turned = placed(0.4, 30)
    y, x = np.mgrid[0:400, 0:400]
    inside = (
        np.abs(turned.to_crop(np.stack([x.ravel(), y.ravel()], 1).astype(float)) - 55.5).max(1).reshape(400, 400) <= 56
    )
    left, top, right, bottom = turned.window(400, 400)
    found = np.zeros((400, 400), bool)
    found[top:bottom, left:right] = True
    assert not (inside & ~found).any()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert abs(np.array([left - columns[0], right - 1 - columns[-1], top - rows[0], bottom - 1 - rows[-1]])).max() <= 1


def smooth(height: int, width: int, seed: int = 0, deviation: float = 3.0) -> NDArray[np.uint8]:
    rough = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    field = ndimage.gaussian_filter(rough, (deviation, deviation, 0))
    return np.clip(128 + 40 * field / field.std(), 20, 235).astype(np.uint8)


def sampled(pixels: NDArray[np.uint8], alignment: Alignment) -> Floats:
    """The crop by scipy's interpolation, one point a pixel."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    places = alignment.to_photo(np.stack([x.ravel(), y.ravel()], 1).astype(float))
    found = [
        ndimage.map_coordinates(pixels[..., c].astype(float), [places[:, 1], places[:, 0]], order=1, mode="nearest")
        for c in range(3)
    ]
    return np.stack(found).reshape(3, SIDE, SIDE)


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (0.83, 17.0), (1.7, -35.0)])
def test_a_crop_is_scipys(scale: float, degrees: float) -> None:
    pixels = smooth(360, 400)
    there = placed(scale, degrees)
    np.testing.assert_allclose(crop(pixels, there).numpy(), sampled(pixels, there), atol=2e-2)


def test_a_crop_at_the_photos_own_pixels_is_those_pixels() -> None:
    pixels = smooth(200, 220, deviation=0.5)
    found = crop(pixels, Alignment(1, 0, (-30, -40)))
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), pixels[40:152, 30:142], atol=2e-3)


@pytest.mark.parametrize(("scale", "degrees"), [(0.52, 12), (0.5, 0), (0.3, -40), (0.1, 0), (0.091, 80)])
def test_a_large_face_lies_where_a_small_one_would(scale: float, degrees: float) -> None:
    """Of a ramp, an average is the value at its middle: half a pixel off would show."""
    side = math.ceil(220 / scale)
    there = placed(scale, degrees, (side / 2 + 0.4, side / 2 + 3.7))
    for axis in (0, 1):
        ramp = np.broadcast_to((np.arange(side) // 8)[:, None] if axis else np.arange(side) // 8, (side, side))
        pixels = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)  # steps of eight, to fit into a byte
        y, x = np.mgrid[0:SIDE, 0:SIDE]
        expected = there.to_photo(np.stack([x.ravel(), y.ravel()], 1).astype(float))[:, axis].reshape(SIDE, SIDE)
        off = 8 * crop(pixels, there)[1].numpy() + 3.5 - expected
        assert abs(off.mean()) < 0.15
        assert np.abs(off).max() < 4.1


@pytest.mark.parametrize("scale", [0.5, 0.34, 0.1])
def test_a_large_face_is_averaged(scale: float) -> None:
    """Of grain, as little stays as an average over the photo pixels of a crop pixel leaves."""
    side = math.ceil(120 / scale)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found = crop(pixels, placed(scale, 0, (side / 2, side / 2)))
    assert float(found.std()) < 1.1 * scale * pixels.std()
    assert float(found.mean()) == pytest.approx(pixels.mean(), abs=1)


def test_what_lies_outside_repeats_the_edge() -> None:
    pixels = smooth(100, 100)
    there = placed(1.0, 0, (10.0, 95.0))
    np.testing.assert_allclose(crop(pixels, there).numpy(), sampled(pixels, there), atol=2e-2)
    with pytest.raises(DataError, match="outside its photo"):
        crop(pixels, placed(1.0, 0, (2000.0, 2000.0)))


def test_a_mask_is_put_where_the_crop_came_from() -> None:
    mask = torch.zeros(3, SIDE, SIDE)
    for channel, (x, y) in enumerate([(30, 40), (80, 40), (50, 90)]):
        mask[channel, y - 1 : y + 2, x - 1 : x + 2] = 10
    there = placed(0.45, 25)
    (left, top), change = spread(mask, there, 400, 400)
    assert (left, top) == there.window(400, 400)[:2]
    assert change.shape == (there.window(400, 400)[3] - top, there.window(400, 400)[2] - left, 3)
    for channel, point in enumerate([(30.0, 40.0), (80.0, 40.0), (50.0, 90.0)]):
        weight = change[..., channel]
        y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
        found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() + [left, top]
        np.testing.assert_allclose(found, there.to_photo(np.array([point]))[0], atol=0.02)
        assert weight.sum() == pytest.approx(90 / 0.45**2, rel=0.01)  # areas grow with the photo


def test_a_mask_outside_the_photo_is_nothing() -> None:
    (_, _), change = spread(torch.ones(3, SIDE, SIDE), placed(1.0, 0, (900.0, 900.0)), 100, 100)
    assert change.size == 0


def face_mask(seed: int = 0, deviation: float = 1.5) -> torch.Tensor:
    """A mask as methods make them: within +-16, fading out, whole numbers, with structure of a few pixels."""
    rough = np.random.default_rng(seed).normal(0, 1, (3, SIDE, SIDE))
    field = ndimage.gaussian_filter(rough, (0, deviation, deviation))
    whole = torch.from_numpy(16 * np.clip(1.5 * field / field.std() / 2, -1, 1)).float() * window("oval")[0]
    return whole.round()


@pytest.mark.parametrize(
    ("scale", "degrees", "bound"),
    # Root mean squared grey levels, of a mask of 7.3: about a tenth above what was measured.
    [
        (1.0, 0, 0.57), (1.0, 7, 0.6), (0.6, -33, 0.3), (0.47, 90, 0.63), (0.3, 0, 0.6), (0.3, 15, 0.6), (0.21, 180, 0.8),
        (0.12, -33, 0.69), (0.1, 7, 0.74),
    ],
)  # fmt: skip
def test_a_mask_survives_the_way_onto_a_photo_and_back(scale: float, degrees: float, bound: float) -> None:
    """Spread, rounded to the photo's whole numbers and cropped again, a mask is itself to a tenth."""
    side = math.ceil(170 / scale)
    small = smooth(160, 170)
    pixels = np.ascontiguousarray(small.repeat(-(-side // 160), 0).repeat(-(-side // 160), 1)[:side, : side + 9])
    there = placed(scale, degrees, (side / 2 + 3.3, side / 2 - 1.7))
    mask = face_mask()
    protected = changed_pixels(pixels, [there], mask, 16)
    back = crop(protected, there) - crop(pixels, there)
    error = float((back - mask).square().mean().sqrt())
    power = float(mask.square().mean().sqrt())
    assert 5 < power < 9
    assert error < bound
    assert float((back * mask).sum() / (back.norm() * mask.norm())) > 0.99
    # And taken off again, the photo is what it was but for rounding.
    again = changed_pixels(protected, [there], mask, 16, sign=-1)
    assert np.abs(again.astype(int) - pixels.astype(int)).max() <= 1
    left = removed(crop(protected, there)[None], mask[None]) - crop(pixels, there)
    assert float(left.square().mean().sqrt()) < bound + 0.35  # its own rounding
