"""Charts of an assessment: accuracy against size and cost, the diversity map, teams, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from holdfast.report.parts import INK, JUDGE, PALE, PEOPLE, QUIET, look

Chart = alt.LayerChart | alt.Chart

_WIDTH = 560
_SHORT = 26


def frontier(result: Mapping[str, Any], against: str = "size") -> alt.LayerChart | None:
    """Test accuracy of the team that training chooses, by its size or by its cost, learned combination and plurality.

    Args:
        result: JSON object of an assessment.
        against: ``size`` (models) or ``cost`` (dollars an item).

    Returns:
        None where costs are not known.
    """
    rows = []
    for team in result["frontier"]:
        if team[against] is None:
            return None
        for how, key in (("learned", "learned"), ("plurality", "plurality")):
            shown = team[key]
            rows.append(
                {
                    "x": team[against] * (1000 if against == "cost" else 1), "how": how, "value": shown["value"],
                    "low": shown["low"], "high": shown["high"], "team": ", ".join(team["models"]), "size": team["size"],
                    "text": f"{shown['value']:.1f}% [{shown['low']:.1f}, {shown['high']:.1f}]",
                }
            )  # fmt: skip
    single, oracle = result["baselines"]["best_single"], result["baselines"]["oracle"]["accuracy"]
    base = alt.Chart(alt.InlineData(values=rows))
    title = "models in the team" if against == "size" else "dollars for 1,000 items"
    axis = alt.Axis(tickMinStep=1, format="d") if against == "size" else alt.Axis()
    x = alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(nice=True, zero=against == "cost"))
    y = alt.Y("value:Q", title="right on test items, %", scale=alt.Scale(zero=False, nice=True))
    colours = alt.Scale(domain=["learned", "plurality"], range=[JUDGE, PEOPLE])
    colour = alt.Color("how:N", scale=colours, legend=alt.Legend(orient="top", title=None, labelFontSize=12))
    shapes = alt.Scale(domain=["learned", "plurality"], range=["circle", "diamond"])
    shape = alt.Shape("how:N", scale=shapes, legend=alt.Legend(orient="top", title=None, labelFontSize=12))
    tips = [
        alt.Tooltip("how:N", title="combined"), alt.Tooltip("text:N", title="right"),
        alt.Tooltip("size:Q", title="models"), alt.Tooltip("team:N"),
    ]  # fmt: skip
    line = base.mark_line(strokeWidth=1.5, opacity=0.5).encode(x=x, y=y, color=colour)
    whisker = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q", title="right on test items, %"), y2="high:Q", color=colour, tooltip=tips
    )
    dot = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    name = f"best single model, {single['name'][:_SHORT]}: {single['accuracy']['value']:.1f}%"
    once = alt.Chart(alt.InlineData(values=[{"single": single["accuracy"]["value"], "name": name}]))
    rule = once.mark_rule(color=QUIET, strokeDash=[5, 4]).encode(y="single:Q")
    label = once.mark_text(align="left", baseline="top", dy=4, color=QUIET, fontSize=11).encode(
        y="single:Q", x=alt.value(6), text="name:N"
    )
    caption = f"any model of all right: {oracle['value']:.1f}%"
    return alt.LayerChart(layer=[rule, line, whisker, dot, label], width=_WIDTH, height=300, title=caption, **look(70))


def pairs(result: Mapping[str, Any]) -> alt.LayerChart | None:
    """The diversity map: how often two models fail on the same items; best model first."""
    models = result["map"]["models"]
    if len(models) < 2:
        return None
    names = _short(models)
    rows = [
        {"a": names[a], "b": names[b], "both": both, "apart": apart, "first": a, "second": b}
        for a, b, apart, both in result["map"]["pairs"]
    ]
    order = [names[model] for model in models]
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("a:N", sort=order, title=None, axis=alt.Axis(labelAngle=-45, labelLimit=150))
    y = alt.Y("b:N", sort=order, title=None, axis=alt.Axis(labelLimit=190))
    tips = [
        alt.Tooltip("first:N", title="model"), alt.Tooltip("second:N", title="and"),
        alt.Tooltip("both:Q", title="both fail", format=".1%"),
        alt.Tooltip("apart:Q", title="one of them fails", format=".1%"),
    ]  # fmt: skip
    colour = alt.Color(
        "both:Q", scale=alt.Scale(scheme="blues"), legend=alt.Legend(title="both fail", format="%", orient="right")
    )
    cells = base.mark_rect(stroke="white", strokeWidth=1).encode(x=x, y=y, color=colour, tooltip=tips)
    layers: list[Any] = [cells]
    if len(models) <= 12:
        high = sorted(row["both"] for row in rows)[int(0.6 * len(rows))]
        text = base.mark_text(fontSize=11).encode(
            x=x, y=y, text=alt.Text("both:Q", format=".0%"),
            color=alt.condition(f"datum.both > {high}", alt.value("white"), alt.value(INK)),
        )  # fmt: skip
        layers.append(text)
    return alt.LayerChart(layer=layers, width=_WIDTH - 60, height=max(180, 26 * len(models)), **look(260))


def teams(result: Mapping[str, Any]) -> alt.LayerChart | None:
    """Focal diversity against plurality accuracy of (a sample of) all teams, in training."""
    rows = [{"size": size, "diversity": fd, "accuracy": acc} for size, fd, acc in result["map"]["teams"]]
    if not rows:
        return None
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("diversity:Q", title="focal diversity", scale=alt.Scale(zero=False))
    y = alt.Y("accuracy:Q", title="plurality right, training, %", scale=alt.Scale(zero=False))
    colour = alt.Color("size:Q", scale=alt.Scale(scheme="viridis", reverse=True), legend=alt.Legend(title="models"))
    tips = [
        alt.Tooltip("size:Q", title="models"),
        alt.Tooltip("diversity:Q", format=".3f"),
        alt.Tooltip("accuracy:Q", format=".1f"),
    ]
    dots = base.mark_circle(size=14, opacity=0.55).encode(x=x, y=y, color=colour, tooltip=tips)
    chosen = [
        {"diversity": team["diversity"], "accuracy": team["train_plurality"], "size": team["size"]}
        for team in result["frontier"]
        if team["size"] == result["recommended"] and team["diversity"] is not None
    ]
    mark = (
        alt.Chart(alt.InlineData(values=chosen))
        .mark_point(shape="diamond", size=140, strokeWidth=2.5, color=JUDGE)
        .encode(x=x, y=y, tooltip=[alt.Tooltip("size:Q", title="recommended, models")])
    )
    return alt.LayerChart(layer=[dots, mark], width=_WIDTH, height=300, **look(110))


def calibration(result: Mapping[str, Any]) -> alt.LayerChart:
    """What the ensemble says of its answers against how often they are right."""
    rows = [
        {"said": 100 * said, "seen": 100 * seen, "low": 100 * low, "high": 100 * high, "n": n}
        for said, seen, low, high, n in result["calibration"]["bins"]
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("said:Q", title="stated probability of being right, %", scale=alt.Scale(domain=[0, 100]))
    y = alt.Y("seen:Q", title="right on test items, %", scale=alt.Scale(domain=[0, 100]))
    tips = [alt.Tooltip("said:Q", format=".1f"), alt.Tooltip("seen:Q", format=".1f"), alt.Tooltip("n:Q", title="items")]
    line = alt.Chart(alt.InlineData(values=[{"said": 0, "seen": 0}, {"said": 100, "seen": 100}]))
    ideal = line.mark_line(color=PALE, strokeDash=[5, 4]).encode(x=x, y=y)
    whisker = base.mark_rule(color=PEOPLE).encode(
        x=x, y=alt.Y("low:Q", title="right on test items, %"), y2="high:Q", tooltip=tips
    )
    dot = base.mark_point(filled=True, size=60, color=PEOPLE, opacity=1).encode(x=x, y=y, tooltip=tips)
    return alt.LayerChart(layer=[ideal, whisker, dot], width=_WIDTH - 160, height=280, **look(70))


def _short(models: Sequence[str]) -> dict[str, str]:
    """Names that fit on an axis and stay distinct."""
    made: dict[str, str] = {}
    for name in models:
        short = name if len(name) <= _SHORT else f"{name[:12]}…{name[-12:]}"
        made[name] = short if short not in made.values() else name
    return made
