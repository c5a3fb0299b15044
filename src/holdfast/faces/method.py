"""What a mask method is: knobs, and masks learned from a person's photos.

Two kinds stand in one table. A *mask* method learns one pattern (or a bank of them) per person, which goes onto any
photo at once: ``learn``. A *per-photo* method computes a change for each photo on its own, minutes of work for each
new one, and has no key: ``cloak``. The second kind is here to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from holdfast.core.methods import Entry, Table
from holdfast.faces.align import SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.faces.recogniser import Recogniser
    from holdfast.faces.ssim import Reference

WindowKind = Literal["oval", "box", "none"]
State = dict[str, "Tensor"]
Keep = Callable[[int, int, float, Callable[[], State]], None]
"""Called after each step with steps done, steps in all, the mean angle reached (degrees), and what resuming needs."""


def keep_nothing(done: int, total: int, angle: float, state: Callable[[], State]) -> None:
    """The default: progress is not told, nothing is kept."""


def _nobody() -> Tensor:
    import torch

    return torch.zeros(0, 3, SIDE, SIDE)


@dataclass(frozen=True)
class Subject:
    """A person to be protected, as a method sees them.

    Attributes:
        crops: aligned photos, shape (n, 3, 112, 112), RGB, 0..255.
        recognisers: that the mask may learn from (all differentiable).
        others: aligned faces of other people, shape (m, 3, 112, 112); m may be 0.
    """

    crops: Tensor
    recognisers: tuple[Recogniser, ...]
    others: Tensor = field(default_factory=_nobody)

    @cached_property
    def embeddings(self) -> tuple[Tensor, ...]:
        """Unit vectors of the clean photos, one (n, dimension) for each recogniser."""
        return tuple(one.embed_all(self.crops) for one in self.recognisers)

    @cached_property
    def other_embeddings(self) -> tuple[Tensor, ...]:
        """Unit vectors of the other people's faces, one (m, dimension) for each recogniser."""
        return tuple(one.embed_all(self.others) for one in self.recognisers)

    @cached_property
    def reference(self) -> Reference:
        """The photos, for SSIM."""
        from holdfast.faces.ssim import Reference

        return Reference(self.crops)


class MaskMethod:
    """Base of mask methods (subclasses are frozen dataclasses).

    Attributes:
        name, title, paper: in the table, in reports, and where it comes from.
        version: raised whenever the same knobs could give another result than before.
        per_photo: whether it changes each photo on its own instead of learning a mask.
        off: knob values at which it changes nothing.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    version: ClassVar[int] = 1
    per_photo: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"budget": 0.0}

    ssim: float
    budget: float

    @property
    def dssim(self) -> float:
        """The limit of visibility, (1 - SSIM) / 2."""
        return (1 - self.ssim) / 2

    def learn(self, subject: Subject, seed: int, keep: Keep = keep_nothing, state: State | None = None) -> Tensor:
        """Masks of a person, shape (k, 3, 112, 112): whole numbers within budget and visibility.

        Args:
            subject: the person.
            seed: of every draw.
            keep: told after each step.
            state: what an interrupted call kept; the result is that of an unbroken one.
        """
        raise NotImplementedError

    def cloak(self, crops: Tensor, subject: Subject, seed: int) -> Tensor:
        """Changes of photos, shape (n, 3, 112, 112), of a method that works on each photo."""
        raise NotImplementedError


_HERE = "holdfast.faces.methods"

MASKS = Table(
    "mask method",
    "holdfast.masks",
    {
        "chameleon": Entry(f"{_HERE}.chameleon:Chameleon", "one P3-Mask or a bank of them per person (ECCV 2024)"),
        "opom": Entry(f"{_HERE}.opom:Opom", "one universal mask, no diversity (TPAMI 2022)"),
        "fawkes": Entry(f"{_HERE}.fawkes:Fawkes", "each photo pulled to another person (USENIX Security 2020)"),
        "lowkey": Entry(f"{_HERE}.lowkey:LowKey", "each photo pushed away, also when blurred (ICLR 2021)"),
        "noise": Entry(f"{_HERE}.noise:Noise", "random signs of the same visibility: the control"),
    },
)
