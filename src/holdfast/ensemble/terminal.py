"""An assessment as text for a terminal, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

_WIDTH = 100


def table(result: Mapping[str, Any]) -> str:
    """Baselines, methods, the team of each size, and what to do.

    Args:
        result: JSON object of an assessment.
    """
    items, base = result["items"], result["baselines"]
    lines = [
        f"{len(result['models'])} models; chosen and fitted on {items['train']:,} items, measured on {items['test']:,}",
        "",
        f"{'on test items':34} {'right':22} over the best single model",
        _line(f"best single: {base['best_single']['name']}", base["best_single"]["accuracy"], None),
        _line("plurality of all", base["plurality"]["accuracy"], base["plurality"]["gain"]),
    ]
    lines += [
        _line(f"{one['title']}{' *' if one['chosen'] else ''}", one["accuracy"], one["gain"])
        for one in result["methods"]
        if one["name"] != "plurality"
    ]
    lines += [
        _line("any model right (oracle)", base["oracle"]["accuracy"], None),
        "  * chosen in training, used below",
        "",
    ]
    lines += [f"{'k':>2}  {'plurality':22} {'learned':22} over the best single"]
    lines += [_team(team, result) for team in result["frontier"]]
    lines += [" < recommended: the smallest team within a standard error of the best, in training", ""]
    lines += _wrapped(*advice(result))
    lines += [line for one in result["findings"] for line in _wrapped(f"look first: {one['text']}")]
    lines += [line for note in result["notes"] for line in _wrapped(f"note: {note}")]
    return "\n".join(lines)


def advice(result: Mapping[str, Any]) -> Iterator[str]:
    """What a reader should do, in sentences: for the terminal and the page."""
    chosen = next(team for team in result["frontier"] if team["size"] == result["recommended"])
    n, gain = len(result["models"]), chosen["gain"]
    names = ", ".join(chosen["models"])
    points = f"{gain['value']:+.1f} points [{gain['low']:+.1f}, {gain['high']:+.1f}]"
    single = result["baselines"]["best_single"]["name"]
    if chosen["size"] == 1:
        yield f"One model is enough: no team beats {single} by more than chance in training."
    elif gain["low"] > 0:
        yield f"Worth it: {chosen['size']} of {n} models, combined, are {points} above {single} alone: {names}."
    elif gain["high"] < 0:
        yield f"Not worth it: the team chosen in training is {points} against {single} alone on test items."
    else:
        yield f"Not shown to be worth it: {chosen['size']} of {n} models are {points} against {single} alone."
    if chosen["cost"] is not None and chosen["size"] > 1:
        yield f"It costs {1000 * chosen['cost']:.4g} dollars for 1,000 items."
    yield from _lost(result)
    same = chosen["same_cost"]
    if chosen["size"] > 1 and same["accuracy"] is not None:
        value = same["accuracy"]
        more = f" ({same['reason']})" if same["reason"] else ""
        yield (
            f"Self-consistency of the best single model, {same['samples']} samples: {value['value']:.1f}% "
            f"[{value['low']:.1f}, {value['high']:.1f}]{more}."
        )
    elif chosen["size"] > 1:
        yield f"Self-consistency of the best single model at equal cost is not known: {same['reason']}."


def _lost(result: Mapping[str, Any]) -> Iterator[str]:
    """Whether diversity earned its place in the choice."""
    worse = [
        one
        for one in result["choices"]
        if one["against"] and one["against"]["high"] < 0 and one["way"] != "accuracy alone"
    ]
    better = [one for one in result["choices"] if one["against"] and one["against"]["low"] > 0]
    weight = result["fitness"]["diversity"]
    if result["tried"]:
        yield f"By cross-validation, focal diversity weighs {weight:g} in the choice of teams, accuracy {1 - weight:g}."
    if worse:
        ways = sorted({one["way"] for one in worse})
        yield (
            f"Choosing by other than accuracy ({'; '.join(ways)}) loses to accuracy alone in {len(worse)} of "
            f"{sum(one['against'] is not None for one in result['choices'])} comparisons on test items."
        )
    if better:
        yield f"Choosing with diversity beats accuracy alone in {len(better)} comparisons on test items."
    if not worse and not better and result["choices"]:
        yield "On test items no way to choose a team differs from choosing by accuracy alone by more than chance."


def number(metric: Mapping[str, Any] | None, sign: bool = False) -> str:
    """``58.9 [57.5, 60.3]``; a dash where there is none."""
    if metric is None or metric["value"] is None:
        return "-"
    value, low, high = (round(metric[key], 1) + 0.0 for key in ("value", "low", "high"))
    form = "+.1f" if sign else ".1f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _line(name: str, value: Mapping[str, Any], over: Mapping[str, Any] | None) -> str:
    short = name if len(name) <= 34 else name[:33] + "…"
    return f"{short:34} {number(value):22} {number(over, sign=True) if over else ''}".rstrip()


def _team(team: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """One line; the members' names only where a reader needs them: the page has them all."""
    mark = "<" if team["size"] == result["recommended"] else " "
    alone = team["models"] == [result["baselines"]["best_single"]["name"]]
    over = "the same model" if alone else number(team["gain"], sign=True)
    return f"{team['size']:>2}{mark} {number(team['plurality']):22} {number(team['learned']):22} {over}"


def _wrapped(*sentences: str) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")]
