"""SFT at the fine-tuning stage: what the user gets when the provider does nothing."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.finetune.alignment.sft import PlainStep
from holdfast.finetune.method import Passes, StepObject, TrainingMethod


@dataclass(frozen=True)
class SFT(TrainingMethod):
    """Minimise the cross-entropy of the user's answers. No knobs."""

    name = "sft"
    stage = "finetune"
    needs = ("user",)
    title = "SFT"
    paper = "the standard procedure; no defence"

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        return PlainStep(self.stage)
