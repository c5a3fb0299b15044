"""Safety-coordinate transplant: give the state the safety coordinate that the text alone has.

An extension of this project, not in any paper; it uses the picture of Liu et al. (arXiv:2410.09047), in which an image
moves the state off the side where requests are refused, and one direction of it only. With s the unit vector from
harmful to harmless anchors (text alone) and t the state of the request's text alone, at the last token of the prompt,

    h  <-  h + alpha * c * s ,   c = (t - h) . s        one-sided: c = min(0, c), only ever towards refusal.

It costs one prefill of the text, no meaningless image, and sets a coordinate instead of adding to it, so several
layers do not accumulate. By construction it cannot help where the text alone is harmless (harm inside the picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit
from holdfast.steer.method import Anchors, Learned, SteeringMethod
from holdfast.steer.subject import Batch, View

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Transplant(SteeringMethod):
    """Set the coordinate along the safety direction to its text-only value."""

    strength: float | None = knob(None, "alpha: 1 sets the coordinate; none: chosen on validation")
    layers: tuple[int, ...] = knob((), "decoder layers, from 0; none: a run of them, chosen on validation", low=0)
    one_sided: bool = knob(True, "only ever move towards refusal")

    name = "transplant"
    title = "Safety-coordinate transplant"
    paper = "this project (extension), after arXiv:2410.09047"
    open_knobs = {"strength": (None, (1.0, 1.25, 1.5, 2.0))}

    @property
    def views(self) -> tuple[View, ...]:
        """See :class:`SteeringMethod`."""
        return ("text",)

    def layer_sets(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """One layer of the later two thirds, two in a row, or all from one of them on."""
        later = list(layers[len(layers) // 3 :])
        pairs = [tuple(later[i : i + 2]) for i in range(len(later) - 1)]
        tails = [tuple(later[i:]) for i in range(len(later) - 2)]
        return list(dict.fromkeys([*((layer,) for layer in later), *pairs, *tails]))

    def fit(self, anchors: Anchors) -> Learned:
        """The safety direction at every layer."""
        return {"safety": anchors.safety()}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        assert self.strength is not None
        text = batch.states("text")
        return [
            Edit(layer, _set(learned["safety"][layer], text[layer], self.strength, self.one_sided))
            for layer in self.layers
        ]


def _set(direction: Tensor, text: Tensor, strength: float, one_sided: bool) -> Any:
    placed: dict[Any, tuple[Tensor, Tensor]] = {}

    def change(states: Tensor, rows: Tensor) -> Tensor:
        key = states.device
        if key not in placed:
            placed[key] = (direction.to(key), text.to(key) @ direction.to(key))
        along, wanted = placed[key]
        # In fp32: the difference of two large coordinates is what matters.
        gap = wanted[rows] - states.float() @ along
        if one_sided:
            gap = gap.clamp(max=0)
        return states + (strength * gap[:, None] * along).to(states.dtype)

    return change
