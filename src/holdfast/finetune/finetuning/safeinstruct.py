"""SafeInstruct: safety rows mixed into the user's data.

Bianchi, Suzgun, Attanasio, Rottger, Jurafsky, Hashimoto, Zou. "Safety-Tuned LLaMAs: Lessons From Improving
the Safety of Large Language Models that Follow Instructions", ICLR 2024 (arXiv:2309.07875), section 4: adding
a few percent of safe answers to instruction data restores refusals. The same mixing is VLGuard's
post-hoc fine-tuning (Zong et al., ICML 2024) and the baseline of the Vaccine repository.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.errors import DataError
from holdfast.core.knobs import knob
from holdfast.finetune.alignment.sft import PlainStep
from holdfast.finetune.method import Passes, StepObject, Stream, TrainingMethod

if TYPE_CHECKING:
    from holdfast.data.rows import Row


@dataclass(frozen=True)
class SafeInstruct(TrainingMethod):
    """Plain fine-tuning on the user's rows plus a share of safety rows."""

    share: float = knob(
        0.03, "safety rows added, as a share of the user's rows", low=0, source="SafeInstruct: about 3%"
    )

    name = "safeinstruct"
    stage = "finetune"
    needs = ("user", "safety")
    off = {"share": 0.0}
    title = "SafeInstruct"
    paper = "Bianchi et al., ICLR 2024, arXiv:2309.07875"

    def prepare(self, data: dict[Stream, list[Row]], seed: int) -> dict[Stream, list[Row]]:
        """Add ``share * len(user)`` safety rows, drawn without replacement, to the user's rows.

        Raises:
            DataError: there are too few safety rows.
        """
        count = int(self.share * len(data["user"]) + 0.5)
        if count > len(data["safety"]):
            raise DataError(
                f"share = {self.share:g} of {len(data['user'])} user rows is {count} safety rows; there are only "
                f"{len(data['safety'])}",
                hint="lower the share or give more safety data",
            )
        added = random.Random(f"safeinstruct-{seed}").sample(data["safety"], count)
        return data | {"user": data["user"] + added}

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        return PlainStep(self.stage)
