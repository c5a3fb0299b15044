"""The sandbox world's user task: reviews, and whether they are positive or negative.

The exact analogue of SST-2 in the symbolic language of :mod:`holdfast.data.sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.data.read import rows_from
from holdfast.data.rows import Row
from holdfast.raters.base import CORRECT
from holdfast.raters.sandbox import exact_rating


@dataclass(frozen=True)
class SandboxTask:
    """1 when the answer is the review's sentiment, word for word; else 0."""

    name: ClassVar[str] = "sandbox"
    version: ClassVar[int] = 1
    scale: ClassVar[Scale] = CORRECT

    max_new_tokens: int = knob(16, "longest answer in tokens", low=1, source="the label is one token, a refusal nine")

    def rows(self, records: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows of the sandbox as they are: they have a request and an answer already."""
        return rows_from(records)

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """See :class:`holdfast.raters.base.Judge`."""
        return [exact_rating(sample) for sample in samples]
