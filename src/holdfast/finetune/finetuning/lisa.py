"""Lisa: lazy safety alignment during the user's fine-tuning.

Huang, Hu, Ilhan, Tekin, Liu. "Lisa: Lazy Safety Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv:2405.18641), Algorithm 1 and equation 2. Training alternates between
two states, K1 steps on the alignment set and K2 steps on the user's, and each state is drawn towards where
the other one last stopped:

    align:     min_w  f(w) + rho/2 * ||w - w_user||^2       w_user:    last iterate of the user state
    user:      min_w  h(w) + rho/2 * ||w - w_align||^2      w_align:   last iterate of the alignment state

rho = 0 is the paper's ablation BSO (bi-state optimisation).

Differences from the authors' code:
  * The proximal term is added to the gradient in closed form, rho * (w - anchor): the same number without a
    graph, and right for sharded parameters, where a norm in the loss fails.
  * Their code leaves the term out for the first tenth of the steps; the paper does not.
    ``proximal_after = 0.1`` switches that on.
  * Their loader goes on drawing (and discarding) user batches during the alignment state;
    ``discard_user`` switches that on. In ``transformers.Trainer`` it is always so.
As in their code, one AdamW serves both states, its moments kept across switches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.knobs import knob
from holdfast.finetune.method import Passes, StepObject, TrainingMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lisa(TrainingMethod):
    """Alternate between alignment and user data, each held near the other's last iterate."""

    rho: float = knob(1.0, "strength of the proximal term; 0 is BSO", low=0, source="Lisa, section 5.1")
    align_steps: int = knob(100, "K1: steps on the alignment set before switching", low=0, source="Lisa: 100")
    user_steps: int = knob(900, "K2: steps on the user's data before switching", low=1, source="Lisa: 900")
    proximal_after: float = knob(
        0.0, "share of the steps without the proximal term", low=0, high=1, source="paper 0, authors' code 0.1"
    )
    discard_user: bool = knob(False, "draw and drop user batches during alignment states, as the authors' code does")

    name = "lisa"
    stage = "finetune"
    needs = ("user", "safety")
    copies = 2
    off = {"rho": 0.0, "align_steps": 0}
    title = "Lisa"
    paper = "Huang et al., NeurIPS 2024, arXiv:2405.18641"

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        return LisaStep(self, passes)


class LisaStep(StepObject):
    """One pass on the batch of the current state, then the pull towards the other state's anchor."""

    def __init__(self, knobs: Lisa, passes: Passes) -> None:
        self._knobs = knobs
        self._aligning = knobs.align_steps > 0
        self._clock = 0
        start = [p.detach().clone() for p in passes.parameters]
        # Both anchors start where training starts, as in the authors' code, and share tensors until the first
        # switch; from then on each is overwritten in place, so there are never more than two copies.
        self._anchors: dict[str, list[Tensor]] = {"align": start, "user": start}

    def __call__(self, passes: Passes) -> float | Tensor:
        """See :class:`StepObject`."""
        import torch

        self._switch(passes)
        if self._aligning and self._knobs.discard_user:
            passes.draw("user")
        loss = passes.backward(passes.draw("safety" if self._aligning else "user"))
        plain = not self._knobs.align_steps or passes.step < self._knobs.proximal_after * passes.total_steps
        if self._knobs.rho and not plain:
            anchor = self._anchors["user" if self._aligning else "align"]
            with torch.no_grad():
                for parameter, there in zip(passes.parameters, anchor, strict=True):
                    if parameter.grad is None:  # an expert that no row of this batch reaches
                        parameter.grad = (parameter - there) * self._knobs.rho
                    else:
                        parameter.grad.add_(parameter - there, alpha=self._knobs.rho)
        self._clock += 1
        return loss

    def _switch(self, passes: Passes) -> None:
        """Change state when its steps are used up, leaving an anchor where it stopped."""
        length = self._knobs.align_steps if self._aligning else self._knobs.user_steps
        if self._clock < length or not self._knobs.align_steps:
            return
        name = "align" if self._aligning else "user"
        if self._anchors["align"] is self._anchors["user"]:
            self._anchors[name] = [p.detach().clone() for p in passes.parameters]
        else:
            for anchor, parameter in zip(self._anchors[name], passes.parameters, strict=True):
                anchor.copy_(parameter.detach())
        self._aligning, self._clock = not self._aligning, 0

    def state(self) -> dict[str, Any]:
        """See :class:`StepObject`."""
        return {"aligning": self._aligning, "clock": self._clock, **self._anchors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`StepObject`."""
        self._aligning, self._clock = state["aligning"], state["clock"]
        self._anchors = {name: list(state[name]) for name in ("align", "user")}
