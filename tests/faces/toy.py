"""Small recognisers and people that the tests of faces share: seeded, tiny, and fast enough for finite differences."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from holdfast.data import drawn
from holdfast.faces.detect import Face, find_faces
from holdfast.faces.mask import Key
from holdfast.faces.method import Subject
from holdfast.faces.people import Seen, faces_in
from holdfast.faces.recogniser import Input, Recogniser, load_recogniser
from holdfast.faces.window import window

SIDE = 112
DRAWN = ("drawn-mobile", "drawn-residual")
Pixels = NDArray[np.uint8]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recogniser(seed: int = 0, *, size: int = 32, order: str = "RGB", name: str = "", **card: float) -> Recogniser:
    """Three layers of random weights, smooth, so that slopes exist everywhere."""
    draws = generator(1000 + seed)
    layers = (nn.Conv2d(3, 8, 5, stride=2), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 12, 3, stride=2))
    for layer in layers:
        with torch.no_grad():
            assert layer.bias is not None
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws) * 0.3)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=draws) * 0.2)
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Flatten())
    network.to(torch.get_default_dtype()).requires_grad_(False)
    return Recogniser(name or f"toy-{seed}", network, Input(size, order), dict(card), f"digest-{seed}")


def crops(n: int, seed: int = 0) -> Tensor:
    """Photos of one toy person: a shared smooth picture with changes, far from black and white."""
    draws = generator(seed)
    shared = torch.rand(1, 3, 7, 7, generator=draws)
    own = torch.rand(n, 3, 14, 14, generator=draws)
    fine = torch.rand(n, 3, SIDE, SIDE, generator=draws)
    big = [
        nn.functional.interpolate(part, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
        for part in (shared, own)
    ]
    return (70 + 60 * big[0] + 40 * big[1] + 10 * fine).clamp(40, 200)


def subject(photos: int = 4, others: int = 6, seeds: Sequence[int] = (0, 1), seed: int = 0) -> Subject:
    """One toy person before toy recognisers; the others are people of their own."""
    rest = (
        torch.cat([crops(1, 500 + seed + place) for place in range(others)])
        if others
        else torch.zeros(0, 3, SIDE, SIDE)
    )
    return Subject(crops(photos, seed), tuple(recogniser(one, size=32 + 8 * one) for one in seeds), rest)


@cache
def drawn_faces(person: int, photos: int, first: int = 0) -> tuple[Seen, ...]:
    """The face that the detector finds in each of a drawn person's photos."""
    someone = drawn.person(person)
    return tuple(faces_in(drawn.photo(someone, first + place).pixels)[0] for place in range(photos))


def drawn_crops(person: int, photos: int, first: int = 0) -> Tensor:
    return torch.stack([one.crop for one in drawn_faces(person, photos, first)])


@cache
def photo(person: int, seed: int, side: int = 480) -> Pixels:
    return drawn.photo(drawn.person(person), seed, (side, side)).pixels


@cache
def _found(content: bytes, shape: tuple[int, ...]) -> tuple[Face, ...]:
    return tuple(find_faces(np.frombuffer(content, np.uint8).reshape(shape)))


def find_once(pixels: Pixels) -> list[Face]:
    """What the detector finds, asked once for each picture: it is most of the time of a test that uses it often."""
    return list(_found(pixels.tobytes(), pixels.shape))


@contextmanager
def remembering() -> Iterator[None]:
    """Photos that a test looks at again are not searched again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("holdfast.faces.people.find_faces", find_once)
        yield


def signs(count: int, seed: int, size: float = 12.0) -> Tensor:
    """Masks of random signs on blocks of four pixels, inside the face: whole numbers."""
    small = torch.randint(2, (count, 3, 28, 28), generator=generator(seed)).float() * 2 - 1
    whole: Tensor = (size * small.repeat_interleave(4, 2).repeat_interleave(4, 3) * window("oval")).round()
    return whole


def key(person: int, masks: Tensor, *, photos: int = 4, budget: int = 16) -> Key:
    """A key with given masks that knows a drawn person."""
    known = {name: load_recogniser(name).embed_all(drawn_crops(person, photos)) for name in DRAWN}
    return Key(masks, known, {"budget": budget, "photos": photos})


def save(pixels: Pixels, path: Path, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def read(path: Path) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(np.int16)


@cache
def lfw(folder: Path) -> dict[str, list[Pixels]]:
    """Photos of the LFW sample by person."""
    return {
        person.name: [np.asarray(Image.open(path).convert("RGB")) for path in sorted(person.glob("*.jpg"))]
        for person in sorted(folder.iterdir())
        if person.is_dir()
    }


@cache
def lfw_faces(folder: Path) -> dict[str, list[list[Seen]]]:
    """Faces found in each photo of the LFW sample."""
    return {name: [faces_in(pixels) for pixels in photos] for name, photos in lfw(folder).items()}
