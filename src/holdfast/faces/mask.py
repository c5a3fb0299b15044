"""P3-Masks, and the file that holds a person's: the key.

A P3-Mask (Chameleon, ECCV 2024) is one pattern for all photos of a person, in the space of the aligned crop. A person
may have several (a bank): each photo gets one of them. Whoever has the masks can put them on and take them off again,
so the file is a key. It also holds the person's face as recognisers see it, by which their face is told from others'
in a group photo. Both are private, and the file is written so that only its owner can read it.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.files import write_bytes
from holdfast.faces.align import SIDE
from holdfast.faces.ssim import Reference
from holdfast.faces.window import grey_mask

SUFFIX = ".p3"
FORMAT = 1
_ENTRY = "holdfast-p3-mask"
_MOST = 127  # an int8


@dataclass(frozen=True)
class Key:
    """The masks of one person, with what is needed to use them.

    Attributes:
        masks: shape (k, 3, 112, 112), whole numbers within the budget.
        person: recogniser's name -> unit vectors of the photos learned from, shape (n, dimension).
        card: how the masks were made: method, knobs, recognisers, seed, visibility on the photos learned from.
    """

    masks: Tensor
    person: Mapping[str, Tensor] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Most that any value of a mask may be, in grey levels."""
        return int(self.card.get("budget", _MOST))

    def __len__(self) -> int:
        return len(self.masks)

    def mask(self, number: int, *, grey: bool = False) -> Tensor:
        """One mask, shape (3, 112, 112); of a photo without colours its brightness alone."""
        one = self.masks[number : number + 1]
        return (grey_mask(one) if grey else one)[0]


def save_key(key: Key, path: Path) -> None:
    """Write a key so that only its owner can read it; nothing is left half-written.

    Raises:
        DataError: the masks are not whole numbers of an int8 within the budget.
        RunError, ResourceError: the place cannot be written.
    """
    from safetensors.torch import save

    masks = key.masks.round()
    most = float(masks.abs().max()) if len(masks) else math.inf
    if not torch.equal(masks, key.masks) or most > min(key.budget, _MOST):
        raise DataError("masks must be whole numbers within their budget", hint="use holdfast.faces.mask.fitted")
    tensors = {"masks": masks.to(torch.int8)}
    tensors |= {f"person.{name}": value.half().contiguous() for name, value in key.person.items()}
    # One entry: of several, safetensors writes the order as it comes, and equal keys would differ in their bytes.
    content = save(tensors, {_ENTRY: json.dumps({"format": FORMAT, "card": dict(key.card)})})
    write_bytes(path, content, private=True)


def load_key(path: Path) -> Key:
    """Read a key.

    Raises:
        DataError: there is none, it is damaged, or it is no key.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"no key {path}", hint="'holdfast faces learn' makes one; its name ends in .p3")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_ENTRY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no key, or is damaged: {error}", hint="restore it from your copy") from error
    if text is None:
        raise DataError(
            f"{path} is no key of 'holdfast faces'", hint="give the .p3 file that 'holdfast faces learn' wrote"
        )
    try:
        about = dict(json.loads(text))
        card = dict(about["card"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: its card is unreadable", hint="restore it from your copy") from error
    if about.get("format") != FORMAT:
        raise DataError(f"{path} has format {about.get('format')}", hint=f"this version reads format {FORMAT}")
    masks = tensors.pop("masks", None)
    if masks is None or masks.shape[1:] != (3, SIDE, SIDE) or not len(masks):
        raise DataError(f"{path} is damaged: it holds no masks", hint="restore it from your copy")
    person = {name.removeprefix("person."): value.float() for name, value in tensors.items()}
    return Key(masks.float(), person, card)


def readable_by_others(path: Path) -> bool:
    """Whether someone else on this machine may read a key."""
    return os.name == "posix" and bool(stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))


def applied(crops: Tensor, masks: Tensor) -> Tensor:
    """Crops with masks on, as a photo stores them: whole numbers 0..255.

    Args:
        crops: shape (n, 3, 112, 112).
        masks: shape (n or 1, 3, 112, 112).
    """
    return (crops.round() + masks).clamp(0, 255).round()


def removed(crops: Tensor, masks: Tensor) -> Tensor:
    """Crops with masks taken off."""
    return (crops - masks).clamp(0, 255).round()


def fitted(masks: Tensor, reference: Reference, dssim: float, budget: float) -> Tensor:
    """Masks as strong as their visibility allows: whole numbers within the budget, mean DSSIM at most the limit.

    Each mask is scaled (up as well as down) until the mean DSSIM over the person's photos meets the limit, so that
    masks of different methods can be compared at equal visibility.

    Args:
        masks: shape (k, 3, 112, 112).
        reference: the person's photos.
        dssim: the limit, (1 - SSIM) / 2.
        budget: most grey levels at any pixel.
    """
    limit = float(int(budget))
    with torch.no_grad():
        return torch.cat([_fitted(mask[None], reference, dssim, limit) for mask in masks])


def _fitted(mask: Tensor, reference: Reference, dssim: float, budget: float) -> Tensor:
    def at(scale: float) -> Tensor:
        return (mask * scale).clamp(-budget, budget).round()

    low, high = 0.0, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        seen = float(reference.dssim((reference.clean + at(middle)).clamp(0, 255)).mean())
        low, high = (middle, high) if seen <= dssim else (low, middle)
    return at(low)
