"""Vaccine: perturbation-aware alignment.

Huang, Hu, Liu. "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv:2402.01109), equations 1-4:

    min_w  max_{||e|| <= rho}  L(f_w with e_l added to the hidden embedding of each layer l)

solved to first order: with g_l = dL/dh_l of a first pass, the second pass runs with
e_l = rho * g_l / sqrt(sum_l ||g_l||^2) added, and its gradient is applied.

Differences from the authors' code:
  * They perturb the output of the attention block before the residual sum (``site="attention"``, kept
    as the default because their figures come from it); the paper's text perturbs the layer's hidden
    state (``site="layer"``).
  * Their first pass computes weight gradients only to throw them away; here it computes the activation
    gradients alone, which costs two thirds as much for full fine-tuning.
  * Their norm is taken over each micro-batch, so accumulating changes the strength; here one norm spans the
    optimiser step's whole batch. ``norm="row"`` gives each row its own norm, which makes the strength
    independent of the batch size.
  * Dropout, if any, is the same in both passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.knobs import knob
from holdfast.finetune.method import Passes, StepObject, TrainingMethod
from holdfast.models.architecture import attention_modules, decoder_layers

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Vaccine(TrainingMethod):
    """Align so that the loss stays low when hidden embeddings are pushed by rho."""

    rho: float = knob(2.0, "perturbation budget: L2 norm of all e_l together", low=0, source="Vaccine, section 5.1")
    site: Literal["attention", "layer"] = knob("attention", "what is perturbed: attention output or layer output")
    norm: Literal["batch", "row"] = knob("batch", "one norm for the step's batch, or one for each row")

    name = "vaccine"
    stage = "align"
    needs = ("safety",)
    passes = 2.0
    off = {"rho": 0.0}
    title = "Vaccine"
    paper = "Huang et al., NeurIPS 2024, arXiv:2402.01109"

    def start(self, passes: Passes) -> StepObject:
        """See :meth:`TrainingMethod.start`."""
        find = attention_modules if self.site == "attention" else decoder_layers
        return VaccineStep(self, find(passes.model))


class VaccineStep(StepObject):
    """Two passes: find the perturbation, then take the gradient under it."""

    def __init__(self, knobs: Vaccine, sites: Sequence[nn.Module]) -> None:
        self._knobs, self._sites = knobs, sites

    def __call__(self, passes: Passes) -> float | Tensor:
        """See :class:`StepObject`."""
        batch = passes.draw("safety")
        if self._knobs.rho == 0:
            return passes.backward(batch)
        pushes = self._perturbations(passes, batch)
        total: float | Tensor = 0.0
        with _outputs_changed(self._sites) as change:
            for part, loss in enumerate(_under(passes.losses(batch), change, pushes)):
                passes.back(loss)
                total = total + loss.detach()
                pushes[part] = []
        return total

    def _perturbations(self, passes: Passes, batch: Any) -> list[list[Tensor]]:
        """e_l of every micro-batch, each like the output of site l: (rows, tokens, hidden)."""
        import torch

        gradients: list[list[Tensor]] = []
        with _outputs_kept(self._sites) as outputs:
            for loss in passes.losses(batch):
                gradients.append(list(torch.autograd.grad(loss, list(outputs))))
                outputs.clear()
        if self._knobs.norm == "row":
            return [_scaled_by_row(part, self._knobs.rho) for part in gradients]
        norms = torch._foreach_norm([g for part in gradients for g in part])
        size = torch.linalg.vector_norm(torch.stack(list(norms)).float())
        passes.log(activation_gradient_norm=size)
        scale = self._knobs.rho / (size + 1e-7)
        return [[g * scale for g in part] for part in gradients]


def _scaled_by_row(gradients: list[Tensor], rho: float) -> list[Tensor]:
    squares = sum(g.float().pow(2).sum(dim=(1, 2)) for g in gradients)
    assert not isinstance(squares, int)
    scale = rho / (squares.sqrt() + 1e-7)
    return [g * scale[:, None, None].to(g.dtype) for g in gradients]


@contextmanager
def _outputs_kept(sites: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the output tensor of each site as the model runs."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        kept.append(_first(out))
        if kept[-1].requires_grad:
            return out
        # Nothing below this site is trained (a LoRA on later modules only): the graph begins here.
        kept[-1] = kept[-1].detach().requires_grad_()
        return (kept[-1], *out[1:]) if isinstance(out, tuple) else kept[-1]

    hooks = [site.register_forward_hook(hook) for site in sites]
    try:
        yield kept
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _outputs_changed(sites: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Adds ``change[l]`` to the output of site l while the block lasts.

    Backward passes are included: a checkpointed layer runs forward again there and must see the same push.
    """
    change: dict[int, Tensor] = {}

    def add(place: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> Any:
            pushed = _first(out) + change[place]
            return (pushed, *out[1:]) if isinstance(out, tuple) else pushed

        return hook

    hooks = [site.register_forward_hook(add(place)) for place, site in enumerate(sites)]
    try:
        yield change
    finally:
        for hook in hooks:
            hook.remove()


def _under(losses: Iterator[Tensor], change: dict[int, Tensor], pushes: list[list[Tensor]]) -> Iterator[Tensor]:
    """The losses, each micro-batch under its own push (set before its forward pass begins)."""
    for part in pushes:
        change.update(enumerate(part))
        loss = next(losses, None)
        if loss is None:
            return
        yield loss


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out
