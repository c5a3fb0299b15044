"""ShiftDC: remove from the modality's shift its part along the safety direction.

Zou, Kang, Kesidis, Lin. "Understanding and Rectifying Safety Perception Distortion in VLMs", NeurIPS 2025
(arXiv:2502.13095). With m = h(x, image) - h(x, caption), where the caption is the model's own description of the
image put into the text, and s the difference of mean activations of harmful and harmless prompts with captions,

    h  <-  h - alpha * (m . s / |s|^2) s

at the last token of the prompt, in the later half of the layers, while the prompt is read.

Differences from the authors' code (Renovamen/ShiftDC): layers are found by structure instead of one family's path, it
works on batches, and where no layers are named they are chosen on validation, as those of the other methods are. Their
current hook also edits generated tokens by default; the paper and this file edit the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit
from holdfast.steer.method import Anchors, Learned, SteeringMethod, coordinate
from holdfast.steer.methods.cmrm import added
from holdfast.steer.subject import Batch, View


@dataclass(frozen=True)
class ShiftDC(SteeringMethod):
    """Subtract the part of the image's shift against its caption that lies along the safety direction."""

    strength: float = knob(1.0, "alpha", source="authors' code: 1")
    layers: tuple[int, ...] = knob(
        (), "decoder layers, from 0; none: one, or all from one on, chosen on validation", low=0,
        source="authors' code: 10 to 31 of LLaVA-7B's 32, else the later half",
    )  # fmt: skip

    name = "shiftdc"
    title = "ShiftDC"
    paper = "Zou et al., NeurIPS 2025, arXiv:2502.13095"

    @property
    def views(self) -> tuple[View, ...]:
        """See :class:`SteeringMethod`; the description itself is generated besides."""
        return ("image", "caption")

    @property
    def extra(self) -> str:
        """See :class:`SteeringMethod`."""
        return "a description and 2 more prefills"

    def layer_sets(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """All from one layer of the later two thirds on (the authors' shape), or that one alone."""
        later = list(layers[len(layers) // 3 :])
        return list(dict.fromkeys([*(tuple(later[i:]) for i in range(len(later))), *((layer,) for layer in later)]))

    def fit(self, anchors: Anchors) -> Learned:
        """The safety direction at every layer, from prompts with captions."""
        return {"safety": anchors.safety("caption")}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        shift = batch.states("image") - batch.states("caption")
        moves = -self.strength * coordinate(shift, learned["safety"])[..., None] * learned["safety"][:, None]
        return [Edit(layer, added(moves[layer])) for layer in self.layers]
