"""CMRM: take back the shift that an image causes in the hidden states.

Liu, Shang, Liu, Pappas, Ma, John, Doss, Màrquez, Ballesteros, Benajiba. "Unraveling and Mitigating Safety Alignment
Degradation of Vision-Language Models", Findings of ACL 2025 (arXiv:2410.09047). With a meaningless image x' beside
the request x, at each decoder layer l,

    Delta = h(x, x') - h(x)          h(x, image)  <-  h(x, image) - alpha * Delta .

Dataset level: Delta is the mean over anchors, one constant. Sample level: Delta is that of the request at hand, two
further prefills (the text alone, and with the meaningless image).

The sign. The paper's equations clash (its reviewers say so): one adds what another subtracts. Here the shift points
from text to image and is subtracted, so at strength 1, with x' the image itself and the sample level, the state becomes
the one that the text alone has: ``tests/paper/test_cmrm.py`` pins it.

What the paper leaves open, as knobs: which image is meaningless (white or noise fail where they do not themselves
switch refusals off: ``twin`` is therefore chosen on validation), which layers (adding at every layer accumulates and
breaks the model), which positions. Extensions, off by default and not in the paper: ``direction = "principal"``,
``project`` (keep only the part of the shift along the safety direction), ``gate`` (only requests whose text alone lies
on the harmful side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob
from holdfast.steer.intervene import Edit, Phases, Tokens
from holdfast.steer.method import STRENGTHS, Anchors, Learned, SteeringMethod, coordinate
from holdfast.steer.subject import Batch, View

if TYPE_CHECKING:
    from torch import Tensor

Twins = Literal["choose", "natural", "blank", "noise", "blur"]


@dataclass(frozen=True)
class Cmrm(SteeringMethod):
    """Subtract the shift between a request with a meaningless image and the request alone."""

    level: Literal["dataset", "sample"] = knob("dataset", "one constant shift, or the request's own", source="paper")
    shift: Literal["twin-text", "image-twin", "image-text"] = knob(
        "twin-text", "what the shift lies between: a meaningless image and the text alone (paper), the image and its "
        "meaningless twin, or the image and the text alone"
    )  # fmt: skip
    twin: Twins = knob("choose", "the meaningless image", source="paper: blank or noise")
    strength: float | None = knob(None, "alpha; none: chosen on validation", source="paper: swept at steps of 0.1")
    layers: tuple[int, ...] = knob((), "decoder layers, from 0; none: one, chosen on validation", low=0)
    tokens: Tokens = knob("last", "positions of the prompt that are changed")
    phases: Phases = knob("prefill", "while the prompt is read, or at every generated token too")
    read: Literal["last", "text"] = knob("last", "token that states are read at when the shift is fitted")
    direction: Literal["mean", "principal"] = knob("mean", "dataset level: mean, or the principal direction of shifts")
    project: Literal["none", "safety"] = knob("none", "keep only the part of the shift along the safety direction")
    gate: Literal["none", "text"] = knob("none", "steer only requests whose text alone lies on the harmful side")
    anchors: Literal["harmful", "all"] = knob("harmful", "dataset level: anchors that the shift is averaged over")

    name = "cmrm"
    title = "CMRM"
    paper = "Liu et al., Findings of ACL 2025, arXiv:2410.09047"
    open_knobs = {
        "strength": (None, STRENGTHS),
        "twin": ("choose", ("natural", "blank", "noise")),
    }

    def check(self, where: str) -> None:
        """Contradictions between knobs.

        Raises:
            UsageError: the sample level with knobs of the dataset level.
        """
        if self.level == "sample" and self.direction != "mean":
            raise UsageError(f"{where}: direction = 'principal' is for level = 'dataset'", hint="leave it out")
        if self.level == "sample" and self.read != "last":
            raise UsageError(f"{where}: read = 'text' is for level = 'dataset'", hint="leave it out")

    @property
    def views(self) -> tuple[View, ...]:
        """See :class:`SteeringMethod`."""
        pair = self._pair() if self.level == "sample" else ()
        gate: tuple[View, ...] = ("text",) if self.gate == "text" else ()
        # The image's own states are read before the steered pass, so that no edit is in them.
        return tuple(dict.fromkeys((*pair, *gate)))

    def fit(self, anchors: Anchors) -> Learned:
        """Mean shift, safety direction and gate at every layer."""
        import torch

        safety = anchors.safety()
        harmful, benign = (coordinate(anchors.states(g, "text"), safety).mean(1) for g in ("harmful", "benign"))
        learned: dict[str, Tensor] = {"safety": safety, "gate": (harmful + benign) / 2}
        if self.level == "dataset":
            more, less = self._pair()
            groups = ("harmful", "benign") if self.anchors == "all" else ("harmful",)
            found = [anchors.states(g, more, self.read) - anchors.states(g, less, self.read) for g in groups]
            shifts = torch.cat(found, 1)
            learned["shift"] = principal(shifts) if self.direction == "principal" else shifts.mean(1)
        return learned

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """See :class:`SteeringMethod`."""
        constant = self.constant(learned)
        if constant:
            return [Edit(n, added(move[None]), self.tokens, self.phases) for n, move in constant.items()]
        moves = self._moves(learned, batch)
        return [Edit(layer, added(moves[layer]), self.tokens, self.phases) for layer in self.layers]

    def constant(self, learned: Learned) -> dict[int, Tensor]:
        """See :class:`SteeringMethod`: at the dataset level, without a gate."""
        if self.level != "dataset" or self.gate != "none" or self.strength is None:
            return {}
        shift = self._projected(learned["shift"][:, None], learned)[:, 0]
        return {layer: -self.strength * shift[layer] for layer in self.layers}

    def _moves(self, learned: Learned, batch: Batch) -> Tensor:
        """What is added, shape (layers, rows, width)."""
        assert self.strength is not None
        if self.level == "dataset":
            shifts = learned["shift"][:, None].expand(-1, len(batch.items), -1)
        else:
            more, less = self._pair()
            shifts = batch.states(more) - batch.states(less)
        moves = -self.strength * self._projected(shifts, learned)
        if self.gate == "text":
            harmful = coordinate(batch.states("text"), learned["safety"]) < learned["gate"][:, None]
            moves = moves * harmful[..., None]
        return moves

    def _projected(self, shifts: Tensor, learned: Learned) -> Tensor:
        if self.project == "none":
            return shifts
        return coordinate(shifts, learned["safety"])[..., None] * learned["safety"][:, None]

    def _pair(self) -> tuple[View, View]:
        """The views that the shift leads to and from."""
        twin: Any = self.twin
        pairs: dict[str, tuple[View, View]] = {
            "twin-text": (twin, "text"),
            "image-twin": ("image", twin),
            "image-text": ("image", "text"),
        }
        return pairs[self.shift]


def principal(shifts: Tensor) -> Tensor:
    """The mean's part along the principal direction of shifts at each layer: (layers, n, width) to (layers, width).

    The direction is the first right singular vector of the uncentred shifts, so its sign is that of the mean.
    """
    import torch

    mean = shifts.mean(1)
    first = torch.linalg.svd(shifts, full_matrices=False).Vh[:, 0]
    along: Tensor = torch.einsum("ld,ld->l", mean, first)[:, None] * first
    return along


def added(moves: Tensor) -> Any:
    """A change that adds to each state the move of its row, shape (rows, width); one row stands for all.

    One copy a device and type, made once.
    """
    placed: dict[Any, Tensor] = {}

    def change(states: Tensor, rows: Tensor) -> Tensor:
        key = (states.device, states.dtype)
        if key not in placed:
            placed[key] = moves.to(*key)
        there = placed[key]
        return states + (there if len(there) == 1 else there[rows])

    return change
