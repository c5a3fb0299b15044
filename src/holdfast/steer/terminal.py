"""Results as text for a terminal, at most 110 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_WIDTH = 110
_SHORT = {
    "harmful_score": "unsafe", "over_refusal": "over-refusal", "benign_accuracy": "benign right",
    "visual_correct": "visual right",
}  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The rows of a comparison, one block a workload, and what to use."""
    lines: list[str] = []
    names = shown_measures(result)
    for workload, about in result["workloads"].items():
        lines += ["", f"{about['title']}: {about['model']}, seeds {', '.join(map(str, result['seeds']))}"]
        lines.append(f"  {'method':30} " + " ".join(f"{_SHORT.get(n, n)[:19]:>19}" for n in names) + "    time")
        lines.append(f"  {'':30} " + " ".join(f"{_asked(result, workload, n):>19}" for n in names))
        plain = result["plain"].get(workload, {})
        lines.append(_line("no picture, no steering", [plain.get(name) for name in names], ""))
        for row in result["rows"]:
            if row["workload"] == workload:
                cost = f"{row['cost']['ratio']:.2f}x" if row["cost"] else ""
                best = (result["recommended"].get(workload) or {}).get("title") == row["title"]
                lines.append(_line(row["title"] + (" *" if best else ""), [row["metrics"].get(n) for n in names], cost))
    lines += ["", *(line for sentence in advice(result) for line in textwrap.wrap(sentence, _WIDTH))]
    return "\n".join(lines).lstrip("\n")


def shown_measures(result: Mapping[str, Any]) -> list[str]:
    """The measures of a table: unsafe rate first, then utilities."""
    order = ["harmful_score", "over_refusal", "benign_accuracy", "visual_correct"]
    return [name for name in order if name in result["measures"]]


def advice(result: Mapping[str, Any]) -> Iterator[str]:
    """What a reader should do, in sentences: for the terminal and the page."""
    for workload, about in result["workloads"].items():
        mine = [d for d in result["diagnoses"] if d["workload"] == workload]
        bad = [d["seed"] for d in mine if d["degrades"]]
        name = about["title"]
        if mine and not bad:
            yield f"{name}: no seed's refusals are switched off by the picture; there is nothing to restore."
            continue
        if len(bad) < len(mine):
            fine = ", ".join(str(d["seed"]) for d in mine if not d["degrades"])
            yield f"{name}: the picture does not raise the unsafe rate of seed {fine}."
        best = result["recommended"].get(workload)
        base = next(r for r in result["rows"] if r["workload"] == workload and not r["method"])
        if best is None:
            yield (
                f"{name}: no method lowers the unsafe rate within {result['budget']:g} points of every utility on test "
                "items."
            )
            continue
        row = next(r for r in result["rows"] if r["workload"] == workload and r["title"] == best["title"])
        lost = [f"{_SHORT.get(n, n)} {round(points, 1) + 0.0:.1f}" for n, points in best["lost"].items()]
        yield (
            f"{name}: use {best['title']} (* in the table): unsafe rate {number(base['metrics']['harmful_score'])} -> "
            f"{number(row['metrics']['harmful_score'])}; points of utility lost: {', '.join(lost)}."
        )


def _asked(result: Mapping[str, Any], workload: str, name: str) -> str:
    """``n = 240``: answers behind the rates of a column; empty where nothing was measured."""
    found = [row["metrics"][name]["n"] for row in result["rows"] if row["workload"] == workload and row["metrics"]]
    return f"n = {max(found):,}" if found else ""


def number(metric: Mapping[str, Any] | None) -> str:
    """``58.9 [57.5, 60.3]``; a dash where there is none."""
    if metric is None or metric["value"] is None:
        return "-"
    value, low, high = (round(metric[key], 1) + 0.0 for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _line(title: str, metrics: Sequence[Mapping[str, Any] | None], cost: str) -> str:
    short = title if len(title) <= 30 else title[:29] + "…"
    return f"  {short:30} " + " ".join(f"{number(metric):>19}" for metric in metrics) + f"  {cost:>6}"


def diagnosis_table(result: Mapping[str, Any]) -> str:
    """Unsafe rate and over-refusal under each condition, the layers, and what follows."""
    from holdfast.steer.diagnose import degrades

    names = list(result["conditions"][0]["metrics"])
    lines = [f"{'':26} " + " ".join(f"{_SHORT.get(n, n)[:22]:>22}" for n in names)]
    asked = [condition["metrics"] for condition in result["conditions"]]
    lines.append(f"{'':26} " + " ".join(f"{'n = ' + str(max(m[n]['n'] for m in asked)):>22}" for n in names))
    for condition in result["conditions"]:
        cells = " ".join(f"{number(condition['metrics'][name]):>22}" for name in names)
        lines.append(f"{condition['title']:26} {cells}")
    lines += ["", "layer   distance of states   cosine of shifts   along safety   classes apart with picture (text)"]
    for row in result["layers"]:
        distance = row["distance_harmful"]
        lines.append(
            f"{row['layer']:>5}   {distance['value']:.2f} [{distance['low']:.2f}, {distance['high']:.2f}]"
            f"{row['cosine']:>19.2f}{100 * row['along']:>14.0f}%{row['separable']:>25.2f} ({row['separable_text']:.2f})"
        )
    lines += ["", *textwrap.wrap(verdict(result, degrades(result)), _WIDTH)]
    return "\n".join(lines)


def verdict(result: Mapping[str, Any], worse: bool) -> str:
    """What a diagnosis means, in a sentence or two."""
    by = {condition["name"]: condition for condition in result["conditions"]}
    text, image = (by[name]["metrics"]["harmful_score"] for name in ("text", "image"))
    if text["value"] is None or image["value"] is None:
        return f"Nothing can be said: the unsafe rate is undefined ({text['reason'] or image['reason']})."
    if not worse:
        return (
            f"The picture does not raise the unsafe rate by more than chance ({number(text)} without, {number(image)} "
            "with it): there is nothing to restore."
        )
    caption = by["caption"]["metrics"]["harmful_score"]
    if caption["value"] is None:
        return f"The picture raises the unsafe rate from {number(text)} to {number(image)}."
    if caption["low"] > text["high"]:
        why = "A caption raises it too, so a part of it is brittleness to longer prompts and not the picture as such."
    elif caption["high"] < image["low"]:
        why = "A caption does not do it, so it is the picture and not what it shows or the longer prompt."
    else:
        why = "Too few prompts to say whether a caption would do the same."
    return f"The picture raises the unsafe rate from {number(text)} to {number(image)}. {why}"


def fit_text(card: Mapping[str, Any]) -> str:
    """What was fitted and chosen."""
    knobs = card["method"]["knobs"]
    said = ", ".join(f"{n} {knobs[n]}" for n in ("layers", "strength", "twin", "level") if n in knobs)
    lines = [f"{card['method']['title']}: {said}" if said else card["method"]["title"]]
    trials = card["choice"]["trials"]
    if trials:
        rates = ", ".join(f"{_SHORT.get(n, n)} {v:.1f}%" for n, v in trials[0]["rates"].items())
        lines.append(f"on {trials[0]['n']} validation items in all: {rates} (loss {trials[0]['loss']:.1f})")
    predictors = card["predictors"]
    lines += [line for text in predictors.get("text", ()) for line in textwrap.wrap(text, _WIDTH)]
    return "\n".join(lines)
