"""Finding faces: YuNet in plain torch.

YuNet (Wu, Peng and Yu 2023, "YuNet: a tiny millisecond-level face detector", Machine Intelligence Research 20) has 75
thousand parameters and gives a box, five landmarks and a score for each face. Its authors' weights (Apache-2.0) are
shipped; normalisation is folded into the convolutions. What differs from their code: decoding is one pass over all
levels, and faces that are too large, too small or turned for one look are looked for again at other scales and quarter
turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import ModelError

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

WEIGHTS = Path(__file__).parent / "weights" / "yunet" / "model.safetensors"
SCORE, OVERLAP = 0.6, 0.45
UPRIGHT, _CLEARLY = 0.93, 0.01
"""A face of this score stands upright. One that lies or stands on its head is found too, with landmarks of nothing: in
115 photos its score was 0.92 at most, and always at least 0.019 below that of the same face upright."""
LOOK = 640
"""Longest side in pixels at which a photo is looked at first; a face of a fifteenth of it is found."""
FINE_LOOK = 1600
_STEP = 32
_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Face:
    """A face in a photo.

    Attributes:
        box: left, top, right, bottom in pixels; it may reach over the edge.
        landmarks: eyes (the picture's left first), nose, corners of the mouth, shape (5, 2), in pixels.
        score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: Floats
    score: float

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class _Unit(nn.Module):
    """A pointwise and a depthwise convolution."""

    def __init__(self, inputs: int, outputs: int, *, last: bool = False) -> None:
        super().__init__()
        self.point = nn.Conv2d(inputs, outputs, 1)
        self.depth = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same height and width."""
        found: Tensor = self.depth(self.point(x))
        return found if self.last else functional.relu(found)


class YuNet(nn.Module):
    """The network: (n, 3, height, width) BGR pixels 0..255, sides multiples of 32, to one row for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.start = _Unit(16, 16)
        widths = [(16, 16, 64)] + [(64, 64, 64)] * 4
        self.body = nn.ModuleList(nn.Sequential(_Unit(a, b), _Unit(b, c)) for a, b, c in widths)
        self.neck = nn.ModuleList(_Unit(64, 64) for _ in _STRIDES)
        self.share = nn.ModuleList(_Unit(64, 64) for _ in _STRIDES)
        outputs = {"cls": 1, "bbox": 4, "obj": 1, "kps": 10}
        self.heads = nn.ModuleDict(
            {name: nn.ModuleList(_Unit(64, size, last=True) for _ in _STRIDES) for name, size in outputs.items()}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Outputs of all levels, each of shape (n, places, size), finest level first."""
        x = functional.max_pool2d(self.start(functional.relu(self.first(pixels))), 2)
        levels = []
        for number, stage in enumerate(self.body):
            x = stage(x)
            if number >= 2:
                levels.append(x)
            if number in (1, 2, 3):
                x = functional.max_pool2d(x, 2)
        for number in (2, 1, 0):
            levels[number] = self.neck[number](levels[number])
            if number:
                # Added before the finer level's own convolutions, as in the authors' network.
                levels[number - 1] = levels[number - 1] + functional.interpolate(
                    levels[number], scale_factor=2.0, mode="nearest"
                )
        shared = [unit(level) for unit, level in zip(self.share, levels, strict=True)]
        found = {}
        for name, head in self.heads.items():
            assert isinstance(head, nn.ModuleList)
            found[name] = torch.cat([unit(x).flatten(2).mT for unit, x in zip(head, shared, strict=True)], 1)
        return found


@lru_cache(maxsize=1)
def detector() -> YuNet:
    """The shipped detector.

    Raises:
        ModelError: its weights are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = YuNet()
    try:
        found.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"the face detector's weights do not load: {WEIGHTS.name}", hint="reinstall holdfast"
        ) from error
    return found.eval().requires_grad_(False)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict (``yunet_n.pth``) under our names, with batch normalisation folded.

    Args:
        state: names as in libfacedetection.train.
    """
    names = {"first": ("backbone.model0.conv1", "backbone.model0.bn1")}
    units = {"start": "backbone.model0.conv2"}
    for number in range(5):
        for place in (0, 1):
            units[f"body.{number}.{place}"] = f"backbone.model{number + 1}.conv{place + 1}"
    for number in range(3):
        units[f"neck.{number}"] = f"neck.lateral_convs.{number}"
        units[f"share.{number}"] = f"bbox_head.multi_level_share_convs.{number}.0"
        for head in ("cls", "bbox", "obj", "kps"):
            units[f"heads.{head}.{number}"] = f"bbox_head.multi_level_{head}.{number}"
    made: dict[str, Tensor] = {}
    for ours, theirs in units.items():
        for part in ("weight", "bias"):
            made[f"{ours}.point.{part}"] = state[f"{theirs}.conv1.{part}"]
        names[f"{ours}.depth"] = (f"{theirs}.conv2", f"{theirs}.bn")
    for ours, (convolution, normalisation) in names.items():
        weight, bias = state[f"{convolution}.weight"], state[f"{convolution}.bias"]
        if f"{normalisation}.weight" in state:
            deviation = torch.sqrt(state[f"{normalisation}.running_var"] + 1e-5)
            scale = state[f"{normalisation}.weight"] / deviation
            bias = (bias - state[f"{normalisation}.running_mean"]) * scale + state[f"{normalisation}.bias"]
            weight = weight * scale.view(-1, 1, 1, 1)
        made[f"{ours}.weight"], made[f"{ours}.bias"] = weight, bias
    return made


def find_faces(pixels: Pixels, *, score: float = SCORE) -> list[Face]:
    """Faces in a photo, the largest first.

    The photo is looked at with its longer side at 640 pixels. Where that shows nothing, it is looked at with a border
    (for a face that fills it) and finer (for small ones); where it shows no face that surely stands upright, turned by
    quarters (for photos without orientation), of which the surest counts.

    Args:
        pixels: (height, width, 3), RGB.
        score: least score of a face.
    """
    found = _look(pixels, LOOK, 0.0, score)
    height, width = pixels.shape[:2]
    if not found:
        found = _look(pixels, LOOK, 0.25, score)
    if not found and max(height, width) > LOOK:
        found = _look(pixels, FINE_LOOK, 0.0, score)
    if _surest(found) < UPRIGHT:
        for turns in (1, 3, 2):
            turned = np.rot90(pixels, turns).copy()
            other = _look(turned, LOOK, 0.1, score)
            if _surest(other) > _surest(found) + _CLEARLY:
                found = [_turned_back(face, turns, height, width) for face in other]
    return sorted(found, key=lambda face: -face.size)


def _surest(faces: Sequence[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def _look(pixels: Pixels, side: int, border: float, score: float) -> list[Face]:
    """One pass at one scale; ``border`` is added on each side, as a share of the longer side."""
    height, width = pixels.shape[:2]
    scale = min(side / (max(height, width) * (1 + 2 * border)), 4.0)
    # A small photo is enlarged, at most fourfold: its faces are below what the finest level sees.
    small = _resized(pixels, max(round(height * scale), 1), max(round(width * scale), 1))
    ratio_y, ratio_x = small.shape[-2] / height, small.shape[-1] / width
    offset = round(border * max(small.shape[-2:]))
    rows, columns = (-(-(size + 2 * offset) // _STEP) * _STEP for size in small.shape[-2:])
    canvas = torch.zeros(1, 3, rows, columns)
    canvas[..., offset : offset + small.shape[-2], offset : offset + small.shape[-1]] = small.flip(1)
    with torch.inference_mode():
        raw = {name: value[0] for name, value in detector()(canvas).items()}
    boxes, points, scores = _decode(raw, rows, columns, score)
    kept = _distinct(boxes, scores)
    back = np.array([1 / ratio_x, 1 / ratio_y])
    return [
        Face(
            tuple(((boxes[i].reshape(2, 2) - offset) * back).ravel().tolist()),
            (points[i] - offset) * back,
            float(scores[i]),
        )
        for i in kept
    ]


def _resized(pixels: Pixels, rows: int, columns: int) -> Tensor:
    """The photo at another size, shape (1, 3, rows, columns); large ones are averaged down by whole numbers first."""
    factor = max(1, min(pixels.shape[0] // rows, pixels.shape[1] // columns))
    if factor > 1:
        pixels = _averaged(pixels, factor)
    part = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    if part.shape[-2:] == (rows, columns):
        return part
    return functional.interpolate(part, (rows, columns), mode="bilinear", align_corners=False, antialias=True)


def _averaged(pixels: Pixels, factor: int) -> Pixels:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(factor))


def _decode(raw: Mapping[str, Tensor], rows: int, columns: int, score: float) -> tuple[Floats, Floats, Floats]:
    """Boxes (k, 4), landmarks (k, 5, 2) and scores (k,) of the places above the least score."""
    corners, strides = [], []
    for stride in _STRIDES:
        y, x = torch.meshgrid(torch.arange(rows // stride), torch.arange(columns // stride), indexing="ij")
        corners.append(torch.stack([x.flatten(), y.flatten()], 1) * stride)
        strides.append(torch.full((x.numel(), 1), float(stride)))
    corner, stride_of = torch.cat(corners).float(), torch.cat(strides)
    scores = (raw["cls"].sigmoid() * raw["obj"].sigmoid()).sqrt().squeeze(1)
    good = scores >= score
    corner, step, box = corner[good], stride_of[good], raw["bbox"][good]
    centre = corner + box[:, :2] * step
    half = box[:, 2:].exp() * step / 2
    points = corner[:, None] + raw["kps"][good].view(-1, 5, 2) * step[:, None]
    boxes = torch.cat([centre - half, centre + half], 1)
    return boxes.double().numpy(), points.double().numpy(), scores[good].double().numpy()


def _distinct(boxes: Floats, scores: Floats) -> list[int]:
    """Places of the boxes that no better one overlaps by more than 0.45 (non-maximum suppression)."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.clip(high - low, 0, None).prod(1)
        order = rest[common / (area[best] + area[rest] - common) <= OVERLAP]
    return kept


def _turned_back(face: Face, turns: int, height: int, width: int) -> Face:
    """A face of a photo that was turned counter-clockwise by quarter turns, in the photo's own coordinates."""
    corners = np.array(face.box).reshape(2, 2)
    points = np.vstack([corners, face.landmarks])
    x, y = points[:, 0], points[:, 1]
    if turns == 1:
        points = np.stack([width - 1 - y, x], 1)
    elif turns == 2:
        points = np.stack([width - 1 - x, height - 1 - y], 1)
    else:
        points = np.stack([y, height - 1 - x], 1)
    low, high = points[:2].min(0), points[:2].max(0)
    return Face((low[0], low[1], high[0], high[1]), points[2:], face.score)


def biggest(faces: Sequence[Face]) -> Face:
    """The largest of several faces."""
    return max(faces, key=lambda face: face.size)
