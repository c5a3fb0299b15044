"""SFT at the alignment stage: the reference that every defence is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.finetune.method import OWN_STREAM, Passes, StepObject, TrainingMethod

if TYPE_CHECKING:
    from torch import Tensor


class PlainStep(StepObject):
    """One pass over the stage's own stream: ``.grad = grad L(w; B)``."""

    def __init__(self, stage: str) -> None:
        self._stream = OWN_STREAM[stage]

    def __call__(self, passes: Passes) -> float | Tensor:
        """See :class:`StepObject`."""
        return passes.backward(passes.draw(self._stream))


@dataclass(frozen=True)
class SFT(TrainingMethod):
    """Minimise the cross-entropy of the alignment answers. No knobs."""

    name = "sft"
    stage = "align"
    needs = ("safety",)
    title = "SFT"
    paper = "the standard procedure; no defence"

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        return PlainStep(self.stage)
