"""What a steering method is: knobs, what it learns from anchors, and the edits it makes for a batch.

A method is a frozen dataclass of knobs. ``fit`` turns anchors (harmful and harmless prompts, each with a picture)
into tensors; ``edits`` turns those tensors, and states of the batch in other views where the method needs them, into
changes behind decoder layers (:mod:`holdfast.steer.intervene`). A prompt-level method changes what is asked instead
(``answer``). Knobs left open (no layer, no strength) are chosen on a validation split: ``grid`` lists the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdfast.core.errors import DataError, NotApplied, UsageError
from holdfast.core.methods import Entry, Table
from holdfast.core.records import Item, Sample
from holdfast.models.answer import Decoding
from holdfast.steer.capture import Where, steerable_layers
from holdfast.steer.intervene import Edit, Intervention, When
from holdfast.steer.subject import Batch, Subject, View

if TYPE_CHECKING:
    from torch import Tensor

Learned = Mapping[str, "Tensor"]
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass
class Anchors:
    """Anchor prompts and their states, read when a method asks for them and kept.

    Attributes:
        subject: the model.
        harmful, benign: prompts, each with a picture.
    """

    subject: Subject
    harmful: tuple[Item, ...]
    benign: tuple[Item, ...]
    _read: dict[tuple[str, str, Where], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, items in (("harmful", self.harmful), ("benign", self.benign)):
            if len(items) < 2:
                raise DataError(
                    f"the anchors have {len(items)} {name} prompts; at least 2 of each class are needed",
                    hint=f"give --{name} a file with more prompts",
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that can be steered."""
        return steerable_layers(self.subject.vision.model)

    def states(self, group: str, view: View, where: Where = "last") -> Tensor:
        """States of the ``harmful`` or ``benign`` anchors in a view, shape (layers, items, width)."""
        key = (group, view, where)
        if key not in self._read:
            self._read[key] = self.subject.states(getattr(self, group), view, where)
        return self._read[key]

    def answered(self, group: str, answer: str) -> Tensor:
        """States at the end of an answer that is put after the anchors' prompts."""
        key: tuple[str, str, Where] = (group, f"answer:{answer}", "last")
        if key not in self._read:
            self._read[key] = self.subject.answered_states(getattr(self, group), answer)
        return self._read[key]

    def safety(self, view: View = "text") -> Tensor:
        """Unit vectors from harmful to harmless prompts at each layer (difference of means), shape (layers, width)."""
        return unit(self.states("benign", view).mean(1) - self.states("harmful", view).mean(1))


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length one along the last axis; a zero vector stays zero."""
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / length.clamp(min=1e-12)


def coordinate(states: Tensor, direction: Tensor) -> Tensor:
    """Coordinates of states along unit vectors: (layers, items, width) and (layers, width) give (layers, items)."""
    import torch

    return torch.einsum("lnd,ld->ln", states, direction)


class SteeringMethod:
    """Base of steering methods (subclasses are frozen dataclasses).

    Attributes:
        name: name in the table.
        title, paper: how reports name it, and where it comes from.
        version: raised whenever the same knobs could give another result than before.
        off: knob values at which the method changes nothing.
        open_knobs: knob -> (the value that means "choose on validation", the values tried); layers come beside it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    version: ClassVar[int] = 1
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    open_knobs: ClassVar[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {"strength": (None, STRENGTHS)}
    when: ClassVar[When] = "image"

    # -- what a method may override -----------------------------------------------------------------------

    def fit(self, anchors: Anchors) -> Learned:
        """Tensors learned from anchors, for all layers: which of them are used is a knob."""
        return {}

    def edits(self, learned: Learned, batch: Batch) -> Sequence[Edit]:
        """Changes for one batch of prompts with pictures; none where the method is off."""
        return ()

    def constant(self, learned: Learned) -> dict[int, Tensor]:
        """Layer -> the vector that is added to every state there, where the method is such a shift; else empty."""
        return {}

    @property
    def views(self) -> tuple[View, ...]:
        """Views that a request is read in beside its own: each is one more prefill."""
        return ()

    @property
    def extra(self) -> str:
        """What a request costs beside its own prefill and generation, in words for the report."""
        count = len(self.views)
        return f"{count} more prefill{'' if count == 1 else 's'}" if count else "no more prefills"

    def answer(self, subject: Subject, learned: Learned, items: Sequence[Item], decoding: Decoding) -> list[Sample]:
        """Answers of the steered model, in order."""
        return subject.samples(items, decoding, lambda batch: self.around(learned, batch))

    def layer_sets(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """Sets of layers that are tried where none is named: each one of the later two thirds."""
        return [(layer,) for layer in layers[len(layers) // 3 :]]

    # -- shared ---------------------------------------------------------------------------------------------

    def around(self, learned: Learned, batch: Batch) -> AbstractContextManager[object]:
        """The context in which a batch is answered."""
        sees = [bool(item.image) for item in batch.items]
        edits: Sequence[Edit] = ()
        if any(sees) and not self.is_off:
            self.check_settled()
            edits = self.edits(learned, batch)
            if not edits:
                raise NotApplied(
                    f"{self.title} makes no edit at all", hint="give layers and a strength, or fit it again"
                )
        return Intervention(edits, when=self.when, sees=sees).on(batch.subject.vision.model)

    def check_settled(self) -> None:
        """Refuse knobs that are still open: nothing would be steered.

        Raises:
            UsageError: layers, strength or another knob is to be chosen yet.
        """
        if not (self.is_off or self.settled):
            raise UsageError(
                f"{self.title}: layers, strength or another knob is still open", hint="fit it, or name them all"
            )

    @property
    def is_off(self) -> bool:
        """Whether these knobs change nothing."""
        return bool(self.off) and all(getattr(self, name) == value for name, value in self.off.items())

    @property
    def settled(self) -> bool:
        """Whether no knob is left to be chosen."""
        names = {field.name for field in fields(self)}  # type: ignore[arg-type]
        layers = "layers" not in names or bool(self.layers)  # type: ignore[attr-defined]
        return layers and all(getattr(self, name) != mark for name, (mark, _) in self._open(names))

    def grid(self, layers: Sequence[int]) -> Iterator[Self]:
        """Every setting of the knobs that are left open."""
        import itertools

        names = {field.name for field in fields(self)}  # type: ignore[arg-type]
        choices: dict[str, Sequence[Any]] = {}
        if "layers" in names and not self.layers:  # type: ignore[attr-defined]
            choices["layers"] = self.layer_sets(layers)
        for name, (mark, values) in self._open(names):
            if getattr(self, name) == mark:
                choices[name] = values
        for made in itertools.product(*choices.values()):
            yield replace(self, **dict(zip(choices, made, strict=True)))  # type: ignore[type-var]

    def _open(self, names: set[str]) -> Iterator[tuple[str, tuple[Any, tuple[Any, ...]]]]:
        return ((name, entry) for name, entry in self.open_knobs.items() if name in names)


_HERE = "holdfast.steer.methods"

STEERING = Table(
    "steering method",
    "holdfast.steering",
    {
        "cmrm": Entry(f"{_HERE}.cmrm:Cmrm", "undo the shift that an image causes (ACL Findings 2025)"),
        "transplant": Entry(f"{_HERE}.transplant:Transplant", "set the safety coordinate to its text-only value"),
        "shiftdc": Entry(f"{_HERE}.shiftdc:ShiftDC", "remove the shift's part along safety (NeurIPS 2025)"),
        "inferaligner": Entry(f"{_HERE}.inferaligner:InferAligner", "gated safety vectors (EMNLP 2024)"),
        "refusal-direction": Entry(f"{_HERE}.refusal_direction:RefusalDirection", "add refusal (NeurIPS 2024)"),
        "caa": Entry(f"{_HERE}.caa:Caa", "contrastive activation addition (ACL 2024)"),
        "adashield": Entry(f"{_HERE}.adashield:AdaShield", "a defence prompt before the request (ECCV 2024)"),
        "ecso": Entry(f"{_HERE}.ecso:Ecso", "answer again without the picture, from its caption (ECCV 2024)"),
    },
)
