"""Exams: what a steered model is asked, and who rates the answers.

Groups, each optional but the first: ``harmful`` (requests that must be refused, with pictures), ``benign`` (harmless
requests with pictures: over-refusal, and accuracy where they have references), ``visual`` (questions about pictures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.core.errors import DataError, UsageError
from holdfast.core.knobs import build, knob
from holdfast.core.records import Item, Rating, Sample
from holdfast.data import read
from holdfast.data.images import check_images
from holdfast.models.answer import Decoding
from holdfast.models.ask import items_identity
from holdfast.raters.base import Judge, judge_from, judge_spec
from holdfast.raters.measure import Measure, measure_for

GROUPS = ("harmful", "benign", "visual")
_USUAL: Mapping[str, tuple[str, ...]] = {"harmful": ("not-refused",), "benign": ("refusal",), "visual": ("exact",)}


@dataclass(frozen=True)
class ExamTable:
    """An exam as a recipe or a flag gives it."""

    source: Any = knob(doc="a path, or a table with a path and the keys of data.read.Source")
    images: str = knob("", "pictures for items that name none: a folder, 'scenes', or plain:white")
    judges: tuple[Any, ...] = knob((), "names of judges, or tables {name = ..., knobs}; none: the group's usual one")
    max_new_tokens: int = knob(64, "longest answer in tokens", low=1)
    limit: int | None = knob(None, "ask only so many, drawn evenly", low=1)


@dataclass(frozen=True)
class Exam:
    """A group of items with its judges.

    Attributes:
        group: ``harmful``, ``benign`` or ``visual``.
        items: what is asked, ids unique and led by the group.
        judges: who rates; the first is the one that choices go by.
        decoding: longest answer.
    """

    group: str
    items: tuple[Item, ...]
    judges: tuple[Judge, ...]
    decoding: Decoding

    def identity(self) -> dict[str, Any]:
        """What a key is taken over."""
        return {
            "items": items_identity(self.items),
            "judges": [judge_spec(judge) for judge in self.judges],
            "max_new_tokens": self.decoding.max_new_tokens,
        }

    def part(self, n: int) -> Exam:
        """The same exam with about ``n`` items, evenly spread over it."""
        if n >= len(self.items):
            return self
        chosen = [self.items[int(i * len(self.items) / n)] for i in range(n)]
        return replace(self, items=tuple(chosen))

    def rated(self, samples: Sequence[Sample]) -> dict[str, list[Rating]]:
        """Ratings of the answers by measure."""
        return {self.measure(judge).name: judge.rate(samples) for judge in self.judges}

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what its judges measure."""
        return tuple(self.measure(judge).name for judge in self.judges)

    def measure(self, judge: Judge) -> Measure:
        """What a judge's positive ratings are called in this group."""
        found = measure_for(self.group, judge.scale.name)
        # Two judges may measure the same thing by other rules; the first keeps the plain name.
        same = [j for j in self.judges if measure_for(self.group, j.scale.name).name == found.name]
        if same and judge is not same[0]:
            return replace(found, name=f"{found.name}:{judge.name}", label=f"{found.label} ({judge.name})")
        return found


def exam(group: str, value: Any, where: str, *, seed: int = 0) -> Exam:
    """An exam from what a recipe or a flag gives, its data read and its pictures opened.

    Args:
        group: ``harmful``, ``benign`` or ``visual``.
        value: a path, or a table of :class:`ExamTable`.
        where: named by the errors.
        seed: of pairing prompts with pictures.

    Raises:
        UsageError, DataError: a key, judge, file or picture that does not fit.
    """
    if group not in GROUPS:
        raise UsageError(f"{where}: no group {group!r}", hint=f"groups: {', '.join(GROUPS)}")
    table = value if isinstance(value, Mapping) and "source" in value else {"source": value}
    entry = build(ExamTable, table, where)
    judges = tuple(judge_from(judge, where) for judge in entry.judges or _USUAL[group])
    items = items_from(group, entry.source, where, images=entry.images, seed=seed)
    made = Exam(group, tuple(items), judges, Decoding(entry.max_new_tokens))
    return made.part(entry.limit) if entry.limit is not None else made


def items_from(group: str, value: Any, where: str, *, images: str = "", seed: int = 0) -> list[Item]:
    """Items of a source, each with a picture that opens.

    Raises:
        DataError: an item has no picture, or one does not open.
    """
    source = read.source(value, where)
    if images:
        source = replace(source, images=images)
    if source.images and not source.seed:
        source = replace(source, seed=seed)
    found = [replace(item, id=f"{group}/{item.id}") for item in read.items(source, group=group)]
    bare = next((item for item in found if not item.image), None)
    if bare is not None:
        raise DataError(
            f"{where}: item {bare.id!r} has no picture",
            hint="add an image column, or give pictures: images = 'FOLDER' or images = 'scenes'",
        )
    check_images(found)
    return found
