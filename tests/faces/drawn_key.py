"""A key of a drawn person: random masks, and the person as shipped recognisers of drawn people see them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from holdfast.data import drawn
from holdfast.faces.mask import Key
from holdfast.faces.people import faces_in
from holdfast.faces.recogniser import load_recogniser
from holdfast.faces.window import window

BUDGET = 8


def drawn_key(person: int, recognisers: tuple[str, ...] = ("drawn-mobile",), photos: int = 3) -> Key:
    """Two masks of +-8 inside the face, and how recognisers know the person."""
    someone = drawn.person(person)
    crops = torch.stack([faces_in(drawn.photo(someone, seed).pixels)[0].crop for seed in range(photos)])
    generator = torch.Generator().manual_seed(person)
    signs = torch.randint(0, 2, (2, 3, 112, 112), generator=generator) * 2 - 1
    masks = (signs * BUDGET * window("oval")).round()
    known = {name: load_recogniser(name).embed_all(crops) for name in recognisers}
    return Key(masks, known, {"budget": BUDGET})


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """Pixels as a file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def decoded(content: bytes) -> NDArray[np.int16]:
    """Pixels of a file, ready to be subtracted."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int16)
