"""From a face in a photo to the crop that recognisers see, and back with a mask.

Recognisers of the ArcFace family (Deng et al., CVPR 2019) see a face through the similarity transform that takes its
five landmarks closest to fixed places of a 112 x 112 crop (least squares, Umeyama 1991, IEEE TPAMI 13(4), equations
40-42, without reflection). A mask lives in that crop. It goes onto a photo through the inverse transform, computed at
the photo's own resolution, so nothing of the photo itself is resampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

SIDE = 112
TEMPLATE: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the landmarks belong in the crop: eyes (the picture's left first), nose, corners of the mouth."""


@dataclass(frozen=True)
class Alignment:
    """A similarity transform from the photo to the crop: crop = scale R(angle) photo + shift, in pixels.

    Pixel centres have whole coordinates, as landmarks of detectors do.

    Attributes:
        scale: crop pixels per photo pixel: 0.1 for a face of 1120 pixels.
        angle: rotation in radians.
        shift: in crop pixels, (x, y).
    """

    scale: float
    angle: float
    shift: tuple[float, float]

    @property
    def matrix(self) -> Floats:
        """The transform as a matrix, shape (2, 3)."""
        a, b = self.scale * math.cos(self.angle), self.scale * math.sin(self.angle)
        return np.array([[a, -b, self.shift[0]], [b, a, self.shift[1]]])

    @property
    def inverse(self) -> Floats:
        """From the crop to the photo, shape (2, 3)."""
        turn = np.linalg.inv(self.matrix[:, :2])
        return np.hstack([turn, -turn @ self.matrix[:, 2:]])

    def to_crop(self, points: Floats) -> Floats:
        """Places in the crop of points (n, 2) of the photo."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_photo(self, points: Floats) -> Floats:
        """Places in the photo of points (n, 2) of the crop."""
        return points @ self.inverse[:, :2].T + self.inverse[:, 2]

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of a photo that the crop covers: left, top, right, bottom (right and bottom excluded)."""
        edge = SIDE - 0.5
        corners = self.to_photo(np.array([[-0.5, -0.5], [edge, -0.5], [-0.5, edge], [edge, edge]]))
        low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int) + 1
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        return left, top, max(min(int(high[0]), width), left), max(min(int(high[1]), height), top)


def align(landmarks: Floats) -> Alignment:
    """The similarity transform that takes landmarks (5, 2) closest to :data:`TEMPLATE`.

    Raises:
        DataError: the landmarks fall into one point.
    """
    centre, target = landmarks.mean(0), TEMPLATE.mean(0)
    around, wanted = landmarks - centre, TEMPLATE - target
    power = float((around**2).sum())
    if power < 1e-6:
        raise DataError("the landmarks of a face fall into one point", hint="the face is too small to be aligned")
    # In the plane the least-squares rotation without reflection has a closed form: the complex regression coefficient.
    real = float((around * wanted).sum()) / power
    imaginary = float((around[:, 0] * wanted[:, 1] - around[:, 1] * wanted[:, 0]).sum()) / power
    scale, angle = math.hypot(real, imaginary), math.atan2(imaginary, real)
    turn = np.array([[real, -imaginary], [imaginary, real]])
    shift = target - turn @ centre
    return Alignment(scale, angle, (float(shift[0]), float(shift[1])))


def crop(pixels: Pixels, alignment: Alignment) -> Tensor:
    """The aligned face, shape (3, 112, 112), 0..255; what lies outside the photo repeats its edge.

    A large face is averaged down first, so that the crop has no aliasing that another reader of the photo would not
    see.
    """
    import torch
    from torch.nn import functional

    height, width = pixels.shape[:2]
    margin = math.ceil(2 / alignment.scale)
    left, top, right, bottom = alignment.window(height, width)
    left, top, right, bottom = max(left - margin, 0), max(top - margin, 0), right + margin, bottom + margin
    part = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right])).permute(2, 0, 1)[None].float()
    if not part.numel():
        raise DataError("a face lies outside its photo", hint="its landmarks are wrong")
    factor = max(1, int(1 / alignment.scale + 0.25))
    if factor > 1:
        part = functional.avg_pool2d(part, factor, ceil_mode=True, count_include_pad=False)
    # A pixel of the reduced part has its centre at factor * i + (factor - 1) / 2 of the whole one.
    grid_y, grid_x = np.mgrid[0:SIDE, 0:SIDE]
    places = alignment.to_photo(np.stack([grid_x.ravel(), grid_y.ravel()], 1).astype(np.float64)) - [left, top]
    places = (places - (factor - 1) / 2) / factor
    size = np.array([part.shape[-1], part.shape[-2]])
    grid = torch.from_numpy((2 * places + 1) / size - 1).float().view(1, SIDE, SIDE, 2)
    found = functional.grid_sample(part, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0]


def spread(mask: Tensor, alignment: Alignment, height: int, width: int) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """A mask at a photo's resolution: what is to be added to the pixels around one face.

    Args:
        mask: shape (3, 112, 112); zero at its edge, or a seam shows.
        alignment: of the face.
        height: of the photo, in pixels.
        width: of the photo.

    Returns:
        the (left, top) corner, and values of shape (rows, columns, 3).
    """
    import torch
    from torch.nn import functional

    left, top, right, bottom = alignment.window(height, width)
    rows, columns = bottom - top, right - left
    if not rows or not columns:
        return (left, top), np.zeros((rows, columns, 3), np.float32)
    matrix = alignment.matrix
    # Affine, so the places follow from one row and one column.
    x = torch.arange(left, right, dtype=torch.float32)
    y = torch.arange(top, bottom, dtype=torch.float32)[:, None]
    grid = torch.empty(1, rows, columns, 2)
    for axis in (0, 1):
        place = float(matrix[axis, 0]) * x + (float(matrix[axis, 1]) * y + float(matrix[axis, 2]))
        grid[0, :, :, axis] = (2 * place + 1) / SIDE - 1
    found = functional.grid_sample(mask[None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return (left, top), found[0].permute(1, 2, 0).numpy()
