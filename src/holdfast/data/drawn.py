"""Drawn people: photographs of faces that belong to nobody.

A :class:`Person` is a set of some sixty measures of a face, all from one seed: bones, eyes, brows, nose, mouth, skin,
hair. A photograph of that person adds what changes from one to the next: turn of the head, expression, light,
background, clothes, glasses, sharpness and grain. The head is a height field over elliptic slices with a nose, sockets,
lips and cheeks on it, seen in parallel projection and shaded; so features move over each other when the head turns, a
detector of real faces finds it, and the true landmarks are known because they are points of the same surface.

Units: the head's own plane, about one unit from the middle of the face to its side, x to the right, y down, z towards
the camera. The same seed gives the same pixels on one platform.

Seeds of people: :func:`demo_people` (0 to 999) never meet :func:`training_people` (1000 on).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import DataError

Array = NDArray[np.floating[Any]]  # float32 where it is large
Slices = tuple[slice, slice]

CROP = 112  # pixels on a side of an aligned crop
# ArcFace's five points in a crop: eyes, tip of the nose, corners of the mouth, each pair from left to right.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
FIRST_TRAINING_PERSON = 1000
# Where YuNet sees the landmarks of drawn people, less where they are, on average; crop pixels.
_HABIT = np.array([(0.5, -1.7), (0.5, -1.7), (0.9, -0.3), (0.6, -3.2), (0.0, -3.2)])
_FINER = 1.3  # aligned crops are drawn this much larger and then sampled down, as a photo's face is
_TILE = 512  # side of the repeating noise

# Mean and spread of each measure; drawn from a normal distribution cut at 1.9 spreads.
MEASURES: dict[str, tuple[float, float]] = {
    "head_width": (0.99, 0.05), "crown": (1.45, 0.05), "chin": (1.46, 0.07), "jaw_power": (2.6, 0.42),
    "jaw_root": (1.85, 0.2), "cheek_swell": (0.02, 0.035), "jaw_swell": (0.0, 0.045), "depth": (0.97, 0.05),
    "chin_bump": (0.07, 0.035), "cleft": (0.0, 0.02), "cheekbone": (0.08, 0.04), "cheekbone_y": (0.42, 0.07),
    "brow_ridge": (0.05, 0.03), "forehead": (0.03, 0.03),
    "eye_x": (0.425, 0.028), "eye_y": (0.0, 0.025), "eye_width": (0.215, 0.02), "eye_open": (0.55, 0.08),
    "eye_tilt": (0.06, 0.075), "eye_skew": (0.0, 0.22), "iris": (0.45, 0.03), "socket": (0.07, 0.03),
    "crease": (0.24, 0.1), "crease_dark": (0.3, 0.16), "eye_bag": (0.14, 0.1), "lash": (0.6, 0.2),
    "brow_y": (-0.27, 0.04), "brow_inner": (0.13, 0.045), "brow_outer": (0.66, 0.045), "brow_arch": (0.075, 0.04),
    "brow_slope": (-0.01, 0.04), "brow_thick": (0.055, 0.019), "brow_dark": (0.72, 0.16),
    "nose_y": (0.49, 0.05), "nose_high": (0.36, 0.06), "nose_root": (0.08, 0.035), "nose_bridge": (0.12, 0.022),
    "nose_tip": (0.15, 0.025), "nose_wing": (0.2, 0.033), "nose_hump": (0.02, 0.035), "nostril": (0.7, 0.12),
    "mouth_y": (0.89, 0.045), "mouth_width": (0.36, 0.042), "lip_upper": (0.078, 0.022), "lip_lower": (0.105, 0.025),
    "cupid": (0.35, 0.2), "lip_curve": (0.0, 0.012), "lip_red": (0.6, 0.25), "lip_dark": (0.4, 0.2),
    "philtrum": (0.05, 0.03), "fold": (0.14, 0.12),
    "ear_y": (0.22, 0.06), "ear_size": (0.31, 0.035), "ear_out": (0.02, 0.04),
    "skin_pink": (0.0, 0.5), "mottle": (0.045, 0.02), "freckles": (-0.3, 0.4), "stubble": (-0.2, 0.4),
    "beard": (-0.75, 0.7), "moustache": (-0.6, 0.6), "blush": (0.1, 0.07),
    "hair_line": (-0.86, 0.09), "hair_peak": (0.0, 0.04), "hair_temple": (0.1, 0.13), "hair_part": (0.0, 0.35),
    "hair_fringe": (-0.1, 0.17), "hair_sweep": (0.0, 0.16), "hair_top": (0.2, 0.07), "hair_side": (0.1, 0.06),
    "hair_streak": (0.3, 0.1), "hair_curl": (0.4, 0.3),
}  # fmt: skip
_SKINS = [
    (252, 224, 204),
    (240, 202, 174),
    (222, 176, 143),
    (194, 143, 108),
    (152, 104, 75),
    (112, 74, 54),
    (78, 52, 40),
]
_HAIRS = [(28, 24, 24), (44, 33, 28), (72, 50, 36), (104, 72, 48), (148, 108, 66), (196, 160, 104), (138, 66, 36),
          (150, 146, 142)]  # fmt: skip
_EYES = [(52, 32, 22), (84, 54, 32), (118, 88, 48), (88, 106, 68), (84, 118, 142), (110, 130, 140)]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who does not exist; all of it follows from ``seed``.

    Attributes:
        seed: the person's number.
        measures: by name, in head units where they are lengths.
        skin, hair, eyes: colours, linear light, 0 to 1.
        hair_length: down to which height hair falls; below 0.5 it ends above the ears.
        marks: moles, each x, y, radius and darkness.
    """

    seed: int
    measures: dict[str, float]
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    eyes: tuple[float, float, float]
    hair_length: float
    marks: tuple[tuple[float, float, float, float], ...]

    def __getitem__(self, name: str) -> float:
        return self.measures[name]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn photograph.

    Attributes:
        pixels: RGB, uint8, shape (height, width, 3).
        landmarks: shape (people, 5, 2), x and y: eyes, tip of the nose, corners of the mouth, from left to right.
        people: seeds of those in it, in the order of ``landmarks``.
    """

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float64]
    people: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a photograph adds to a person: angles in radians, the rest in shares or head units."""

    yaw: float
    pitch: float
    roll: float
    smile: float
    mouth_open: float
    closed: tuple[float, float]
    brow_lift: float
    gaze: tuple[float, float]
    light: tuple[float, float, float]
    strength: float
    ambient: float
    warmth: tuple[float, float, float]
    clothes: tuple[float, float, float]
    glasses: tuple[float, float, float, float] | None
    grain: int


def demo_people(count: int, first: int = 0) -> list[Person]:
    """People that no shipped recogniser was trained on.

    Raises:
        DataError: so many that they would run into the people of training.
    """
    if first < 0 or first + count > FIRST_TRAINING_PERSON:
        raise DataError(
            f"no {count} demo people from {first}", hint=f"their seeds are 0 to {FIRST_TRAINING_PERSON - 1}"
        )
    return [person(seed) for seed in range(first, first + count)]


def training_people(count: int, group: int = 0) -> list[Person]:
    """People to train on; groups have nobody in common (up to 100 000 people in each)."""
    first = FIRST_TRAINING_PERSON + 100_000 * group
    return [person(seed) for seed in range(first, first + count)]


def person(seed: int) -> Person:
    """Draw a person."""
    rng = np.random.default_rng([0xFACE, seed])
    measures = {name: mean + spread * _normal(rng) for name, (mean, spread) in MEASURES.items()}
    soft = rng.random() < 0.5  # half have neither beard nor moustache, and fuller lips more often
    if soft:
        measures |= {"beard": 0.0, "moustache": 0.0, "stubble": 0.0}
        measures["lip_red"] += 0.15
        measures["lash"] += 0.25
    tone = rng.uniform(0, len(_SKINS) - 1)
    skin = _between(_SKINS, tone) * (1 + measures["skin_pink"] * np.array([0.02, -0.04, -0.03]))
    dark = tone > 3.2
    shades = _HAIRS[:3] if dark else _HAIRS
    hair = _colour(shades[rng.integers(len(shades))]) * rng.uniform(0.75, 1.25)
    eyes = _between(_EYES[:2] if dark else _EYES, rng.uniform(0, 1 if dark else len(_EYES) - 1))
    length = float(rng.choice([0.1, 0.35, 1.0, 1.7, 2.4], p=[0.3, 0.2, 0.15, 0.2, 0.15] if soft else
                              [0.6, 0.28, 0.07, 0.03, 0.02])) + 0.12 * _normal(rng)  # fmt: skip
    marks = tuple(
        (rng.uniform(-0.75, 0.75), rng.uniform(-0.6, 1.3), rng.uniform(0.013, 0.03), rng.uniform(0.45, 0.85))
        for _ in range(rng.poisson(1.3))
    )
    return Person(seed, measures, _triple(skin), _triple(hair), _triple(eyes), length, marks)


def moment(rng: np.random.Generator) -> Moment:
    """Draw what a photograph adds."""
    smile = float(rng.choice([0.0, 0.35, 0.8], p=[0.4, 0.3, 0.3])) + 0.15 * _normal(rng)
    blink = max(0.0, 0.12 * _normal(rng)) + (0.85 if rng.random() < 0.03 else 0.0)
    light = np.array([rng.normal(0, 0.55), -abs(rng.normal(0.45, 0.35)), 1.0])
    light /= np.linalg.norm(light)
    warm = 0.09 * _normal(rng)
    cloth = rng.uniform(0.08, 0.7) + rng.uniform(-0.16, 0.16, 3)
    glasses = None
    if rng.random() < 0.12:
        glasses = (rng.uniform(0.24, 0.31), rng.uniform(0.7, 1.0), rng.uniform(0.012, 0.03), rng.uniform(0.02, 0.25))
    return Moment(
        yaw=0.2 * _normal(rng), pitch=0.1 * _normal(rng), roll=0.1 * _normal(rng),
        smile=smile, mouth_open=max(0.0, 0.3 * _normal(rng) + 0.2 * smile - 0.1), closed=(blink, blink),
        brow_lift=0.03 * _normal(rng), gaze=(0.16 * _normal(rng), 0.07 * _normal(rng)),
        light=_triple(light), strength=rng.uniform(0.75, 1.1), ambient=rng.uniform(0.22, 0.5),
        warmth=(1 + warm, 1 + 0.02 * _normal(rng), 1 - warm),
        clothes=_triple(cloth.clip(0.03, 0.85) ** 2), glasses=glasses, grain=int(rng.integers(2**31)),
    )  # fmt: skip


def photo(someone: Person, seed: int, size: tuple[int, int] = (480, 480)) -> Drawn:
    """A photograph of one person, ``size`` is width and height."""
    rng = np.random.default_rng([0xF070, someone.seed, seed])
    width, height = size
    unit = min(size) * rng.uniform(0.14, 0.22)
    middle = complex(width * rng.uniform(0.42, 0.58), height * rng.uniform(0.4, 0.5))
    return _photograph([someone], [(unit, middle)], size, rng)


def group(people: Sequence[Person], seed: int, size: tuple[int, int] | None = None) -> Drawn:
    """A photograph of several people side by side; wider the more there are, unless ``size`` says otherwise.

    Raises:
        DataError: nobody to draw.
    """
    if not people:
        raise DataError("a photograph of nobody", hint="give at least one person")
    rng = np.random.default_rng([0x6E0, seed, *(someone.seed for someone in people)])
    width, height = size or (240 * len(people) + 120, 400)
    step = width / (len(people) + 0.4)
    places = [
        (min(step / 3.1, height / 5) * rng.uniform(0.88, 1.0),
         complex(step * (0.7 + place + rng.uniform(-0.06, 0.06)), height * rng.uniform(0.37, 0.48)))
        for place in range(len(people))
    ]  # fmt: skip
    return _photograph(people, places, (width, height), rng)


def aligned(someone: Person, seed: int, jitter: float = 1.0) -> NDArray[np.uint8]:
    """A crop of a photograph of one person, as if a detector had found and aligned it, shape (112, 112, 3).

    Args:
        someone: the person.
        seed: of all that changes from photo to photo.
        jitter: how far off the landmarks are that the crop is aligned by: 0 not at all, 1 as a detector's are.
    """
    rng = np.random.default_rng([0xA119, someone.seed, seed])
    now = moment(rng)
    head = _Head(someone, now)
    side = round(CROP * _FINER)
    found = _as_complex((TEMPLATE + 0.5) * side / CROP - 0.5)
    true = head.landmarks()
    first = _fit(true, found)
    habit = rng.uniform(0, 1.2) * _as_complex(_HABIT)
    shaken = true * first[0] + first[1] + _FINER * jitter * (habit + rng.normal(size=5) + 1j * rng.normal(size=5))
    # What a detector says of where the landmarks are is brought onto the template; the face lands where that puts it.
    second = _fit(shaken, found)
    canvas = np.empty((side, side, 3), np.float32)
    _background(canvas, rng)
    head.draw(canvas, second[0] * first[0], second[0] * first[1] + second[1])
    sharp = _resample(side, CROP, round(rng.uniform(0.55, 1.6 if rng.random() < 0.8 else 2.6), 1))
    small = np.matmul(sharp, canvas.transpose(2, 0, 1)) @ sharp.T
    return _exposed(np.ascontiguousarray(small.transpose(1, 2, 0)), now, rng)


# -- from people and moments to pixels ----------------------------------------------------------------


def _photograph(
    people: Sequence[Person], places: Sequence[tuple[float, complex]], size: tuple[int, int], rng: np.random.Generator
) -> Drawn:
    """Draw everybody onto one canvas under one light."""
    width, height = size
    canvas = np.empty((height, width, 3), np.float32)
    _background(canvas, rng)
    shared: Moment | None = None
    landmarks = []
    for someone, (unit, middle) in zip(people, places, strict=True):
        now = moment(rng)
        if shared is not None:
            now = replace(now, light=shared.light, strength=shared.strength, ambient=shared.ambient,
                          warmth=shared.warmth)  # fmt: skip
        shared = shared or now
        head = _Head(someone, now)
        turn = unit * np.exp(1j * now.roll)
        head.draw(canvas, turn, middle)
        points = head.landmarks() * turn + middle
        landmarks.append(np.stack([points.real, points.imag], 1))
    if shared is None:
        raise DataError("a photograph of nobody", hint="give at least one person")
    blur = rng.uniform(0.45, 1.1) * min(size) / 480
    rows, columns = _resample(height, height, round(blur, 2)), _resample(width, width, round(blur, 2))
    soft = np.matmul(rows, canvas.transpose(2, 0, 1)) @ columns.T
    pixels = _exposed(np.ascontiguousarray(soft.transpose(1, 2, 0)), shared, rng)
    # A sample at row i stands for the pixel whose middle is there, as in every detector's coordinates.
    return Drawn(pixels, np.array(landmarks), tuple(someone.seed for someone in people))


def _exposed(light: Array, now: Moment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """From linear light to what a camera writes: white balance, exposure, a curve with a shoulder, grain."""
    light = light * (np.array(now.warmth, np.float32) * np.float32(rng.uniform(0.8, 1.2)))
    np.maximum(light, 0, out=light)
    # Square root for the eye's response; the quotient bends highlights over instead of cutting them.
    curve = np.sqrt(light * 1.18 / (0.82 + 0.36 * light))
    grain = rng.standard_normal(light.shape, np.float32)
    curve += grain * np.float32(rng.uniform(0.003, 0.018))
    return np.asarray((curve * 255).clip(0, 255) + 0.5, np.uint8)


def _background(canvas: Array, rng: np.random.Generator) -> None:
    """A wall, a window or something out of focus: a gradient, two soft shapes, and a little texture."""
    height, width, _ = canvas.shape
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    y, x = y.astype(np.float32), x.astype(np.float32)
    base = (rng.uniform(0.15, 0.9) + rng.uniform(-0.08, 0.08, 3)).clip(0.02, 1) ** 2
    other = (base * rng.uniform(0.5, 1.5) + rng.uniform(-0.05, 0.05, 3)).clip(0.01, 1)
    angle = rng.uniform(0, 2 * math.pi)
    share = 0.5 + 0.35 * (math.cos(angle) * x + math.sin(angle) * y)
    for _ in range(2):
        px, py = rng.uniform(-1, 1), rng.uniform(-1, 1)
        wide, tall = rng.uniform(0.15, 0.7), rng.uniform(0.15, 0.7)
        soft = rng.uniform(5, 25)
        inside = 1 / (1 + np.exp(np.clip(soft * (np.maximum(abs(x - px) / wide, abs(y - py) / tall) - 1), -30, 30)))
        share = share + np.float32(rng.uniform(-0.6, 0.6)) * inside
    share = share + 0.12 * _noise(int(rng.integers(2**31)), (height, width), 2)
    start, way = base.astype(np.float32), (other - base).astype(np.float32)
    for channel in range(3):
        canvas[..., channel] = share.clip(-0.2, 1.2) * way[channel] + start[channel]
    np.maximum(canvas, 0.002, out=canvas)


class _Head:
    """A person at a moment: a surface to be drawn, and points on it.

    Args:
        someone: the person.
        now: the moment.
    """

    def __init__(self, someone: Person, now: Moment) -> None:
        self.person, self.now = someone, now
        self.smile = max(-0.3, min(1.1, now.smile))
        self.jaw_drop = 0.13 * now.mouth_open
        self.chin = someone["chin"] + self.jaw_drop
        self.mouth_y = someone["mouth_y"] + 0.2 * self.jaw_drop
        self.corner = (someone["mouth_width"] * (1 + 0.2 * self.smile), self.mouth_y - 0.055 * self.smile)
        self.sin_yaw, self.cos_yaw = math.sin(now.yaw), math.cos(now.yaw)
        self.sin_pitch, self.cos_pitch = math.sin(now.pitch), math.cos(now.pitch)
        # Half widths and depths of slices, by height; looked up in tables because every pixel asks.
        heights = np.linspace(-2.2, 2.2, 4401, dtype=np.float32)
        self.widths, self.depths = self._slices(heights)

    # geometry

    def _slices(self, v: Array) -> tuple[Array, Array]:
        """Half width and depth of the slice at each height."""
        p = self.person
        up = np.clip(-v / p["crown"], 0, 1)
        down = np.clip(v / self.chin, 0, 1)
        width = np.where(v < 0, (1 - up**2.5) ** (1 / 2.2), (1 - down ** p["jaw_power"]) ** (1 / p["jaw_root"]))
        width = width * (
            1
            + p["cheek_swell"] * np.exp(-(((v - 0.35) / 0.3) ** 2))
            + p["jaw_swell"] * np.exp(-(((v - 0.95) / 0.3) ** 2))
        )
        depth = np.where(v < 0, (1 - up**2.6) ** 0.5, (1 - np.clip(v / (self.chin + 0.12), 0, 1) ** 5) ** 0.5)
        return (p["head_width"] * width).astype(np.float32), (p["depth"] * depth).astype(np.float32)

    def _slice_at(self, v: Array) -> tuple[Array, Array]:
        place = np.clip((v + 2.2) * 1000 + 0.5, 0, 4400).astype(np.int32)
        return self.widths[place], self.depths[place]

    def _nose(self, u: Array, v: Array) -> Array:
        """Height of the nose over the face: a ridge that rises and widens down to the tip."""
        p = self.person
        along = np.clip((v + 0.15) / (p["nose_y"] + 0.15), 0, 1)
        below = np.clip(v - p["nose_y"], 0, 1) / 0.1
        tip = p["nose_high"]
        high = p["nose_root"] + (0.72 * tip - p["nose_root"]) * along**1.3
        high = high + p["nose_hump"] * np.exp(-(((along - 0.45) / 0.25) ** 2))
        high = high * np.exp(-(below**2)) * np.clip((v + 0.42) / 0.4, 0, 1) ** 2
        wide = p["nose_bridge"] + (p["nose_tip"] - p["nose_bridge"]) * along**2
        ridge = high * np.exp(-((u / wide) ** 2))
        ball = 0.3 * tip * _bump(u, v - p["nose_y"], p["nose_tip"], 0.11)
        return np.asarray(ridge + ball, np.float32)

    def _relief(self, u: Array, v: Array) -> Array:
        """Everything on the face but the nose's ridge."""
        p, side = self.person, np.abs(u)
        smile, corner = self.smile, self.corner
        z = p["cheekbone"] * _bump(side - 0.6, v - p["cheekbone_y"] + 0.08 * smile, 0.22, 0.2)
        z += (0.05 + 0.03 * smile) * _bump(side - 0.45, v - 0.55 + 0.05 * smile, 0.2, 0.22)
        z += p["brow_ridge"] * _bump(side - 0.36, v - p["brow_y"], 0.26, 0.09)
        z += p["forehead"] * _bump(side - 0.25, v + 0.62, 0.35, 0.25)
        z -= p["socket"] * _bump(side - p["eye_x"] + 0.02, v - p["eye_y"], 0.2, 0.13)
        z += 0.05 * _bump(side - p["eye_x"], v - p["eye_y"], 0.13, 0.09)
        z += 0.1 * _bump(side - 0.7 * p["nose_wing"], v - p["nose_y"] - 0.03, 0.36 * p["nose_wing"], 0.075)
        z += p["chin_bump"] * _bump(u, v - self.chin + 0.19, 0.2, 0.12)
        z -= (0.05 + 0.2 * p["chin_bump"]) * _bump(u, v - self.mouth_y - p["lip_lower"] - 0.1, 0.22, 0.055)
        z -= max(0.0, p["cleft"]) * 2 * _bump(u, v - self.chin + 0.15, 0.035, 0.1)
        z += 0.06 * _bump(u, v - self.mouth_y, 0.32, 0.2)
        z -= p["philtrum"] * _bump(u, v - 0.5 * (p["nose_y"] + self.mouth_y) - 0.06, 0.04, 0.08)
        z += (
            0.9
            * p["lip_upper"]
            * _bump(u, v - self.mouth_y + 0.45 * p["lip_upper"], 0.62 * corner[0], 0.5 * p["lip_upper"])
        )
        low = self.mouth_y + 0.28 * self.now.mouth_open + 0.5 * p["lip_lower"]
        z += 0.9 * p["lip_lower"] * _bump(u, v - low, 0.55 * corner[0], 0.5 * p["lip_lower"])
        z -= 0.03 * _bump(side - corner[0] - 0.03, v - corner[1], 0.06, 0.06)
        fold = 0.16 + p["nose_wing"] + 0.3 * (v - p["nose_y"])
        z -= (0.02 + 0.04 * max(0.0, smile) + 0.1 * max(0.0, p["fold"])) * _bump(side - fold, v - 0.75, 0.045, 0.17)
        return z

    def _lift(self, u: Array, v: Array, bump: Array) -> Array:
        """How far a point moves with pitch.

        Not the slice's own depth, which falls to nothing at the chin, where two points would then be seen in one place.
        """
        p = self.person
        base = p["depth"] * (1 - 0.12 * v**2) * np.sqrt(np.maximum(0.1, 1 - (u / (1.1 * p["head_width"])) ** 2))
        return np.asarray((base + bump) * self.cos_yaw - u * self.sin_yaw, np.float32)

    def points(self, u: Sequence[float], v: Sequence[float]) -> NDArray[np.complex128]:
        """Where points of the face are seen, in the head's plane."""
        across, down = np.array(u, np.float32), np.array(v, np.float32)
        width, depth = self._slice_at(down)
        nose = self._nose(across, down)
        z = depth * np.sqrt(np.maximum(0, 1 - (across / width) ** 2)) + nose
        x = across * self.cos_yaw + z * self.sin_yaw
        y = down * self.cos_pitch + self._lift(across, down, nose) * self.sin_pitch
        return np.asarray(x + 1j * y, np.complex128)

    def landmarks(self) -> NDArray[np.complex128]:
        """The five landmarks in the head's plane."""
        p, (corner_x, corner_y) = self.person, self.corner
        return self.points(
            [-p["eye_x"], p["eye_x"], 0.0, -corner_x, corner_x],
            [p["eye_y"], p["eye_y"], p["nose_y"] - 0.015, corner_y, corner_y],
        )

    # drawing

    def draw(self, canvas: Array, turn: complex, middle: complex) -> None:
        """Draw onto a canvas in linear light.

        Args:
            canvas: shape (height, width, 3), changed in place.
            turn: pixels for a unit of the head's plane, and the roll, as a complex number.
            middle: where the head's origin comes to lie, x + iy in pixels.
        """
        unit = abs(turn)
        x0, x1 = (int(np.clip(middle.real + s * 3.4 * unit, 0, canvas.shape[1])) for s in (-1, 1))
        y0 = int(np.clip(middle.imag - 2.6 * unit, 0, canvas.shape[0]))
        part = canvas[y0:, x0:x1]
        if min(part.shape[:2]) > 3:
            _Sheet(self, part, turn, middle - complex(x0, y0)).draw()


class _Sheet:
    """One head on one piece of canvas.

    Smooth fields (which point of the face a pixel sees, how it is lit) are worked out on a coarser grid and spread
    over the pixels; what has edges is drawn at full size, in windows where it is.
    """

    def __init__(self, head: _Head, canvas: Array, turn: complex, middle: complex) -> None:
        self.head, self.canvas, self.turn, self.middle = head, canvas, turn, middle
        self.px = 1 / abs(turn)
        height, width, _ = canvas.shape
        self.step = max(2, round(abs(turn) / 20))
        rows, columns = -(-height // self.step) + 1, -(-width // self.step) + 1
        self.up = (_spread(rows, height, self.step), _spread(columns, width, self.step))
        place = np.arange(columns) * self.step + 1j * np.arange(rows)[:, None] * self.step
        plane = (place - middle) / turn
        self.x, self.y = plane.real.astype(np.float32), plane.imag.astype(np.float32)
        self.coarse = self._seen()

    def full(self, field: Array) -> Array:
        """A coarse field at every pixel."""
        return np.asarray(self.up[0] @ field @ self.up[1].T, np.float32)

    def _seen(self) -> dict[str, Array]:
        """For each coarse point: face coordinates u and v, height z, and ``edge``, distance inside the outline."""
        head = self.head
        x, y = self.x, self.y
        v = y / head.cos_pitch
        bump = np.zeros_like(x)
        for _ in range(3):
            width, depth = head._slice_at(v)
            reach = np.sqrt((width * head.cos_yaw) ** 2 + (depth * head.sin_yaw) ** 2) + 1e-6
            lean = np.arctan2(depth * head.sin_yaw, width * head.cos_yaw)
            angle = np.arcsin(np.clip((x - bump * head.sin_yaw) / reach, -1, 1)) - lean
            u = width * np.sin(angle)
            front = depth * np.cos(angle)
            bump = head._nose(u, v) * (front > 0)
            v = np.clip((y - head._lift(u, v, bump) * head.sin_pitch) / head.cos_pitch, -2.2, 2.2)
        z = (front + bump) * head.cos_yaw - u * head.sin_yaw
        z = z + head._relief(u, v) * np.clip(front * 2, 0, 1)
        # Squares, because half widths fall with the root of the distance to the chin: what is linear spreads smoothly.
        edge = (reach**2 - x**2) / (2 * np.sqrt(reach**2 + 0.06))
        edge = np.minimum(edge, np.minimum(head.chin - v, v + head.person["crown"]))
        return {"u": u, "v": v, "z": z, "edge": edge, "front": front}

    def _lit(self, z: Array) -> tuple[Array, Array]:
        """Diffuse light and gloss of a height field."""
        now = self.head.now
        # Normals in the picture's axes, not the head's, because the light does not roll with the head.
        scale = np.float32(1 / (self.step * self.px))
        down, across = np.gradient(z)
        down, across = down * scale, across * scale
        size = 1 / np.sqrt(1 + across**2 + down**2)
        lx, ly, lz = now.light
        facing = (lz - across * lx - down * ly) * size
        wrap = np.clip((facing + 0.25) / 1.25, 0, None)
        sky = 0.75 + 0.25 * down * size
        half = [part / math.sqrt(2 + 2 * lz) for part in (lx, ly, lz + 1)]
        gloss = np.clip((half[2] - across * half[0] - down * half[1]) * size, 0, 1) ** 18
        return now.strength * wrap**1.3 + now.ambient * sky, np.asarray(gloss, np.float32)

    def window(self, centre: complex, wide: float, tall: float) -> Slices | None:
        """The rows and columns around a point of the head's plane; None when it is off the canvas."""
        at = centre * self.turn + self.middle
        sine, cosine = abs(self.turn.imag), abs(self.turn.real)
        across, down = wide * cosine + tall * sine + 2, wide * sine + tall * cosine + 2
        height, width, _ = self.canvas.shape
        rows = slice(max(0, int(at.imag - down)), min(height, int(at.imag + down) + 1))
        columns = slice(max(0, int(at.real - across)), min(width, int(at.real + across) + 1))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None

    def draw(self) -> None:
        """Back to front."""
        head, c = self.head, self.coarse
        diffuse, gloss = self._lit(c["z"])
        shade = self._shaded(diffuse)
        self.u, self.v = self.full(c["u"]), self.full(c["v"])
        self._behind()
        self._ears()
        skin = self._skin()
        self.albedo = skin
        for side in (-1, 1):
            self._eye(side)
            self._brow(side)
        self._mouth()
        self._nostrils()
        shine = self.full(0.09 * gloss * (c["front"] > 0))
        # The outline: soft over one pixel.
        cover = np.clip(self.full(np.clip(c["edge"], -0.2, 0.2)) / (1.5 * self.px) + 0.5, 0, 1)
        for channel in range(3):
            target = self.canvas[..., channel]
            target += cover * (skin[..., channel] * shade[channel] + shine - target)
        self._hair_over(cover)
        if head.now.glasses is not None:
            self._glasses(head.now.glasses)

    def _shaded(self, diffuse: Array) -> tuple[Array, Array, Array]:
        """Light on skin: what reaches a shaded place through skin is red."""
        full = np.maximum(self.full(diffuse), 0.02)
        shift = np.sqrt(np.sqrt(np.sqrt(full)))
        return full / shift, full, full * shift

    # parts

    def _behind(self) -> None:
        """Hair behind the head, neck, shoulders."""
        head, p, now = self.head, self.head.person, self.head.now
        height, width, _ = self.canvas.shape
        if p.hair_length > 0.6:
            full_x, full_y = self._local((slice(0, height), slice(0, width)))
            self._hair_back(full_x + 0.12 * head.sin_yaw, full_y)
        # Nothing of what follows reaches above the mouth.
        rows = slice(min(height - 1, max(0, int(self.middle.imag + 0.5 / self.px))), height)
        full_x, full_y = self._local((rows, slice(0, width)))
        below = self.canvas[rows]
        neck = 0.6 * p["head_width"] * (1 if p["jaw_power"] > 2.4 else 0.92)
        jaw = head.chin * head.cos_pitch + 0.85 * head.sin_pitch
        x = full_x - 0.25 * head.sin_yaw - 0.02
        wide = neck + 0.25 * np.clip(full_y - jaw - 0.25, 0, 1) ** 2
        cover = np.clip((wide - np.abs(x)) / (2 * self.px) + 0.5, 0, 1) * (full_y > 0.6)
        round_ = np.sqrt(np.clip(1 - (x / wide) ** 2, 0.02, 1))
        light = now.ambient + now.strength * np.clip(0.3 + 0.5 * round_ - 0.6 * now.light[0] * x / wide, 0.05, None)
        under = 1 - 0.62 * np.exp(-(np.clip(full_y - jaw, 0, None) ** 2) / 0.12)
        skin = np.array(p.skin, np.float32)
        _lay(below, cover, light * under, 0.85 * skin)
        top = (
            jaw
            + 0.42
            + 1.3 * np.clip(np.abs(x) - 1.35, 0, None) ** 2
            + 0.25 * np.clip(np.abs(x) - 0.4, 0, None) ** 1.1
            + 0.16 * np.exp(-((np.abs(x) - 0.75) ** 2) / 0.08)
        )
        top = top - 0.28 * np.exp(-((np.abs(x) - 0.62) ** 2) / 0.05)
        cloth = np.clip((full_y - top) / (2 * self.px) + 0.5, 0, 1) * (np.abs(x) < 3)
        weave = 1 + 0.1 * _noise(now.grain, full_x.shape, 1)
        shadow = 0.55 + 0.45 * np.clip((full_y - top) / 0.25, 0, 1) - 0.18 * np.abs(x) - 0.3 * now.light[0] * x
        light = (now.ambient + 0.6 * now.strength) * np.clip(shadow, 0.1, None) * weave
        _lay(below, cloth, light, np.array(now.clothes, np.float32))

    def _hair_back(self, x: Array, y: Array) -> None:
        p = self.head.person
        top = p["crown"] + p["hair_top"]
        wide = p["head_width"] + 0.05 + p["hair_side"]
        up = np.clip(-y / top, 0, 1)
        reach = np.where(y < 0, wide * (1 - up**2.4) ** (1 / 2.2), wide * (1 + 0.09 * np.sin(2.2 * y) - 0.05 * y))
        reach = reach + 0.03 * p["hair_curl"] * np.sin(11 * y + np.sign(x) * 2)
        cover = np.clip(np.minimum(reach - np.abs(x), y + top) / (2.5 * self.px) + 0.5, 0, 1)
        cover *= np.clip((p.hair_length + 0.09 * self._strands(x * 26, y * 2) - 0.12 * np.abs(x) - y) / 0.1 + 0.5, 0, 1)
        round_ = np.sqrt(np.clip(1 - (x / np.maximum(reach, 0.1)) ** 2, 0, 1))
        now = self.head.now
        light = 0.6 * now.ambient + now.strength * np.clip(0.25 + 0.35 * round_ - 0.35 * now.light[0] * x, 0.05, None)
        light = light * (1 + p["hair_streak"] * self._strands(x * 26, y * 2))
        _lay(self.canvas, cover, light, np.array(p.hair, np.float32))

    def _strands(self, x: Array, y: Array) -> Array:
        """Noise drawn out along the hair, -1 to 1."""
        tile = _tile(3)
        wave = self.head.person["hair_curl"]
        rows = ((y + 0.3 * wave * np.sin(0.35 * x + 3 * y)) * 12).astype(np.int32) & (_TILE - 1)
        columns = ((x + 2 * wave * np.sin(3 * y)) * 6).astype(np.int32) & (_TILE - 1)
        return np.asarray(tile[rows, columns], np.float32)

    def _ears(self) -> None:
        head, p = self.head, self.head.person
        if p.hair_length > 0.75:
            return
        for side in (-1, 1):
            width = float(head._slice_at(np.array([p["ear_y"]], np.float32))[0][0])
            x = side * (width + p["ear_out"]) * head.cos_yaw - 0.12 * head.sin_yaw
            y = p["ear_y"] * head.cos_pitch
            where = self.window(complex(x, y), 0.75 * p["ear_size"], 1.1 * p["ear_size"])
            if where is None:
                continue
            wide = 0.4 * p["ear_size"] * (1 - side * 0.9 * head.sin_yaw)
            i, j = self._local(where)
            a, b = (i - x) / wide, (j - y) / p["ear_size"]
            a = a - 0.25 * side * b  # the lobe is nearer to the head
            distance = np.sqrt(a**2 + b**2)
            cover = np.clip((1 - distance) * wide / (1.2 * self.px), 0, 1)
            inner = np.exp(-(((distance - 0.62) / 0.18) ** 2)) * (b < 0.45)
            now = head.now
            light = now.ambient + now.strength * (0.55 + 0.4 * side * now.light[0] - 0.35 * inner)
            colour = np.array(p.skin, np.float32) * np.array([1.02, 0.88, 0.84], np.float32)
            target = self.canvas[where]
            target += cover[..., None] * (np.clip(light, 0.08, None)[..., None] * colour - target)

    def _local(self, where: Slices) -> tuple[Array, Array]:
        """Plane coordinates in a window."""
        rows, columns = where
        across = (np.arange(columns.start, columns.stop) - self.middle.real) / self.turn
        down = (1j * (np.arange(rows.start, rows.stop) - self.middle.imag) / self.turn)[:, None]
        x, y = (np.asarray(part, np.float32) for part in (across.real, across.imag))
        return x + down.real.astype(np.float32), y + down.imag.astype(np.float32)

    def _skin(self) -> Array:
        """Colour of skin before light falls on it: blotches, freckles, blush, beard, moles, shadows in hollows."""
        head, p, c = self.head, self.head.person, self.coarse
        u, v = c["u"], c["v"]
        side = np.abs(u)
        blush = max(0.0, p["blush"]) * _bump(side - 0.55, v - 0.45, 0.2, 0.18) + 0.1 * _bump(
            u, v - p["nose_y"], 0.14, 0.12
        )
        hollow = 1 - (0.25 + 2 * p["socket"]) * _bump(side - p["eye_x"] + 0.14, v - p["eye_y"] + 0.03, 0.1, 0.1)
        hollow *= 1 - 0.3 * _bump(u, v - p["nose_y"] - 0.13, 0.17, 0.05)
        hollow *= 1 - 0.2 * _bump(u, v - head.mouth_y - p["lip_lower"] - 0.09 - 0.25 * head.now.mouth_open, 0.2, 0.04)
        hollow *= 1 - max(0.0, p["eye_bag"]) * _bump(side - p["eye_x"] + 0.02, v - p["eye_y"] - 0.15, 0.15, 0.035)
        fold = 0.17 + p["nose_wing"] + 0.3 * (v - p["nose_y"])
        crease = max(0.0, 0.6 * p["fold"]) + 0.22 * max(0.0, head.smile)
        hollow *= 1 - crease * _bump(side - fold, v - 0.74, 0.028, 0.16)
        # Under the hair's edge it is darker.
        hollow *= 1 - 0.35 * np.clip(1 - (v - self._hair_line(u)) / 0.14, 0, 1)
        hollow *= 0.72 + 0.28 * np.clip(c["front"] / 0.5, 0, 1)
        rough, fine = self._pores()
        base = self.full(hollow) * (1 + p["mottle"] * 1.6 * rough + 0.035 * fine)
        red = self.full(blush)
        beard = self._beard(fine)
        if p["freckles"] > 0:
            spots = np.clip(2.2 * rough * fine - 0.3, 0, 1) * self.full(_bump(u, v - 0.35, 0.5, 0.22))
            base *= 1 - 0.9 * p["freckles"] * spots
        out = base[..., None] * np.array(p.skin, np.float32)
        out[..., 1] *= 1 - red
        out[..., 2] *= 1 - 0.9 * red
        if beard is not None:
            out += beard[..., None] * (np.array(p.hair, np.float32) * 0.8 - out)
        for mark in p.marks:
            self._mole(out, mark)
        return out

    def _pores(self) -> tuple[Array, Array]:
        """Person's blotches and fine grain, fixed to the face."""
        shift = self.head.person.seed * 97
        u, v = self.u * 60 + shift, self.v * 60 + 2 * shift
        rows, columns = v.astype(np.int32) & (_TILE - 1), u.astype(np.int32) & (_TILE - 1)
        return _tile(2)[rows, columns], _tile(0)[rows, columns]

    def _beard(self, fine: Array) -> Array | None:
        head, p, c = self.head, self.head.person, self.coarse
        full, whisker = max(0.0, p["beard"]), max(0.0, p["moustache"])
        stubble = max(0.0, p["stubble"])
        if full + whisker + stubble <= 0:
            return None
        u, v = c["u"], c["v"]
        side = np.abs(u)
        # From the ears along the cheek down, open around the mouth.
        area = np.clip((v - 0.85 + 0.75 * np.clip(side - 0.45, 0, 1) * 0.9) / 0.18, 0, 1)
        area *= 1 - 0.85 * _bump(u, v - head.mouth_y, 0.36, 0.14)
        lip = _bump(side - 0.14, v - (0.42 * p["nose_y"] + 0.58 * head.mouth_y) - 0.015, 0.2, 0.055)
        amount = self.full(area) * (min(0.85, 1.1 * full) + 0.35 * stubble)
        amount += self.full(lip) * (min(0.85, 1.2 * whisker) + 0.3 * stubble)
        return np.clip(amount * (0.85 + 0.35 * fine), 0, 0.92)

    def _mole(self, albedo: Array, mark: tuple[float, float, float, float]) -> None:
        x, y, radius, dark = mark
        where = self.window(complex(self.head.points([x], [y])[0]), 4 * radius, 4 * radius)
        if where is not None:
            spot = np.exp(-((((self.u[where] - x) ** 2 + (self.v[where] - y) ** 2) / radius**2) ** 2))
            albedo[where] *= 1 - (dark * spot)[..., None] * np.array([0.75, 0.9, 0.95], np.float32)

    def _eye(self, side: int) -> None:
        head, p, now = self.head, self.head.person, self.head.now
        centre = complex(head.points([side * p["eye_x"]], [p["eye_y"]])[0])
        where = self.window(centre, 1.45 * p["eye_width"], 1.15 * p["eye_width"])
        if where is None:
            return
        tilt = p["eye_tilt"]
        du, dv = side * (self.u[where] - side * p["eye_x"]), self.v[where] - p["eye_y"]
        a = (du * math.cos(tilt) - dv * math.sin(tilt)) / p["eye_width"]  # -1 at the nose, 1 outside
        b = (dv * math.cos(tilt) + du * math.sin(tilt)) / p["eye_width"]
        arc = np.clip(1 - a**2, 0, 1)
        closed = min(1.0, now.closed[side > 0] + 0.12 * max(0.0, head.smile))
        low = p["eye_open"] * (0.52 - 0.14 * max(0.0, head.smile)) * arc * (1 - 0.25 * p["eye_skew"] * a)
        high = -p["eye_open"] * np.sqrt(arc) * (1 - 0.22 * arc) * (1 + p["eye_skew"] * a)
        high = high + closed * (low - high) * 0.93
        soft = 1.2 * self.px / p["eye_width"]
        inside = np.clip((b - high) / soft + 0.5, 0, 1) * np.clip((low - b) / soft + 0.5, 0, 1) * (np.abs(a) < 1)
        skin = self.albedo[where]
        crease = np.exp(-(((b - high * 1.05 + p["crease"]) / 0.07) ** 2)) * np.clip(1.25 - np.abs(a), 0, 1)
        skin *= 1 - np.clip(p["crease_dark"], 0, 0.7) * crease[..., None]
        lid = np.exp(-(((b - high + 0.12) / 0.2) ** 2)) * (np.abs(a) < 1.3) * np.clip(1.3 - np.abs(a), 0, 1)
        skin *= 1 - 0.16 * lid[..., None]
        skin += inside[..., None] * (self._eyeball(side, a, b, high, soft) - skin)
        reach = np.clip((1.12 - np.abs(a)) / 0.2, 0, 1)
        thick = 0.055 + 0.035 * p["lash"] + 0.03 * np.clip(a, 0, 1)
        lash = np.exp(-(((b - high + 0.02) / thick) ** 2)) * reach * np.clip(p["lash"] + 0.12, 0.4, 1)
        skin *= 1 - 0.88 * lash[..., None]
        under = np.exp(-(((b - low - 0.02) / 0.05) ** 2)) * reach * (0.25 + 0.25 * p["lash"])
        skin *= 1 - under[..., None] * np.array([0.6, 0.75, 0.75], np.float32)

    def _eyeball(self, side: int, a: Array, b: Array, high: Array, soft: float) -> Array:
        """White, iris, pupil, the lid's shadow and the light's reflection."""
        p, now = self.head.person, self.head.now
        x, y = side * now.gaze[0] - 0.35 * side * self.head.sin_yaw * 0.5, now.gaze[1] - 0.03
        distance = np.sqrt((a - x) ** 2 + (b - y) ** 2)
        white = np.array([0.66, 0.61, 0.58], np.float32) * (1 - 0.25 * a**2)[..., None]
        iris = np.clip((p["iris"] - distance) / (1.3 * soft) + 0.5, 0, 1)
        ring = 1 - 0.6 * np.clip((distance - 0.7 * p["iris"]) / (0.3 * p["iris"]), 0, 1)
        colour = np.array(p.eyes, np.float32) * (ring * (0.9 + 0.5 * np.clip((b - y) / p["iris"], -0.6, 1)))[..., None]
        ball = white + iris[..., None] * (colour - white)
        pupil = np.clip((0.4 * p["iris"] - distance) / (1.3 * soft) + 0.5, 0, 1)
        ball = ball * (1 - 0.96 * pupil[..., None])
        ball = ball * (1 - 0.5 * np.exp(-((np.clip(b - high, 0, None) / 0.16) ** 2)))[..., None]
        spot = (a - x - side * 0.25 * now.light[0] - 0.03) ** 2 + (b - y + 0.14) ** 2
        return np.asarray(ball + (0.9 * np.exp(-spot / max(0.006, (0.7 * soft) ** 2)))[..., None], np.float32)

    def _brow(self, side: int) -> None:
        head, p = self.head, self.head.person
        middle = 0.5 * (p["brow_inner"] + p["brow_outer"])
        half = 0.5 * (p["brow_outer"] - p["brow_inner"])
        y = p["brow_y"] - head.now.brow_lift
        where = self.window(complex(head.points([side * middle], [y])[0]), half + 0.07, 0.26)
        if where is None:
            return
        a = (side * self.u[where] - middle) / half
        line = y - p["brow_arch"] * (1 - (a - 0.25) ** 2) - p["brow_slope"] * a
        thick = np.clip(
            p["brow_thick"] * (1.05 - 0.45 * np.clip(a, -1, 1.2)) * np.clip((1.1 - np.abs(a)) / 0.25, 0, 1), 1e-3, 1
        )
        place = (self.v[where] - line) / thick
        tile = _tile(1)
        hairs = tile[
            (self.v[where] * 95 + 40 * a * half).astype(np.int32) & (_TILE - 1),
            (self.u[where] * 300 * side + self.v[where] * 150).astype(np.int32) & (_TILE - 1),
        ]
        cover = np.exp(-((place**2) ** 1.5)) * np.clip(p["brow_dark"] + 0.3 * hairs, 0, 0.95) * (thick > 2e-3)
        skin = self.albedo[where]
        colour = np.minimum(np.array(p.hair, np.float32) * 0.8, np.array(p.skin, np.float32) * 0.45)
        skin += cover[..., None] * (colour - skin)

    def _mouth(self) -> None:
        head, p = self.head, self.head.person
        corner_x, corner_y = head.corner
        where = self.window(complex(head.points([0], [head.mouth_y + 0.05])[0]), 1.2 * corner_x + 0.05, 0.36)
        if where is None:
            return
        a = self.u[where] / corner_x
        v = self.v[where]
        arc = np.clip(1 - a**2, 0, 1)
        flat = np.clip(1 - np.abs(a) ** 2.6, 0, 1)
        dip = p["lip_curve"] * np.cos(2.2 * math.pi * np.clip(a, -1, 1)) * arc
        line = corner_y + (head.mouth_y - corner_y) * (1 - a**2) + dip
        gap = 0.3 * head.now.mouth_open * flat + 0.035 * max(0.0, head.smile - 0.5) * flat
        opened = line + gap
        cupid = (
            1
            - np.clip(p["cupid"], 0, 0.8) * np.exp(-((a / 0.16) ** 2))
            + 0.15 * np.exp(-(((np.abs(a) - 0.3) / 0.2) ** 2))
        )
        top = line - p["lip_upper"] * (1 - 0.25 * max(0.0, head.smile)) * arc**0.9 * cupid
        bottom = opened + p["lip_lower"] * (1 - 0.15 * max(0.0, head.smile)) * flat**0.8
        soft = 2.2 * self.px
        within = np.clip((v - top) / soft + 0.5, 0, 1) * np.clip((bottom - v) / soft + 0.5, 0, 1) * (np.abs(a) < 1)
        skin = self.albedo[where]
        base = np.array(p.skin, np.float32)
        red = np.clip(0.35 + 0.6 * p["lip_red"], 0.15, 1.0)
        colour = (
            base
            * (1 - np.clip(p["lip_dark"], 0, 0.7) * 0.6)
            * np.array([1.0, 1 - 0.52 * red, 1 - 0.42 * red], np.float32)
        )
        wrinkle = _tile(1)[
            (v * 30).astype(np.int32) & (_TILE - 1), (self.u[where] * 170).astype(np.int32) & (_TILE - 1)
        ]
        tone = (1 + 0.08 * wrinkle) * np.where(v < line, 0.8, 1.0)
        skin += (0.9 * within)[..., None] * (tone[..., None] * colour - skin)
        hole = np.clip((v - line) / soft + 0.5, 0, 1) * np.clip((opened - v) / soft + 0.5, 0, 1) * (np.abs(a) < 0.97)
        hole = hole * np.clip(gap / (1.5 * self.px), 0, 1)
        teeth = np.clip((line + 0.115 - v) / soft, 0, 1) * np.clip((0.75 - np.abs(a)) / 0.3, 0, 1)
        teeth = teeth * (1 - 0.35 * np.exp(-((np.sin(self.u[where] * 26) / 0.25) ** 2)))
        inside = np.array([0.035, 0.01, 0.01], np.float32) + teeth[..., None] * np.array([0.5, 0.46, 0.4], np.float32)
        skin += hole[..., None] * (inside - skin)
        seam = np.exp(-(((v - line) / max(0.014, 0.8 * self.px)) ** 2)) * np.clip((1.06 - np.abs(a)) / 0.12, 0, 1)
        seam = seam * (1 - 0.8 * hole)
        skin *= 1 - (0.72 * seam)[..., None] * np.array([0.85, 1, 1], np.float32)

    def _nostrils(self) -> None:
        head, p = self.head, self.head.person
        where = self.window(complex(head.points([0], [p["nose_y"] + 0.06])[0]), 1.8 * p["nose_wing"] + 0.05, 0.25)
        if where is None:
            return
        side, v = np.abs(self.u[where]), self.v[where] - p["nose_y"]
        x = 0.5 * p["nose_wing"]
        hole = _bump(side - x, v - 0.085 - 0.25 * (side - x), 0.36 * p["nose_wing"], 0.034)
        wing = p["nose_wing"] - 0.2 * np.clip(v - 0.02, -0.1, 0.2)
        edge = _bump(side - wing, v - 0.02, 0.028, 0.085)
        skin = self.albedo[where]
        skin *= 1 - np.clip(np.clip(p["nostril"], 0.3, 0.85) * 1.15 * hole, 0, 0.92)[..., None]
        skin *= 1 - 0.42 * edge[..., None]
        under = _bump(side, v - 0.13, 0.9 * p["nose_wing"], 0.03)
        skin *= 1 - 0.25 * under[..., None]

    def _hair_line(self, u: Array) -> Array:
        """Height of the hair's edge over the face."""
        p = self.head.person
        side = np.abs(u) / p["head_width"]
        line = p["hair_line"] - p["hair_peak"] * 1.2 * np.exp(-((u / 0.22) ** 2)) * -1
        line = line - np.clip(p["hair_temple"], 0, 0.5) * np.exp(-(((side - 0.55) / 0.2) ** 2)) * 0.7
        if p["hair_fringe"] > 0:
            line = line + (p["hair_fringe"] + 0.3) * np.clip(1.1 - side, 0, 1) + p["hair_sweep"] * (u - p["hair_part"])
        drop = np.clip((side - 0.66) / 0.28, 0, 1)
        down = min(p.hair_length, 2.4) if p.hair_length > 0.6 else 0.12 + 0.6 * p.hair_length
        return np.asarray(line + drop**1.6 * (down - line + 0.05), np.float32)

    def _hair_over(self, cover: Array) -> None:
        """Hair on the head and standing off it."""
        head, p, c = self.head, self.head.person, self.coarse
        top = p["crown"] + p["hair_top"]
        wide = p["head_width"] * (1 + 0.03 * abs(head.sin_yaw)) + p["hair_side"] * (1 if p.hair_length > 0.2 else 0.4)
        x = self.x + 0.12 * head.sin_yaw
        y = self.y - 0.35 * head.sin_pitch
        up = np.clip(-y / top, 0, 1)
        reach = np.where(y < 0, wide * np.maximum(0, 1 - up**2.5) ** (1 / 2.2), wide)
        bound = np.minimum(reach - np.abs(x), y + top) + 0.012 * p["hair_curl"] * np.sin(23 * np.arctan2(y, x))
        # On the head the hair's edge moves with the face; beside it, with the outline.
        ends = 0.15 + 0.6 * p.hair_length if p.hair_length < 0.6 else p.hair_length
        line = self._hair_line(c["u"])
        on_face = np.where(c["edge"] > 0, line - c["v"], np.where(c["v"] < ends, 0.3, -0.3))
        back = c["front"] < 0.12
        on_face = np.where(back & (c["edge"] > 0), ends - c["v"], on_face)
        mask = np.clip(self.full(np.clip(bound, -0.2, 0.2)) / (2 * self.px) + 0.5, 0, 1)
        full_x, full_y = self._local((slice(0, self.canvas.shape[0]), slice(0, self.canvas.shape[1])))
        full_x, full_y = full_x + 0.12 * head.sin_yaw, full_y - 0.35 * head.sin_pitch
        part = np.float32(p["hair_part"])
        strands = self._strands((np.arctan2(full_x - part, full_y + 2.2)) * 22, np.hypot(full_x, full_y + 1.0) * 2)
        ragged = self.full(np.clip(on_face, -0.3, 0.3)) + 0.035 * strands
        mask *= np.clip(ragged / max(0.045, 2 * self.px) + 0.5, 0, 1)
        # Beside the head hair hangs in two curtains that leave the neck free.
        free = 0.62 * p["head_width"] + 0.22 * np.clip(full_y - 1.2, 0, 1) - 0.1 * strands
        apart = np.clip((np.abs(full_x) - free) / 0.08 + 0.5, 0, 1)
        ragged_ends = ends + 0.09 * strands - 0.12 * np.clip(np.abs(full_x) - 0.8, 0, 1)
        outside = np.clip((ragged_ends - full_y) / 0.1 + 0.5, 0, 1) * np.where(full_y > 0.5, apart, 1)
        mask *= np.where(cover < 0.5, outside, 1)
        z = 1.1 * np.sqrt(np.clip(1 - (x / np.maximum(reach, 0.05)) ** 2, 0, 1)) * np.sqrt(np.clip(1 - up**2.2, 0.0, 1))
        diffuse, gloss = self._lit(np.asarray(z, np.float32))
        light = self.full(diffuse) * (1 + p["hair_streak"] * strands)
        shine = self.full(gloss) * np.clip(0.5 + 0.9 * strands, 0, 1.5) * 0.12
        _lay(self.canvas, mask, np.maximum(light, 0.03), np.array(p.hair, np.float32), shine)

    def _glasses(self, frame: tuple[float, float, float, float]) -> None:
        head, p = self.head, self.head.person
        half, tall, thick, dark = frame
        centre = complex(head.points([0], [p["eye_y"]])[0])
        where = self.window(centre, 1.15, 0.5)
        if where is None:
            return
        u, v = self.u[where], self.v[where] - p["eye_y"] - 0.03
        a, b = (np.abs(u) - p["eye_x"]) / half, v / (half * tall)
        distance = (a**4 + b**4) ** 0.25
        ring = np.clip((thick - np.abs(distance - 1) * half) / (1.5 * self.px) + 0.5, 0, 1)
        gap = p["eye_x"] - half
        bridge = np.clip((0.8 * thick - np.abs(v + 0.06)) / (1.5 * self.px) + 0.5, 0, 1) * (np.abs(u) < gap)
        temple = np.clip((thick - np.abs(v + 0.07)) / (1.5 * self.px) + 0.5, 0, 1) * (np.abs(u) > p["eye_x"] + half)
        cover = np.maximum(np.maximum(ring, bridge), temple) * (self.full(self.coarse["edge"])[where] > 0)
        glass = (distance < 1) * np.clip(0.1 + 0.06 * (a - b), 0, 0.2)
        target = self.canvas[where]
        target += glass[..., None] * (0.5 - target) * 0.35
        target += cover[..., None] * (np.float32(dark**2) * (0.6 + 0.8 * head.now.strength) - target)


def _lay(canvas: Array, cover: Array, light: Array, colour: Array, shine: Array | float = 0.0) -> None:
    """Lay a lit colour over a canvas, channel by channel: no temporary of the canvas's size."""
    for channel in range(3):
        target = canvas[..., channel]
        target += cover * (light * colour[channel] + shine - target)


# -- numbers ------------------------------------------------------------------------------------------


def _bump(x: Array, y: Array, wide: float, tall: float) -> Array:
    """A smooth hill of height 1."""
    return np.exp(-((x * np.float32(1 / wide)) ** 2) - (y * np.float32(1 / tall)) ** 2)


def _normal(rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(), -1.9, 1.9))


def _colour(rgb: tuple[int, int, int]) -> NDArray[np.float64]:
    """Linear light of a screen colour; a square stands in for the screen's curve, as the root does in _exposed."""
    return (np.array(rgb) / 255) ** 2


def _between(colours: Sequence[tuple[int, int, int]], place: float) -> NDArray[np.float64]:
    low = min(int(place), len(colours) - 2)
    share = place - low
    return _colour(colours[low]) * (1 - share) + _colour(colours[low + 1]) * share


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _as_complex(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    return np.asarray(points[:, 0] + 1j * points[:, 1])


def _fit(source: NDArray[np.complex128], target: NDArray[np.complex128]) -> tuple[complex, complex]:
    """The turn, scale and shift that bring points nearest to others: least squares in the complex plane."""
    s, t = source - source.mean(), target - target.mean()
    turn = complex((s.conj() * t).sum() / (s.conj() * s).sum().real)
    return turn, complex(target.mean() - turn * source.mean())


@lru_cache(maxsize=64)
def _resample(source: int, target: int, blur: float) -> Array:
    """Rows that sample a line down and blur it by a Gaussian, ``blur`` in pixels of the source."""
    middle = (np.arange(target) + 0.5) * source / target - 0.5
    weight = np.exp(-0.5 * ((np.arange(source) - middle[:, None]) / max(blur, 0.3)) ** 2)
    return np.asarray(weight / weight.sum(1, keepdims=True), np.float32)


@lru_cache(maxsize=64)
def _spread(coarse: int, full: int, step: int) -> Array:
    """Linear interpolation from every ``step``-th point to all."""
    place = np.arange(full) / step
    return np.asarray(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(coarse))), np.float32)


@lru_cache(maxsize=8)
def _tile(octave: int) -> Array:
    """Repeating noise of mean 0, standard deviation 0.5; ``octave`` says how coarse (0 is single pixels)."""
    rng = np.random.default_rng([0x7113, octave])
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None])
    spectrum *= np.exp(-0.5 * (frequency * 2**octave * 2.2) ** 2)
    field = np.fft.irfft2(spectrum, (_TILE, _TILE))
    return np.asarray((0.5 * field / field.std()).clip(-1, 1), np.float32)


def _noise(seed: int, shape: tuple[int, int], octave: int) -> Array:
    """A piece of the repeating noise at a place that the seed picks."""
    rows = (np.arange(shape[0]) + seed % 509) % _TILE
    columns = (np.arange(shape[1]) + seed // 509 % 503) % _TILE
    return _tile(octave)[np.ix_(rows, columns)]
