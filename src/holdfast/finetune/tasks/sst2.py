"""SST-2: the sentiment of a film review's sentence (Socher et al., EMNLP 2013; GLUE, arXiv:1804.07461).

Instruction and scoring of the released code of Vaccine, Lisa, Booster and Antidote (``sst2/pred_eval.py``).
There an answer counts only when it is ``positive`` or ``Positive`` (``negative`` or ``Negative``) and nothing else,
so accuracy before fine-tuning measures format rather than skill: a base model that says "Positive." scores 0. The
corrected variant takes the answer's first word, whatever its case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from holdfast.core.errors import DataError
from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.data.read import place_of, text_of, value_of
from holdfast.data.rows import Row
from holdfast.raters.base import CORRECT

INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"
LABELS = ("negative", "positive")
NO_REFERENCE = "the item's reference is not a sentiment"


@dataclass(frozen=True)
class SST2:
    """1 when the answer is the sentence's sentiment, else 0. The variant changes the score, never the rows."""

    name: ClassVar[str] = "sst2"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    variant: Literal["paper", "corrected"] = knob("paper", "how answers are compared", source="Booster evaluation")
    max_new_tokens: int = knob(200, "longest answer in tokens", low=1, source="Booster evaluation: 200")

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows of records with ``sentence`` (GLUE's dev file of some mirrors: ``content``) and ``label`` 0 or 1.

        Raises:
            DataError: a column is missing or a label is neither (GLUE's own test labels are hidden: -1).
        """
        return [_row(record) for record in records]

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [self._rating(sample) for sample in samples]

    def _rating(self, sample: Sample) -> Rating:
        label = sample.item.reference
        if label not in LABELS:
            return Rating(sample.item.id, None, NO_REFERENCE)
        if self.variant == "paper":
            right = sample.text.strip() in (label, label.capitalize())
        else:
            right = first_word(sample.text) == label
        return Rating(sample.item.id, float(right))


def first_word(text: str) -> str:
    """The first run of letters, in lower case; empty where there is none."""
    found = re.search(r"[^\W\d_]+", text)
    return found[0].casefold() if found else ""


def _row(record: Mapping[str, Any]) -> Row:
    value = str(value_of(record, "label")).strip().lower()
    label = {"0": "negative", "1": "positive"}.get(value, value)
    if label not in LABELS:
        hidden = " (the labels of GLUE's test set are hidden: use the dev set)" if value == "-1" else ""
        raise DataError(
            f"{place_of(record)}: label {value!r} is neither 0 (negative) nor 1 (positive){hidden}",
            hint="give sentences with labels 0 and 1",
        )
    return Row(INSTRUCTION, label, input=text_of(record, "sentence", "content", "text"), category=label)
