"""What the page, the charts and the terminal all need to agree on: order, styles, verdicts, Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.report.schema import CellJson, MetricJson, ResultJson

HARM, ACCURACY, REFUSAL = "harmful_score", "finetune_accuracy", "over_refusal"

Verdict = Literal["better", "worse", "unclear", "unknown"]

# At least 3:1 against white for colour-blind and typical sight; neighbours differ in lightness, and shapes tell them
# apart in greyscale. Eight colours and seven shapes only repeat together after 56 defences.
_COLOURS = ("#0072B2", "#C84E00", "#00805F", "#A6447F", "#9A7200", "#4B3FA0", "#7A4A21", "#2B8CB3")
_SHAPES = ("square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_BASELINE_STYLE = ("#4A4A4A", "circle")


@dataclass(frozen=True, slots=True)
class Style:
    """How a defence is drawn, everywhere."""

    colour: str
    shape: str


def main_workload(result: ResultJson) -> str:
    """The workload that the headline is about: the first listed that has cells."""
    there = {cell["workload"] for cell in result["cells"]}
    return next((name for name in result["workloads"] if name in there), next(iter(result["workloads"]), ""))


def workloads_with_cells(result: ResultJson) -> list[str]:
    """Workloads that have finished or missing cells, in the order of the result."""
    there = {cell["workload"] for cell in result["cells"]} | {row["workload"] for row in result["missing"]}
    return [name for name in result["workloads"] if name in there]


def ratios(result: ResultJson, workload: str) -> list[float]:
    """Poison ratios of a workload, ascending."""
    return sorted({cell["p"] for cell in result["cells"] if cell["workload"] == workload and cell["p"] is not None})


def find(result: ResultJson, defence: str, workload: str, p: float | None) -> CellJson | None:
    """The cell of a defence, if it is finished."""
    for cell in result["cells"]:
        if (cell["defence"], cell["workload"], cell["p"]) == (defence, workload, p):
            return cell
    return None


def metric(cell: CellJson | None, name: str) -> MetricJson | None:
    """A metric of a cell that has a value; None where it is undefined or was not measured."""
    found = cell["metrics"].get(name) if cell else None
    return found if found is not None and found["value"] is not None else None


def value(cell: CellJson | None, name: str) -> float | None:
    """The number alone."""
    found = metric(cell, name)
    return found["value"] if found else None


def defences(result: ResultJson) -> list[str]:
    """All defences in the order of every table and chart: the baseline, then from most to least harmful.

    The order is that of the harmful score under the main workload at its highest poison ratio; defences without one
    come last, in the order of the result.
    """
    workload = main_workload(result)
    top = max(ratios(result, workload), default=None)
    harm = {c["defence"]: value(c, HARM) for c in result["cells"] if (c["workload"], c["p"]) == (workload, top)}
    listed = [row["defence"] for row in [*result["cells"], *result["missing"]] if row["workload"] is not None]
    names = list(dict.fromkeys(listed))

    def place(name: str) -> tuple[bool, bool, float]:
        harmful = harm.get(name)
        return name != result["baseline"], harmful is None, -(harmful or 0.0)

    return sorted(names, key=place)


def styles(result: ResultJson) -> dict[str, Style]:
    """Colour and shape of each defence.

    They follow the order of the result, not that of the numbers: a defence keeps its looks when a bench runs again.
    """
    names = dict.fromkeys(c["defence"] for c in [*result["cells"], *result["missing"], *result["aligned"]])
    others = [name for name in names if name != result["baseline"]]
    drawn = {name: Style(_COLOURS[i % len(_COLOURS)], _SHAPES[i % len(_SHAPES)]) for i, name in enumerate(others)}
    return {result["baseline"]: Style(*_BASELINE_STYLE)} | drawn


def cells_at(result: ResultJson, workload: str, p: float | None) -> list[CellJson]:
    """Cells of one workload and poison ratio, in the common order."""
    place = {name: i for i, name in enumerate(defences(result))}
    cells = [cell for cell in result["cells"] if (cell["workload"], cell["p"]) == (workload, p)]
    return sorted(cells, key=lambda cell: place[cell["defence"]])


def parts(cell: CellJson) -> list[str]:
    """The methods of a defence that are not plain SFT."""
    return [stage["method"] for stage in cell["stages"] if stage["method"] != "sft"]


def overlap(left: MetricJson, right: MetricJson) -> bool:
    """Whether two intervals share a point."""
    lows = (left["low"], right["low"])
    highs = (left["high"], right["high"])
    if None in (*lows, *highs):
        return True
    return max(x for x in lows if x is not None) <= min(x for x in highs if x is not None)


def verdict(cell: CellJson, baseline: CellJson | None, name: str, better: str) -> Verdict:
    """Whether a defence changed a measure measurably, and which way.

    By the interval of the paired difference where there is one, else by whether the two intervals overlap, which is
    stricter.
    """
    paired = cell["against_baseline"].get(name)
    if paired is not None and paired["low"] is not None and paired["high"] is not None:
        if paired["low"] <= 0 <= paired["high"]:
            return "unclear"
        return "better" if (paired["high"] < 0) == (better == "lower") else "worse"
    mine, theirs = metric(cell, name), metric(baseline, name)
    if mine is None or theirs is None or mine["value"] is None or theirs["value"] is None:
        return "unknown"
    if overlap(mine, theirs):
        return "unclear"
    return "better" if (mine["value"] < theirs["value"]) == (better == "lower") else "worse"


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points no other beats: is at most as large everywhere and smaller somewhere. Smaller is better."""
    return [
        not any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)
        for point in points
    ]


def front(cells: Sequence[CellJson]) -> set[str]:
    """Defences that no other beats on both harmful score and fine-tune accuracy (point estimates)."""
    found = [(cell["defence"], value(cell, HARM), value(cell, ACCURACY)) for cell in cells]
    known = [(name, (harm, -useful)) for name, harm, useful in found if harm is not None and useful is not None]
    kept = pareto([point for _, point in known])
    return {name for (name, _), keep in zip(known, kept, strict=True) if keep}


def aligned_reference(result: ResultJson) -> CellJson | None:
    """The aligned model that the baseline starts from: same defence name, or same alignment method."""
    for cell in result["aligned"]:
        if cell["defence"] == result["baseline"]:
            return cell
    mine = {_align_method(c) for c in result["cells"] if c["defence"] == result["baseline"]}
    return next((cell for cell in result["aligned"] if _align_method(cell) in mine), None)


def _align_method(cell: CellJson) -> str | None:
    return cell["stages"][0]["method"] if cell["stages"] else None


def better_way(result: ResultJson, name: str) -> str:
    """Which direction of a measure is better."""
    measure: Mapping[str, str] = result["measures"].get(name, {})  # type: ignore[assignment]
    return measure.get("better", "none")
