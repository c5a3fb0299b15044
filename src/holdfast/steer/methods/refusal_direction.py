"""Refusal direction: add the difference of means between harmful and harmless prompts at every token.

Arditi, Obeso, Syed, Paleka, Panickssery, Gurnee, Nanda. "Refusal in Language Models Is Mediated by a Single
Direction", NeurIPS 2024 (arXiv:2406.11717), section 3.1, activation addition: with r the mean activation of harmful
minus that of harmless prompts at the last token of layer l,

    h  <-  h + alpha * r        at layer l, at all positions.

The direction is taken from prompts without pictures. It is unconditional: how much it refuses harmless requests is
what the comparison shows. (The paper also removes the direction; that weakens safety and is not built here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit, Phases, Tokens
from holdfast.steer.method import Anchors, Learned, SteeringMethod
from holdfast.steer.methods.cmrm import added
from holdfast.steer.subject import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RefusalDirection(SteeringMethod):
    """Add the text-only difference of means between harmful and harmless prompts."""

    strength: float | None = knob(None, "alpha; none: chosen on validation", source="paper: 1")
    layers: tuple[int, ...] = knob((), "decoder layer, from 0; none: chosen on validation", low=0)
    tokens: Tokens = knob("all", "positions of the prompt that are changed", source="paper: all")
    phases: Phases = knob("all", "while the prompt is read, or at every generated token too", source="paper: all")

    name = "refusal-direction"
    title = "Refusal direction"
    paper = "Arditi et al., NeurIPS 2024, arXiv:2406.11717"

    def fit(self, anchors: Anchors) -> Learned:
        """Difference of means at every layer."""
        return {"vector": anchors.states("harmful", "text").mean(1) - anchors.states("benign", "text").mean(1)}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        moves = self.constant(learned)
        return [Edit(n, added(v[None]), self.tokens, self.phases) for n, v in moves.items()]

    def constant(self, learned: Learned) -> dict[int, Tensor]:
        """See :class:`SteeringMethod`."""
        return {} if self.strength is None else {n: self.strength * learned["vector"][n] for n in self.layers}
