"""The control: random signs, as visible as a mask. If this protects, the measurement is broken.

Every pixel moves up or down by the same amount, scaled to the limit of visibility as the masks of other methods are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.faces.align import SIDE
from holdfast.faces.method import Keep, MaskMethod, State, Subject, WindowKind, keep_nothing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Noise(MaskMethod):
    """Random signs at every pixel."""

    ssim: float = knob(0.94, "least mean SSIM of the photos learned from", low=0.5, high=1)
    budget: float = knob(16.0, "most grey levels at any pixel", low=0, high=64)
    shape: WindowKind = knob("oval", "where the noise may be")

    name = "noise"
    title = "Random noise"
    paper = "control"

    def learn(self, subject: Subject, seed: int, keep: Keep = keep_nothing, state: State | None = None) -> Tensor:
        """See :class:`MaskMethod`."""
        import torch

        from holdfast.faces.mask import fitted
        from holdfast.faces.window import window

        generator = torch.Generator().manual_seed(seed)
        signs = (torch.rand(1, 3, SIDE, SIDE, generator=generator) < 0.5).float() * 2 - 1
        return fitted(
            (signs * window(self.shape) * 8).to(subject.crops.device), subject.reference, self.dssim, self.budget
        )
