"""Where the words in a chart go, so that none covers another: greedy placement around points, and pushing apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_CHARACTER, _LINE, _WIDEST = 6.8, 14.0, 880.0


@dataclass(frozen=True, slots=True)
class Side:
    """A place beside a point, as Vega-Lite says it."""

    align: Literal["left", "center", "right"]
    baseline: Literal["middle", "top", "bottom"]
    dx: float
    dy: float


# In order of preference. The offsets clear the largest marks that are common (twice the baseline's area).
_SIDES = (
    Side("left", "middle", 16, 0),
    Side("right", "middle", -16, 0),
    Side("left", "middle", 11, -15),
    Side("right", "middle", -11, -15),
    Side("left", "middle", 11, 15),
    Side("right", "middle", -11, 15),
    Side("left", "middle", 8, 32),
    Side("right", "middle", -8, 32),
    Side("left", "middle", 8, -32),
    Side("right", "middle", -8, -32),
)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """The vertical range of a plot and its height in pixels."""

    domain: tuple[float, float]
    height: float


def place(
    rows: list[dict[str, Any]],
    *,
    width: float,
    height: float,
    x_domain: tuple[float, float],
    y_domain: tuple[float, float],
) -> None:
    """Give each row a ``side``: the first that covers no mark, whisker or earlier label, else the least bad.

    Args:
        rows: with ``value``, ``accuracy``, their whiskers and ``label``; changed in place.
        width: of the plot; for a small one, since room only grows with it.
        height: of the plot.
        x_domain: of the horizontal axis.
        y_domain: of the vertical axis.
    """

    def across(value: float) -> float:
        return width * (value - x_domain[0]) / (x_domain[1] - x_domain[0])

    def down(value: float) -> float:
        return height * (y_domain[1] - value) / (y_domain[1] - y_domain[0])

    taken: list[Box] = []
    for row in rows:
        x, y = across(row["value"]), down(row["accuracy"])
        taken.append((x - 10, y - 10, x + 10, y + 10))
        # A whisker grows with the plot and a label does not, so whiskers count at their longest.
        left, right = (_WIDEST / width * (across(row[end]) - x) for end in ("low", "high"))
        taken.append((x + left, y - 3, x + right, y + 3))
        taken.append((x - 2, down(row["accuracy_high"]), x + 2, down(row["accuracy_low"])))
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        x, y = across(row["value"]), down(row["accuracy"])
        boxes = [_box(x, y, side, len(row["label"]) * _CHARACTER) for side in _SIDES]
        costs = [_cost(box, taken, width, height) for box in boxes]
        best = min(range(len(boxes)), key=lambda i: (costs[i], i))
        row["side"] = best
        taken.append(boxes[best])


def by_side(rows: Sequence[dict[str, Any]]) -> dict[Side, list[dict[str, Any]]]:
    """Rows by where their label goes: one layer of text for each."""
    groups: dict[Side, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_SIDES[row["side"]], []).append(row)
    return groups


def _box(x: float, y: float, side: Side, length: float) -> Box:
    left = {"left": x + side.dx, "right": x + side.dx - length, "center": x - length / 2}[side.align]
    middle = y + side.dy + {"middle": 0.0, "top": _LINE / 2, "bottom": -_LINE / 2}[side.baseline]
    return (left, middle - _LINE / 2, left + length, middle + _LINE / 2)


def _cost(box: Box, taken: Sequence[Box], width: float, height: float) -> float:
    """Covered area; what leaves the plot counts as covered, several times."""
    covered = sum(_shared(box, other) for other in taken)
    inside = _shared(box, (0.0, 0.0, width, height))
    return covered + 4 * ((box[2] - box[0]) * (box[3] - box[1]) - inside)


def _shared(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def apart(values: Mapping[str, float], frame: Frame, gap: float) -> dict[str, float]:
    """Positions near the values, at least ``gap`` pixels from one another, in the same order.

    Labels that do not fit above the bottom run over it rather than over each other.
    """
    step = gap * (frame.domain[1] - frame.domain[0]) / frame.height
    names = sorted(values, key=lambda name: -values[name])
    places: list[float] = []
    for name in names:
        places.append(min(values[name], places[-1] - step) if places else values[name])
    floor = frame.domain[0]
    for i in reversed(range(len(places))):
        if places[i] >= floor:
            break
        places[i] = floor
        floor += step
    # Pushing up from the bottom can run into what lies above.
    for i in reversed(range(len(places) - 1)):
        places[i] = max(places[i], places[i + 1] + step)
    return dict(zip(names, places, strict=True))
