"""Booster: attenuate the effect of a harmful perturbation at alignment time.

Huang, Hu, Ilhan, Tekin, Liu. "Booster: Tackling Harmful Fine-tuning for Large Language Models via
Attenuating Harmful Perturbation", ICLR 2025 (arXiv:2409.01586), equation 1 and Algorithm 1:

    min_w  f(w) + lam * ( h(w) - h(w - alpha * grad h(w) / ||grad h(w)||) )

f is the loss on the alignment set, h the loss on the harmful set. To first order (the Hessian term is
dropped, as in the paper) the gradient is

    grad f(w) + lam * grad h(w) - lam * grad h(w - alpha * grad h(w) / ||grad h(w)||).

Differences from the authors' code:
  * The weights are put back from a copy, not by adding back what was taken (see ``method.moved``).
  * One extra copy of the trainables instead of two: all three passes add up in ``.grad``, with weights
    lam, -lam and 1.
  * Right under gradient accumulation; theirs calls ``zero_grad`` inside the step and needs accumulation 1.
  * The harmful batch is as large as the alignment batch; theirs is always 10.

alpha must stay below the radius at which one harmful step flips the model: beyond it h(w') is near 0, its
gradient vanishes, and what is left of the regulariser, +lam * h(w), trains compliance. The step logs h(w),
h(w') and ||grad h||, and the stage warns when h(w') collapses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.finetune.method import Passes, StepObject, TrainingMethod, global_norm, moved

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Booster(TrainingMethod):
    """Align while making one normalised harmful step reduce the harmful loss as little as possible."""

    lam: float = knob(5.0, "weight of the regulariser", low=0, source="Booster, section 5.1 (25 in late GSM8K tables)")
    alpha: float = knob(0.1, "length of the simulated harmful step", low=0, source="Booster, section 5.1")

    name = "booster"
    stage = "align"
    needs = ("safety", "harmful")
    passes = 3.0
    copies = 1
    off = {"lam": 0.0}
    title = "Booster"
    paper = "Huang et al., ICLR 2025, arXiv:2409.01586"

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        return BoosterStep(self)


class BoosterStep(StepObject):
    """Three passes: harmful, harmful after the simulated step, alignment."""

    def __init__(self, knobs: Booster) -> None:
        self._knobs = knobs

    def __call__(self, passes: Passes) -> float | Tensor:
        """See :class:`StepObject`."""
        import torch

        if self._knobs.lam == 0:
            return passes.backward(passes.draw("safety"))
        harmful, parameters = passes.draw("harmful"), passes.parameters
        before = passes.backward(harmful)
        direction = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        norm = global_norm(direction)
        with moved(parameters, direction, -self._knobs.alpha / (norm + 1e-7)):
            # The harmful gradient has served as direction; from here on .grad gathers the sum.
            torch._foreach_mul_(direction, self._knobs.lam)
            after = passes.backward(harmful, scale=-self._knobs.lam)
        loss = passes.backward(passes.draw("safety"))
        passes.log(harmful_loss=before, harmful_loss_after_step=after, harmful_gradient_norm=norm)
        return loss
