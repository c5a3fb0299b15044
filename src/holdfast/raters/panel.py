"""A panel: several judges on one scale, combined into one rating."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from holdfast.core.errors import DataError, UsageError
from holdfast.core.knobs import build, knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.raters.base import JUDGES, Judge, judge_spec

_TIE = 1e-9


@dataclass(frozen=True)
class PanelJudge:
    """What several judges say together. Null where too few rated, or where a vote is tied: nothing is guessed."""

    name: ClassVar[str] = "panel"
    version: ClassVar[int] = 1

    file: str = knob(doc="TOML file with [[judge]] tables: name, knobs, weight")
    combine: Literal["majority", "mean", "any"] = knob("majority", "majority, mean, or any (the largest value)")
    quorum: float = knob(0.5, "share of the members, by weight, that must have rated", low=0, high=1)

    @cached_property
    def _members(self) -> tuple[tuple[Judge, float], ...]:
        return tuple(read_panel(Path(self.file).expanduser()))

    @property
    def scale(self) -> Scale:
        """The members' scale; a mean is of interval level."""
        first = self._members[0][0].scale
        return Scale(first.name, "interval", (), first.better) if self.combine == "mean" else first

    def check(self, where: str) -> None:
        """The file, its judges and their scales, before anything is judged.

        Raises:
            UsageError, DataError: a judge or a knob is unknown, or two judges rate on different scales.
        """
        scales = {(judge.scale.name, judge.scale.labels) for judge, _ in self._members}
        if len(scales) > 1:
            names = ", ".join(sorted(name for name, _ in scales))
            raise UsageError(f"{where}: {self.file} has judges on different scales ({names})", hint="one scale a panel")
        for judge, _ in self._members:
            rule = getattr(judge, "check", None)
            if callable(rule):
                rule(where)

    def identity(self) -> list[dict[str, Any]]:
        """What the ratings depend on beside the knobs: the members, their knobs and files."""
        return [{**judge_spec(judge), "weight": weight} for judge, weight in self._members]

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """One rating a sample, in order; see :class:`holdfast.raters.base.Judge`."""
        rated = [(judge.rate(samples), weight) for judge, weight in self._members]
        whole = sum(weight for _, weight in rated)
        return [
            self._combined(sample.item.id, [(ratings[place], weight) for ratings, weight in rated], whole)
            for place, sample in enumerate(samples)
        ]

    def _combined(self, item: str, given: Sequence[tuple[Rating, float]], whole: float) -> Rating:
        there = [(rating.value, weight) for rating, weight in given if rating.value is not None]
        here = sum(weight for _, weight in there)
        if not there or here < self.quorum * whole - _TIE:
            reasons = "; ".join(rating.reason for rating, _ in given if rating.value is None)
            return Rating(item, None, f"too few of the panel rated: {reasons}")
        if self.combine == "mean":
            return Rating(item, sum(value * weight for value, weight in there) / here)
        if self.combine == "any":
            return Rating(item, max(value for value, _ in there))
        votes: dict[float, float] = {}
        for value, weight in there:
            votes[value] = votes.get(value, 0.0) + weight
        best = max(votes.values())
        winners = [value for value, weight in votes.items() if weight >= best - _TIE]
        if len(winners) > 1:
            told = " and ".join(f"{value:g}" for value in sorted(winners))
            return Rating(item, None, f"the panel is split between {told}")
        return Rating(item, winners[0])


def read_panel(path: Path) -> list[tuple[Judge, float]]:
    """The judges of a panel's file, with their weights.

    Raises:
        DataError: the file is missing or no TOML.
        UsageError: no judge, an unknown one, a wrong knob, or a weight that is not positive.
    """
    try:
        found: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="a TOML file with [[judge]] tables: docs/judges.md") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no TOML: {error}", hint="docs/judges.md shows one") from error
    tables = found.get("judge")
    if not isinstance(tables, list) or not tables or set(found) != {"judge"}:
        raise UsageError(f"{path}: a panel is made of [[judge]] tables only", hint='[[judge]]\nname = "not-refused"')
    made = []
    for place, table in enumerate(tables, 1):
        where = f"{path}, judge {place}"
        knobs = {key: value for key, value in table.items() if key not in ("name", "weight")}
        judge: Judge = build(JUDGES.load(str(table.get("name", "")), where), knobs, where)
        weight = table.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise UsageError(f"{where}: weight = {weight!r}", hint="a positive number")
        made.append((judge, float(weight)))
    return made
