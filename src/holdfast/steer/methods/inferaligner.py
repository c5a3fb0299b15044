"""InferAligner: add the aligned model's safety vector where the input looks harmful.

Wang, Zhang, Li, Tan, Wang, Ren, Jiang, Qiu. "InferAligner: Inference-Time Alignment for Harmlessness through
Cross-Model Guidance", EMNLP 2024 (arXiv:2401.11206). At each chosen layer, theta is the mean activation of harmful
minus that of harmless prompts in the aligned model, at the last token; a gate looks at the last token of the prompt,

    g = 1[ h . u + b > 0 ]           h  <-  h + alpha * g * theta     at the last token and at every later one.

Here the aligned model is the vision-language model's own language model (prompts without pictures); u and b separate
the anchors with pictures, u their difference of means and b the midpoint. Differences from the authors' code
(Jihuai-wpy/InferAligner): their gate is fitted on the target model's text, ours on what it will see, prompts with
pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit
from holdfast.steer.method import Anchors, Learned, SteeringMethod, coordinate
from holdfast.steer.subject import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InferAligner(SteeringMethod):
    """Add the text-only safety vector where the prompt with its picture lies on the harmful side."""

    strength: float | None = knob(None, "alpha; none: chosen on validation")
    layers: tuple[int, ...] = knob((), "decoder layers, from 0; none: chosen on validation", low=0)

    name = "inferaligner"
    title = "InferAligner"
    paper = "Wang et al., EMNLP 2024, arXiv:2401.11206"

    def fit(self, anchors: Anchors) -> Learned:
        """Safety vectors (text alone), and the gate (with pictures)."""
        vector = anchors.states("harmful", "text").mean(1) - anchors.states("benign", "text").mean(1)
        towards = -anchors.safety("image")
        means = [coordinate(anchors.states(g, "image"), towards).mean(1) for g in ("harmful", "benign")]
        return {"vector": vector, "gate": towards, "threshold": (means[0] + means[1]) / 2}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        made: list[Edit] = []
        for layer in self.layers:
            gated = _Gated(learned, layer, self.strength or 0.0, len(batch.items))
            made += [Edit(layer, gated.opening), Edit(layer, gated.later, phases="decode")]
        return made


class _Gated:
    """Adds a vector to rows whose gate opened at the end of their prompt."""

    def __init__(self, learned: Learned, layer: int, strength: float, rows: int) -> None:
        import torch

        self.vector = strength * learned["vector"][layer]
        self.towards, self.threshold = learned["gate"][layer], float(learned["threshold"][layer])
        self.open = torch.zeros(rows)

    def opening(self, states: Tensor, rows: Tensor) -> Tensor:
        """At the last token of the prompt: decide, and add."""
        # Once a prompt, before any token is generated: from here on nothing is copied between devices.
        self.vector, self.towards = self.vector.to(states.device), self.towards.to(states.device)
        self.open = self.open.to(states.device)
        found = (states.float() @ self.towards > self.threshold).float()
        self.open[rows] = found
        return self.later(states, rows)

    def later(self, states: Tensor, rows: Tensor) -> Tensor:
        """At generated tokens: add where the gate is open."""
        added: Tensor = (self.open[rows, None] * self.vector).to(states.dtype)
        return states + added
