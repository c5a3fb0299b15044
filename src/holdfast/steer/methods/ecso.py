"""ECSO: eyes closed, safety on. Where the answer looks harmful, answer again without the picture.

Gou, Chen, Liu, Hong, Jin, Zhang. "Eyes Closed, Safety On: Protecting Multimodal LLMs via Image-to-Text
Transformation", ECCV 2024 (arXiv:2403.09572). The model answers, is asked whether its own answer is harmful, describes
the picture with the request in view, and answers the request from the description alone.

Up to four generations a request. ``tell = "always"`` leaves out the question about its own answer and closes the eyes
every time: for models that cannot judge themselves. Wordings are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob
from holdfast.core.records import Item, Sample
from holdfast.models.answer import Decoding
from holdfast.steer.method import Learned, SteeringMethod
from holdfast.steer.subject import Subject


@dataclass(frozen=True)
class Ecso(SteeringMethod):
    """Answer again from a caption where the model calls its own answer harmful."""

    tell: Literal["self", "always", "never"] = knob(
        "self", "when the eyes are closed: by the model's own word, or always"
    )
    ask: str = knob(
        "Request: {prompt}\nAnswer: {answer}\nDoes this answer help with anything harmful or illegal? Reply yes or no.",
        "how the model is asked about its answer",
    )
    word: str = knob("yes", "opening of a reply that means harmful")
    describe: str = knob(
        "Describe what in the picture matters for this request: {prompt}", "how a description is asked for"
    )
    caption_tokens: int = knob(128, "longest description", low=1)

    name = "ecso"
    title = "ECSO"
    paper = "Gou et al., ECCV 2024, arXiv:2403.09572"
    off = {"tell": "never"}

    def check(self, where: str) -> None:
        """Placeholders in the wordings.

        Raises:
            UsageError: one is unknown or missing.
        """
        for name, text, known in (("ask", self.ask, ("prompt", "answer")), ("describe", self.describe, ("prompt",))):
            shown = " and ".join(f"{{{part}}}" for part in known)
            try:
                filled = text.format(**{part: f"\0{part}\0" for part in known})
            except (AttributeError, KeyError, IndexError, ValueError) as error:
                raise UsageError(
                    f"{where}.{name}: {error!r} in the wording", hint=f"use {shown}; write {{{{ for a brace"
                ) from error
            if name == "ask" and any(f"\0{part}\0" not in filled for part in known):
                raise UsageError(f"{where}.{name} needs {shown}", hint="put both into the wording")

    @property
    def extra(self) -> str:
        """See :class:`SteeringMethod`."""
        return {"self": "1 to 3 more generations", "always": "1 more generation", "never": "nothing"}[self.tell]

    def answer(self, subject: Subject, learned: Learned, items: Sequence[Item], decoding: Decoding) -> list[Sample]:
        """See :class:`SteeringMethod`."""
        seeing = [i for i, item in enumerate(items) if item.image]
        if self.tell == "always":
            return self._always(subject, items, seeing, decoding)
        made = subject.samples(items, decoding)
        if self.tell == "never":
            return made
        again = self._told(subject, made, seeing)
        closed = self._eyes_closed(subject, [items[i] for i in again], decoding)
        for i, sample in zip(again, closed, strict=True):
            tokens = made[i].tokens + sample.tokens
            made[i] = replace(sample, item=items[i], tokens=tokens)
        return made

    def _always(
        self, subject: Subject, items: Sequence[Item], seeing: Sequence[int], decoding: Decoding
    ) -> list[Sample]:
        """Nothing is answered with open eyes, so nothing is generated to be thrown away."""
        closed = dict(zip(seeing, self._eyes_closed(subject, [items[i] for i in seeing], decoding), strict=True))
        blind = [i for i in range(len(items)) if i not in closed]
        plain = dict(zip(blind, subject.samples([items[i] for i in blind], decoding), strict=True))
        return [replace((closed | plain)[i], item=item) for i, item in enumerate(items)]

    def _told(self, subject: Subject, made: Sequence[Sample], seeing: Sequence[int]) -> list[int]:
        """Positions whose answers the model itself calls harmful."""
        questions = [
            replace(made[i].item, prompt=self.ask.format(prompt=made[i].item.prompt, answer=made[i].text))
            for i in seeing
        ]
        replies = subject.answers(questions, Decoding(8))
        harmful = self.word.casefold()
        return [i for i, (text, _, _) in zip(seeing, replies, strict=True) if text.casefold().startswith(harmful)]

    def _eyes_closed(self, subject: Subject, items: Sequence[Item], decoding: Decoding) -> list[Sample]:
        wording = [replace(item, prompt=self.describe.format(prompt=item.prompt)) for item in items]
        captions = subject.answers(wording, Decoding(self.caption_tokens))
        blind = [
            replace(item, prompt=f"{caption} {item.prompt}", image="")
            for item, (caption, _, _) in zip(items, captions, strict=True)
        ]
        return subject.samples(blind, decoding)
