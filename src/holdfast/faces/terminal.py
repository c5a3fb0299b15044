"""Results as text for a terminal, at most 110 columns wide, and the sentences that the page begins with too.

A protection rate is the share of held-out photos whose nearest gallery photo shows somebody else; at rank 1 its
complement is the share in which the person is found, and "won back" is how many points of that an attack regains.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

PROTECTED, CLEAN, BOTH = "protected_clean", "clean_clean", "protected_protected"
BREAKING = ("estimate", "learner")
"""Kinds of attacks that know of masks; the others change each photo by itself."""
SCENES = {
    "clean_clean": ("clean photo", "clean gallery"),
    "protected_clean": ("protected photo", "clean gallery"),
    "clean_protected": ("clean photo", "protected gallery"),
    "protected_protected": ("protected photo", "protected gallery"),
    "clean_mixed": ("clean photo", "gallery half protected"),
    "protected_mixed": ("protected photo", "gallery half protected"),
}
_WIDTH, _NAME = 110, 30


# -- a result -----------------------------------------------------------------------------------------


def groups(result: Json) -> dict[str, list[Json]]:
    """Cells by the recogniser that was left out of learning; the empty name where none was."""
    found: dict[str, list[Json]] = {}
    for cell in result["cells"]:
        found.setdefault(cell["held_out"], []).append(cell)
    return found


def lead(cells: Sequence[Json]) -> Json | None:
    """The first row that was finished: what sentences are about and differences are from."""
    return next((cell for cell in cells if cell["checked"] is not None), None)


def as_comparison(result: Json) -> Json:
    """A check of one key in the form of a comparison with one row, so that both share their tables."""
    cell = {
        "title": "Your mask", "note": "", "method": result["card"].get("method", ""), "held_out": "", "failed": None,
        "knobs": result["card"].get("knobs", {}), "learned_from": result["learned_from"], "cpu_seconds": [],
        "checked": result["checked"],
    }  # fmt: skip
    return {**result, "cells": [cell]}


def is_mask(cell: Json) -> bool:
    """Whether a row is a mask for any photo with a key, and not a change of each photo by itself."""
    return any(count is not None for count in cell["checked"]["counts"]["masks"].values())


def recognisers(cell: Json, part: str) -> list[str]:
    """Names of the recognisers that a row was learned from (``learned_from``), or the others (``held_out``)."""
    names: list[str] = cell["checked"]["summary"][part]["recognisers"]
    return names


def summary(cell: Json, kind: str, what: str, k: str = "1", part: str = "held_out") -> Json:
    """A protection rate over recognisers.

    Args:
        cell: a finished row.
        kind: ``scenes`` or ``attacks``.
        what: the name of one.
        k: among the k nearest gallery photos.
        part: ``held_out`` or ``learned_from``.
    """
    found: Json = cell["checked"]["summary"][part][kind][what][k]
    return found


def complement(metric: Json) -> Json:
    """100% minus a rate: recognition of a protection rate at rank 1."""
    if metric["value"] is None:
        return metric
    better = {"higher": "lower", "lower": "higher"}.get(metric["better"], "none")
    return {
        **metric, "name": f"100% - {metric['name']}", "value": 100 - metric["value"], "low": 100 - metric["high"],
        "high": 100 - metric["low"], "better": better,
    }  # fmt: skip


def attack_kinds(cell: Json) -> dict[str, tuple[str, str]]:
    """Kind and title of every attack that a row was put to."""
    parts = cell["checked"]["recognisers"].values()
    return {name: (one["kind"], one["title"]) for part in parts for name, one in part["attacks"].items()}


def breaking(cell: Json) -> dict[tuple[str, str], str]:
    """What is aimed at masks as such: (``attacks`` or ``scenes``, name) -> title."""
    found = {("scenes", BOTH): "protected photos compared with protected photos"}
    kinds = attack_kinds(cell)
    return found | {("attacks", name): title for name, (kind, title) in kinds.items() if kind in BREAKING}


def won_back(cell: Json, kind: str, what: str) -> Json:
    """Points of recognition that an attack regains: recognised after it minus recognised when protected, held out.

    Args:
        cell: a finished row.
        kind: ``scenes`` or ``attacks``.
        what: the name of one.
    """
    from holdfast.core.records import Metric
    from holdfast.faces.check import difference

    before, after = summary(cell, "scenes", PROTECTED), summary(cell, kind, what)
    absent = next((one["reason"] for one in (after, before) if one["value"] is None), "")
    if absent:
        return Metric("won back", None, None, None, 0, "points", "lower", reason=absent).as_json()
    parts = [cell["checked"]["recognisers"][name] for name in recognisers(cell, "held_out")]
    found_after = _found([part[kind][what]["ranks"] for part in parts])
    found_before = _found([part["scenes"][PROTECTED]["ranks"] for part in parts])
    same = {name: found_before[name] for name in found_after}
    return difference("won back", found_after, same, "lower")


def _found(ranks: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[float]]:
    """By person, for each probe the share of recognisers that find them."""
    people = [name for name in ranks[0] if all(name in one for one in ranks)]
    made = {}
    for name in people:
        by_probe = zip(*(one[name] for one in ranks), strict=True)
        made[name] = [sum(place == 1 for place in places) / len(ranks) for places in by_probe]
    return made


def worst_key(cell: Json, key: str, part: str = "held_out") -> tuple[str, Json]:
    """The recogniser that finds fewest people with a key applied, and its rate; most, for a wrong key.

    Keys have a rate for each recogniser and none over them, so the least favourable one stands for all.
    """
    names = recognisers(cell, part) or list(cell["checked"]["recognisers"])
    found = {name: cell["checked"]["recognisers"][name]["keys"][key] for name in names}
    known = {name: one for name, one in found.items() if one["value"] is not None}
    if not known:
        return names[0], found[names[0]]
    sign = -1 if key == "wrong" else 1
    name = min(known, key=lambda one: sign * known[one]["value"])
    return name, known[name]


def seconds(cell: Json) -> Json:
    """CPU seconds for one person's masks, mean over people; null where they were not timed."""
    from holdfast.core.records import Metric
    from holdfast.faces.check import average

    timed = [value for value in cell["cpu_seconds"] if value > 0]
    if not timed or len(timed) < len(cell["cpu_seconds"]):
        return Metric("seconds", None, None, None, 0, "s", "lower", reason="not timed").as_json()
    made = average("seconds", {str(i): [value] for i, value in enumerate(timed)}, "s", "lower")
    if made["low"] is not None:
        made["low"] = max(0.0, made["low"])
    return made


# -- words --------------------------------------------------------------------------------------------


def told(metric: Json | None, digits: int = 1) -> str:
    """``58.3 [41.0, 73.9]``; a dash where there is none."""
    if metric is None or metric["value"] is None:
        return "-"
    text = fixed(metric["value"], digits)
    if metric["low"] is None or metric["high"] is None:
        return f"{text} [no interval]"
    return f"{text} [{fixed(metric['low'], digits)}, {fixed(metric['high'], digits)}]"


def fixed(value: float, digits: int = 1) -> str:
    """A number with so many digits and no sign before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def percent(metric: Json) -> str:
    """``58.3% [41.0, 73.9]``, or why there is none."""
    if metric["value"] is None:
        return f"an unknown share ({metric['reason']})"
    number, bounds = told(metric).split(" ", 1)
    return f"{number}% {bounds}"


def counted(count: int, noun: str, several: str = "") -> str:
    """``1 photo``, ``3 photos``; ``1 person``, ``3 people``."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def people_of(metric: Json) -> int:
    """People that a rate rests on; 0 where it does not say."""
    return int(metric["detail"].get("people", 0))


def over_photos(metric: Json) -> bool:
    """Whether an interval covers the photos of these people only."""
    return str(metric["detail"].get("over")) == "photos"


def judges(names: Sequence[str]) -> str:
    """``drawn-patch``, or how many there are."""
    return names[0] if len(names) == 1 else f"mean of {len(names)}"


def answer(result: Json) -> list[str]:
    """What a comparison found, in sentences."""
    found = groups(result)
    lines: list[str] = []
    for held, cells in found.items():
        where = f"With {held} left out: " if len(found) > 1 else ""
        lines += [where + text if i == 0 else text for i, text in enumerate(_group_answer(cells))]
    return lines


def _group_answer(cells: Sequence[Json]) -> Iterator[str]:
    first = lead(cells)
    if first is None:
        yield f"Nothing was measured: {cells[0]['failed'] or 'no row was finished'}."
        return
    about = summary(first, "scenes", PROTECTED)
    counts, people = first["checked"]["counts"], people_of(about)
    if about["value"] is None:
        yield f"How well {first['title']} protects is unknown: {about['reason']}."
    else:
        names = recognisers(first, "held_out")
        yield (
            f"Recognisers that the mask never saw no longer find {counted(people, 'person', 'people')} in "
            f"{percent(about)} of "
            f"held-out photos ({first['title']}; {judges(names)}{' recognisers' if len(names) > 1 else ''}, n = "
            f"{counted(about['n'], 'photo')}, against a gallery of {counted(counts['gallery'], 'photo')} of "
            f"{counted(counts['people'], 'person', 'people')}). Without a mask they miss them in "
            f"{percent(summary(first, 'scenes', CLEAN))}.{_noise_text(cells)}{_narrow(about)}"
        )
    yield from _others_text(cells)
    yield _key_text(first, "the person", "the mask")
    yield _undone_text(first, "the person")


def ahead(cells: Sequence[Json]) -> dict[str, Json]:
    """Rows that protect more than the first by more than chance, with the paired difference in points."""
    from holdfast.faces.check import difference

    first = lead(cells)
    found: dict[str, Json] = {}
    for cell in cells:
        if first is None or cell is first or cell["checked"] is None:
            continue
        names = [name for name in recognisers(first, "held_out") if name in recognisers(cell, "held_out")]
        if not names:
            continue
        # Not found here less not found there is found there less found here.
        mine, theirs = (
            _found([one["checked"]["recognisers"][name]["scenes"][PROTECTED]["ranks"] for name in names])
            for one in (first, cell)
        )
        gap = difference("protected more", mine, theirs, "higher")
        if gap["value"] is not None and gap["low"] > 0:
            found[cell["title"]] = gap
    return found


def _others_text(cells: Sequence[Json]) -> Iterator[str]:
    better = ahead(cells)
    if better:
        told_each = "; ".join(f"{title} by {told(gap)} points" for title, gap in better.items())
        yield f"Protects more on the same photos, by more than chance: {told_each}."


def _noise_text(cells: Sequence[Json]) -> str:
    """What the control does, where it is in the comparison."""
    control = next((cell for cell in cells if cell["method"] == "noise" and cell["checked"] is not None), None)
    if control is None or control is lead(cells):
        return ""
    return f" Random noise under the same limit of visibility: {percent(summary(control, 'scenes', PROTECTED))}."


def _narrow(metric: Json) -> str:
    return " Intervals cover photos of these people only and say nothing about others." if over_photos(metric) else ""


def _key_text(cell: Json, whom: str, mask: str) -> str:
    name, right = worst_key(cell, "right")
    if right["value"] is None:
        return f"Key: {right['reason']}."
    several = len(recognisers(cell, "held_out")) > 1
    which = f"the worst of these recognisers, {name}," if several else name
    text = f"With the right key {mask} comes off, and {which} finds {whom} in {percent(right)} of the photos again"
    _, squeezed = worst_key(cell, "right_jpeg75")
    text += f" ({percent(squeezed)} where the photo was saved as JPEG at quality 75 first)"
    stranger, wrong = worst_key(cell, "wrong")
    if wrong["value"] is None:
        return f"{text}. Another person's key was not tried: {wrong['reason']}."
    none = complement(cell["checked"]["recognisers"][stranger]["scenes"][PROTECTED]["psr"]["1"])
    who = f" at most ({stranger}, which finds" if several else f" ({stranger} finds"
    return f"{text}; with another person's key in {percent(wrong)}{who} {whom} in {percent(none)} without any key)."


def _undone_text(cell: Json, whom: str) -> str:
    """Protected against protected, and the strongest attack on masks that was tried."""
    both = complement(summary(cell, "scenes", BOTH))
    text = f"What undoes it: matching protected photos with protected photos finds {whom} again in {percent(both)}"
    tried = {what: complement(summary(cell, kind, what)) for kind, what in breaking(cell) if kind == "attacks"}
    known = {what: one for what, one in tried.items() if one["value"] is not None}
    if not known:
        return f"{text}; no attack on the mask itself was {'measured' if tried else 'tried'}."
    worst = max(known, key=lambda what: known[what]["value"])
    return (
        f"{text}; the strongest attack tried on the mask ({attack_kinds(cell)[worst][1]}) in {percent(known[worst])}."
    )


def check_answer(result: Json) -> list[str]:
    """What a check of one key found, in sentences to its owner."""
    cell = as_comparison(result)["cells"][0]
    part = "held_out" if recognisers(cell, "held_out") else "learned_from"
    about, names = summary(cell, "scenes", PROTECTED, part=part), recognisers(cell, part)
    who = f"Recognisers that your mask {'never saw' if part == 'held_out' else 'was learned from'}"
    counts = cell["checked"]["counts"]
    text = (
        f"{who} ({', '.join(names)}) no longer find you in {percent(about)} of "
        f"{counted(about['n'], 'protected photo')}, "
        f"against a gallery of {counted(counts['gallery'], 'photo')} of "
        f"{counted(counts['people'], 'person', 'people')}. "
        f"Without the mask they miss you in {percent(summary(cell, 'scenes', CLEAN, part=part))}. Intervals cover "
        "photos of you "
        "only and say nothing about others."
    )
    if part == "learned_from":
        text += " No recogniser was asked that the mask never saw, so this is the best case: name others to judge."
        return [text, _key_text(cell, "you", "the mask")]
    return [text, _key_text(cell, "you", "the mask"), _undone_text(cell, "you")]


# -- tables -------------------------------------------------------------------------------------------


def table(result: Json) -> str:
    """The rows of a comparison, a block for each recogniser left out, and what follows from them."""
    lines: list[str] = []
    found = groups(result)
    for held, cells in found.items():
        first = lead(cells)
        lines += ["", *_head(held, first)]
        lines += [_row(cell) for cell in cells]
    lines += ["", *(line for text in answer(result) for line in textwrap.wrap(text, _WIDTH))]
    return "\n".join(lines).lstrip("\n")


def _head(held: str, first: Json | None) -> list[str]:
    if first is None:
        return [f"{held or 'all recognisers'}: nothing was finished"]
    never, taught = recognisers(first, "held_out"), recognisers(first, "learned_from")
    about = summary(first, "scenes", PROTECTED)
    n = f"n = {counted(about['n'], 'photo')} of {counted(people_of(about), 'person', 'people')}"
    return [
        f"not found at rank 1, % of {n} [95% interval]",
        f"never seen: {', '.join(never) or 'none'}",
        f"learned from: {', '.join(taught) or 'none'}",
        f"{'':{_NAME}} {'never seen':>19} {'learned from':>19} {'found with key':>19} {'SSIM':>6} {'CPU s':>6}",
    ]


def _row(cell: Json) -> str:
    title = cell["title"] if len(cell["title"]) <= _NAME else cell["title"][: _NAME - 1] + "…"
    if cell["checked"] is None:
        return f"{title:{_NAME}} not finished: {cell['failed'] or 'no reason was kept'}"
    rates = [summary(cell, "scenes", PROTECTED, part=part) for part in ("held_out", "learned_from")]
    seen, spent = cell["checked"]["visibility"]["ssim"], seconds(cell)
    _, key = worst_key(cell, "right")
    cells = [
        *(f"{told(one):>19}" for one in rates),
        f"{told(key) if key['value'] is not None else 'no key' if not is_mask(cell) else '-':>19}",
        f"{'-' if seen['value'] is None else fixed(seen['value'], 3):>6}",
        f"{'-' if spent['value'] is None else fixed(spent['value'], 0):>6}",
    ]
    return f"{title:{_NAME}} {' '.join(cells)}"


def check_text(result: Json) -> str:
    """A check of one key: a line for each recogniser, a line for each attack, and what follows."""
    cell = as_comparison(result)["cells"][0]
    checked = cell["checked"]
    counts = checked["counts"]
    lines = [
        f"your photos not found, % of n = {counts['probes']} [95% interval over photos]",
        f"{'':{_NAME}} {'without mask':>19} {'protected':>19} {'right key':>19}",
    ]
    for name, part in checked["recognisers"].items():
        mark = " (learned from)" if part["learned_from"] else ""
        psr = [part["scenes"][scene]["psr"]["1"] for scene in (CLEAN, PROTECTED)]
        rates = [*psr, complement(part["keys"]["right"])]
        lines.append(f"{(name + mark)[:_NAME]:{_NAME}} " + " ".join(f"{told(one):>19}" for one in rates))
    if recognisers(cell, "held_out"):
        lines += ["", "recognisers that the mask never saw, after"]
        named = {**{("attacks", name): title for name, (_, title) in attack_kinds(cell).items()}, **breaking(cell)}
        for (kind, what), title in named.items():
            metric = summary(cell, kind, what)
            why = f"  {metric['reason']}" if metric["value"] is None else ""
            lines.append(f"{title[:52]:52} {told(metric):>19}{why}")
    lines += ["", *(line for text in check_answer(result) for line in textwrap.wrap(text, _WIDTH))]
    return "\n".join(lines)
