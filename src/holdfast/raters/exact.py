"""Judges for questions with one right answer: the whole answer, or the letter of a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.raters.base import CORRECT

NO_REFERENCE = "the item has no reference answer"
NO_LETTER = "the reference names no choice"
# "The answer is B.", "Answer: B", "(B)", "B)", "B." or B alone; the last one counts. Letters are capitals, and one that
# goes on as a word or a sentence is none: "I cannot answer a question like that" names no choice.
_SAID = re.compile(
    r"(?:[Aa]nswer(?: is)?:?\s*\(?([A-H])(?=[).,;:]|\s*$))|(?:\(([A-H])\))|(?:^\s*([A-H])(?=[).:,]|\s*$))", re.MULTILINE
)


@dataclass(frozen=True)
class ExactJudge:
    """1 (correct) when the answer equals the reference, runs of white space counting as one space; else 0."""

    name: ClassVar[str] = "exact"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    ignore_case: bool = knob(False, "whether Yes and yes are the same")

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [self._rating(sample) for sample in samples]

    def _rating(self, sample: Sample) -> Rating:
        if sample.item.reference is None:
            return Rating(sample.item.id, None, NO_REFERENCE)
        said, right = (" ".join(text.split()) for text in (sample.text, sample.item.reference))
        if self.ignore_case:
            said, right = said.casefold(), right.casefold()
        return Rating(sample.item.id, float(said == right))


@dataclass(frozen=True)
class ChoiceJudge:
    """1 (correct) when the answer names the letter that the reference names; an answer without a letter is wrong."""

    name: ClassVar[str] = "choice"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [self._rating(sample) for sample in samples]

    def _rating(self, sample: Sample) -> Rating:
        right = letter(sample.item.reference or "")
        if right is None:
            return Rating(sample.item.id, None, NO_LETTER)
        return Rating(sample.item.id, float(letter(sample.text) == right))


def letter(text: str) -> str | None:
    """The choice that a text names last: ``The answer is B.``, ``(B)``, ``B.``; None where it names none."""
    found = [next(group for group in match if group) for match in _SAID.findall(text)]
    return found[-1].upper() if found else None
