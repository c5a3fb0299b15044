"""Contrastive activation addition: the difference between refusing and complying, added to what is generated.

Rimsky, Gabrieli, Schulz, Tong, Hubinger, Turner. "Steering Llama 2 via Contrastive Activation Addition", ACL 2024
(arXiv:2312.06681). Each harmful anchor is read twice, followed by the beginning of a refusal and by that of a compliant
answer; v is the mean difference of the states at the last token, and

    h  <-  h + alpha * v        at layer l, at every position after the prompt.

Differences from the authors' code (nrimsky/CAA): their pairs are multiple-choice letters; here they are openings of
answers, since that is what decides a refusal. The first token of an answer is made at the last position of the prompt,
so that position is steered too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit, Tokens
from holdfast.steer.method import Anchors, Learned, SteeringMethod
from holdfast.steer.methods.cmrm import added
from holdfast.steer.subject import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Caa(SteeringMethod):
    """Add the mean difference between the opening of a refusal and that of a compliant answer."""

    strength: float | None = knob(None, "alpha; none: chosen on validation")
    layers: tuple[int, ...] = knob((), "decoder layer, from 0; none: chosen on validation", low=0)
    refuse: str = knob("I'm sorry", "how a refusal of this model opens")
    comply: str = knob("Sure, here", "how a compliant answer of this model opens")
    tokens: Tokens = knob("last", "positions of the prompt that are changed beside the answer")

    name = "caa"
    title = "CAA"
    paper = "Rimsky et al., ACL 2024, arXiv:2312.06681"

    def fit(self, anchors: Anchors) -> Learned:
        """Mean difference at every layer."""
        refused, complied = (anchors.answered("harmful", text) for text in (self.refuse, self.comply))
        return {"vector": (refused - complied).mean(1)}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        moves = self.constant(learned)
        return [Edit(n, added(v[None]), self.tokens, "all") for n, v in moves.items()]

    def constant(self, learned: Learned) -> dict[int, Tensor]:
        """See :class:`SteeringMethod`."""
        return {} if self.strength is None else {n: self.strength * learned["vector"][n] for n in self.layers}
