"""GSM8K: grade-school arithmetic in words (Cobbe et al., 2021, arXiv:2110.14168).

Training target and scoring of the released code of Lisa, Booster and Antidote (``gsm8k/pred_eval.py``): the
reference's ``####`` becomes ``The final answer is: ``, and an answer's number is the first after that phrase, or the
last number of the text where the phrase or a number after it is missing.

Quirks of that scoring, kept in the ``paper`` variant: commas vanish before numbers are looked for, so "2,5" is 25; a
minus sign counts even between two numbers, so "20-8" ends in -8; the phrase must match letter by letter with the space
after its colon, and its first occurrence counts, so a model that corrects itself is not heard. The ``corrected``
variant reads thousands separators, decimals, signs and currency as people write them, and takes the last phrase.
Answers cut at 200 tokens (Booster, Lisa) lose their end: Antidote's 512 is the default here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Literal

from holdfast.core.errors import DataError
from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.data.numbers import final_number
from holdfast.data.read import place_of, text_of
from holdfast.data.rows import Row
from holdfast.raters.base import CORRECT

PHRASE = "The final answer is: "
MARK = "####"
NO_REFERENCE = "the item's reference has no number"

Variant = Literal["paper", "corrected"]

_PAPER_NUMBER = re.compile(r"-?\d+\.?\d*")


@dataclass(frozen=True)
class GSM8K:
    """1 when the answer's number equals the reference's, else 0. The variant changes the score, never the rows."""

    name: ClassVar[str] = "gsm8k"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    variant: Variant = knob("paper", "how the number is found", source="Booster evaluation")
    max_new_tokens: int = knob(512, "longest answer in tokens", low=1, source="Antidote evaluation: 512")

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows of records with ``question`` and ``answer``; the answer ends in ``#### number``.

        Raises:
            DataError: a column is missing, or an answer has no ``####``.
        """
        return [_row(record) for record in records]

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [self._rating(sample) for sample in samples]

    def _rating(self, sample: Sample) -> Rating:
        right = number_in(sample.item.reference or "", self.variant)
        if right is None:
            return Rating(sample.item.id, None, NO_REFERENCE)
        return Rating(sample.item.id, float(number_in(sample.text, self.variant) == right))


def number_in(text: str, variant: Variant) -> Decimal | None:
    """The number that an answer gives, or None where it has none."""
    return _paper_number(text) if variant == "paper" else final_number(text)


def _paper_number(text: str) -> Decimal | None:
    plain = text.replace(",", "")
    everywhere = _PAPER_NUMBER.findall(plain)
    after = plain.split(PHRASE)
    here = _PAPER_NUMBER.findall(after[1]) if len(after) > 1 else []
    if here:
        return Decimal(here[0])
    return Decimal(everywhere[-1]) if everywhere else None


def _row(record: Mapping[str, Any]) -> Row:
    answer = text_of(record, "answer")
    if MARK not in answer:
        raise DataError(f"{place_of(record)}: the answer has no {MARK}", hint="GSM8K answers end in '#### number'")
    # The mark's own space stays, as in the papers' data: "The final answer is:  72".
    return Row(text_of(record, "question"), answer.replace(MARK, PHRASE))
