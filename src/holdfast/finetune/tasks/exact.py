"""Any data with one right answer: correct when the answer is the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.data.read import rows_from
from holdfast.data.rows import Row
from holdfast.raters.base import CORRECT

NO_REFERENCE = "the item has no reference answer"


@dataclass(frozen=True)
class ExactMatch:
    """1 when the answer equals the reference, space at both ends aside; else 0."""

    name: ClassVar[str] = "exact"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    ignore_case: bool = knob(False, "whether Yes and yes are the same")
    max_new_tokens: int = knob(512, "longest answer in tokens", low=1)

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows of records in any of the field's usual shapes (:func:`holdfast.data.read.rows_from`)."""
        return rows_from(records)

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [self._rating(sample) for sample in samples]

    def _rating(self, sample: Sample) -> Rating:
        if sample.item.reference is None:
            return Rating(sample.item.id, None, NO_REFERENCE)
        said, right = sample.text.strip(), sample.item.reference.strip()
        if self.ignore_case:
            said, right = said.casefold(), right.casefold()
        return Rating(sample.item.id, float(said == right))
