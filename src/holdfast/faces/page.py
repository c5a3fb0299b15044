"""The pages of a comparison and of one person's check: one HTML file each, complete in itself.

Titles, notes and what is known of recognisers are foreign text: the templates escape everything that is not marked as
ours, and only PNG data addresses are shown as pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.core.files import write_text
from holdfast.faces import charts, terminal
from holdfast.faces.terminal import (
    BOTH,
    CLEAN,
    PROTECTED,
    SCENES,
    complement,
    counted,
    fixed,
    is_mask,
    over_photos,
    people_of,
    recognisers,
    summary,
    won_back,
)
from holdfast.report import parts
from holdfast.report.charts import unchecked
from holdfast.report.phrases import listed

Json = Mapping[str, Any]

_GLYPHS = {
    "circle": "●", "square": "■", "triangle-up": "▲", "diamond": "◆", "triangle-down": "▼", "cross": "✚",
    "triangle-right": "▶", "triangle-left": "◀",
}  # fmt: skip
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_SHADE = 0.55
_Column = tuple[str, list[str], list[Json]]
"""Of a table: label, small print, and a metric for each row."""
KEYS = {
    "right": ("Right key", "on protected photos"),
    "right_jpeg75": ("Right key after JPEG 75", "saved once more, then the key"),
    "wrong": ("Another person's key", "on protected photos"),
    "other_mask_on_clean": ("Another person's mask", "on clean photos"),
    "noise_on_clean": ("Random noise", "as visible, on clean photos"),
}
"""What was tried in place of, or beside, the owner's key, with what it was applied to."""


def render(result: Json) -> str:
    """The page of a comparison as HTML. Equal results give equal bytes.

    Args:
        result: JSON object of :func:`holdfast.faces.compare.collect`.
    """
    with unchecked():
        content = _comparison(result)
    return parts.page("faces.html.j2", content)


def write(result: Json, path: Path) -> None:
    """Write the page of a comparison in one step.

    Raises:
        RunError, ResourceError: the file cannot be written.
    """
    write_text(path, render(result))


def render_check(result: Json) -> str:
    """The page of one person's check as HTML. Equal results give equal bytes.

    Args:
        result: JSON object of :func:`holdfast.faces.selfcheck.run_check`.
    """
    with unchecked():
        content = _check(result)
    return parts.page("faces.html.j2", content)


def write_check(result: Json, path: Path) -> None:
    """Write the page of one person's check in one step.

    Raises:
        RunError, ResourceError: the file cannot be written.
    """
    write_text(path, render_check(result))


# -- the two pages ------------------------------------------------------------------------------------


def _comparison(result: Json) -> dict[str, Any]:
    groups = terminal.groups(result)
    several = len(groups) > 1
    blocks = [_block(result, held, cells, i, several=several) for i, (held, cells) in enumerate(groups.items())]
    content = _shared(result, blocks) | {
        "asked": "How many photos of a person do recognisers lose when the person's mask is on them, and what undoes "
        "it?",
        "meta": list(_meta(result)),
        "answer": list(map(_polished, terminal.answer(result))),
        "complete": result["complete"],
        "failed": list(dict.fromkeys(f"{c['title']}: {c['failed']}" for c in result["cells"] if c["failed"])),
        "notes": list(result["notes"]),
        "tiles": _tiles(next(iter(groups.values()), []), "the person"),
        "picture_text": "One photo of each person that no mask was learned from: as it is, under each method, and with "
        "the first method's key applied. The mask is drawn around grey, four times as strong.",
        "turns": _turns(groups) if several else None,
        "teams": [_teams(held, teams, several) for held, teams in result["teams"].items() if teams],
        "measured": list(_measured(result)),
        "knobs": _knobs(result["cells"]),
    }
    return content | {"sections": list(_sections(content))}


def _check(result: Json) -> dict[str, Any]:
    shown = terminal.as_comparison(result)
    block = _block(shown, "", shown["cells"], whom="you")
    person, counts = result["person"], result["checked"]["counts"]
    others = "generated faces" if result["others"] == "drawn" else result["others"]
    content = _shared(shown, [block]) | {
        "asked": "Would recognisers still find you in photos that wear your mask?",
        "meta": [
            f"{counted(person['photos'], 'photo')} of you that the mask has not seen",
            f"{person['gallery']} known to the recognisers by name, {person['probes']} to be recognised",
            f"{counted(counts['people'] - 1, 'other person', 'other people')} in the gallery ({others})",
        ],
        "answer": list(map(_polished, terminal.check_answer(result))),
        "complete": True,
        "failed": [],
        "notes": _easy_gallery(result["others"]),
        "tiles": _tiles(shown["cells"], "you"),
        "picture_text": "Your photos as they are, with your mask on, and with the key applied.",
        "turns": None,
        "teams": [],
        "measured": list(_measured_check(result)),
        "knobs": _knobs(shown["cells"]),
    }
    return content | {"sections": list(_sections(content))}


def _easy_gallery(others: str) -> list[str]:
    if others != "drawn":
        return []
    text = (
        "The other people in the gallery are generated faces. A photo of a real person is easily told from them, and "
        "is "
        "found more easily than among people who look alike. Give --others a folder of real photos for a truer test."
    )
    return [text]


def _shared(result: Json, blocks: Sequence[Json]) -> dict[str, Any]:
    """What both pages have."""
    return {
        "title": result["title"],
        "pictures": [_picture(one) for one in result["pictures"]],
        "blocks": blocks,
        "recognisers": _recogniser_table(result),
        "skipped": _skipped(result["cells"]),
        "limits": list(_limits(result)),
        "command": result["command"],
    }


def _sections(content: Json) -> Iterator[tuple[str, str]]:
    if content["pictures"]:
        yield "pictures", "How it looks"
    yield "protection", "Protection"
    blocks = content["blocks"]
    if any(block["attacks"] for block in blocks):
        yield "attacks", "After compression and blur"
    if any(block["undone"] for block in blocks):
        yield "undone", "What undoes it"
    if any(block["scenes"] for block in blocks):
        yield from (("scenes", "Who wears a mask"), ("keys", "Keys"))
    yield from (("measured", "How it was measured"), ("limits", "What it cannot promise"))
    if content["command"]:
        yield "again", "Run it again"


def _block(
    result: Json, held: str, cells: Sequence[Json], place: int = 0, *, several: bool = False, whom: str = "the person"
) -> dict[str, Any]:
    """Everything of the rows under one team."""
    first = terminal.lead(cells)
    names = f"{held} left out of learning" if held else "every recogniser could be learned from"
    made: dict[str, Any] = {"id": f"g{place + 1}", "title": names if several else ""}
    if first is None:
        lists = dict.fromkeys(("figures", "legend", "unmasking", "without_key", "everything"), ())
        nothing = dict.fromkeys(("differences", "attacks", "undone", "scenes", "verification"))
        return made | lists | nothing | {"table": _methods(cells, first)}
    done = [cell for cell in cells if cell["checked"] is not None]
    return made | {
        "table": _methods(cells, first),
        "figures": list(_protection_figures(result, cells, made["id"])),
        "legend": _legend(result, done),
        "differences": _differences(done),
        "attacks": _attacks(done),
        "undone": _undone(done, made["id"], whom),
        "scenes": _scenes(done),
        "verification": _verifications(done),
        "unmasking": [_keys(cell) for cell in done if is_mask(cell)],
        "without_key": _without_key(done),
        "everything": [_everything(cell) for cell in done],
    }


def _polished(sentence: str) -> str:
    """A sentence of the terminal with the minus sign that a page can show."""
    return re.sub(r"(?<=[\s\[])-(?=\d)", "−", sentence)


def _meta(result: Json) -> Iterator[str]:
    done = [cell for cell in result["cells"] if cell["checked"] is not None]
    if done:
        counts = done[0]["checked"]["counts"]
        yield f"{counted(counts['protected_people'], 'person', 'people')} with masks"
        yield f"{counted(counts['probes'], 'held-out photo')} to recognise"
        yield f"gallery: {counted(counts['gallery'], 'photo')} of {counted(counts['people'], 'person', 'people')}"
    titles = dict.fromkeys(cell["title"] for cell in result["cells"])
    yield f"{counted(len(titles), 'method')}, {counted(len(result['recognisers']), 'recogniser')}"
    yield "brackets hold 95% intervals"


def _tiles(cells: Sequence[Json], whom: str) -> list[dict[str, str]]:
    first = terminal.lead(cells)
    if first is None:
        return []
    part = "held_out" if recognisers(first, "held_out") else "learned_from"
    who = "recognisers the mask never saw" if part == "held_out" else "the recognisers it was learned from"
    name, key = terminal.worst_key(first, "right", part)
    protected, clean = (summary(first, "scenes", scene, part=part) for scene in (PROTECTED, CLEAN))
    both = complement(summary(first, "scenes", BOTH, part=part))
    alone = first["checked"]["recognisers"][name]["scenes"][PROTECTED]["recognised"]
    among = f"protected photos of {whom} matched with one another"
    return [
        _tile("Not found when protected", f"{first['title']}; {who}", protected, ""),
        _tile("Not found without a mask", "the same photos", clean, ""),
        _tile("Found again with the right key", f"by {name}", key, "good" if _above(key, alone) else ""),
        _tile("Found again in a protected gallery", among, both, "bad" if _above(both, complement(protected)) else ""),
    ]


def _above(one: Json, other: Json) -> bool:
    return one["value"] is not None and other["value"] is not None and bool(one["value"] > other["value"])


def _tile(name: str, what: str, metric: Json, tone: str) -> dict[str, str]:
    if metric["value"] is None:
        return {"name": name, "what": what, "big": "—", "small": f"unknown: {metric['reason']}", "tone": ""}
    small = f"{_brackets(metric)}, n = {counted(metric['n'], 'photo')}"
    return {"name": name, "what": what, "big": f"{fixed(metric['value'])}%", "small": small, "tone": tone}


# -- pictures -----------------------------------------------------------------------------------------


def _picture(one: Json) -> dict[str, Any]:
    views = [
        {"title": view["title"], "image": view["image"] if _PICTURE.fullmatch(view["image"]) else "",
         "alt": f"{one['person']}: {view['title']}"}
        for view in one["views"]
    ]  # fmt: skip
    return {"person": one["person"], "views": views}


# -- protection ---------------------------------------------------------------------------------------


def _methods(cells: Sequence[Json], first: Json | None) -> dict[str, Any]:
    """The table of rows: protection, visibility, cost, key."""
    done = [cell for cell in cells if cell["checked"] is not None]
    rates = [(PROTECTED, "1", "held_out"), (PROTECTED, "5", "held_out"), (PROTECTED, "1", "learned_from")]
    never, near = "Not found by recognisers never seen", ["nearest photo", "higher is better"]
    heads = [(never, near), (never, ["5 nearest photos", "higher is better"])]
    heads.append(("Not found by recognisers learned from", near))
    columns: list[_Column] = [
        (*head, [summary(cell, "scenes", *rate) for cell in done]) for head, rate in zip(heads, rates, strict=True)
    ]
    columns += [
        ("SSIM", ["1 is invisible"], [cell["checked"]["visibility"]["ssim"] for cell in done]),
        ("PSNR, dB", ["higher is less visible"], [cell["checked"]["visibility"]["psnr"] for cell in done]),
        ("CPU seconds a person", ["lower is better"], [terminal.seconds(cell) for cell in done]),
    ]
    keys = [terminal.worst_key(cell, "right")[1] for cell in done]
    columns.append(("Key restores", ["found again with it", "worst recogniser"], keys))
    digits = (1, 1, 1, 3, 1, 1, 1)
    metrics = [found for _, _, found in columns]
    rows = []
    if first is not None:
        rows.append(_clean_row(first))
    for cell in cells:
        if cell["checked"] is None:
            missing = f"not finished: {cell['failed'] or 'no reason was kept'}"
            rows.append(_line(cell["title"], [], _notes(cell), missing=missing))
            continue
        at = done.index(cell)
        shown = [_cell(found[at], _same_n(found) is None, d) for found, d in zip(metrics, digits, strict=True)]
        if not is_mask(cell) and not shown[5]["reason"]:
            shown[5]["n"] = f"{shown[5]['n']} for these photos; more for each new one".strip()
        rows.append(_line(cell["title"], shown, _notes(cell)))
    return {
        "caption": "Rates in per cent of held-out photos whose nearest gallery photo (or five nearest) shows somebody "
        "else, mean over recognisers, with 95% intervals.",
        "first": "Method",
        "heads": [_head(label, found, small) for label, small, found in columns],
        "rows": rows,
    }


def _clean_row(first: Json) -> dict[str, Any]:
    rates = [summary(first, "scenes", CLEAN, k) for k in ("1", "5")]
    rates.append(summary(first, "scenes", CLEAN, part="learned_from"))
    rest = [_said("not applicable")] * 4
    return _line("No mask", [*(_cell(one, False) for one in rates), *rest], ["the same photos, clean"], tone="baseline")


def _turns(groups: Mapping[str, Sequence[Json]]) -> dict[str, Any]:
    """Each recogniser that was left out in turn, by itself: what a mask does to one that nothing was chosen by."""
    titles = dict.fromkeys(cell["title"] for cells in groups.values() for cell in cells)
    columns: list[_Column] = []
    for held, cells in groups.items():
        by = {cell["title"]: cell for cell in cells}
        columns.append((held, ["left out", "nearest photo"], [_left_out(by.get(title), held) for title in titles]))
    rows = [
        _line(title, [_cell(found[i], _same_n(found) is None) for _, _, found in columns], [])
        for i, title in enumerate(titles)
    ]
    return {
        "caption": "Per cent of photos in which the one recogniser that was left out of the choice of the team and of "
        "learning does "
        "not find the person at rank 1, with 95% intervals.",
        "first": "Method",
        "heads": [_head(label, found, small) for label, small, found in columns],
        "rows": rows,
    }  # fmt: skip


def _left_out(cell: Json | None, held: str) -> Json:
    if cell is None or cell["checked"] is None:
        return _unmeasured("not finished")
    # A recipe may name a folder or file, whose last part is the recogniser's name.
    found = cell["checked"]["recognisers"]
    name = next((one for one in (held, Path(held).name, Path(held).stem) if one in found), None)
    made: Json = found[name]["scenes"][PROTECTED]["psr"]["1"] if name else _unmeasured("it did not judge")
    return made


def _notes(cell: Json) -> list[str]:
    return [
        text for text in (cell["note"], "" if cell["checked"] is None or is_mask(cell) else "photo by photo") if text
    ]


def _protection_figures(result: Json, cells: Sequence[Json], prefix: str) -> Iterator[dict[str, Any]]:
    texts = {
        "held_out": ("Recognisers that the masks never saw", "What counts: these stand for the recognisers of others."),
        "learned_from": (
            "Recognisers that the masks were learned from",
            "Apart: a mask does better on what it has seen.",
        ),
    }
    for part, (title, text) in texts.items():
        chart = charts.protection(result, cells, part)
        if chart is None:
            continue
        numbers = "; ".join(
            f"{c['title']}: {terminal.percent(summary(c, 'scenes', PROTECTED, part=part))}"
            for c in cells
            if c["checked"]
        )
        more = " Lines: 95% intervals. Dashed: the share that is not found even without a mask."
        made = parts.figure(f"{prefix}-{part.replace('_', '-')}", chart, title, text + more)
        yield made | {"alt": f"{title}. Not found, {numbers}."}


def _legend(result: Json, cells: Sequence[Json]) -> list[dict[str, str]]:
    styled = charts.looks(result)
    judged = [name for name in styled if any(name in cell["checked"]["recognisers"] for cell in cells)]
    keys = [{"glyph": _GLYPHS[styled[n].shape], "colour": styled[n].colour, "title": n} for n in judged]
    if any(len(recognisers(cell, part)) > 1 for cell in cells for part in ("held_out", "learned_from")):
        keys.append({"glyph": _GLYPHS[charts.MEAN.shape], "colour": charts.MEAN.colour, "title": "mean of recognisers"})
    return keys


def _differences(cells: Sequence[Json]) -> dict[str, Any] | None:
    """Paired differences between the first row and each other one, over recognisers that neither saw."""
    from holdfast.faces.check import compare

    if len(cells) < 2:
        return None
    first, rest = cells[0], cells[1:]
    found = [compare(first["checked"], cell["checked"])["held_out"] for cell in rest]
    columns: list[_Column] = []
    for k, label in (("1", "nearest photo"), ("5", "5 nearest photos")):
        columns.append(("Not found", [label], [_of(one, "scenes", PROTECTED, k) for one in found]))
    for name, (_, title) in terminal.attack_kinds(first).items():
        columns.append(("Not found after", [title], [_of(one, "attacks", name, "1") for one in found]))
    rows = []
    for i, cell in enumerate(rest):
        shown = [_gap(metrics[i], _same_n(metrics) is None) for _, _, metrics in columns]
        rows.append(_line(f"against {cell['title']}", shown, []))
    return {
        "caption": f"{first['title']} minus each other method on the same photos, in points; ▲ and ▼ with colour "
        "where the 95% "
        "interval excludes 0, ≈ where it does not. Where two methods protect alike, one column in twenty "
        "gets a mark by chance.",
        "first": first["title"],
        "heads": [_head(label, metrics, small) for label, small, metrics in columns],
        "rows": rows,
    }  # fmt: skip


def _of(found: Json, kind: str, what: str, k: str) -> Json:
    """A difference; null where the two share no recogniser that neither has seen."""
    made: Json | None = found[kind].get(what, {}).get(k)
    reason = "no recogniser that neither of the two has seen"
    return made if made is not None else _unmeasured(reason)


# -- attacks ------------------------------------------------------------------------------------------


def _attacks(cells: Sequence[Json]) -> dict[str, Any] | None:
    """Protection after each change of photos, shaded: methods down, attacks across."""
    kinds = {
        name: title for name, (kind, title) in terminal.attack_kinds(cells[0]).items() if kind not in terminal.BREAKING
    }
    if not kinds or not recognisers(cells[0], "held_out"):
        return None
    columns = [("No attack", [summary(c, "scenes", PROTECTED) for c in cells])]
    columns += [(title, [summary(c, "attacks", name) for c in cells]) for name, title in kinds.items()]
    bare = [_shaded(complement_of_clean(cells[0], name)) for name in (None, *kinds)]
    rows = [_line("No mask", bare, ["missed anyway"], tone="baseline")]
    for i, cell in enumerate(cells):
        shown = [_shaded(_cell(found[i], _same_n(found) is None)) for _, found in columns]
        rows.append(_line(cell["title"], shown, []))
    return {
        "caption": "Per cent of photos in which recognisers that the mask never saw do not find the person at rank 1, "
        "with 95% "
        "intervals; the stronger the colour, the more protection. Where the first row has colour too, the change "
        "hides faces by itself.",
        "first": "Method",
        "heads": [_head(title, found, []) for title, found in columns],
        "rows": rows,
    }  # fmt: skip


def complement_of_clean(cell: Json, attack: str | None) -> dict[str, Any]:
    """The share of clean photos that is not recognised after an attack; over several recognisers, with their range."""
    if attack is None:
        return _cell(summary(cell, "scenes", CLEAN), False)
    names = recognisers(cell, "held_out")
    found = [complement(cell["checked"]["recognisers"][name]["attacks"][attack]["clean_recognised"]) for name in names]
    values = [one["value"] for one in found if one["value"] is not None]
    if not values:
        return _said(found[0]["reason"] if found else "no such recogniser was asked")
    if len(values) == 1:
        return _cell(found[0], False)
    made = _cell({**found[0], "value": sum(values) / len(values)}, False)
    return made | {"interval": f"{fixed(min(values))} to {fixed(max(values))} by recogniser"}


def _undone(cells: Sequence[Json], prefix: str, whom: str) -> dict[str, Any] | None:
    """What is aimed at masks as such: recognised after it, and the points won back."""
    first = cells[0]
    if not recognisers(first, "held_out"):
        return None
    named = terminal.breaking(first)
    before = [complement(summary(cell, "scenes", PROTECTED)) for cell in cells]
    columns: list[_Column] = [("When protected", [], before)]
    regained: list[list[Json]] = [[]]
    for (kind, what), title in named.items():
        columns.append((_capital(title), [], [complement(summary(cell, kind, what)) for cell in cells]))
        regained.append([won_back(cell, kind, what) for cell in cells])
    rows = []
    for i, cell in enumerate(cells):
        shown = []
        for (_, _, after), gaps in zip(columns, regained, strict=True):
            one = _cell(after[i], _same_n(after) is None)
            if gaps and not one["reason"]:
                one["diff"], one["tone"] = _marked(gaps[i])
            shown.append(one)
        rows.append(_line(cell["title"], shown, []))
    table = {
        "caption": "Per cent of photos in which the person is recognised at rank 1 (mean over recognisers that the "
        "mask never "
        "saw), with 95% intervals. Below: points won back against the same photos before the attack; ▲ where the "
        "interval "
        "excludes 0.",
        "first": "Method",
        "heads": [_head(title, after, small) for title, small, after in columns],
        "rows": rows,
    }  # fmt: skip
    return {
        "sentences": list(_undone_sentences(first, named, whom)),
        "figures": list(_undone_figure(first, prefix)),
        "table": table,
    }


def _undone_sentences(first: Json, named: Mapping[tuple[str, str], str], whom: str) -> Iterator[str]:
    before = complement(summary(first, "scenes", PROTECTED))
    for (kind, what), title in named.items():
        after, regained = complement(summary(first, kind, what)), won_back(first, kind, what)
        if after["value"] is None:
            yield f"{_capital(title)}: not measured ({after['reason']})."
            continue
        how = (
            "Matching protected photos with protected photos"
            if kind == "scenes"
            else f"An adversary's attack on the mask ({title})"
        )
        gap = f"not comparable ({regained['reason']})"
        if regained["value"] is not None:
            gap = f"{_signed(regained['value'])} points {_pair(regained)} won back"
            if regained["low"] <= 0 <= regained["high"]:
                gap += ", which may be chance"
        yield f"{how} finds {whom} in {terminal.percent(after)} of photos instead of {terminal.percent(before)}: {gap}."


def _undone_figure(first: Json, prefix: str) -> Iterator[dict[str, Any]]:
    chart = charts.undone(first)
    if chart is None:
        return
    title = f"Recognised after attacks on the mask: {first['title']}"
    text = "Lines: 95% intervals. Dashed: recognised when protected; dotted: recognised without a mask."
    numbers = "; ".join(
        f"{name}: {terminal.percent(complement(summary(first, kind, what)))}"
        for (kind, what), name in terminal.breaking(first).items()
    )
    yield parts.figure(f"{prefix}-undone", chart, title, text) | {"alt": f"{title}. {numbers}."}


# -- scenes, pairs, keys ------------------------------------------------------------------------------


def _scenes(cells: Sequence[Json]) -> dict[str, Any]:
    part = "held_out" if recognisers(cells[0], "held_out") else "learned_from"
    columns = [
        (_capital(probe), [gallery], [summary(c, "scenes", scene, part=part) for c in cells])
        for scene, (probe, gallery) in SCENES.items()
    ]
    rows = [
        _line(cell["title"], [_cell(found[i], _same_n(found) is None) for _, _, found in columns], [])
        for i, cell in enumerate(cells)
    ]
    seen = "never saw" if part == "held_out" else "was learned from"
    return {
        "caption": f"Per cent of photos in which recognisers that the mask {seen} do not find the person at rank 1, "
        "with 95% "
        "intervals.",
        "first": "Method",
        "heads": [_head(label, found, small) for label, small, found in columns],
        "rows": rows,
    }  # fmt: skip


def _verifications(cells: Sequence[Json]) -> dict[str, Any]:
    """Genuine pairs that are rejected, at each rate of false accepts; a rate that no recogniser has is a sentence."""
    rates, missing = [], []
    judged = [one["verification"] for cell in cells for one in cell["checked"]["recognisers"].values()]
    for accepts in judged[0]:
        if all(one[accepts]["threshold"] is None for one in judged):
            share, reasons = f"{100 * float(accepts):g}%", dict.fromkeys(one[accepts]["reason"] for one in judged)
            missing.append(f"At {share} false accepts: not measured ({'; '.join(reasons)}).")
        else:
            rates.append(accepts)
    return {"missing": missing, "tables": [_verification(cell, rates) for cell in cells] if rates else []}


def _verification(cell: Json, rates: Sequence[str]) -> dict[str, Any]:
    judged = list(cell["checked"]["recognisers"].values())
    columns: list[_Column] = []
    pairs: set[tuple[int, int]] = set()
    for accepts in rates:
        found = [one["verification"][accepts] for one in judged]
        pairs |= {(one["genuine_pairs"], one["impostor_pairs"]) for one in found if one["threshold"] is not None}
        share = f"{100 * float(accepts):g}% false accepts"
        for key, label in (("rejected_before", "Without mask"), ("rejected", "Protected")):
            columns.append((label, [share], [one.get(key) or _unmeasured(one["reason"]) for one in found]))
    from_pairs = listed([f"{genuine:,} genuine and {impostor:,} impostor pairs" for genuine, impostor in sorted(pairs)])
    caption = (
        f"{cell['title']}: per cent of genuine pairs (a photo and a clean gallery photo of the same person) that are "
        f"rejected, with 95% intervals; {from_pairs}. Below a recogniser's name: the cosine from which it accepts."
    )
    made = _of_recognisers(cell, caption, columns)
    for row, part in zip(made["rows"], judged, strict=True):
        limits = {accepts: part["verification"][accepts]["threshold"] for accepts in rates}
        row["small"] += [f"{100 * float(a):g}%: above {fixed(x, 3)}" for a, x in limits.items() if x is not None]
    return made


def _unmeasured(reason: str) -> Json:
    return {"value": None, "reason": reason, "n": 0, "detail": {}}


def _keys(cell: Json) -> dict[str, Any]:
    judged = list(cell["checked"]["recognisers"].values())
    columns: list[_Column] = [
        ("No mask", ["clean photos"], [one["clean"]["recognised"] for one in judged]),
        ("Protected", ["no key"], [one["scenes"][PROTECTED]["recognised"] for one in judged]),
        *((label, [what], [one["keys"][key] for one in judged]) for key, (label, what) in KEYS.items()),
        ("Right mask of the bank chosen", ["by the key's owner"], [one["keys"]["right_mask_chosen"] for one in judged]),
    ]
    caption = f"{cell['title']}: per cent of photos in which the person is recognised at rank 1, with 95% intervals."
    return _of_recognisers(cell, caption, columns)


def _without_key(cells: Sequence[Json]) -> list[str]:
    found = []
    for cell in cells:
        if not is_mask(cell):
            _, right = terminal.worst_key(cell, "right")
            found.append(f"{cell['title']}: {right['reason'] or 'no key'}.")
    return found


def _everything(cell: Json) -> dict[str, Any]:
    """Each recogniser's own numbers for protected photos."""
    judged = list(cell["checked"]["recognisers"].values())
    scenes = [one["scenes"][PROTECTED] for one in judged]
    columns: list[_Column] = []
    for kind, of in (("psr", []), ("psr_of_recognised", ["of those found clean"])):
        for k, near in (("1", "nearest photo"), ("5", "5 nearest photos")):
            columns.append(("Not found", [near, *of], [one[kind][k] for one in scenes]))
    for when, label in (("before", "Cosine, clean"), ("after", "Cosine, protected")):
        columns.append((label, ["to own gallery photos"], [one["cosine"][when] for one in judged]))
    for name, (_, title) in terminal.attack_kinds(cell).items():
        columns.append(("Not found after", [title], [one["attacks"][name]["psr"]["1"] for one in judged]))
    caption = f"{cell['title']}: each recogniser by itself; rates in per cent, with 95% intervals."
    return _of_recognisers(cell, caption, columns)


def _of_recognisers(cell: Json, caption: str, columns: Sequence[_Column]) -> dict[str, Any]:
    """A table of one method with a row for each recogniser."""
    rows = []
    for i, (name, part) in enumerate(cell["checked"]["recognisers"].items()):
        shown = [
            _cell(found[i], _same_n(found) is None, 3 if label.startswith("Cosine") else 1)
            for label, _, found in columns
        ]
        rows.append(_line(name, shown, [_role(part)]))
    heads = [_head(label, found, small) for label, small, found in columns]
    return {"title": cell["title"], "caption": caption, "first": "Recogniser", "heads": heads, "rows": rows}


def _role(part: Json) -> str:
    return "the mask was learned from it" if part["learned_from"] else "never seen by the mask"


# -- how it was measured ------------------------------------------------------------------------------


def _recogniser_table(result: Json) -> dict[str, Any]:
    """Who judged: what it is, its licence, where it comes from."""
    roles: dict[str, set[str]] = {}
    for cell in result["cells"]:
        for one in result["recognisers"]:
            taught = one["name"] in cell["learned_from"]
            out = one["name"] in (cell["held_out"], Path(cell["held_out"]).name, Path(cell["held_out"]).stem)
            role = "learned from" if taught else "judges only, left out of the team's choice" if out else "judges only"
            roles.setdefault(one["name"], set()).add(role)
    rows = [
        {
            "name": one["name"],
            "role": ", ".join(sorted(roles.get(one["name"], set()))),
            "cells": [_known(one.get(key)) for key in ("title", "architecture", "licence", "source", "training")],
        }
        for one in result["recognisers"]
    ]
    return {
        "caption": f"{counted(len(rows), 'recogniser')}. Unknown: its card does not say.",
        "heads": ["Recogniser", "What it is", "Architecture", "Licence", "Source", "Training"],
        "rows": rows,
    }


def _known(text: Any) -> str:
    return str(text) if text else "unknown"


def _teams(held: str, teams: Sequence[Json], several: bool) -> dict[str, Any]:
    rows = [
        {
            "name": listed(list(one["members"])),
            "role": "chosen" if i == 0 else "",
            "cells": [
                "none: a single member, or nobody errs" if one["diversity"] is None else fixed(one["diversity"], 3),
                f"{fixed(100 * one['accuracy'])}%",
            ],
        }
        for i, one in enumerate(teams)
    ]  # fmt: skip
    where = f" with {held} left out" if held and several else f" ({held} was left out of the choice)" if held else ""
    return {
        "caption": "Teams to learn from, by focal diversity of their mistakes on clean and mildly damaged "
        f"photos{where}: the best "
        f"{len(rows)}. The choice has no interval; it is made once, before any mask.",
        "heads": ["Team", "Focal diversity", "Photos that members get right, mean"],
        "rows": rows,
    }  # fmt: skip


def _measured(result: Json) -> Iterator[str]:
    done = [cell for cell in result["cells"] if cell["checked"] is not None]
    if result["photos"] == "drawn":
        yield "The people are generated drawings, stored as JPEG at quality 92: no photograph of anybody was used."
    else:
        yield (
            f"The photos are those of {result['photos']}; faces were found and aligned, and people keep their "
            "folders' names."
        )
    if done:
        checked = done[0]["checked"]
        counts = checked["counts"]
        yield (
            f"Each of {counted(counts['protected_people'], 'person', 'people')} got masks learned from "
            f"{counted(result['learn'], 'photo')}; "
            "of the other photos of them half are known to the recognisers by name, and "
            f"{counted(counts['probes'], 'photo')} are "
            f"to be recognised. The gallery has {counted(counts['gallery'], 'photo')} of "
            f"{counted(counts['people'], 'person', 'people')}."
        )  # fmt: skip
        seeds = sorted({cell["checked"]["seed"] for cell in done})
        yield (
            f"Seed of every draw: {listed([str(seed) for seed in seeds])}. One seed: how much another would change "
            "is not measured."
        )
    yield _visibility(result["cells"])
    yield from _common(done)


def _measured_check(result: Json) -> Iterator[str]:
    person, counts = result["person"], result["checked"]["counts"]
    yield (
        f"{counted(person['gallery'], 'photo')} of you stood in the gallery by name, beside {counts['people'] - 1} "
        "other people; "
        f"{counted(person['probes'], 'other photo')} wore the mask and were compared with it. None was learned from. "
        f"Seed of every draw: {result['checked']['seed']}."
    )
    yield (
        f"Learned from: {listed(list(result['learned_from'])) or 'unknown'}. All other recognisers never saw the mask."
    )
    yield from _common([{"checked": result["checked"]}])


def _common(done: Sequence[Json]) -> Iterator[str]:
    yield (
        "A photo counts as not found where the nearest photo of the gallery (by cosine) shows somebody else; ties "
        "count against "
        "the protection. Photos that are not found even when clean count too: the row without a mask says how many."
    )
    yield (
        "Masks were put on aligned crops of 112 pixels as a photo stores them, without saving again; what compression "
        "does is among "
        "the attacks. Whether a face is still detected in the whole photo is not measured here."
    )
    if any(over_photos(one) for one in _all_rates(done)):
        yield (
            "With one or two people, intervals cover these people's photos only. They say nothing about other people."
        )
    else:
        yield "Intervals are over people (Wilson's, with Student's quantile): photos of one person are alike."


def _all_rates(done: Sequence[Json]) -> Iterator[Json]:
    for cell in done:
        for part in ("held_out", "learned_from"):
            yield cell["checked"]["summary"][part]["scenes"][PROTECTED]["1"]


def _visibility(cells: Sequence[Json]) -> str:
    limits = sorted({cell["knobs"]["ssim"] for cell in cells if cell["knobs"].get("ssim") is not None})
    budgets = sorted({cell["knobs"]["budget"] for cell in cells if cell["knobs"].get("budget") is not None})
    if len(limits) == 1 and len(budgets) <= 1:
        most = f" and at most {budgets[0]:g} grey levels at any pixel" if budgets else ""
        return (
            f"Visibility was made equal: every method had to keep a mean SSIM of {limits[0]:g} on the photos that it "
            "worked on"
            f"{most}. What it is on held-out photos stands in the table."
        )
    told = f"SSIM {listed([f'{one:g}' for one in limits])}; grey levels {listed([f'{one:g}' for one in budgets])}"
    return f"Visibility was not made equal ({told}): a more visible mask protects better, so compare rows of one SSIM."


def _knobs(cells: Sequence[Json]) -> list[dict[str, str]]:
    """Each method's settings, once."""
    made: dict[str, dict[str, str]] = {}
    for cell in cells:
        text = ", ".join(f"{name} = {_setting(value)}" for name, value in cell["knobs"].items())
        made.setdefault(cell["title"], {"title": cell["title"], "method": cell["method"], "text": text})
    return [one for one in made.values() if one["text"]]


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _skipped(cells: Sequence[Json]) -> list[str]:
    done = [cell for cell in cells if cell["checked"] is not None]
    found = done[0]["checked"]["counts"]["skipped"] if done else []
    return [f"{Path(one['path']).parent.name}/{Path(one['path']).name}: {one['reason']}" for one in found]


def _limits(result: Json) -> Iterator[str]:
    names = listed([one["name"] for one in result["recognisers"]])
    yield (
        f"The recognisers tested ({names}) are few, and those that come with Holdfast are small. Nothing here promises "
        "that a commercial, larger or newer recogniser is kept out: what one does not find, another may."
    )
    yield "It does not hide anybody from people: whoever knows the face recognises it in the photo."
    yield (
        "Photos that are published already stay as they are, and so does what others have computed from them. The more "
        "clean photos of the person a recogniser has, the easier it finds them."
    )
    yield (
        "The key file is private: whoever has it takes the mask off, and it holds the face as recognisers see it. "
        "Whoever "
        "loses it cannot take the mask off again."
    )
    yield (
        "An adversary who collects protected photos of the person, or compares them with one another, may win "
        "recognition "
        "back: how much stands under What undoes it."
    )
    yield (
        "JPEG: rates after compression hold for the qualities that the tables name, on crops of 112 pixels. Sites that "
        "resize or compress more strongly change both the protection and what the key restores."
    )


# -- cells of tables ----------------------------------------------------------------------------------


def _line(
    name: str, cells: Sequence[Json], small: Sequence[str], *, missing: str = "", tone: str = ""
) -> dict[str, Any]:
    return {"name": name, "star": False, "small": small, "tone": tone, "missing": missing, "cells": cells}


def _said(reason: str) -> dict[str, Any]:
    return {"reason": reason, "value": "", "interval": "", "n": "", "diff": "", "tone": "", "shade": ""}


def _cell(metric: Json, with_n: bool, digits: int = 1) -> dict[str, Any]:
    """One number of a table with its small print; ``reason`` where there is none."""
    if metric["value"] is None:
        return _said(metric["reason"])
    no_interval = metric["low"] is None or metric["high"] is None
    return _said("") | {
        "value": _page_number(metric["value"], digits),
        "interval": "no interval" if no_interval else _brackets(metric, digits),
        "n": _count(metric) if with_n else "",
        "shade": metric["value"],
    }


def _shaded(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with a colour as strong as its rate; readable on white and on black."""
    if cell["reason"]:
        return cell | {"colour": ""}
    return cell | {"colour": f"background: rgba(31, 119, 200, {_SHADE * float(cell['shade']) / 100:.3f})"}


def _gap(metric: Json, with_n: bool) -> dict[str, Any]:
    """A difference in points, marked where its interval excludes 0."""
    if metric["value"] is None:
        return _said(metric["reason"])
    text, tone = _marked(metric)
    return _said("") | {
        "value": text.split(" [")[0], "interval": _pair(metric), "n": _count(metric) if with_n else "", "tone": tone,
    }  # fmt: skip


def _marked(metric: Json) -> tuple[str, str]:
    """A difference with its interval, a sign for which way it goes, and the tone of that."""
    if metric["value"] is None:
        return f"— {metric['reason']}", ""
    text = f"{_signed(metric['value'])} {_pair(metric)}"
    if metric["low"] <= 0 <= metric["high"]:
        return f"≈ {text}", ""
    better = (metric["high"] < 0) == (metric["better"] == "lower")
    return f"{'▼' if metric['high'] < 0 else '▲'} {text}", "better" if better else "worse"


def _pair(metric: Json) -> str:
    return f"[{_signed(metric['low'])}, {_signed(metric['high'])}]"


def _brackets(metric: Json, digits: int = 1) -> str:
    if metric["low"] is None or metric["high"] is None:
        return "no interval"
    return f"[{_page_number(metric['low'], digits)}, {_page_number(metric['high'], digits)}]"


def _page_number(value: float, digits: int) -> str:
    return fixed(value, digits).replace("-", "−")


def _signed(value: float) -> str:
    text = fixed(value)
    return text.replace("-", "−") if value < 0 or not float(text) else f"+{text}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _same_n(metrics: Sequence[Json]) -> tuple[int, int] | None:
    """Photos and people where they are the same for all, so that a head can say it once."""
    found = {(one["n"], people_of(one)) for one in metrics if one["value"] is not None}
    return found.pop() if len(found) == 1 else None


def _count(metric: Json) -> str:
    people = people_of(metric)
    if metric["unit"] == "s":
        return f"n = {counted(metric['n'], 'person', 'people')}"
    return f"n = {counted(metric['n'], 'photo')}" + (f", {counted(people, 'person', 'people')}" if people else "")


def _head(label: str, metrics: Sequence[Json], small: Sequence[str]) -> dict[str, Any]:
    one = next((m for m in metrics if m["value"] is not None), None)
    shared = [_count(one)] if one is not None and _same_n(metrics) is not None else []
    return {"label": label, "small": [text for text in (*small, *shared) if text]}
