"""Charts of a comparison and of a diagnosis. One specification each: interactive in HTML, still in PNG, SVG and PDF.

A method has the same colour and shape in every chart, names stand next to what they name and numbers beside their
whiskers, so that a chart can be read in greyscale and without a pointer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import altair as alt

from holdfast.report import labels
from holdfast.report.facts import Style, styles
from holdfast.report.parts import GRID, INK, JUDGE, PALE, PEOPLE, QUIET, look
from holdfast.report.phrases import bounds, number, signed
from holdfast.report.schema import ResultJson
from holdfast.steer.choose import UTILITIES
from holdfast.steer.plan import BASE

Chart = alt.LayerChart | alt.VConcatChart
Json = Mapping[str, Any]

PLAIN = "No picture, no steering"
UNSAFE = "harmful_score"
GROUPS = {"harmful": JUDGE, "benign": PEOPLE}
"""Classes of prompts and their colours; marks of harmful prompts are filled and of harmless ones hollow."""
PREDICTORS = {
    "cosine": "Cosine of the two shifts",
    "along": "Share along the safety direction",
    "separable": "Classes apart with pictures",
    "sunk": "Distance taken back",
}
_TOLD = {"harmful": "harmful prompts", "benign": "harmless prompts"}
_WIDTH, _NUMBERS, _WRAP = 560, 132, 17
# From this loss on, a plane's axis is compressed: else one ruined method squeezes all others into a line.
_CROWDED = 20.0
_SYMLOG = 2.0


@dataclass(frozen=True)
class Series:
    """The layers of one diagnosis, and what a legend calls it."""

    title: str
    seed: str
    layers: Sequence[Json]


# --- what a picture does -----------------------------------------------------------------------------


def conditions(diagnoses: Sequence[Json], measure: str = UNSAFE) -> alt.LayerChart | None:
    """Dot and whisker of a rate under every condition, one line a seed.

    Args:
        diagnoses: of one model, by seed; with ``seed`` where there are several.
        measure: of the conditions' metrics.

    Returns:
        None where no condition has the number.
    """
    rows = [_condition_row(d, c, measure) for d in diagnoses for c in d["conditions"]]
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return None
    order = list(dict.fromkeys(row["name"] for row in rows))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    y = _names(order)
    lines = alt.YOffset("seed:N", sort=seeds)
    x = _axis("value", "Unsafe rate, % (lower is better)", _reach(known, floor=0.0))
    legend = alt.Legend(orient="top", title=None, labelFontSize=12) if len(seeds) > 1 else None
    shape = alt.Shape("seed:N", sort=seeds, legend=legend, scale=alt.Scale(domain=seeds, range=_SHAPES[: len(seeds)]))
    colours = alt.Scale(domain=["image", "other"], range=[JUDGE, PEOPLE])
    colour = alt.Color("kind:N", scale=colours, legend=None)
    tips = _tips(name="Condition", seed="Seed", shown="Unsafe rate", more="Against the request alone", n="n")
    base = _over(known)
    layers = [
        base.mark_rule(strokeWidth=2.2).encode(x=_at(x, "low"), x2="high", y=y, yOffset=lines, color=colour),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, yOffset=lines, color=colour, shape=shape, tooltip=tips
        ),
        _over(rows).mark_text(align="left", dx=12, color=INK, fontSize=12).encode(
            x=alt.value("width"), y=y, yOffset=lines, text="label:N"
        ),
    ]  # fmt: skip
    # Two lines of a name need more room than one seed's mark.
    height = len(order) * max(34, 10 + 17 * len(seeds))
    return alt.LayerChart(layer=layers, width=_WIDTH, height=height, **look(_room(order) + _NUMBERS))


def _condition_row(diagnosis: Json, condition: Json, measure: str) -> dict[str, Any]:
    against = condition["against_text"].get(measure)
    more = "the reference" if condition["name"] == "text" else "unknown"
    if against is not None and against["value"] is not None:
        more = f"{signed(against['value'])} {brackets(against)} points"
    row = _row(wrapped(condition["title"]), condition["metrics"].get(measure))
    kind = "image" if condition["name"] == "image" else "other"
    return row | {"seed": f"seed {diagnosis.get('seed', '')}".strip(), "kind": kind, "more": more}


# --- methods -----------------------------------------------------------------------------------------


def looks(result: Json) -> dict[str, Style]:
    """Colour and shape of every method, in all charts of a comparison."""
    titles = dict.fromkeys(row["title"] for row in result["rows"])
    # The reports' palette: a defence and a method are styled alike, by their place in the recipe.
    form = {"cells": [{"defence": title} for title in titles], "missing": [], "aligned": [], "baseline": BASE}
    return styles(cast("ResultJson", form))


def methods(result: Json, workload: str, measure: str) -> alt.LayerChart | None:
    """Dot and whisker of a measure by method, the unsteered model as a dashed line and a utility's budget dotted.

    Args:
        result: JSON object of a comparison.
        workload: one of its workloads.
        measure: one of its measures.

    Returns:
        None where nothing was measured.
    """
    about, plain = result["measures"][measure], result["plain"].get(workload, {})
    rows = [_row(wrapped(PLAIN), plain[measure])] if measure in plain else []
    mine = (row for row in result["rows"] if row["workload"] == workload)
    rows += [_row(wrapped(row["title"]), row["metrics"].get(measure)) for row in mine]
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return None
    order = [row["name"] for row in rows]
    x = _axis("value", f"{label(about)}, % ({about['better']} is better)", _reach(known))
    layers = _method_layers(result, rows, known, about, x)
    return alt.LayerChart(layer=layers, width=_WIDTH, height=31 * len(rows), **look(_room(order) + _NUMBERS))


def _method_layers(
    result: Json, rows: list[dict[str, Any]], known: list[dict[str, Any]], about: Json, x: alt.X
) -> list[Any]:
    y = _names([row["name"] for row in rows])
    styled = {wrapped(title): style for title, style in looks(result).items()}
    styled[wrapped(PLAIN)] = styled[wrapped(BASE)]
    colour = alt.Color("name:N", legend=None, scale=_scale(styled, [style.colour for style in styled.values()]))
    shape = alt.Shape("name:N", legend=None, scale=_scale(styled, [style.shape for style in styled.values()]))
    tips = _tips(name="Method", shown=label(about), n="n")
    base = _over(known)
    layers: list[Any] = []
    reference = next((row for row in known if row["name"] == wrapped(BASE)), None)
    if reference:
        layers.append(_rule(x, reference["value"], QUIET, [5, 4]))
        if about["utility"]:
            edge = reference["value"] + result["budget"] * (1 if about["better"] == "lower" else -1)
            layers.append(_rule(x, edge, _BUDGET, [2, 3]))
    return [
        *layers,
        base.mark_rule(strokeWidth=2.2).encode(x=_at(x, "low"), x2="high", y=y, color=colour),
        base.mark_point(filled=True, size=100, opacity=1, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips
        ),
        # The model without pictures is no method: its mark is hollow.
        _over([row for row in known if row["name"] == wrapped(PLAIN)])
        .mark_point(filled=True, size=40, opacity=1, fill="white")
        .encode(x=x, y=y),
        _over(rows).mark_text(align="left", dx=12, color=INK, fontSize=12).encode(
            x=alt.value("width"), y=y, text="label:N"
        ),
    ]  # fmt: skip


_BUDGET = "#A61B1B"
_SHAPES = [
    "circle",
    "diamond",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
] * 8


def plane(result: Json, workload: str) -> alt.LayerChart | None:
    """Unsafe rate across, worst loss of a utility up, the budget as a line.

    Returns:
        None where no method has both numbers.
    """
    rows = [row for one in result["rows"] if one["workload"] == workload and (row := _plane_row(one))]
    if not any(row["measure"] for row in rows):
        return None
    high, low = max(row["accuracy_high"] for row in rows), min(row["accuracy_low"] for row in rows)
    domain = (min(low, 0.0) - 1.0, 1.25 * max(high, 2 * result["budget"], 1.0))
    crowded = domain[1] > _CROWDED
    reach = (-2.0, max(10.0, 1.25 * max(row["high"] for row in rows)))
    _place(rows, reach, domain, crowded)
    x = _axis("value", "Unsafe rate, % (lower is better)", reach)
    words = "Worst loss of a utility, points"
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    y = alt.Y("accuracy:Q", title=words, scale=scale).axis(tickCount=6)
    if crowded:
        ticks = [tick for tick in (-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100) if domain[0] <= tick <= domain[1]]
        scale = alt.Scale(domain=list(domain), nice=False, zero=False, type="symlog", constant=_SYMLOG)
        y = alt.Y("accuracy:Q", title=f"{words} (compressed scale)", scale=scale).axis(values=ticks)
    layers = _plane_layers(result, workload, rows, x, y)
    return alt.LayerChart(layer=layers, width=_WIDTH + 120, height=360, **look(76))


def loss(row: Json) -> tuple[str, float, float, float] | None:
    """The utility that a method loses most of, with points lost and their interval; None where none is known."""
    found = []
    for name, sign in UTILITIES.items():
        gap = row["against"].get(name)
        if gap is not None and gap["value"] is not None:
            ends = sorted((-sign * gap["low"], -sign * gap["high"]))
            found.append((-sign * gap["value"] + 0.0, name, ends[0], ends[1]))
    if not found:
        return None
    points, name, low, high = max(found, key=lambda one: one[0])
    return name, points, low, high


def _plane_row(row: Json) -> dict[str, Any] | None:
    unsafe = row["metrics"].get(UNSAFE)
    if unsafe is None or unsafe["value"] is None:
        return None
    lost = loss(row) if row["method"] else ("", 0.0, 0.0, 0.0)
    if lost is None:
        return None
    name, points, low, high = lost
    return {
        "name": row["title"], "label": row["title"], "value": unsafe["value"], "low": unsafe["low"],
        "high": unsafe["high"], "shown": f"{number(unsafe['value'], '%')} {brackets(unsafe)}", "n": f"{unsafe['n']:,}",
        "accuracy": points, "accuracy_low": low, "accuracy_high": high, "measure": name,
        "lost": f"{signed(points)} [{signed(low)}, {signed(high)}] of {name.replace('_', ' ')}" if name else "0",
    }  # fmt: skip


def _place(rows: list[dict[str, Any]], reach: tuple[float, float], domain: tuple[float, float], crowded: bool) -> None:
    """Sides of the labels, as seen on the axes that are drawn."""

    def up(value: float) -> float:
        return math.copysign(math.log1p(abs(value) / _SYMLOG), value) if crowded else value

    drawn = [row | {key: up(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high")} for row in rows]
    labels.place(drawn, width=380, height=360, x_domain=reach, y_domain=(up(domain[0]), up(domain[1])))
    for row, seen in zip(rows, drawn, strict=True):
        row["side"] = seen["side"]


def _plane_layers(result: Json, workload: str, rows: list[dict[str, Any]], x: alt.X, y: alt.Y) -> list[Any]:
    styled = looks(result)
    colour = alt.Color("name:N", legend=None, scale=_scale(styled, [style.colour for style in styled.values()]))
    shape = alt.Shape("name:N", legend=None, scale=_scale(styled, [style.shape for style in styled.values()]))
    budget = [{"accuracy": result["budget"], "words": f"budget: {result['budget']:g} points"}]
    layers: list[Any] = [
        _over(budget).mark_rule(color=_BUDGET, strokeDash=[5, 4], strokeWidth=1.4).encode(y=y),
        _over(budget)
        .mark_text(align="right", baseline="bottom", dx=-4, dy=-3, color=_BUDGET, fontSize=12)
        .encode(x=alt.value("width"), y=y, text="words:N"),
    ]
    plain = result["plain"].get(workload, {}).get(UNSAFE)
    if plain is not None and plain["value"] is not None:
        layers.append(_rule(x, plain["value"], QUIET, [2, 3]))
        words = _over([{"value": plain["value"], "words": "without picture"}])
        layers.append(
            words.mark_text(align="left", baseline="bottom", dx=5, dy=-4, color=QUIET, fontSize=12).encode(
                x=x, y=alt.value("height"), text="words:N"
            )
        )
    tips = _tips(name="Method", shown="Unsafe rate", lost="Worst loss", n="n")
    base, steered = _over(rows), _over([row for row in rows if row["measure"]])
    layers += [
        base.mark_rule(strokeWidth=1.8, opacity=0.75).encode(x=_at(x, "low"), x2="high", y=y, color=colour),
        steered.mark_rule(strokeWidth=1.8, opacity=0.75).encode(
            x=x, y=_at(y, "accuracy_low"), y2="accuracy_high", color=colour
        ),
        base.mark_point(filled=True, size=120, opacity=1, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips
        ),
    ]
    return layers + [
        # White behind the words: what passes under a name does not cut it.
        _over(part)
        .mark_text(
            align=side.align, baseline=side.baseline, dx=side.dx, dy=side.dy, fontSize=12, fontWeight=600,
            color="white" if halo else INK, stroke="white" if halo else None, strokeWidth=4 if halo else 0,
            strokeJoin="round",
        )
        .encode(x=x, y=y, text="label:N")
        for side, part in labels.by_side(rows).items()
        for halo in (True, False)
    ]  # fmt: skip


# --- layers ------------------------------------------------------------------------------------------


def states(points: Sequence[Json], layer: int) -> alt.LayerChart:
    """States of prompts at one layer on its first two principal components.

    Args:
        points: of a diagnosis, as :func:`holdfast.steer.diagnose.points` gives them.
        layer: that is drawn.
    """
    here = [
        {"x": p["x"], "y": p["y"], "group": p["group"], "view": p["view"], "told": _TOLD[p["group"]],
         "shown": "with picture" if p["view"] == "image" else "text alone"}
        for p in points
        if p["layer"] == layer
    ]  # fmt: skip
    edge = alt.Scale(domain=[-1.08, 1.08], nice=False)
    x, y = alt.X("x:Q", axis=None, scale=edge), alt.Y("y:Q", axis=None, scale=edge)
    colour = alt.Color("group:N", legend=None, scale=_scale(GROUPS, list(GROUPS.values())))
    shape = alt.Shape("view:N", legend=None, scale=_scale(["text", "image"], ["circle", "triangle-up"]))
    tips = _tips(told="Prompt", shown="Asked")
    marks = [
        _over([row for row in here if (row["group"] == "harmful") == filled])
        .mark_point(filled=filled, size=34, opacity=0.8, strokeWidth=1.3, aria=False)
        .encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
        for filled in (False, True)
    ]
    shared = look(12)
    shared["config"] |= {"view": {"stroke": GRID}}
    return alt.LayerChart(layer=marks, width=200, height=190, **shared)


def distances(series: Sequence[Series]) -> Chart | None:
    """Relative distance between the states with and without picture, by layer, one panel a model.

    Returns:
        None without layers.
    """
    titles = list(dict.fromkeys(one.title for one in series if one.layers))
    rows = [row for one in series for row in _distance_rows(one)]
    if not rows:
        return None
    top = 1.08 * max(row["high"] for row in rows)
    panels = [
        _distance_panel([row for row in rows if row["title"] == title], top, title if len(titles) > 1 else "")
        for title in titles
    ]
    return alt.VConcatChart(vconcat=panels, spacing=24, **look(76 + _NUMBERS))


def _distance_rows(one: Series) -> list[dict[str, Any]]:
    found = []
    for layer in one.layers:
        for group in GROUPS:
            shown = layer[f"distance_{group}"]
            if shown["value"] is not None:
                text = f"{shown['value']:.2f} [{shown['low']:.2f}, {shown['high']:.2f}]"
                found.append(
                    {"title": one.title, "seed": one.seed, "group": group, "told": _TOLD[group],
                     "layer": layer["layer"], "value": shown["value"], "low": shown["low"], "high": shown["high"],
                     "shown": text, "n": f"{shown['n']:,}"}
                )  # fmt: skip
    return found


def _distance_panel(rows: list[dict[str, Any]], top: float, title: str) -> alt.LayerChart:
    height = 220
    x = _layer_axis(rows)
    y = alt.Y("value:Q", title="Distance, text's length = 1", scale=alt.Scale(domain=[0, top], nice=False))
    y = y.axis(tickCount=5)
    colour = alt.Color("group:N", legend=None, scale=_scale(GROUPS, list(GROUPS.values())))
    dash = alt.StrokeDash("group:N", legend=None, scale=_scale(GROUPS, [[1, 0], [6, 4]]))
    last = max(row["layer"] for row in rows)
    ends = {_TOLD[g]: [r["value"] for r in rows if r["group"] == g and r["layer"] == last] for g in GROUPS}
    means = {name: sum(values) / len(values) for name, values in ends.items() if values}
    spread = labels.apart(means, labels.Frame((0.0, top), height), gap=16)
    names = [{"value": at, "label": name, "group": _group(name)} for name, at in spread.items()]
    tips = _tips(told="Prompts", seed="Seed", layer="Layer", shown="Distance", n="n")
    base, each = _over(rows), alt.Detail("seed:N")
    layers = [
        base.mark_area(opacity=0.13).encode(x=x, y=_at(y, "low"), y2="high", color=colour, detail=each),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash, detail=each),
        base.mark_point(filled=True, size=46, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips),
        _over(names).mark_text(align="left", dx=12, fontSize=12, fontWeight=600).encode(
            x=alt.value("width"), y=y, text="label:N", color=colour
        ),
    ]  # fmt: skip
    return alt.LayerChart(layer=layers, width=_WIDTH, height=height, title=title)


def _group(told: str) -> str:
    return next(group for group, name in _TOLD.items() if name == told)


def predictor(series: Sequence[Series], key: str) -> alt.LayerChart | None:
    """One predictor by layer, one line a diagnosis; models differ in colour and shape (:func:`model_looks`).

    Args:
        series: the diagnoses.
        key: one of :data:`PREDICTORS`.

    Returns:
        None where no layer has the number.
    """
    rows = [
        {
            "title": one.title,
            "seed": one.seed,
            "layer": row["layer"],
            "value": row[key],
            "line": f"{one.title} {one.seed}",
        }
        for one in series
        for row in one.layers
        if row[key] is not None
    ]
    if not rows:
        return None
    styled = model_looks(series)
    values = [row["value"] for row in rows]
    floor = 0.5 if key == "separable" else 0.0
    domain = [min(floor, *values), max(1.0, *values)]
    x = _layer_axis(rows)
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=domain, nice=True, zero=False)).axis(tickCount=4)
    colour = alt.Color("title:N", legend=None, scale=_scale(styled, [style.colour for style in styled.values()]))
    shape = alt.Shape("title:N", legend=None, scale=_scale(styled, [style.shape for style in styled.values()]))
    tips = _tips(title="Model", seed="Seed", layer="Layer")
    tips.append(alt.Tooltip("value:Q", title=PREDICTORS[key], format=".2f"))
    base = _over(rows)
    layers = [
        base.mark_line(strokeWidth=1.6, opacity=0.8).encode(x=x, y=y, color=colour, detail="line:N"),
        base.mark_point(filled=True, size=36, opacity=0.9).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips),
    ]
    return alt.LayerChart(layer=layers, width=240, height=150, **look(44))


def model_looks(series: Sequence[Series]) -> dict[str, Style]:
    """Colour and shape of each model in the charts of predictors; a page explains them once for all."""
    tones = (PEOPLE, JUDGE, INK, PALE, QUIET)
    titles = dict.fromkeys(one.title for one in series)
    return {title: Style(tones[i % len(tones)], _SHAPES[i % len(_SHAPES)]) for i, title in enumerate(titles)}


def _layer_axis(rows: Sequence[Json]) -> alt.X:
    found = sorted({row["layer"] for row in rows})
    ticks = found[:: max(1, math.ceil(len(found) / 10))]
    scale = alt.Scale(domain=[found[0] - 0.2, found[-1] + 0.2], nice=False, zero=False)
    return alt.X("layer:Q", title="Layer", scale=scale).axis(values=ticks, format="d", grid=False)


# --- what all share ----------------------------------------------------------------------------------


def label(about: Json) -> str:
    """What a measure is called: every judge of harmful answers measures an unsafe rate."""
    return "Unsafe rate" if about["group"] == "harmful" else str(about["label"])


def brackets(metric: Json) -> str:
    """``[9.4, 22.7]``."""
    return f"[{bounds(cast('Any', metric)).replace(' to ', ', ')}]"


def wrapped(name: str) -> str:
    """A long name on two lines, cut where a space is nearest to the middle."""
    spaces = [i for i, character in enumerate(name) if character == " "]
    if len(name) <= _WRAP or not spaces:
        return name
    cut = min(spaces, key=lambda i: abs(2 * i - len(name)))
    return f"{name[:cut]}\n{name[cut + 1 :]}"


def _row(name: str, metric: Json | None) -> dict[str, Any]:
    """What a whisker and the number beside it need."""
    if metric is None or metric["value"] is None:
        return {"name": name, "value": None, "label": "—"}
    shown = number(metric["value"], metric["unit"])
    return {
        "name": name, "value": metric["value"], "low": metric["low"], "high": metric["high"], "n": f"{metric['n']:,}",
        "shown": f"{shown} {brackets(metric)}", "label": f"{shown.rstrip('%')} {brackets(metric)}",
    }  # fmt: skip


def _reach(rows: Sequence[Json], floor: float | None = None) -> tuple[float, float]:
    """Where a percentage's axis begins and ends: at tens around all whiskers."""
    low = 10 * math.floor(min(row["low"] for row in rows) / 10) if floor is None else floor
    high = 10 * math.ceil(max(row["high"] for row in rows) / 10 + 1e-9)
    return max(0.0, min(low, high - 10)), min(100.0, max(high, low + 10))


def _axis(field: str, title: str, domain: tuple[float, float]) -> alt.X:
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    return alt.X(f"{field}:Q", title=title, scale=scale).axis(tickCount=6, labelFlush=False)


# Vega lets lines hang from the middle: a name of two lines is lifted by half a line.
_LIFTED = {"condition": {"test": "indexof(datum.value, '\\n') >= 0", "value": -7}, "value": 0}


def _names(order: list[str]) -> alt.Y:
    axis = alt.Axis(
        ticks=False, domain=False, labelPadding=10, labelLimit=190, minExtent=_room(order) - 24,
        labelExpr="split(datum.label, '\\n')", labelOffset=_LIFTED,
    )  # fmt: skip
    return alt.Y("name:N", sort=order, title=None, axis=axis)


def _room(names: Sequence[str]) -> int:
    """Pixels that the names beside a plot take."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return min(190, 12 + 7 * longest) + 24


def _rule(x: alt.X, at: float, colour: str, dash: list[int]) -> alt.Chart:
    drawn: alt.Chart = _over([{"value": at}]).mark_rule(strokeDash=dash, color=colour, strokeWidth=1.2).encode(x=x)
    return drawn


def _over(rows: Sequence[Json]) -> alt.Chart:
    """A chart over rows. They go in as a tuple, which Altair passes on, where it would copy a list at every step."""
    return alt.Chart(alt.InlineData(values=tuple(rows)))


def _at(channel: Any, field: str) -> Any:
    """The same channel with its axis, of another field."""
    moved = channel.copy(deep=False)
    moved.shorthand = f"{field}:Q"
    return moved


def _scale(domain: Any, values: Sequence[Any]) -> alt.Scale:
    return alt.Scale(domain=list(domain), range=list(values))


def _tips(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]
