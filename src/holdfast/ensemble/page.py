"""The page of an assessment: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.ensemble import charts
from holdfast.ensemble.terminal import advice
from holdfast.report import parts

_ANSWERS = {"choice": "options", "number": "numbers", "short": "short texts", "long": "long texts"}


def render(result: Mapping[str, Any], *, command: str, title: str) -> str:
    """The page as HTML. Equal assessments give equal bytes.

    Args:
        result: JSON object of an assessment.
        command: that makes the page again.
        title: of the page.
    """
    return parts.page("ensemble.html.j2", _page(result, command, title))


def _page(result: Mapping[str, Any], command: str, title: str) -> dict[str, Any]:
    items = result["items"]
    used = f"{items['train']:,} items to choose and fit on, {items['test']:,} to measure on"
    return {
        "title": title,
        "meta": f"{len(result['models'])} models · {used} · answers are {_ANSWERS[result['kind']]}",
        "answer": list(advice(result)),
        "notes": [one["text"] for one in result["findings"]] + list(result["notes"]),
        "tiles": list(_tiles(result)),
        "frontier": [figure for figure in _frontier(result) if figure is not None],
        "teams": _teams(result),
        "methods": _methods(result),
        "choices": _choices(result),
        "map": [figure for figure in _maps(result) if figure is not None],
        "metrics": _metrics(result),
        "focal": _focal(result),
        "models": _models(result),
        "calibration": parts.figure(
            "calibration", charts.calibration(result), "Stated probabilities",
            f"Dots on the dashed line mean what they say. Mean distance: {result['calibration']['error']:.1%}.",
        ),
        "command": command,
        "seed": result["settings"]["seed"],
    }  # fmt: skip


def _tiles(result: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    base = result["baselines"]
    chosen = next(team for team in result["frontier"] if team["size"] == result["recommended"])
    tone = "good" if chosen["gain"]["low"] > 0 else "bad" if chosen["gain"]["high"] < 0 else ""
    told = (
        (f"{chosen['size']} models, learned", chosen["learned"], tone),
        ("best single model", base["best_single"]["accuracy"], ""),
        ("plurality of all", base["plurality"]["accuracy"], ""),
        ("any model right", base["oracle"]["accuracy"], ""),
    )
    for name, value, look in told:
        small = f"right on test items [{value['low']:.1f}, {value['high']:.1f}]"
        yield {"name": name, "big": f"{value['value']:.1f}%", "small": small, "tone": look}


def _frontier(result: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    told = (
        ("size", "Accuracy against the number of models", "Each team was chosen in training; bars are 95% intervals."),
        ("cost", "Accuracy against cost", ""),
    )
    for against, title, text in told:
        chart = charts.frontier(result, against)
        yield None if chart is None else parts.figure(f"frontier-{against}", chart, title, text)


def _maps(result: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    square, cloud = charts.pairs(result), charts.teams(result)
    if square is not None:
        yield parts.figure(
            "pairs", square, "The diversity map", "Pale pairs fail on different items. Best model first."
        )
    if cloud is not None:
        told = "".join(
            f" Among teams of {size}, the correlation is {value:+.2f}."
            for size, value, _ in result["map"]["correlations"][:1] + result["map"]["correlations"][-1:]
        )
        text = f"A sample of all teams; the diamond is the recommended one.{told}"
        yield parts.figure("team-cloud", cloud, "Diversity and accuracy of teams", text)


def _grid(caption: str, heads: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"caption": caption, "heads": heads, "rows": rows}


def _teams(result: Mapping[str, Any]) -> dict[str, Any]:
    """One row a size; what is known of no team has no column."""
    frontier, single = result["frontier"], result["baselines"]["best_single"]["name"]
    priced = any(team["cost"] is not None for team in frontier)
    sampled = any(team["same_cost"]["accuracy"] for team in frontier if team["size"] > 1)
    rows = []
    for team in frontier:
        alone = team["models"] == [single]
        over: Any = "the same model" if alone else _shown(team["gain"], sign=True)
        cells: list[Any] = [", ".join(team["models"]), _shown(team["plurality"]), _shown(team["learned"]), over]
        if sampled:
            same = team["same_cost"]
            none = {"value": "", "interval": "", "reason": same["reason"]}
            cells.append(_shown(same["accuracy"]) if same["accuracy"] else none)
        cells += [_shown(team["oracle"]), _plain(team["diversity"])]
        cells += ["unknown" if team["cost"] is None else f"{1000 * team['cost']:.4g}"] if priced else []
        role = "recommended" if team["size"] == result["recommended"] else ""
        rows.append({"name": f"{team['size']}", "role": role, "cells": cells})
    heads = ["models", "team", "plurality", "learned", "over the best single, points"]
    heads += ["best single at equal cost"] if sampled else []
    heads += ["any right", "focal diversity"] + (["$ for 1,000"] if priced else [])
    return _grid("The team of each size that training chooses, measured on test items", heads, rows)


def _methods(result: Mapping[str, Any]) -> dict[str, Any]:
    scored = any(one["score"] for one in result["methods"])
    rows = []
    for one in result["methods"]:
        cells: list[Any] = [_plain(one["likelihood"], "none"), f"{one['validation']:.1f}%"]
        cells += [_shown(one["accuracy"]), _shown(one["gain"], sign=True)]
        cells += [_shown(one["score"])] if scored else []
        rows.append({"name": one["title"], "role": "chosen in training" if one["chosen"] else "", "cells": cells})
    heads = ["all models, combined by", "log-likelihood in training", "right in training"]
    heads += ["on test items", "over the best single, points"]
    return _grid("Ways to combine all models", heads + (["token F1"] if scored else []), rows)


def _choices(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for one in result["choices"]:
        against: Any = _shown(one["against"], sign=True) if one["against"] else "the same team"
        if one["way"] == "accuracy alone":
            against = ""
        size = f"{one['size']} models" if one["size"] else f"any size: {len(one['models'])} models"
        rows.append(
            {
                "name": f"{size}, {one['way']}",
                "role": "",
                "cells": [_shown(one["accuracy"]), against, _plain(one["diversity"])],
            }
        )
    heads = ["chosen by", "plurality on test items", "against accuracy alone, points", "focal diversity"]
    return _grid("Does diversity earn its place in the choice?", heads, rows)


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for one in result["diversity"]["metrics"]:
        cells = [one["diverse"], *(_three(one[key]) for key in ("team", "all")), one["source"]]
        rows.append({"name": one["name"], "role": "", "cells": cells})
    agreement = result["diversity"]["agreement"]
    if agreement is not None:
        rows.append(
            {
                "name": "different answers, right or not",
                "role": "",
                "cells": ["higher", "", _plain(agreement), "needs no right answers"],
            }
        )
    return _grid("Diversity in training", ["", "diverse is", "recommended team", "all models", "source"], rows)


def _focal(result: Mapping[str, Any]) -> dict[str, Any] | None:
    focal = result["diversity"].get("focal")
    if not focal:
        return None
    rows = [{"name": name, "role": "", "cells": [_plain(value)]} for name, value in focal]
    return _grid("Where this model fails, how diverse the team is", ["focal model", "focal diversity"], rows)


def _models(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for one in result["models"]:
        cost = "unknown" if one["cost"] is None else f"{1000 * one['cost']:.4g}"
        cells = [_shown(one["accuracy"]), f"{one['silent']:.1%}", str(one["samples"]), cost]
        rows.append({"name": one["name"], "role": "", "cells": cells})
    heads = ["model", "right on test items", "no readable answer", "answers an item", "$ for 1,000"]
    return _grid("The models on their own", heads, rows)


def _plain(value: float | None, reason: str = "none: one model") -> str:
    return reason if value is None else f"{value:.3f}".replace("-", "−")


def _shown(number: Mapping[str, Any] | None, sign: bool = False) -> dict[str, str]:
    if number is None or number["value"] is None:
        return {"value": "", "interval": "", "reason": "not there" if number is None else number["reason"]}
    form = "+.1f" if sign else ".1f"
    unit = "%" if number["unit"] == "%" else ""
    interval = f"[{_text(number['low'], form)}, {_text(number['high'], form)}]"
    return {"value": f"{_text(number['value'], form)}{unit}", "interval": interval, "reason": ""}


def _three(number: Mapping[str, Any]) -> dict[str, str]:
    """A number without a unit, to three places."""
    if number["value"] is None:
        return {"value": "", "interval": "", "reason": number["reason"]}
    value, low, high = (f"{round(number[key], 3) + 0.0:.3f}".replace("-", "−") for key in ("value", "low", "high"))
    return {"value": value, "interval": f"[{low}, {high}]", "reason": ""}


def _text(value: float, form: str) -> str:
    return f"{round(value, 1) + 0.0:{form}}".replace("-", "−")
