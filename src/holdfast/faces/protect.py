"""Putting a person's mask on photos, and taking it off: whole photos at their own resolution.

Only the person's own faces change; which they are, recognisers decide, so a friend in a group photo stays as they are.
Of a bank, each photo gets one mask, drawn from its content: the same photo always gets the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from holdfast.core.errors import DataError, HoldfastError, MissingExtra, ModelError
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.faces.align import Alignment, spread
from holdfast.faces.mask import Key, applied, removed
from holdfast.faces.people import Pixels, Seen, faces_in, likeness
from holdfast.faces.photo import open_photo, save_photo
from holdfast.faces.recogniser import Recogniser, load_recogniser
from holdfast.faces.ssim import psnr, ssim

STRENGTHS = (1.0, 0.75, 0.5)
"""Shares of a mask that are tried when it is taken off: a photo may have been protected more weakly."""


@dataclass(frozen=True)
class Outcome:
    """What became of one photo.

    Attributes:
        source, target: where it was read from and, unless it failed, written to.
        status: protected, revealed, untouched (no face of the person), already (carries the mask), failed.
        faces: found in the photo.
        changed: of them, how many were changed.
        mask: number of the mask in the bank.
        ssim: of the changed crops, mean; None where nothing changed.
        psnr: of the changed crops in decibels, mean.
        message: why, where there is something to say.
    """

    source: str
    status: str
    target: str = ""
    faces: int = 0
    changed: int = 0
    mask: int | None = None
    ssim: float | None = None
    psnr: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Owner:
    """A key with the recognisers by which its person is known.

    Attributes:
        key: masks and the person's faces.
        recognisers: those of the key that are at hand, at least one.
    """

    key: Key
    recognisers: tuple[Recogniser, ...]

    @classmethod
    def of(cls, key: Key) -> Owner:
        """The owner of a key.

        Raises:
            ModelError: none of its recognisers is at hand.
        """
        found, references = [], key.card.get("recognisers", {})
        for name in key.person:
            try:
                found.append(replace(load_recogniser(references.get(name, name)), name=name))
            except (ModelError, MissingExtra):
                continue
        if not found:
            names = ", ".join(key.person) or "none"
            raise ModelError(
                f"the recognisers of this key ({names}) are not here",
                hint="put them where they were, or learn a new mask",
            )
        return cls(key, tuple(found))

    @cached_property
    def person(self) -> tuple[Tensor, ...]:
        """By recogniser, unit vectors of the person."""
        return tuple(functional.normalize(self.key.person[one.name], dim=1) for one in self.recognisers)

    def likeness(self, crops: Tensor) -> Tensor:
        """Zero or more where a face is the owner's, shape (n,)."""
        return likeness(crops, self.person, self.recognisers)

    def mask_of(self, pixels: Pixels) -> int:
        """The number of the mask that a photo gets: by its content, and secret without the key."""
        salt = self.key.masks.to(torch.int8).numpy().tobytes()
        drawn = hashlib.blake2b(pixels.tobytes(), key=hashlib.blake2b(salt, digest_size=32).digest(), digest_size=8)
        return int.from_bytes(drawn.digest(), "big") % len(self.key)


def changed_pixels(
    pixels: Pixels, alignments: Sequence[Alignment], mask: Tensor, budget: float, sign: float = 1.0
) -> Pixels:
    """A photo with a mask added to (or, with sign -1, taken off) some of its faces.

    Args:
        pixels: shape (height, width, 3).
        alignments: of the faces.
        mask: shape (3, 112, 112).
        budget: most that any value changes by; interpolation would go beyond it.
        sign: 1 to add; smaller to add less; negative to take off.

    Returns:
        a new array.
    """
    height, width = pixels.shape[:2]
    made = pixels.copy()
    for alignment in alignments:
        (left, top), change = spread(mask, alignment, height, width)
        rows, columns = change.shape[:2]
        part = made[top : top + rows, left : left + columns]
        np.clip(change, -budget, budget, out=change)
        change *= sign
        change += part
        np.clip(np.rint(change, out=change), 0, 255, out=change)
        part[...] = change
    return made


def own_faces(found: Sequence[Seen], owner: Owner) -> list[int]:
    """Places of the owner's faces among those of a photo."""
    if not found:
        return []
    scores = owner.likeness(torch.stack([one.crop for one in found]))
    # A person is in a photo once, twice in a mirror: every face above the threshold is theirs.
    return [place for place, score in enumerate(scores.tolist()) if score >= 0]


@dataclass(frozen=True)
class Protecting:
    """How photos are protected.

    Attributes:
        every_face: put the mask on all faces, not only the owner's.
        min_ssim: weaken the mask on a photo until its face keeps this SSIM; None: the mask as learned.
        overwrite: replace files that are already in the output folder.
        drop_location: leave out where a photo was taken.
        quality: of JPEG and WebP; None: as the source.
    """

    every_face: bool = False
    min_ssim: float | None = None
    overwrite: bool = False
    drop_location: bool = False
    quality: int | None = None


def protect_photo(source: Path, target: Path, owner: Owner, how: Protecting = Protecting()) -> Outcome:
    """Protect one photo and write it.

    A photo without the owner's face is written as it is, so that a folder stays whole.

    Raises:
        HoldfastError: it cannot be read or written; nothing is left behind.
    """
    photo = open_photo(source)
    found = faces_in(photo.pixels)
    own = list(range(len(found))) if how.every_face else own_faces(found, owner)
    number = owner.mask_of(photo.pixels)
    hidden = not how.every_face and _already(found, owner, grey=photo.grey)
    if hidden or not own:
        saved = save_photo(
            photo, photo.pixels, target, overwrite=how.overwrite, drop_location=how.drop_location, quality=how.quality
        )
        status = "already" if hidden else "untouched"
        why = "it carries one of these masks already" if hidden else _why_untouched(found)
        told = "; ".join([why, *photo.notes, *saved.notes])
        return Outcome(str(source), status, str(saved.path), len(found), message=told)
    mask = owner.key.mask(number, grey=photo.grey)
    crops = torch.stack([found[place].crop for place in own])
    strength = _strength(crops, mask, how.min_ssim)
    made = changed_pixels(
        photo.pixels, [found[place].alignment for place in own], mask, owner.key.budget, sign=strength
    )
    saved = save_photo(
        photo, made, target, overwrite=how.overwrite, drop_location=how.drop_location, quality=how.quality
    )
    after = applied(crops, mask[None] * strength)
    notes = [*photo.notes, *saved.notes]
    if strength < 1:
        notes.append(f"the mask was weakened to {strength:.0%} to keep SSIM {how.min_ssim}")
    return Outcome(
        str(source), "protected", str(saved.path), len(found), len(own), number,
        float(ssim(crops, after).mean()), float(psnr(crops, after).clamp(max=99).mean()), "; ".join(notes),
    )  # fmt: skip


def _why_untouched(found: Sequence[Seen]) -> str:
    if not found:
        return "no face was found"
    return "its face is not the owner's" if len(found) == 1 else f"none of its {len(found)} faces is the owner's"


def _strength(crops: Tensor, mask: Tensor, least: float | None) -> float:
    """Largest share of the mask at which the faces keep an SSIM."""
    if least is None or float(ssim(crops, applied(crops, mask[None])).min()) >= least:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        enough = float(ssim(crops, applied(crops, mask[None] * middle)).min()) >= least
        low, high = (middle, high) if enough else (low, middle)
    return low


@dataclass(frozen=True)
class Unmasked:
    """A face that is the owner's once a mask is off.

    Attributes:
        place: among the photo's faces.
        number: of the mask.
        strength: share of it that was taken off.
        likeness: of the face without it; zero or more is the owner.
        before: likeness of the face as it was.
    """

    place: int
    number: int
    strength: float
    likeness: float
    before: float


def unmasked(found: Sequence[Seen], owner: Owner, *, grey: bool = False) -> list[Unmasked]:
    """For each face of a photo, the mask whose removal makes it most like the owner's.

    A face counts where taking the mask off makes it the owner's and brings it clearly nearer than it was: a mask taken
    off a face that never had one leaves it where it was, or further away.
    """
    results = []
    for place, one in enumerate(found):
        before = float(owner.likeness(one.crop[None])[0])
        tries = [(number, strength) for number in range(len(owner.key)) for strength in STRENGTHS]
        crops = torch.cat([removed(one.crop[None], owner.key.mask(n, grey=grey)[None] * s) for n, s in tries])
        scores = owner.likeness(crops)
        best = int(scores.argmax())
        after = float(scores[best])
        if after >= 0 and after > before + _CLEARLY:
            results.append(Unmasked(place, *tries[best], after, before))
    return results


_CLEARLY = 0.05


def _already(found: Sequence[Seen], owner: Owner, *, grey: bool) -> bool:
    return bool(unmasked(found, owner, grey=grey))


def reveal_photo(source: Path, target: Path, owner: Owner, how: Protecting = Protecting()) -> Outcome:
    """Take the owner's mask off one photo and write it.

    Raises:
        HoldfastError: it cannot be read or written.
    """
    photo = open_photo(source)
    found = faces_in(photo.pixels)
    hits = unmasked(found, owner, grey=photo.grey)
    if not hits:
        why = "no face was found" if not found else "no face becomes the owner's when one of these masks is taken off"
        return Outcome(str(source), "untouched", "", len(found), message=why)
    made = photo.pixels
    for hit in hits:
        mask = owner.key.mask(hit.number, grey=photo.grey)
        made = changed_pixels(made, [found[hit.place].alignment], mask, owner.key.budget, sign=-hit.strength)
    saved = save_photo(
        photo, made, target, overwrite=how.overwrite, drop_location=how.drop_location, quality=how.quality
    )
    return Outcome(str(source), "revealed", str(saved.path), len(found), len(hits), hits[0].number)


def each(
    pairs: Sequence[tuple[Path, Path]], owner: Owner, how: Protecting, sink: Sink = ignore, *, reveal: bool = False
) -> list[Outcome]:
    """Protect (or reveal) photo by photo; one that fails is told, and the rest goes on.

    Args:
        pairs: sources and targets.
        owner: whose photos they are.
        how: settings.
        sink: told of progress and failures.
        reveal: take the mask off instead.
    """
    results = []
    for number, (source, target) in enumerate(pairs):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            results.append((reveal_photo if reveal else protect_photo)(source, target, owner, how))
        except OSError as error:
            results.append(Outcome(str(source), "failed", message=f"{target.parent}: {error.strerror}"))
        except HoldfastError as error:
            results.append(Outcome(str(source), "failed", message=f"{error.message} ({error.hint})"))
        if results[-1].status == "failed":
            sink(Warned(message=results[-1].message))
        sink(Progressed(done=number + 1, total=len(pairs)))
    if not pairs:
        raise DataError("no photos to work on", hint="give photos or folders that hold some")
    return results
