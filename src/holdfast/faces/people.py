"""From photos to one person's faces: which face in each photo is theirs.

Photos that someone collects of themselves show others too, and one of them may show somebody else alone. The person is
whoever most photos agree on; a face belongs to them when recognisers say so at their threshold for one person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.core.errors import DataError, HoldfastError
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.faces.align import Alignment, align, crop
from holdfast.faces.detect import Face, find_faces
from holdfast.faces.photo import open_photo
from holdfast.faces.recogniser import Recogniser

Pixels = NDArray[np.uint8]
FEWEST, FEW = 3, 5
"""Photos that a mask is learned from at least, and from which on it is worth learning."""
SMALLEST = 24
"""Pixels of a face below which recognisers see nothing that a mask could change."""


@dataclass(frozen=True)
class Seen:
    """A face as recognisers see it.

    Attributes:
        face: where it is in the photo.
        alignment: from the photo to the crop.
        crop: shape (3, 112, 112), 0..255.
    """

    face: Face
    alignment: Alignment
    crop: Tensor


@dataclass(frozen=True)
class Skipped:
    """A photo that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Gathered:
    """One person's faces.

    Attributes:
        crops: shape (n, 3, 112, 112).
        paths: the photo of each.
        skipped: photos without a usable face of theirs.
    """

    crops: Tensor
    paths: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()


def faces_in(pixels: Pixels) -> list[Seen]:
    """Faces of a photo, aligned, the largest first; those too small to be recognised are left out."""
    found = []
    for face in find_faces(pixels):
        if face.size >= SMALLEST:
            alignment = align(face.landmarks)
            found.append(Seen(face, alignment, crop(pixels, alignment)))
    return found


def likeness(crops: Tensor, person: Sequence[Tensor], recognisers: Sequence[Recogniser]) -> Tensor:
    """How far above their thresholds recognisers place faces and a person, mean over recognisers, shape (n,).

    Zero or more says: the same person.

    Args:
        crops: shape (n, 3, 112, 112).
        person: by recogniser, unit vectors (k, dimension) of the person.
        recognisers: in the same order.
    """
    scores = []
    for one, known in zip(recognisers, person, strict=True):
        # The nearer half of the photos known: a face from the side is like other faces from the side.
        cosines = (one.embed_all(crops) @ known.T).sort(1, descending=True).values
        scores.append(cosines[:, : max(1, len(known) // 2)].mean(1) - one.same_person)
    return torch.stack(scores).mean(0)


def gather(paths: Sequence[Path], recognisers: Sequence[Recogniser], sink: Sink = ignore) -> Gathered:
    """One person's faces from photos that may show others too.

    Args:
        paths: photos.
        recognisers: who decides; at least one.
        sink: told of every photo, and of those left out.

    Raises:
        DataError: fewer than three photos show the same person.
    """
    seen: list[tuple[str, list[Seen]]] = []
    skipped: list[Skipped] = []
    for number, path in enumerate(paths):
        try:
            found = faces_in(open_photo(path).pixels)
            if found:
                seen.append((str(path), found))
            else:
                skipped.append(Skipped(str(path), "no face of at least 24 pixels was found"))
        except HoldfastError as error:
            skipped.append(Skipped(str(path), error.message))
        sink(Progressed(done=number + 1, total=len(paths)))
    gathered = one_person(seen, recognisers)
    whole = Gathered(gathered.crops, gathered.paths, (*skipped, *gathered.skipped))
    for one in whole.skipped:
        sink(Warned(message=f"left out {one.path}: {one.reason}"))
    if len(whole.paths) < FEWEST:
        reasons = "; ".join(f"{Path(one.path).name}: {one.reason}" for one in whole.skipped[:3])
        raise DataError(
            f"{len(whole.paths)} of {len(paths)} photos show one and the same person, and {FEWEST} are the least"
            + (f" ({reasons})" if reasons else ""),
            hint="give 5 to 20 photos of one person, different days and light, face at least 100 pixels wide",
        )
    if len(whole.paths) < FEW:
        sink(
            Warned(
                message=f"only {len(whole.paths)} usable photos",
                hint="5 to 20, of different days and light, serve better",
            )
        )
    return whole


def one_person(seen: Sequence[tuple[str, list[Seen]]], recognisers: Sequence[Recogniser]) -> Gathered:
    """The person that most photos agree on, with their face in each photo.

    Args:
        seen: photos with their faces.
        recognisers: who decides.
    """
    if not seen:
        return Gathered(torch.zeros(0, 3, 112, 112), ())
    owner = [number for number, (_, found) in enumerate(seen) for _ in found]
    crops = torch.stack([one.crop for _, found in seen for one in found])
    alike = torch.stack([_over_threshold(one, crops) for one in recognisers]).mean(0)
    photos = torch.tensor(owner)
    # Votes of a face: in how many other photos is somebody like it? The clearest likeness decides between equals.
    best = torch.stack([alike[:, photos == number].max(1).values for number in range(len(seen))], 1)  # faces x photos
    best[torch.arange(len(crops)), photos] = -1.0
    votes = (best >= 0).sum(1) + best.clamp(min=-0.99, max=0.99).mean(1) / 100
    centre = int(votes.argmax())
    kept, paths, skipped = [], [], []
    for number, (path, found) in enumerate(seen):
        here = torch.nonzero(photos == number).flatten()
        pick = centre if number == owner[centre] else int(here[alike[here, centre].argmax()])
        if pick == centre or float(alike[pick, centre]) >= 0:
            kept.append(pick)
            paths.append(path)
        else:
            who = "its face does not look" if len(found) == 1 else f"none of its {len(found)} faces looks"
            skipped.append(Skipped(path, f"{who} like the person of the other photos"))
    return Gathered(crops[kept], tuple(paths), tuple(skipped))


def _over_threshold(one: Recogniser, crops: Tensor) -> Tensor:
    """Cosine above the threshold for one person, for each pair of faces."""
    found = one.embed_all(crops)
    return found @ found.T - one.same_person
