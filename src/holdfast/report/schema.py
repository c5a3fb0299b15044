"""The form of a result: what a bench writes into metrics.json and a report reads.

Percentages are in percent (0 to 100), differences in points. Fields that this version does not know are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from holdfast.core.errors import RunError

FORMAT = 1


class MetricJson(TypedDict):
    """``holdfast.core.records.Metric.as_json()``."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    better: Literal["lower", "higher", "none"]
    level: float
    method: str
    reason: str
    declined: int
    detail: dict[str, Any]


class MeasureJson(TypedDict):
    """How a measure is called and read."""

    label: str
    unit: str
    better: Literal["lower", "higher", "none"]


class WorkloadJson(TypedDict):
    """One way of fine-tuning that the defences have to stand."""

    title: str
    text: str


class StageJson(TypedDict):
    """One stage of a defence: method, knobs, how they were chosen, and the run if there is one for all seeds."""

    stage: str
    method: str
    knobs: dict[str, Any]
    chosen: NotRequired[str]
    run: NotRequired[str | None]
    training: NotRequired[dict[str, Any]]


class CostJson(TypedDict):
    """What it took to make the defended model, all stages together."""

    seconds: MetricJson | None
    ratio: MetricJson | None
    peak_bytes: int | None


class CellJson(TypedDict):
    """One defence under one workload at one poison ratio, over its seeds. ``p`` is None for ``aligned`` ones.

    ``seeds`` holds one object a seed: ``seed``, one number (or null) a measure, and ``runs``.
    """

    defence: str
    workload: str
    p: float | None
    stages: list[StageJson]
    metrics: dict[str, MetricJson]
    seeds: list[dict[str, Any]]
    against_baseline: dict[str, MetricJson]
    cost: CostJson


class AnswerJson(TypedDict):
    """One answer for the reader's own eyes. ``measure``: which judge's verdict ``value`` is."""

    defence: str
    workload: str
    p: float | None
    seed: int
    group: str
    prompt: str
    text: str
    value: float | None
    reason: str
    measure: NotRequired[str]


class MissingJson(TypedDict):
    """A seed of a cell that was not finished, and why."""

    defence: str
    workload: str | None
    p: float | None
    seed: int | None
    reason: str


class ThreatRowJson(TypedDict):
    """Who sees and controls what at a stage."""

    stage: str
    who: str
    sees: list[str]
    controls: list[str]


class ThreatJson(TypedDict):
    """The threat model in words."""

    claim: str
    rows: list[ThreatRowJson]


class ResultJson(TypedDict):
    """A whole result."""

    format: int
    title: str
    command: str
    recipe: str
    model: str
    seeds: list[int]
    baseline: str
    measures: dict[str, MeasureJson]
    workloads: dict[str, WorkloadJson]
    threat_model: ThreatJson
    cells: list[CellJson]
    aligned: list[CellJson]
    answers: list[AnswerJson]
    notes: list[str]
    environment: dict[str, str]
    complete: bool
    missing: list[MissingJson]


Check = Callable[[Any, str], None]


def check(result: Mapping[str, Any]) -> ResultJson:
    """The same object, known to have the form of a result.

    Raises:
        RunError: it does not; the message names the place.
    """
    if not isinstance(result, Mapping):
        raise _damaged("metrics.json", "is not a JSON object")
    found = result.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise RunError(
            f"the result has format {found}; this version reads up to {FORMAT}",
            hint="update Holdfast (pip install --upgrade holdfast), then write the report again",
        )
    if found != FORMAT:
        raise _damaged("format", f"is {found!r}, not {FORMAT}")
    _RESULT(result, "")
    known = {*result["workloads"]}
    for number, cell in enumerate(result["cells"]):
        if cell["workload"] not in known:
            raise _damaged(f"cells[{number}].workload", f"is {cell['workload']!r}, which 'workloads' does not list")
        if cell["p"] is None:
            raise _damaged(f"cells[{number}].p", "is null, but the cell has a workload")
    return cast("ResultJson", result)


def _damaged(place: str, problem: str) -> RunError:
    return RunError(
        f"the result is damaged: {place.lstrip('.')} {problem}",
        hint="delete metrics.json in the bench's run folder and run the bench again: "
        "finished runs are kept, only the result is made anew",
    )


def _is(*kinds: type, none: bool = False) -> Check:
    """A check that a value has one of these types; bool is no number, and numbers are finite."""

    def run(value: Any, place: str) -> None:
        if none and value is None:
            return
        if isinstance(value, bool) and bool not in kinds:
            raise _damaged(place, "is true or false, which does not belong there")
        if not isinstance(value, kinds):
            raise _damaged(place, f"is {type(value).__name__}, not {kinds[0].__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise _damaged(place, "is not a finite number; an absent number is null with a reason")

    return run


def _list(inner: Check) -> Check:
    def run(value: Any, place: str) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _damaged(place, "is not a list")
        for number, one in enumerate(value):
            inner(one, f"{place}[{number}]")

    return run


def _table(inner: Check) -> Check:
    def run(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _damaged(place, "is not an object")
        for name, one in value.items():
            inner(one, f"{place}.{name}")

    return run


def _fields(**inner: Check) -> Check:
    """An object that has at least these fields."""

    def run(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _damaged(place, "is not an object")
        for name, one in inner.items():
            if name not in value:
                raise _damaged(f"{place}.{name}", "is missing")
            one(value[name], f"{place}.{name}")

    return run


def _metric(value: Any, place: str) -> None:
    _METRIC(value, place)
    numbers = [value["value"], value["low"], value["high"]]
    if None in numbers and numbers != [None] * 3:
        raise _damaged(place, "has a value without its interval, or an interval without its value")
    if value["value"] is None and not value["reason"]:
        raise _damaged(f"{place}.reason", "is empty although the value is null")


def _optional(inner: Check) -> Check:
    def run(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return run


def _seed(value: Any, place: str) -> None:
    _fields(seed=_is(int))(value, place)
    for name, one in value.items():
        if name != "runs":
            _is(float, int, none=True)(one, f"{place}.{name}")


def _anything(_value: Any, _place: str) -> None:
    """Knobs are the methods' own business."""


_text, _number = _is(str), _is(float, int, none=True)
_METRIC = _fields(value=_number, low=_number, high=_number, n=_is(int), unit=_text, level=_is(float, int), reason=_text)
_CELL = _fields(
    defence=_text,
    workload=_text,
    p=_number,
    stages=_list(_fields(stage=_text, method=_text, knobs=_table(_anything))),
    metrics=_table(_metric),
    seeds=_list(_seed),
    against_baseline=_table(_metric),
    cost=_fields(seconds=_optional(_metric), ratio=_optional(_metric), peak_bytes=_number),
)
_RESULT = _fields(
    title=_text,
    command=_text,
    recipe=_text,
    model=_text,
    seeds=_list(_is(int)),
    baseline=_text,
    measures=_table(_fields(label=_text, unit=_text, better=_text)),
    workloads=_table(_fields(title=_text, text=_text)),
    threat_model=_fields(
        claim=_text, rows=_list(_fields(stage=_text, who=_text, sees=_list(_text), controls=_list(_text)))
    ),
    cells=_list(_CELL),
    aligned=_list(_CELL),
    answers=_list(
        _fields(defence=_text, workload=_text, p=_number, group=_text, prompt=_text, text=_text, value=_number)
    ),
    notes=_list(_text),
    environment=_table(_text),
    complete=_is(bool),
    missing=_list(_fields(defence=_text, workload=_is(str, none=True), p=_number, reason=_text)),
)
