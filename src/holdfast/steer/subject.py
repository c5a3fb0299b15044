"""The subject: a vision-language model that can be shown a prompt in several ways, read, and asked.

A *view* is a way of showing a prompt. What an image does to the hidden states is the difference between two views:

    text       the prompt alone
    image      the prompt with its own picture
    blank      with a white picture of the same size        noise, blur: likewise (holdfast.data.images.twin)
    natural    with a picture that has nothing to do with it, out of a fixed pool
    caption    the prompt alone, after the model's own description of the picture
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from holdfast.core.errors import DataError
from holdfast.core.records import Item, Sample
from holdfast.data.images import TWINS, twin
from holdfast.models.answer import Answer, Decoding
from holdfast.models.vision import Inputs, VisionModel, generate, sighted_batches
from holdfast.steer.capture import Where, states

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

View = Literal["text", "image", "blank", "noise", "blur", "natural", "caption"]
VIEWS: tuple[View, ...] = get_args(View)
Twin = Literal["natural", "blank", "noise", "blur"]
Around = Callable[["Batch"], AbstractContextManager[object]]

CAPTION_PROMPT = "Describe the picture."


@dataclass
class Subject:
    """A vision-language model under study.

    Attributes:
        vision: the model.
        pool: pictures that have nothing to do with any prompt, for the view ``natural``.
        batch: prompts read or answered at once; memory, not results, depends on it.
        caption_prompt: how the model is asked to describe a picture.
        caption_tokens: longest description.
        remembers: keep the states of prompts that are answered again and again (choosing knobs); costs memory.
    """

    vision: VisionModel
    pool: tuple[Image, ...] = ()
    batch: int = 64
    caption_prompt: str = CAPTION_PROMPT
    caption_tokens: int = 48
    remembers: bool = False
    _captions: dict[str, str] = field(default_factory=dict)
    kept: dict[tuple[tuple[str, ...], View, Where], Tensor] = field(default_factory=dict)

    # -- reading ----------------------------------------------------------------------------------------

    def states(self, items: Sequence[Item], view: View, where: Where = "last") -> Tensor:
        """Hidden states behind each decoder layer, fp32 on the CPU, shape (layers, items, width).

        Raises:
            DataError: an item has no picture and the view needs one; a picture does not open; no pool.
        """
        import torch

        parts = [items[start : start + self.batch] for start in range(0, len(items), self.batch)]
        return torch.cat([states(self.vision.model, self.inputs(part, view), where) for part in parts], dim=1)

    def answered_states(self, items: Sequence[Item], answer: str) -> Tensor:
        """States at the last token of ``answer`` when it follows the prompts (text alone)."""
        import torch

        plain = [replace(item, image="") for item in items]
        space = " " if not self.vision.text(plain[0])[-1:].isspace() else ""
        parts = []
        for start in range(0, len(plain), self.batch):
            part = plain[start : start + self.batch]
            inputs = self.vision.encoded([self.vision.text(item) + space + answer for item in part], part)
            parts.append(states(self.vision.model, inputs, "last"))
        return torch.cat(parts, dim=1)

    def inputs(self, items: Sequence[Item], view: View) -> Inputs:
        """Model inputs of a batch in a view."""
        if view == "text":
            return self.vision.inputs([replace(item, image="") for item in items])
        missing = next((item for item in items if not item.image), None)
        if missing is not None:
            raise DataError(f"item {missing.id!r} has no picture", hint="give one: an image column, or --images FOLDER")
        if view == "caption":
            return self.vision.inputs(self.captioned(items))
        return self.vision.inputs(items, self._change(view))

    def _change(self, view: View) -> Callable[[Item, Image], Image] | None:
        if view == "image":
            return None
        if view == "natural":
            if not self.pool:
                raise DataError("there is no pool of unrelated pictures", hint="give anchors with pictures")
            # Drawn by the item's id, so that it is the same in every batch and on every day.
            return lambda item, _picture: random.Random(f"holdfast natural {item.id}").choice(self.pool)
        assert view in TWINS
        kind = view
        return lambda item, picture: twin(picture, kind, random.Random(f"holdfast twin {item.id}").randrange(2**31))

    def captioned(self, items: Sequence[Item]) -> list[Item]:
        """The prompts without picture, after the model's own description of it; asked once a picture."""
        unknown = list(dict.fromkeys(item.image for item in items if item.image not in self._captions))
        asked = [Item(f"caption/{name}", self.caption_prompt, image=name) for name in unknown]
        for item, (text, _, _) in zip(asked, self.answers(asked, Decoding(self.caption_tokens)), strict=True):
            self._captions[item.image] = text
        return [replace(item, prompt=f"{self._captions[item.image]} {item.prompt}", image="") for item in items]

    def forget(self) -> None:
        """Drop captions and kept states, so that the next request pays for them again."""
        self._captions.clear()
        self.kept.clear()

    # -- asking -----------------------------------------------------------------------------------------

    def answers(self, items: Sequence[Item], decoding: Decoding, around: Around | None = None) -> list[Answer]:
        """Greedy answers in the items' order: text, tokens (the end token counted), why it ended.

        Args:
            items: what is asked, with pictures or without.
            decoding: length limit.
            around: makes the context in which a batch is answered, for steering.
        """
        found: dict[int, Answer] = {}
        for numbers in sighted_batches(items, self.batch):
            part = [items[i] for i in numbers]
            with around(Batch(self, part)) if around is not None else nullcontext():
                found.update(zip(numbers, generate(self.vision, self.vision.inputs(part), decoding), strict=True))
        return [found[i] for i in range(len(items))]

    def samples(self, items: Sequence[Item], decoding: Decoding, around: Around | None = None) -> list[Sample]:
        """As :meth:`answers`, as Samples."""
        made = self.answers(items, decoding, around)
        return [Sample(item, *answer) for item, answer in zip(items, made, strict=True)]


@dataclass
class Batch:
    """Prompts that are answered together; their states in other views are read when a method asks for them."""

    subject: Subject
    items: list[Item]
    _read: dict[tuple[tuple[str, ...], View, Where], Tensor] = field(default_factory=dict)

    def states(self, view: View, where: Where = "last") -> Tensor:
        """Unsteered states in a view, shape (layers, items, width); read once."""
        kept = self.subject.kept if self.subject.remembers else self._read
        key = (tuple(item.id for item in self.items), view, where)
        if key not in kept:
            kept[key] = self.subject.states(self.items, view, where)
        return kept[key]
