"""Charts of an assessment: judges beside people and null judges, and perception charts.

One specification each, interactive in HTML and still in PNG, SVG and PDF (:func:`holdfast.report.charts.save`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from holdfast.report.parts import INK, JUDGE, PALE, PEOPLE, QUIET, look

Chart = alt.LayerChart | alt.VConcatChart

SMALL_BIN = 30
_OTHERS = "other people"
_ROLES = {"judge": JUDGE, "held-out person": PEOPLE, "null judge": PALE}
_WIDTH, _PANEL, _NAME = 560, 150, 30


def contrasts(
    result: Mapping[str, Any], key: str = "contrast", title: str = "Judge minus person"
) -> alt.LayerChart | None:
    """Dot and whisker of D for judges, held-out people and null judges, with the margin as a line.

    Args:
        result: JSON object of an assessment.
        key: which contrast.
        title: of the axis.

    Returns:
        None where no judge and no person has the number.
    """
    shown = (_contrast_row(one, key) for one in (*result["judges"], *result["controls"]))
    rows = [row for row in shown if row is not None]
    if not rows:
        return None
    order = [row["name"] for row in rows]
    base = alt.Chart(alt.InlineData(values=rows))
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=190))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True, nice=True))
    colour = alt.Color(
        "role:N",
        scale=alt.Scale(domain=list(_ROLES), range=list(_ROLES.values())),
        legend=alt.Legend(orient="top", title=None, labelFontSize=12),
    )
    shape = alt.Shape(
        "role:N", scale=alt.Scale(domain=list(_ROLES), range=["circle", "diamond", "square"]), legend=None
    )
    tips = [alt.Tooltip("name:N", title="who"), alt.Tooltip("text:N", title=title), alt.Tooltip("n:Q", title="items")]
    once = alt.Chart(alt.InlineData(values=[{"margin": -result["margin"], "zero": 0}]))
    margin = once.mark_rule(color="#A61B1B", strokeDash=[5, 4]).encode(x=alt.X("margin:Q", title=title))
    zero = once.mark_rule(color=QUIET).encode(x=alt.X("zero:Q", title=title))
    whisker = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=colour, tooltip=tips
    )
    dot = base.mark_point(filled=True, size=75, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    layers = [zero, margin, whisker, dot]
    return alt.LayerChart(layer=layers, width=_WIDTH, height=26 * len(rows), **look(_name_room(order)))


def perception(result: Mapping[str, Any], judge: Mapping[str, Any]) -> alt.VConcatChart | None:
    """What a judge sees where a person sees one thing: one panel for each label that a person gives.

    Bars are the label shares of the other people and of the judge, with intervals; the title has the number of items,
    and panels of fewer than 30 are grey.

    Args:
        result: JSON object of an assessment.
        judge: one of its judges or controls.
    """
    names = [*map(str, result["labels"]["names"]), "INVALID"]
    panels = []
    for cell in judge["perception"]:
        if not cell["n"]:
            continue
        rows = list(_perception_rows(cell, names, judge["name"]))
        if not any(row["label"] == "INVALID" and row["share"] > 0 for row in rows):
            rows = [row for row in rows if row["label"] != "INVALID"]
        small = cell["n"] < SMALL_BIN
        title = f"a person says {names[cell['bin']]}: {cell['n']:,} items, {cell['share']:.0%} of people's labels"
        panels.append(_panel(rows, title + (" (few: read with care)" if small else ""), names, judge["name"], small))
    if not panels:
        return None
    return alt.VConcatChart(vconcat=panels, spacing=18, **look(60))


def perception_paper(bins: Sequence[Mapping[str, Any]], judge: str = "M") -> alt.VConcatChart:
    """The paper's picture: per bin, shares of people's (H) and the machine's (M) labels and of their aggregates.

    Args:
        bins: per bin ``label``, ``n``, ``share``, ``people``, ``people_aggregate``, ``judge``, ``judge_aggregate``
            (each one share a label, in the order of the bins' labels) and ``jsd``.
        judge: name of the machine.
    """
    names = [str(cell["label"]) for cell in bins]
    sides = (("H", "people"), ("M", "judge"), ("H-bar", "people_aggregate"), ("M-bar", "judge_aggregate"))
    colours = alt.Scale(domain=[side for side, _ in sides], range=["#C62F2F", "#2E7D32", "#FFA07A", "#90EE90"])
    panels = []
    for cell in bins:
        if not cell["n"]:
            continue
        rows = [
            {"label": name, "side": side, "share": share}
            for side, key in sides
            for name, share in zip(names, cell[key], strict=True)
        ]
        apart = "undefined" if cell["jsd"] is None else f"{cell['jsd']:.2f}"
        title = f"H-bar = {cell['label']}: {cell['n']:,} items ({cell['share']:.1%}), JSD: {apart}"
        panels.append(
            alt.Chart(alt.InlineData(values=rows), title=title, width=_WIDTH, height=_PANEL)
            .mark_bar()
            .encode(
                x=alt.X("label:N", sort=names, title=None, axis=alt.Axis(labelAngle=0)),
                xOffset=alt.XOffset("side:N", sort=[side for side, _ in sides]),
                y=alt.Y("share:Q", title="share", scale=alt.Scale(domain=[0, 1.1])),
                color=alt.Color(
                    "side:N", scale=colours, legend=alt.Legend(orient="top", title=f"people (H), {judge} (M)")
                ),
            )
        )
    return alt.VConcatChart(vconcat=panels, spacing=18, **look(60))


def _contrast_row(one: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    number = one["metrics"].get(key)
    if number is None or number["value"] is None:
        return None
    value, low, high = number["value"], number["low"], number["high"]
    text = f"{value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low is not None else "")
    bounds = (value, value) if low is None else (low, high)
    return {
        "name": one["name"], "role": one["role"], "value": value, "low": bounds[0], "high": bounds[1], "text": text,
        "n": number["n"],
    }  # fmt: skip


def _perception_rows(cell: Mapping[str, Any], names: Sequence[str], judge: str) -> Iterator[dict[str, Any]]:
    for side, key in ((_OTHERS, "people"), (judge, "judge")):
        for name, shown in zip(names, cell[key], strict=False):
            if shown is not None:
                yield {"label": name, "side": side, "share": shown[0], "low": shown[1], "high": shown[2]}


def _panel(rows: list[dict[str, Any]], title: str, names: Sequence[str], judge: str, small: bool) -> alt.LayerChart:
    there = [name for name in names if any(row["label"] == name for row in rows)]
    sides = [_OTHERS, judge]
    colours = alt.Scale(domain=sides, range=["#9AA5B1", "#D5DAE0"] if small else [PEOPLE, JUDGE])
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("label:N", sort=there, title=None, axis=alt.Axis(labelAngle=0))
    offset = alt.XOffset("side:N", sort=sides)
    tips = [
        alt.Tooltip("side:N", title="who"), alt.Tooltip("label:N"), alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%"), alt.Tooltip("high:Q", format=".1%"),
    ]  # fmt: skip
    legend = alt.Legend(orient="top", title=None, labelFontSize=12)
    bar = base.mark_bar().encode(
        x=x,
        xOffset=offset,
        y=alt.Y(
            "share:Q", title="share of labels", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)
        ),
        color=alt.Color("side:N", scale=colours, sort=sides, legend=legend),
        tooltip=tips,
    )
    whisker = base.mark_rule(color=INK, strokeWidth=1.2).encode(x=x, xOffset=offset, y="low:Q", y2="high:Q")
    resolve = alt.Resolve(scale=alt.LegendResolveMap(color="independent"))
    return alt.LayerChart(layer=[bar, whisker], title=title, width=_WIDTH, height=_PANEL, resolve=resolve)


def _name_room(names: Sequence[str]) -> int:
    return min(190, 12 + 7 * max((len(name) for name in names), default=0)) + 24
