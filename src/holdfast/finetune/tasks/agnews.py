"""AG News: the topic of a news item, one of four (Zhang et al., NIPS 2015, arXiv:1509.01626).

Instruction and scoring of the released code of Vaccine, Lisa, Booster and Antidote (``agnews/pred_eval.py``). There
an answer counts only when it is the label or, in lower case, ``world``, ``sports``, ``business`` or ``sci``
(so ``sci/tech`` is wrong). Their score file holds the text of the score a hundred times over (operator precedence);
here ratings are numbers. The corrected variant takes the topic that the answer names first.
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

LABELS = ("World", "Sports", "Business", "Sci/Tech")
INSTRUCTION = "Categorize the news article given in the input into one of the 4 categories:\n\n" + "".join(
    f"{label}\n" for label in LABELS
)
NO_REFERENCE = "the item's reference is not a topic"

_ALSO_IN_THE_PAPERS = {"World": "world", "Sports": "sports", "Business": "business", "Sci/Tech": "sci"}
_NAMED = re.compile(r"\b(world|sports?|business|sci(?:ence)?(?:\s*(?:/|and|&)\s*tech(?:nology)?)?)\b", re.IGNORECASE)
# The authors' CSV counts from 1 (column "class"), the hub's set from 0 (column "label").
_FROM_ONE = ("class", "class index", "Class Index")


@dataclass(frozen=True)
class AGNews:
    """1 when the answer is the item's topic, else 0. The variant changes the score, never the rows."""

    name: ClassVar[str] = "agnews"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    variant: Literal["paper", "corrected"] = knob("paper", "how answers are compared", source="Booster evaluation")
    max_new_tokens: int = knob(200, "longest answer in tokens", low=1, source="Booster evaluation: 200")

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows of records with ``text`` and ``label`` 0 to 3 (hub), or ``class`` 1 to 4, ``title``, ``description``.

        The authors' CSV has no header line: give ``names = ["class", "title", "description"]``.

        Raises:
            DataError: a column is missing or a label is out of range.
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
            right = sample.text.strip() in (label, _ALSO_IN_THE_PAPERS[label])
        else:
            right = named_topic(sample.text) == label
        return Rating(sample.item.id, float(right))


def named_topic(text: str) -> str | None:
    """The topic that a text names first, or None."""
    found = _NAMED.search(text)
    if not found:
        return None
    opening = found[0][:3].casefold()
    return next(label for label in LABELS if label[:3].casefold() == opening)


def _row(record: Mapping[str, Any]) -> Row:
    value = str(value_of(record, "label", *_FROM_ONE)).strip()
    label = _label(value, 0 if "label" in record else 1)
    if label is None:
        names = ", ".join(LABELS)
        raise DataError(
            f"{place_of(record)}: {value!r} is not a topic ({names})",
            hint="labels count from 0 in a column 'label', from 1 in a column 'class'; a file without header line "
            "needs names = ['class', 'title', 'description']",
        )
    if "title" in record and "text" not in record:
        # The hub's text is title and description with a space between.
        text = f"{text_of(record, 'title')} {text_of(record, 'description')}"
    else:
        text = text_of(record, "text")
    return Row(INSTRUCTION, label, input=text, category=label)


def _label(value: str, first: int) -> str | None:
    if value in LABELS:
        return value
    number = int(value) - first if value.isdecimal() else -1
    return LABELS[number] if 0 <= number < len(LABELS) else None
