"""Charts of a result. One specification each: interactive in HTML, still in PNG, SVG and PDF.

A defence has the same colour and shape in every chart, names stand next to what they name, and numbers stand beside
their whiskers, so that a chart can be read in greyscale and without a pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import altair as alt
from altair.utils import schemapi

from holdfast.core.errors import UsageError, nearest
from holdfast.core.files import write_bytes
from holdfast.report import facts, labels
from holdfast.report.facts import ACCURACY, HARM
from holdfast.report.phrases import axis_title, bounds, interval_name, number, share, size
from holdfast.report.schema import CellJson, MetricJson, ResultJson

Chart = alt.LayerChart | alt.VConcatChart

_INK, _QUIET, _GRID = "#1F2933", "#52606D", "#E4E7EB"
_FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
_WIDTH, _ROW, _NUMBERS = 560, 30, 128
_MAX_NAME, _CROWD = 150, 10


def harm_chart(result: ResultJson, workload: str) -> Chart:
    """Dot and whisker: harmful score of each defence, one panel a poison ratio.

    Small dots are seeds, the dashed line is the baseline. Of many poison ratios the lowest and the two highest are
    drawn: the curves show all.
    """
    ratios = facts.ratios(result, workload)
    shown = ratios if len(ratios) <= 3 else [ratios[0], *ratios[-2:]]
    panels = [
        _whiskers(result, facts.cells_at(result, workload, p), HARM, title=_panel_title(p), domain=(0.0, 100.0))
        for p in reversed(shown)
    ]
    return _stacked(result, panels)


def side_effects_chart(result: ResultJson, workload: str) -> Chart | None:
    """Dot and whisker of what is neither harmful score nor fine-tune accuracy (benign accuracy, over-refusal).

    At the highest poison ratio; None when there is no such measure.
    """
    cells = facts.cells_at(result, workload, max(facts.ratios(result, workload), default=None))
    names = [name for name in result["measures"] if name not in (HARM, ACCURACY)]
    panels = [
        _whiskers(result, cells, name, title=result["measures"][name]["label"], domain=_zoom(cells, name))
        for name in names
        if any(facts.metric(cell, name) for cell in cells)
    ]
    return _stacked(result, panels) if panels else None


def plane_chart(result: ResultJson, workload: str) -> Chart | None:
    """Safety against utility, cost as area: harmful score across, fine-tune accuracy up, whiskers both ways.

    Rings mark the defences that no other beats on both; None when no cell has both numbers.
    """
    ratios = facts.ratios(result, workload)
    cells = facts.cells_at(result, workload, max(ratios, default=None))
    known = [c for c in cells if facts.metric(c, HARM) and facts.metric(c, ACCURACY)]
    if not known:
        return None
    height = 360
    low = min(m["low"] or 0.0 for c in known if (m := facts.metric(c, ACCURACY)))
    floor = max(0.0, 5.0 * ((low - 2) // 5))
    # Room above 100 for the words in the good corner.
    domain = (floor, 100 + 0.16 * (100 - floor))
    front = facts.front(known)
    rows = [_plane_row(cell, front) for cell in known]
    if len(rows) > _CROWD:
        rows = [row | {"label": row["short"]} for row in rows]
    labels.place(rows, width=380, height=height, x_domain=(-4, 104), y_domain=domain)
    x = _x(result, HARM, (-4, 104), ticks=[0, 20, 40, 60, 80, 100])
    y = alt.Y("accuracy:Q", title=_title(result, ACCURACY), scale=_scale(domain))
    y = y.axis(values=_ticks(floor), titlePadding=10)
    layers = _plane_layers(result, rows, x, y)
    return alt.LayerChart(layer=layers, width=_WIDTH + 120, height=height, **_look(76))


def curves_chart(result: ResultJson, workload: str) -> Chart | None:
    """Harmful score and fine-tune accuracy over the poison ratio, bands for intervals; None below two ratios."""
    if len(facts.ratios(result, workload)) < 2:
        return None
    panels = [
        _curve(result, workload, name, domain)
        for name, domain in ((HARM, (0.0, 100.0)), (ACCURACY, _accuracy_domain(result, workload)))
        if name in result["measures"]
    ]
    return alt.VConcatChart(vconcat=list(panels), spacing=28, **_look(76 + _MAX_NAME)) if panels else None


def cost_chart(result: ResultJson, workload: str) -> Chart | None:
    """Bars: training time relative to the baseline, and peak memory, at the highest poison ratio."""
    cells = facts.cells_at(result, workload, max(facts.ratios(result, workload), default=None))
    panels = []
    if any(cell["cost"]["ratio"] for cell in cells):
        rows = [_time_row(cell) for cell in cells]
        title = f"Training time of all stages, multiples of {result['baseline']} (lower is better)"
        panels.append(_bars(result, rows, title, rule=1.0))
    if any(cell["cost"]["peak_bytes"] for cell in cells):
        rows = [_memory_row(cell) for cell in cells]
        panels.append(_bars(result, rows, "Peak memory, MiB (lower is better)", rule=None))
    return _stacked(result, panels) if panels else None


def unchecked() -> AbstractContextManager[None]:
    """Inside it, charts are drawn without checking each part against the schema of Vega-Lite.

    A page spends most of its time on that check, and the tests make it for every chart.
    """
    return schemapi.debug_mode(False)


# --- dot and whisker ---------------------------------------------------------------------------------


def _whiskers(
    result: ResultJson, cells: Sequence[CellJson], name: str, *, title: str, domain: tuple[float, float]
) -> alt.LayerChart:
    rows = [_whisker_row(cell, name) for cell in cells]
    dots = [
        {"defence": cell["defence"], "value": seed[name], "seed": str(seed["seed"])}
        for cell in cells
        for seed in cell["seeds"]
        if seed.get(name) is not None
    ]
    order = [row["defence"] for row in rows]
    known = [row for row in rows if row["value"] is not None]
    x, y = _x(result, name, domain), _y(order)
    base = _over(known)
    tips = _tooltips(("defence", "Defence"), ("shown", result["measures"][name]["label"]), ("interval", "Interval"),
                     ("n", "n"), ("difference", f"Against {result['baseline']}"))  # fmt: skip
    layers: list[Any] = []
    reference = next((row for row in known if row["defence"] == result["baseline"]), None)
    if reference:
        data = [{"value": reference["value"]}]
        layers.append(_over(data).mark_rule(strokeDash=[5, 4], color=_QUIET, strokeWidth=1.2).encode(x=x))
    layers += [
        base.mark_rule(strokeWidth=2.4).encode(
            x=_at(x, "low"), x2="high", y=y, color=_colour(result)
        ),
        _over(dots)
        .mark_point(size=16, filled=False, strokeWidth=1, yOffset=9, opacity=0.9)
        .encode(x=x, y=y, color=_colour(result), shape=alt.value("circle"),
                tooltip=_tooltips(("defence", "Defence"), ("seed", "Seed"), ("value", "Value of the seed, %"))),
        base.mark_point(size=110, filled=True, opacity=1, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=_colour(result), shape=_shape(result), tooltip=tips
        ),
        _numbers(rows, y),
    ]  # fmt: skip
    return alt.LayerChart(layer=layers, width=_WIDTH, height=alt.Step(_ROW), title=title)


def _whisker_row(cell: CellJson, name: str) -> dict[str, Any]:
    shown = cell["metrics"].get(name)
    if shown is None or shown["value"] is None:
        return {"defence": cell["defence"], "value": None, "label": "undefined"}
    gap = cell["against_baseline"].get(name)
    told = f"{number(gap['value'], 'points')} ({bounds(gap)})" if gap and gap["value"] is not None else "—"
    return {
        "defence": cell["defence"], "value": shown["value"], "low": shown["low"], "high": shown["high"],
        "n": f"{shown['n']:,}", "shown": number(shown["value"], shown["unit"]),
        "interval": _interval(shown), "difference": told, "label": _label(shown),
    }  # fmt: skip


def _interval(shown: MetricJson) -> str:
    return f"{interval_name(shown)} {bounds(shown)}"


def _label(shown: MetricJson) -> str:
    """Number and interval for the column beside a panel."""
    text = number(shown["value"] or 0.0, shown["unit"]).rstrip("%")
    return f"{text} ({bounds(shown).replace(' to ', '–')})"


def _numbers(rows: Sequence[Mapping[str, Any]], y: alt.Y) -> alt.Chart:
    """The column of numbers to the right of a panel."""
    chosen = [{"defence": row["defence"], "label": row["label"]} for row in rows]
    mark = _over(chosen).mark_text(align="left", dx=12, color=_INK, fontSize=12)
    drawn: alt.Chart = mark.encode(x=alt.value("width"), y=y, text="label:N")
    return drawn


def _panel_title(p: float) -> str:
    if p == 0:
        return "Clean user data (p = 0)"
    return f"{share(p)} harmful rows in the user's data (p = {p:g})"


def _zoom(cells: Sequence[CellJson], name: str) -> tuple[float, float]:
    """A part of 0 to 100 that holds all whiskers and is at least 20 wide."""
    found = [m for cell in cells if (m := facts.metric(cell, name))]
    low = min(m["low"] or 0.0 for m in found)
    high = max(m["high"] or 0.0 for m in found)
    bottom = max(0.0, min(5.0 * (low // 5), 80.0)) if low > 40 else 0.0
    top = 100.0 if low > 40 else min(100.0, max(20.0, 5.0 * (high // 5 + 1)))
    return bottom, top


# --- plane -------------------------------------------------------------------------------------------


def _plane_row(cell: CellJson, front: set[str]) -> dict[str, Any]:
    harm, useful = facts.metric(cell, HARM), facts.metric(cell, ACCURACY)
    assert harm is not None
    assert useful is not None
    ratio = cell["cost"]["ratio"]
    times = ratio["value"] if ratio else None
    told = f" · {number(times, 'x')}" if times is not None else ""
    return {
        "defence": cell["defence"], "label": f"{cell['defence']}{told}", "short": cell["defence"],
        "front": cell["defence"] in front,
        "value": harm["value"], "low": harm["low"], "high": harm["high"],
        "accuracy": useful["value"], "accuracy_low": useful["low"], "accuracy_high": useful["high"],
        # Area grows with cost; a defence of unknown cost is drawn as large as the baseline.
        "area": 100.0 * min(max(times or 1.0, 0.5), 8.0),
        "harm": f"{number(harm['value'] or 0, '%')}, {_interval(harm)}",
        "useful": f"{number(useful['value'] or 0, '%')}, {_interval(useful)}",
        "cost": number(times, "x") if times is not None else "not measured",
        "n": f"{harm['n']:,} and {useful['n']:,}",
    }  # fmt: skip


def _plane_layers(result: ResultJson, rows: list[dict[str, Any]], x: alt.X, y: alt.Y) -> list[Any]:
    colour, shape = _colour(result), _shape(result)
    area = alt.Size("area:Q", scale=None, legend=None)
    tips = _tooltips(("defence", "Defence"), ("harm", result["measures"][HARM]["label"]),
                     ("useful", result["measures"][ACCURACY]["label"]),
                     ("cost", f"Training time × {result['baseline']}"), ("n", "n (harm, accuracy)"))  # fmt: skip
    edge = sorted((row for row in rows if row["front"]), key=lambda row: row["value"])
    base = _over(rows)
    layers: list[Any] = [_corner()]
    if len(edge) > 1:
        path = _over(edge).mark_line(interpolate="step-after", strokeDash=[2, 3], color=_QUIET, strokeWidth=1.4)
        layers.append(path.encode(x=x, y=y, order="value:Q"))
    layers += [
        base.mark_rule(strokeWidth=1.8, opacity=0.75).encode(x=_at(x, "low"), x2="high", y=y, color=colour),
        base.mark_rule(strokeWidth=1.8, opacity=0.75).encode(
            x=x, y=_at(y, "accuracy_low"), y2="accuracy_high", color=colour
        ),
        base.mark_point(filled=True, opacity=0.9, stroke="white", strokeWidth=1).encode(
            x=x, y=y, size=area, color=colour, shape=shape, tooltip=tips
        ),
        _over([row | {"area": 1.5 * row["area"] + 160} for row in edge])
        .mark_point(filled=False, shape="circle", stroke=_INK, strokeWidth=1.4, opacity=1).encode(x=x, y=y, size=area),
    ]  # fmt: skip
    return layers + [_plane_labels(part, x, y, side) for side, part in labels.by_side(rows).items()]


def _plane_labels(rows: list[dict[str, Any]], x: alt.X, y: alt.Y, side: labels.Side) -> alt.Chart:
    mark = _over(rows).mark_text(
        align=side.align, baseline=side.baseline, dx=side.dx, dy=side.dy, fontSize=12, color=_INK, fontWeight=600
    )
    drawn: alt.Chart = mark.encode(x=x, y=y, text="label:N")
    return drawn


def _corner() -> alt.Chart:
    words = "◤ the good corner: rarely harmful, still useful"
    mark = _over([{"words": words}]).mark_text(
        align="left", baseline="top", color="#1B6E4B", fontSize=12, fontStyle="italic"
    )
    drawn: alt.Chart = mark.encode(x=alt.value(6), y=alt.value(6), text="words:N")
    return drawn


# --- curves ------------------------------------------------------------------------------------------


def _curve(result: ResultJson, workload: str, name: str, domain: tuple[float, float]) -> alt.LayerChart:
    # Room for the names of many defences at the right edge; and bands so pale that many still show the lines.
    count = len(facts.defences(result))
    height = max(230, 16 * count)
    rows = [
        {"defence": cell["defence"], "p": 100 * (cell["p"] or 0.0), "value": shown["value"], "low": shown["low"],
         "high": shown["high"], "n": f"{shown['n']:,}", "interval": _interval(shown)}
        for p in facts.ratios(result, workload)
        for cell in facts.cells_at(result, workload, p)
        if (shown := facts.metric(cell, name)) is not None
    ]  # fmt: skip
    ps = [100 * p for p in facts.ratios(result, workload)]
    x = alt.X("p:Q", title="Harmful rows in the user's data, % (poison ratio p)")
    x = x.scale(domain=[ps[0], ps[-1]], nice=False, zero=False).axis(values=ps, grid=False, labelOverlap=True)
    measure = result["measures"][name]
    y = alt.Y("value:Q", title=_title(result, name), scale=_scale(domain)).axis(tickCount=6, titlePadding=10)
    base = _over(rows)
    tips = _tooltips(("defence", "Defence"), ("p", "p, %"), ("value", f"{measure['label']}, %"),
                     ("interval", "Interval"), ("n", "n"))  # fmt: skip
    layers = [
        base.mark_area(opacity=min(0.09, 0.5 / count)).encode(x=x, y=_at(y, "low"), y2="high", color=_colour(result)),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=_colour(result)),
        base.mark_point(filled=True, size=70, opacity=1, stroke="white", strokeWidth=0.8).encode(
            x=x, y=y, color=_colour(result), shape=_shape(result), tooltip=tips
        ),
        _curve_names(result, rows, labels.Frame(domain, height), y),
    ]  # fmt: skip
    return alt.LayerChart(layer=layers, width=_WIDTH, height=height)


def _curve_names(result: ResultJson, rows: list[dict[str, Any]], frame: labels.Frame, y: alt.Y) -> alt.Chart:
    """Names at the right ends of the lines, pushed apart so that none covers another."""
    last = {row["defence"]: row["value"] for row in sorted(rows, key=lambda row: row["p"])}
    spread = labels.apart(last, frame, gap=15)
    data = [{"defence": name, "value": at, "label": f"{name}  {last[name]:.1f}"} for name, at in spread.items()]
    mark = _over(data).mark_text(align="left", dx=12, fontSize=12, fontWeight=600)
    drawn: alt.Chart = mark.encode(x=alt.value("width"), y=y, text="label:N", color=_colour(result))
    return drawn


def _accuracy_domain(result: ResultJson, workload: str) -> tuple[float, float]:
    cells = [cell for cell in result["cells"] if cell["workload"] == workload]
    found = [m["low"] or 0.0 for cell in cells if (m := facts.metric(cell, ACCURACY))]
    return (min(5.0 * (min(found, default=0.0) // 5), 90.0), 100.0)


# --- bars --------------------------------------------------------------------------------------------


def _time_row(cell: CellJson) -> dict[str, Any]:
    ratio, seconds = cell["cost"]["ratio"], cell["cost"]["seconds"]
    if ratio is None or ratio["value"] is None:
        return {"defence": cell["defence"], "value": None, "label": "not measured", "told": "not measured"}
    took = f" · {number(seconds['value'], 's')}" if seconds and seconds["value"] is not None else ""
    return {
        "defence": cell["defence"], "value": ratio["value"], "low": ratio["low"], "high": ratio["high"],
        "label": f"{number(ratio['value'], 'x')}{took}",
        "told": f"{number(ratio['value'], 'x')}{took}; {_interval(ratio)}, n = {ratio['n']}",
    }  # fmt: skip


def _memory_row(cell: CellJson) -> dict[str, Any]:
    peak = cell["cost"]["peak_bytes"]
    if peak is None:
        return {"defence": cell["defence"], "value": None, "label": "not measured", "told": "not measured"}
    return {"defence": cell["defence"], "value": peak / 2**20, "low": None, "label": size(peak), "told": size(peak)}


def _bars(result: ResultJson, rows: list[dict[str, Any]], title: str, *, rule: float | None) -> alt.LayerChart:
    known = [row for row in rows if row["value"] is not None]
    x = alt.X("value:Q", title=title).axis(tickCount=6, grid=True).scale(zero=True, nice=True)
    y = _y([row["defence"] for row in rows])
    tips = _tooltips(("defence", "Defence"), ("told", title.split(",", maxsplit=1)[0]))
    layers: list[Any] = [
        _over(known).mark_bar(height=14, opacity=0.85).encode(x=x, y=y, color=_colour(result), tooltip=tips)
    ]
    ranged = [row for row in known if row["low"] is not None and row["low"] < row["high"]]
    if ranged:
        whisker = _over(ranged).mark_rule(color=_INK, strokeWidth=1.6)
        layers.append(whisker.encode(x=_at(x, "low"), x2="high", y=y))
    if rule is not None:
        line = _over([{"value": rule}])
        layers.append(line.mark_rule(strokeDash=[5, 4], color=_QUIET, strokeWidth=1.2).encode(x=x))
    layers.append(_numbers(rows, y))
    return alt.LayerChart(layer=layers, width=_WIDTH, height=alt.Step(26))


# --- what all share ----------------------------------------------------------------------------------


def _colour(result: ResultJson) -> alt.Color:
    styles = facts.styles(result)
    scale = alt.Scale(domain=list(styles), range=[style.colour for style in styles.values()])
    return alt.Color("defence:N", scale=scale, legend=None)


def _shape(result: ResultJson) -> alt.Shape:
    styles = facts.styles(result)
    scale = alt.Scale(domain=list(styles), range=[style.shape for style in styles.values()])
    return alt.Shape("defence:N", scale=scale, legend=None)


def _scale(domain: tuple[float, float]) -> alt.Scale:
    return alt.Scale(domain=list(domain), nice=False, zero=False)


def _title(result: ResultJson, name: str) -> str:
    measure = result["measures"][name]
    return axis_title(measure["label"], measure["unit"], measure["better"])


def _x(result: ResultJson, name: str, domain: tuple[float, float], ticks: list[float] | None = None) -> alt.X:
    x = alt.X("value:Q", title=_title(result, name), scale=_scale(domain))
    return x.axis(values=ticks) if ticks else x.axis(tickCount=6)


def _over(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """A chart over rows. They go in as a tuple, which Altair passes on, where it would copy a list at every step."""
    return alt.Chart(alt.InlineData(values=tuple(rows)))


def _at(channel: Any, field: str) -> Any:
    """The same channel with its axis, of another field."""
    moved = channel.copy(deep=False)
    moved.shorthand = f"{field}:Q"
    return moved


def _y(order: list[str]) -> alt.Y:
    widest = min(_MAX_NAME, 12 + 7 * max((len(name) for name in order), default=0))
    axis = alt.Axis(labelLimit=_MAX_NAME, minExtent=widest, ticks=False, domain=False, labelPadding=10)
    return alt.Y("defence:N", sort=order, title=None, axis=axis)


def _ticks(floor: float) -> list[float]:
    step = 5 if floor >= 60 else 20
    return [tick for tick in range(0, 101, step) if tick >= floor]


def _tooltips(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    numbers = {"value", "p"}
    return [
        alt.Tooltip(f"{name}:{'Q' if name in numbers else 'N'}", title=title, format=".1f")
        if name in numbers
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title in fields
    ]


def _stacked(result: ResultJson, panels: Sequence[alt.LayerChart]) -> Chart:
    longest = max((len(name) for name in facts.defences(result)), default=0)
    margin = min(_MAX_NAME, 12 + 7 * longest) + 24 + _NUMBERS
    return alt.VConcatChart(vconcat=list(panels), spacing=26, **_look(margin))


def _look(margin: int) -> dict[str, Any]:
    """The common look of a whole chart, given at once because each ``configure_`` call would copy the chart.

    ``usermeta.margin``: pixels beside the plots, so that a page can fit the rest to its width.
    """
    axis = {
        "gridColor": _GRID, "domainColor": "#9AA5B1", "tickColor": "#9AA5B1", "labelColor": _INK, "titleColor": _INK,
        "labelFlush": False, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 600, "titlePadding": 8,
    }  # fmt: skip
    title = {"anchor": "start", "fontSize": 13, "fontWeight": 600, "color": _INK, "offset": 8}
    config = {"font": _FONT, "view": {"stroke": None}, "axis": axis, "axisY": {"labelFontSize": 12.5}, "title": title}
    return {"usermeta": {"margin": margin}, "padding": 4, "background": "white", "config": config}


# --- files -------------------------------------------------------------------------------------------


def specification(chart: Chart) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, all data inside."""
    # Altair has checked each part when it was made; checking the whole again takes most of the time.
    found: dict[str, Any] = chart.to_dict(validate=False)
    return found


def svg(spec: Mapping[str, Any]) -> str:
    """A specification as SVG text. Nothing is fetched: an address of data in it would be refused."""
    import vl_convert

    return vl_convert.vegalite_to_svg(dict(spec), allowed_base_urls=[])


def save(chart: Chart, path: Path | str) -> Path:
    """Write a chart; the ending of ``path`` decides how: .html, .png, .svg, .pdf or .json.

    Raises:
        UsageError: another ending.
        RunError, ResourceError: the file cannot be written.
    """
    path = Path(path)
    writers = _writers()
    if path.suffix not in writers:
        hint = f"{nearest(path.suffix, writers)}valid endings: {', '.join(writers)}"
        raise UsageError(f"cannot write a chart as {path.suffix or path.name!r}", hint=hint)
    write_bytes(path, writers[path.suffix](chart))
    return path


def _writers() -> Mapping[str, Callable[[Chart], bytes]]:
    import json

    import vl_convert

    from holdfast.report.standalone import chart_page

    def as_json(chart: Chart) -> bytes:
        return (json.dumps(specification(chart), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    return {
        ".html": lambda chart: chart_page(specification(chart)).encode(),
        ".png": lambda chart: vl_convert.vegalite_to_png(specification(chart), scale=2, allowed_base_urls=[]),
        ".svg": lambda chart: svg(specification(chart)).encode(),
        ".pdf": lambda chart: vl_convert.vegalite_to_pdf(specification(chart), allowed_base_urls=[]),
        ".json": as_json,
    }
