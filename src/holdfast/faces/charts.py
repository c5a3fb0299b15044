"""Charts of a comparison or a check: rates with intervals, interactive in HTML and still in PNG, SVG and PDF.

Every block of marks carries its name and number above it, so that the plot has the page's whole width, on a phone too,
and can be read without a pointer or colours: each recogniser has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import altair as alt

from holdfast.faces import terminal
from holdfast.faces.terminal import CLEAN, PROTECTED, complement, summary, told
from holdfast.report.facts import Style, styles
from holdfast.report.parts import GRID, INK, PEOPLE, QUIET, look
from holdfast.report.schema import ResultJson

Json = Mapping[str, Any]

MEAN = Style(INK, "circle")
"""The mean over recognisers; where a chart shows one rate a block, that rate."""
_WIDTH, _LINE, _GAP = 640, 15, 14
_LONG = 26
"""Letters from which on a name does not leave its number room on a phone: the number stands below it."""


@dataclass(frozen=True)
class Point:
    """A mark with its whisker.

    Attributes:
        name: in the tooltip.
        metric: the rate.
        style: of the mark.
        large: whether it is what the block's number says.
    """

    name: str
    metric: Json
    style: Style
    large: bool = False


@dataclass(frozen=True)
class Block:
    """Marks under one name, with the number that stands beside it."""

    name: str
    number: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Rule:
    """A dashed line across all blocks."""

    name: str
    value: float


def looks(result: Json) -> dict[str, Style]:
    """Colour and shape of every recogniser, in all charts and legends of a page."""
    names = [one["name"] for one in result["recognisers"]]
    # The reports' palette, by place in the recipe; the baseline's style is that of means.
    form = {"cells": [{"defence": name} for name in names], "missing": [], "aligned": [], "baseline": ""}
    return styles(cast("ResultJson", form))


def protection(result: Json, cells: Sequence[Json], part: str) -> alt.LayerChart | None:
    """Protection rate at rank 1 by method: each recogniser of a part, and their mean.

    Args:
        result: JSON object of a comparison.
        cells: its rows under one team.
        part: ``held_out`` or ``learned_from``.

    Returns:
        None where nothing was measured.
    """
    styled, blocks = looks(result), []
    for cell in cells:
        if cell["checked"] is None:
            continue
        names = terminal.recognisers(cell, part)
        parts = cell["checked"]["recognisers"]
        metrics = {name: parts[name]["scenes"][PROTECTED]["psr"]["1"] for name in names}
        points = [Point(name, metric, styled[name], len(names) == 1) for name, metric in metrics.items()]
        mean = summary(cell, "scenes", PROTECTED, part=part)
        if len(names) > 1:
            points.insert(0, Point(f"mean of {len(names)}", mean, MEAN, large=True))
        blocks.append(Block(cell["title"], told(mean), tuple(points)))
    first = terminal.lead(cells)
    rules = _rules(first, part) if first is not None else []
    return dots(blocks, rules, "Photos in which the person is not found, % (higher is better)")


def _rules(cell: Json, part: str) -> list[Rule]:
    clean = summary(cell, "scenes", CLEAN, part=part)["value"]
    return [] if clean is None else [Rule("without a mask", clean)]


def undone(cell: Json) -> alt.LayerChart | None:
    """Recognition of one method's photos after each attack that is aimed at masks, beside that before it.

    Returns:
        None where nothing was measured.
    """
    before = complement(summary(cell, "scenes", PROTECTED))
    blocks = []
    for (kind, what), title in terminal.breaking(cell).items():
        after = complement(summary(cell, kind, what))
        blocks.append(Block(title, told(after), (Point("recognised", after, MEAN, large=True),)))
    rules = [] if before["value"] is None else [Rule("protected, no attack", before["value"])]
    clean = complement(summary(cell, "scenes", CLEAN))
    rules += [] if clean["value"] is None else [Rule("without a mask", clean["value"])]
    return dots(blocks, rules, "Photos in which the person is recognised, % (lower is better)")


def dots(blocks: Sequence[Block], rules: Sequence[Rule], title: str) -> alt.LayerChart | None:
    """Blocks of marks with whiskers, one under another; None where no mark has a number."""
    heads, marks, at = [], [], 0.0
    for block in blocks:
        long = len(block.name) > _LONG
        heads.append(
            {
                "y": at + 6,
                "name": block.name,
                "number": block.number.replace("-", "−") if block.number != "-" else "not measured",
                "at": at + 6 + 15 * long,
                "long": long,
            }
        )
        at += 20 + 15 * long
        for point in block.points:
            metric = point.metric
            if metric["value"] is not None:
                marks.append(
                    {"y": at, "value": metric["value"], "low": metric["low"], "high": metric["high"],
                     "block": block.name, "name": point.name, "shown": f"{told(metric)} %", "n": f"{metric['n']:,}",
                     "colour": point.style.colour, "shape": point.style.shape, "size": 130 if point.large else 95}
                )  # fmt: skip
            at += _LINE
        at += _GAP
    if not marks:
        return None
    height = round(at - _GAP + 6)
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, -8], nice=False, zero=False))
    x = alt.X("value:Q", title=title, scale=alt.Scale(domain=[0, 100], nice=False, padding=0))
    x = x.axis(values=[0, 20, 40, 60, 80, 100], gridColor=GRID)
    # The height of a plot's top lies at -8: room for the words of rules.
    layers = [*_rule_layers(rules, x), *_mark_layers(marks, x, y), *_head_layers(heads, y)]
    return alt.LayerChart(layer=layers, width=_WIDTH, height=height + 8, **look(34))


def _mark_layers(marks: Sequence[Json], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    base = _over(marks)
    colour = alt.Color("colour:N", scale=None, legend=None)
    shape = alt.Shape("shape:N", scale=None, legend=None)
    size = alt.Size("size:Q", scale=None, legend=None)
    tips = [
        alt.Tooltip(f"{field}:N", title=name)
        for field, name in (("block", "Row"), ("name", "Rate of"), ("shown", "Rate"), ("n", "n"))
    ]
    low = x.copy(deep=False)
    low.shorthand = "low:Q"
    return [
        base.mark_rule(strokeWidth=2.2).encode(x=low, x2="high", y=y, color=colour),
        base.mark_point(filled=True, opacity=1, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=colour, shape=shape, size=size, tooltip=tips
        ),
    ]


def _head_layers(heads: Sequence[Json], y: alt.Y) -> list[alt.Chart]:
    below = y.copy(deep=False)
    below.shorthand = "at:Q"
    tip = [alt.Tooltip("name:N", title="Row")]
    layers = []
    # White behind the words: a line that passes under them does not cut them.
    for halo in (True, False):
        ink = {"color": "white" if halo else INK, "stroke": "white" if halo else None, "strokeWidth": 4 if halo else 0}
        look_of: dict[str, Any] = {"fontSize": 12.5, "strokeJoin": "round", **ink}
        names = _over(heads).mark_text(align="left", fontWeight=600, dx=5, limit={"expr": "width - 8"}, **look_of)
        layers.append(names.encode(x=alt.value(0), y=y, text="name:N", tooltip=tip))
        under = [head for head in heads if head["long"]]
        beside = [head for head in heads if not head["long"]]
        if under:
            numbers = _over(under).mark_text(align="left", dx=5, **look_of)
            layers.append(numbers.encode(x=alt.value(0), y=below, text="number:N"))
        if beside:
            numbers = _over(beside).mark_text(align="right", dx=-5, **look_of)
            layers.append(numbers.encode(x=alt.value("width"), y=below, text="number:N"))
    return layers


def _rule_layers(rules: Sequence[Rule], x: alt.X) -> list[alt.Chart]:
    colours, dashes = (QUIET, PEOPLE), ([5, 4], [2, 3])
    return [
        _over([{"value": rule.value, "words": rule.name}])
        .mark_rule(strokeDash=dashes[i % 2], color=colours[i % 2], strokeWidth=1.4)
        .encode(x=x, tooltip=[alt.Tooltip("words:N", title="Line")])
        for i, rule in enumerate(rules)
    ]


def _over(rows: Sequence[Json]) -> alt.Chart:
    """A chart over rows. They go in as a tuple, which Altair passes on, where it would copy a list at every step."""
    return alt.Chart(alt.InlineData(values=tuple(rows)))
