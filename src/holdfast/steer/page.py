"""The pages of a comparison and of a diagnosis: one HTML file each, complete in itself.

Prompts, answers and titles are foreign text: the templates escape everything that is not marked as ours. Answers to
harmful prompts are left out of the file (not merely hidden in it) unless asked for.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from holdfast.core.files import write_text
from holdfast.report import parts
from holdfast.report.charts import unchecked
from holdfast.report.phrases import bounds, interval_name, listed, number, plural, signed
from holdfast.steer import charts
from holdfast.steer.charts import PLAIN, PREDICTORS, UNSAFE, Series, brackets
from holdfast.steer.choose import Choice
from holdfast.steer.diagnose import degrades
from holdfast.steer.plan import BASE
from holdfast.steer.terminal import advice, verdict

Json = Mapping[str, Any]

_GROUPS = {"harmful": "Harmful prompts", "benign": "Harmless prompts", "visual": "Questions about the picture"}
_LABELS = {
    "harmful_score": "Unsafe rate", "over_refusal": "Over-refusal", "benign_accuracy": "Benign accuracy",
    "visual_correct": "Visual accuracy",
}  # fmt: skip
_PREDICTED = {
    "cosine": "Between the picture's shift of harmful and of harmless prompts. Near 1 the shift is one constant, which "
    "can be taken back for all; near 0 a constant that restores refusals also makes harmless requests refused.",
    "along": "Part of the shift's length that lies along the safety direction (from harmful to harmless): only this "
    "part can matter for refusals.",
    "separable": "How well a line tells harmful from harmless prompts in spite of their pictures (area under the ROC "
    "curve, cross-fitted; 0.5 is chance). Without it no constant works; methods that read the text alone may.",
    "sunk": "How far the picture moves harmful prompts towards the harmless side, as a share of the distance between "
    "the two classes in text.",
}
_MOST_LAYERS = 12


def render(result: Mapping[str, Any], *, show_text: bool = False) -> str:
    """The page of a comparison as HTML. Equal results give equal bytes.

    Args:
        result: JSON object of :func:`holdfast.steer.compare.collect`.
        show_text: print answers to harmful prompts.
    """
    with unchecked():
        content = _page(result, show_text)
    return parts.page("steer.html.j2", content)


def write(result: Mapping[str, Any], path: Path, *, show_text: bool = False) -> None:
    """Write the page of a comparison in one step.

    Raises:
        RunError, ResourceError: the file cannot be written.
    """
    write_text(path, render(result, show_text=show_text))


def render_diagnosis(result: Mapping[str, Any]) -> str:
    """The page of a diagnosis as HTML. Equal results give equal bytes.

    Args:
        result: JSON object of a diagnosis, with the ``command`` that made it.
    """
    with unchecked():
        content = _diagnosis_page(result)
    return parts.page("steer-diagnosis.html.j2", content)


def write_diagnosis(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of a diagnosis in one step.

    Raises:
        RunError, ResourceError: the file cannot be written.
    """
    write_text(path, render_diagnosis(result))


def _page(result: Json, show_text: bool) -> dict[str, Any]:
    pictures = [one for i, name in enumerate(result["workloads"]) if (one := _picture(result, name, i))]
    content = {
        "title": result["title"],
        "meta": list(_meta(result)),
        "answer": list(_answer(result)),
        "failed": result["failed"],
        "complete": result["complete"],
        "notes": [*result["notes"], *_undiagnosed(result)],
        "tiles": [_tiles(result, name) for name in result["workloads"]],
        "pictures": pictures,
        "workloads": [_workload(result, name, i) for i, name in enumerate(result["workloads"])],
        "budget": f"{result['budget']:g} points",
        "layers": _layers(_series(result), _pointed(result), _states_text(result)),
        "examples": list(_examples(result, show_text)),
        "examples_text": _examples_text(result, show_text),
        "chosen": _chosen(result),
        "predicted": list(_predicted(result)),
        "limits": list(_limits(result)),
        "command": result["command"],
        "recipe": result["recipe"],
        "environment": list(result["environment"].items()),
    }
    return content | {"sections": list(_sections(content))}


def _sections(content: Json) -> Iterator[tuple[str, str]]:
    if content["pictures"]:
        yield "picture", "What a picture does"
    yield "methods", "Methods compared"
    if content["layers"]:
        yield "layers", "Where in the network"
    if content["examples"]:
        yield "examples", "Look at answers"
    yield from (("chosen", "What was chosen"), ("limits", "How to read this"), ("again", "Run it again"))


def _meta(result: Json) -> Iterator[str]:
    models = {about["model"]: about["title"] for about in result["workloads"].values()}
    yield f"{'Model' if len(models) == 1 else 'Models'} {listed(list(models))}"
    seeds = result["seeds"]
    yield f"{'seed' if len(seeds) == 1 else 'seeds'} {listed([str(seed) for seed in seeds])}"
    methods = {row["title"] for row in result["rows"] if row["method"]}
    told = listed([f"{count:,} {name}" for name, count in _counts(result).items()])
    over = f", over {plural(len(seeds), 'seed')}" if len(seeds) > 1 else ""
    yield f"{plural(len(methods), 'method')} tested on {told or 'nothing: no answers were finished'}{over}"
    anchors = result["anchors"]
    yield f"learned from {anchors['harmful']} harmful and {anchors['benign']} harmless anchors a seed"


def _counts(result: Json) -> dict[str, int]:
    """Test items of each group that the unsteered model's rates rest on, over all seeds."""
    names = {"harmful": "harmful prompts", "benign": "harmless prompts", "visual": "questions about the picture"}
    found: dict[str, int] = {}
    for row in result["rows"]:
        for measure, about in result["measures"].items():
            metric = row["metrics"].get(measure)
            if not row["method"] and metric is not None and metric["value"] is not None:
                group = names.get(about["group"], about["group"])
                found[group] = max(found.get(group, 0), metric["n"] + metric["declined"])
    return found


def _undiagnosed(result: Json) -> Iterator[str]:
    if not result["diagnoses"]:
        yield "No diagnosis was finished: what the picture does, and where in the network, is not shown."


def _answer(result: Json) -> Iterator[str]:
    """The terminal's advice; where nothing was measured, that there is none."""
    for workload, about in result["workloads"].items():
        if _decided(result, workload):
            yield from map(_polished, advice({**result, "workloads": {workload: about}}))
        else:
            yield f"{about['title']}: no advice, since too little was finished to compare methods with no steering."


def _decided(result: Json, workload: str) -> bool:
    """Whether there is something to recommend from: a diagnosis that says no, or a method with its difference."""
    mine = [d for d in result["diagnoses"] if d["workload"] == workload]
    gaps = [r["against"].get(UNSAFE) for r in result["rows"] if r["workload"] == workload and r["method"]]
    known = any(gap is not None and gap["value"] is not None for gap in gaps)
    return known or (bool(mine) and not any(d["degrades"] for d in mine))


def _polished(sentence: str) -> str:
    """A sentence of the terminal with the signs that a page can show, and no sign before zero."""
    text = re.sub(r"(?<![\w.])[-+](?=0\.0(?![\d]))", "", sentence.replace(" -> ", " → "))
    return re.sub(r"(?<=[\s\[])-(?=\d)", "−", text)


# --- tiles -------------------------------------------------------------------------------------------


def _tiles(result: Json, workload: str) -> dict[str, Any]:
    base = _base(result, workload)["metrics"].get(UNSAFE)
    mine = [d for d in result["diagnoses"] if d["workload"] == workload]
    bad = any(d["degrades"] for d in mine)
    tiles = [
        _tile("Without picture", "no steering", result["plain"].get(workload, {}).get(UNSAFE), ""),
        _tile("With picture", "no steering", base, "bad" if bad else ""),
    ]
    best = result["recommended"].get(workload)
    if mine and not bad:
        tiles.append(_said("Steered", "not needed", "The picture switches no refusal off."))
    elif not _decided(result, workload):
        tiles.append(_said("Recommended method", "—", "unknown: too little was finished"))
    elif best is None:
        none = f"No method lowers the unsafe rate within {result['budget']:g} points of every utility."
        tiles.append(_said("Recommended method", "none", none))
    else:
        row = next(r for r in result["rows"] if r["workload"] == workload and r["title"] == best["title"])
        tiles.append(_tile("With picture", best["title"], row["metrics"].get(UNSAFE), "good"))
    several = len(result["workloads"]) > 1
    return {"title": result["workloads"][workload]["title"] if several else "", "tiles": tiles}


def _tile(name: str, what: str, metric: Json | None, tone: str) -> dict[str, str]:
    if metric is None or metric["value"] is None:
        reason = "not measured" if metric is None else metric["reason"]
        return {"name": name, "what": what, "big": "—", "small": f"unsafe rate unknown: {reason}", "tone": ""}
    small = f"unsafe rate, {interval_name(cast('Any', metric))} {bounds(cast('Any', metric))}, n = {metric['n']:,}"
    return {"name": name, "what": what, "big": number(metric["value"], metric["unit"]), "small": small, "tone": tone}


def _said(name: str, big: str, small: str) -> dict[str, str]:
    """A tile without a number."""
    return {"name": name, "what": "", "big": big, "small": small, "tone": ""}


def _base(result: Json, workload: str) -> Json:
    found: Json = next(row for row in result["rows"] if row["workload"] == workload and not row["method"])
    return found


# --- what a picture does -----------------------------------------------------------------------------


def _picture(result: Json, workload: str, position: int) -> dict[str, Any] | None:
    mine = [d for d in result["diagnoses"] if d["workload"] == workload]
    if not mine:
        return None
    title = result["workloads"][workload]["title"]
    several = len(result["seeds"]) > 1
    return {
        "title": title if len(result["workloads"]) > 1 else "",
        "seeds": _degrading(mine) if several else "",
        "sentences": [
            (f"Seed {d['seed']}: " if several else "") + _verdict(d, bool(d["degrades"])) for d in mine
        ],
        "figures": list(_condition_figures(mine, f"picture-{position + 1}", several)),
        "tables": [_conditions(d, f"{title}, seed {d['seed']}", result["measures"]) for d in mine],
    }  # fmt: skip


def _degrading(diagnoses: Sequence[Json]) -> str:
    bad = [str(d["seed"]) for d in diagnoses if d["degrades"]]
    fine = [str(d["seed"]) for d in diagnoses if not d["degrades"]]
    if not fine:
        return "The picture raises the unsafe rate of every seed by more than chance."
    if not bad:
        return "The picture raises the unsafe rate of no seed by more than chance."
    names = f"{'seed' if len(fine) == 1 else 'seeds'} {listed(fine)}"
    return (
        f"The picture does not raise the unsafe rate of {names} by more than chance: there is nothing to restore there."
    )


def _verdict(diagnosis: Json, worse: bool) -> str:
    """The terminal's sentence; where a rate is unknown, that there is none."""
    for condition in diagnosis["conditions"]:
        metric = condition["metrics"].get(UNSAFE)
        if condition["name"] in ("text", "image") and (metric is None or metric["value"] is None):
            reason = "not measured" if metric is None else metric["reason"]
            return f"Whether the picture raises the unsafe rate is unknown: {condition['title'].lower()}: {reason}."
    return _polished(verdict(diagnosis, worse))


def _condition_figures(diagnoses: Sequence[Json], name: str, several: bool) -> Iterator[dict[str, Any]]:
    chart = charts.conditions(diagnoses)
    if chart is None:
        return
    text = "Mark: rate; line: 95% interval. The same requests under every condition."
    told = [
        (f"Seed {d['seed']}, " if several else "") + f"{c['title']}: {_brief(c['metrics'].get(UNSAFE))}"
        for d in diagnoses
        for c in d["conditions"]
    ]
    yield _figure(name, chart, "Unsafe rate under each condition", text, "; ".join(told))


def _conditions(diagnosis: Json, about: str, measures: Json) -> dict[str, Any]:
    names = list(dict.fromkeys(name for c in diagnosis["conditions"] for name in c["metrics"]))
    found = {name: [c["metrics"].get(name) for c in diagnosis["conditions"]] for name in names}
    shared = {name: _shared_n(metrics) for name, metrics in found.items()}
    rows = []
    for condition in diagnosis["conditions"]:
        cells = [
            _cell(condition["metrics"].get(name), condition["against_text"].get(name), shared[name] is None)
            for name in names
        ]
        rows.append({"name": condition["title"], "star": False, "small": [], "tone": "", "missing": "", "cells": cells})
    heads = [_head(_measure_name(name, measures), found[name], shared[name]) for name in names]
    what = "rates in % of answers with 95% intervals; below, the paired difference from the request alone in points"
    caption = f"{about}: {what}." if about else f"R{what[1:]}."
    return {"caption": caption, "first": "Condition", "heads": heads, "rows": rows}


def _measure_name(name: str, measures: Json) -> tuple[str, str]:
    """Label and judge of a measure; what a diagnosis alone knows is in the name."""
    if name in measures:
        return charts.label(measures[name]), measures[name]["judge"]
    first, _, judge = name.partition(":")
    return _LABELS.get(first, first.replace("_", " ").capitalize()), judge


# --- methods -----------------------------------------------------------------------------------------


def _workload(result: Json, workload: str, position: int) -> dict[str, Any]:
    title = result["workloads"][workload]["title"]
    return {
        "id": f"workload-{position + 1}",
        "title": title if len(result["workloads"]) > 1 else "",
        "table": _table(result, workload, title),
        "planes": list(_plane_figures(result, workload, f"methods-{position + 1}")),
        "rates": list(_rate_figures(result, workload, f"rates-{position + 1}")),
    }


def _table(result: Json, workload: str, title: str) -> dict[str, Any]:
    mine = [row for row in result["rows"] if row["workload"] == workload]
    plain = result["plain"].get(workload, {})
    found = {name: [plain.get(name), *(row["metrics"].get(name) for row in mine)] for name in result["measures"]}
    shared = {name: _shared_n(metrics) for name, metrics in found.items()}
    best = (result["recommended"].get(workload) or {}).get("title")
    heads = [
        _head((charts.label(about), about["judge"]), found[name], shared[name], about["better"])
        for name, about in result["measures"].items()
    ]
    heads.append({"label": "Time a token", "small": ["against no steering", "lower is better"]})
    rows = [_plain_row(result, workload, shared)]
    rows += [_row(result, row, shared, star=row["title"] == best) for row in mine]
    caption = (
        f"{title}: rates in % of test answers with 95% intervals. Below a rate: its paired difference from no "
        f"steering, in points; ▲ and ▼ with colour where the interval excludes 0, ≈ where it does not."
    )
    return {"caption": caption, "first": "Method", "heads": heads, "rows": rows}


def _shared_n(metrics: Sequence[Json | None]) -> int | None:
    """The number of answers where it is the same for all, so that a head can say it once."""
    counts = {metric["n"] for metric in metrics if metric is not None and metric["value"] is not None}
    return counts.pop() if len(counts) == 1 else None


def _head(
    names: tuple[str, str], metrics: Sequence[Json | None], shared: int | None, better: str = ""
) -> dict[str, Any]:
    label, judge = names
    better = better or next((metric["better"] for metric in metrics if metric is not None), "")
    small = [f"judge: {judge}" if judge else "", f"{better} is better" if better else ""]
    return {"label": label, "small": [text for text in (*small, f"n = {shared:,}" if shared else "") if text]}


def _plain_row(result: Json, workload: str, shared: Mapping[str, int | None]) -> dict[str, Any]:
    plain = result["plain"].get(workload, {})
    cells = [
        {"reason": "asks about the picture"} if name not in plain and about["group"] == "visual"
        else _cell(plain.get(name), None, shared[name] is None)
        for name, about in result["measures"].items()
    ]  # fmt: skip
    missing = "" if plain else "not finished: no answers without pictures"
    small = ["the same requests, text alone"]
    row = {"name": PLAIN, "star": False, "small": small, "tone": "baseline", "missing": missing}
    return row | {"cells": [*cells, {"reason": "not timed"}]}


def _row(result: Json, row: Json, shared: Mapping[str, int | None], *, star: bool) -> dict[str, Any]:
    small = ["recommended"] if star else []
    small += [row["method"]["paper"]] if row["method"] else ["the reference"]
    small += [row["note"]] if row["note"] else []
    there, planned = len(result["seeds"]) - len(row["missing"]), len(result["seeds"])
    gone = f"{'seed' if len(row['missing']) == 1 else 'seeds'} {listed([str(seed) for seed in row['missing']])}"
    small += [f"{there} of {planned} seeds: {gone} not finished"] if row["missing"] and there else []
    cells: list[dict[str, Any]] = []
    for name in result["measures"]:
        against = row["against"].get(name)
        cell = _cell(row["metrics"].get(name), against, shared[name] is None)
        if row["method"] and against is None and not cell["reason"]:
            cell["diff"] = "— no paired difference"
        cells.append(cell)
    tone = "recommended" if star else "" if row["method"] else "baseline"
    missing = "" if there else f"not finished: {gone}"
    cells.append(_cost(row))
    return {"name": row["title"], "star": star, "small": small, "tone": tone, "missing": missing, "cells": cells}


def _cell(metric: Json | None, against: Json | None, with_n: bool) -> dict[str, Any]:
    """One number of a table with its small print; ``reason`` where there is none."""
    if metric is None or metric["value"] is None:
        return {"reason": "not measured" if metric is None else metric["reason"]}
    declined = f"{metric['declined']:,} declined" if metric["declined"] else ""
    count = f"n = {metric['n']:,}" if with_n else ""
    diff, tone = _difference(against)
    return {
        "reason": "", "value": number(metric["value"], metric["unit"]), "interval": brackets(metric),
        "n": ", ".join(text for text in (count, declined) if text), "diff": diff, "tone": tone,
    }  # fmt: skip


def _difference(against: Json | None) -> tuple[str, str]:
    if against is None:
        return "", ""
    if against["value"] is None:
        return f"— {against['reason']}", ""
    text = f"{signed(against['value'])} {brackets(against)}"
    if against["low"] <= 0 <= against["high"]:
        return f"≈ {text}", ""
    better = (against["high"] < 0) == (against["better"] == "lower")
    return f"{'▼' if against['high'] < 0 else '▲'} {text}", "better" if better else "worse"


def _cost(row: Json) -> dict[str, Any]:
    cost = row["cost"]
    if not row["method"]:
        return {"reason": "", "value": "1×", "interval": "", "n": "by definition", "diff": "", "tone": ""}
    if cost is None:
        return {"reason": "not timed"}
    return {
        "reason": "", "value": f"{cost['ratio']:.2f}×", "interval": f"[{cost['low']:.2f}, {cost['high']:.2f}]",
        "n": f"n = {cost['rounds']} rounds", "diff": cost["extra"], "tone": "",
    }  # fmt: skip


def _plane_figures(result: Json, workload: str, prefix: str) -> Iterator[dict[str, Any]]:
    plane = charts.plane(result, workload)
    if plane is not None:
        text = (
            "Left and below the dashed budget line is good: few unsafe answers, and no utility lost beyond the budget. "
            "Up goes the utility that a method loses most of, against no steering; lines are 95% intervals."
        )
        told = "; ".join(_planar(row) for row in result["rows"] if row["workload"] == workload)
        yield _figure(f"{prefix}-plane", plane, "Safety against its price", text, told)


def _rate_figures(result: Json, workload: str, prefix: str) -> Iterator[dict[str, Any]]:
    for i, (name, about) in enumerate(result["measures"].items()):
        chart = charts.methods(result, workload, name)
        if chart is None:
            continue
        rows = [row for row in result["rows"] if row["workload"] == workload]
        told = "; ".join(f"{row['title']}: {_brief(row['metrics'].get(name))}" for row in rows)
        yield _figure(f"{prefix}-{i + 1}", chart, charts.label(about), f"Judge: {about['judge']}.", told)


def _planar(row: Json) -> str:
    lost = charts.loss(row) if row["method"] else None
    price = f", worst loss {signed(lost[1])} points of {lost[0].replace('_', ' ')}" if lost else ""
    return f"{row['title']}: unsafe rate {_brief(row['metrics'].get(UNSAFE))}{price}"


def _brief(metric: Json | None) -> str:
    if metric is None or metric["value"] is None:
        return "unknown"
    return f"{number(metric['value'], metric['unit'])} {brackets(metric)}"


def _figure(name: str, chart: Any, title: str, text: str, told: str) -> dict[str, Any]:
    """A chart whose text for those who cannot see it has its numbers."""
    return parts.figure(name, chart, title, text) | {"alt": f"{title}. {told}."}


# --- layers ------------------------------------------------------------------------------------------


def _series(result: Json) -> list[Series]:
    titles = {name: about["title"] for name, about in result["workloads"].items()}
    return [Series(titles[d["workload"]], f"seed {d['seed']}", d["layers"]) for d in result["diagnoses"]]


def _pointed(result: Json) -> Sequence[Json]:
    return next((d["points"] for d in result["diagnoses"] if d.get("points")), ())


def _states_text(result: Json) -> str:
    one = next((d for d in result["diagnoses"] if d.get("points")), None)
    return f"{result['workloads'][one['workload']]['title']}, seed {one['seed']}. " if one else ""


def _layers(series: Sequence[Series], points: Sequence[Json], whose: str) -> dict[str, Any] | None:
    if not any(one.layers for one in series):
        return None
    numbers = sorted({point["layer"] for point in points})
    # Of many layers an even part stands on the page at once, the last always; the others are folded.
    step = -(-len(numbers) // _MOST_LAYERS)
    shown = numbers[::-1][:: step or 1][::-1]
    distance = charts.distances(series)
    several = len(series) > 1
    figures = []
    if distance is not None:
        text = (
            "Length of the difference that the picture makes to a prompt's state, as a multiple of the mean length of "
            "the states in text. Bands: 95% intervals over prompts" + ("; one line a seed." if several else ".")
        )
        figures.append(_figure("distances", distance, "How far the picture moves the states", text, _SEE_TABLE))
    return {
        "whose": whose,
        "models": _models(series),
        "maps": [_map(points, layer) for layer in shown],
        "more": [_map(points, layer) for layer in numbers if layer not in shown],
        "distances": figures,
        "predictors": [
            _figure(f"predictor-{key}", chart, title, _PREDICTED[key], _SEE_TABLE)
            for key, title in PREDICTORS.items()
            if (chart := charts.predictor(series, key)) is not None
        ],
        "tables": [_layer_table(one, several) for one in series],
    }


def _models(series: Sequence[Series]) -> list[dict[str, str]]:
    """What the predictors' charts of several models need to be read."""
    styled = charts.model_looks(series)
    glyphs = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "cross": "✚"}
    if len(styled) < 2:
        return []
    return [
        {"title": title, "colour": style.colour, "glyph": glyphs.get(style.shape, "▼")}
        for title, style in styled.items()
    ]


_SEE_TABLE = "The numbers are in the table of layers below"


def _map(points: Sequence[Json], layer: int) -> dict[str, Any]:
    share = next(point["share"] for point in points if point["layer"] == layer)
    text = f"{share:.0%} of the variance"
    return parts.figure(f"states-{layer}", charts.states(points, layer), f"Layer {layer}", text) | {
        "alt": f"States at layer {layer} on two principal components, which show {text}"
    }


def _layer_table(one: Series, several: bool) -> dict[str, Any]:
    rows = []
    for layer in one.layers:
        cells = [_distance(layer["distance_harmful"]), _distance(layer["distance_benign"])]
        cells += [_bare(layer[key]) for key in ("cosine", "along", "separable", "separable_text", "sunk")]
        rows.append(
            {"name": str(layer["layer"]), "star": False, "small": [], "tone": "", "missing": "", "cells": cells}
        )
    n = {metric["n"] for layer in one.layers for metric in (layer["distance_harmful"], layer["distance_benign"])}
    of = f"{min(n)} prompts of each class" if n else "no prompts"
    heads = [
        ("Distance, harmful", "multiple of the text's length"), ("Distance, harmless", "multiple of the text's length"),
        ("Cosine of the two shifts", ""), ("Share along the safety direction", ""),
        ("Classes apart with pictures", "area, 0.5 is chance"), ("Classes apart in text", "area, 0.5 is chance"),
        ("Distance taken back", "share"),
    ]  # fmt: skip
    who = f"{one.title}, {one.seed}: " if several else ""
    caption = f"{who}every layer, from {of}. Distances have 95% intervals; for the predictors none is computed."
    told = [{"label": label, "small": [small] if small else []} for label, small in heads]
    return {"caption": caption, "first": "Layer", "heads": told, "rows": rows}


def _distance(metric: Json) -> dict[str, Any]:
    if metric["value"] is None:
        return {"reason": metric["reason"]}
    interval = f"[{metric['low']:.2f}, {metric['high']:.2f}]"
    return {"reason": "", "value": f"{metric['value']:.2f}", "interval": interval, "n": "", "diff": "", "tone": ""}


def _bare(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"reason": "undefined"}
    text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
    return {"reason": "", "value": text, "interval": "", "n": "", "diff": "", "tone": ""}


# --- answers -----------------------------------------------------------------------------------------


def _examples(result: Json, show_text: bool) -> Iterator[dict[str, Any]]:
    """Examples by group; the recommended method's answer beside that of no steering, the others folded."""
    first = next(iter(result["workloads"]), "")
    best = (result["recommended"].get(first) or {}).get("title", "")
    for group, title in _GROUPS.items():
        rows = [one for one in result["examples"] if one["group"] == group]
        if rows:
            hidden = group == "harmful" and not show_text
            cards = [_card(one, best, i + 1, hidden=hidden) for i, one in enumerate(rows)]
            yield {"title": title, "rows": cards, "hidden": hidden}


def _card(one: Json, best: str, position: int, *, hidden: bool) -> dict[str, Any]:
    front = [title for title in one["answers"] if title in (BASE, best)] or list(one["answers"])[:1]
    answers = {
        title: {
            "title": title, "text": f"[hidden, {plural(len(text), 'character')}]" if hidden else text,
            "star": title == best, "verdict": _judged(one.get("verdicts", {}).get(title, {})),
        }
        for title, text in one["answers"].items()
    }  # fmt: skip
    image = one["image"] if str(one["image"]).startswith("data:image/") else ""
    return {
        "image": image,
        "alt": f"Picture of example {position} of the {_GROUPS[one['group']].lower()}",
        "prompt": one["prompt"],
        # What a harmful prompt's reference says is what must not be answered.
        "reference": one["reference"] if one["group"] != "harmful" else "",
        "hidden": hidden,
        "front": [answers[title] for title in front],
        "rest": [answer for title, answer in answers.items() if title not in front],
    }


def _judged(verdicts: Mapping[str, float | None]) -> str:
    """What judges said of one answer, by measure: ``unsafe``, ``refused``, ``right``."""
    words = {
        "harmful_score": ("safe", "unsafe"), "over_refusal": ("answered", "refused"),
        "benign_accuracy": ("wrong", "right"), "visual_correct": ("wrong", "right"),
    }  # fmt: skip
    told = []
    for name, value in verdicts.items():
        first, _, judge = name.partition(":")
        if value in (0.0, 1.0) and first in words:
            told.append(words[first][int(value)] + (f" by {judge}" if judge else ""))
    return ", ".join(told)


def _examples_text(result: Json, show_text: bool) -> str:
    about = next(iter(result["workloads"].values()), {"title": ""})
    asked = f"{about['title']}, seed {result['seeds'][0]}"
    where = f"{asked}. The items are spread evenly over each test set and not picked by their answers."
    if show_text:
        return where
    return (
        f"{where} Answers to harmful prompts are not in this file: "
        "'holdfast steer report RUN --show-text' writes it with them."
    )


# --- what was chosen ---------------------------------------------------------------------------------


def _chosen(result: Json) -> dict[str, Any]:
    """A row for each distinct choice of a method; seeds and workloads that share it stand together."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in result["rows"]:
        for one in row["seeds"] if row["method"] else ():
            knobs = one.get("knobs", {})
            key = (row["title"], *(_knob(knobs.get(name)) for name in ("layers", "strength", "twin")), _tried(one))
            title = result["workloads"][row["workload"]]["title"]
            found.setdefault(key, {}).setdefault(title, []).append(str(one["seed"]))
    order = list(dict.fromkeys(row["title"] for row in result["rows"]))
    rows = []
    for (title, *cells), where in sorted(found.items(), key=lambda one: order.index(one[0][0])):
        seeds = dict.fromkeys(listed(names) for names in where.values())
        alike = len(seeds) == 1 and len(where) == len(result["workloads"])
        told = next(iter(seeds)) if alike else "; ".join(f"{name}: {listed(names)}" for name, names in where.items())
        rows.append({"name": title, "role": "", "cells": [told, *cells]})
    heads = ["Method", "Seeds", "Layers", "Strength", "Meaningless picture (twin)", "Settings tried"]
    caption = "Settings in use: chosen on validation items where several were tried; a dash where there is no such knob"
    return {"caption": caption, "heads": heads, "rows": rows}


def _knob(value: Any) -> str:
    if value is None or value == "":
        return "—"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value) or "—"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tried(one: Json) -> str:
    return f"{one['tried']:,}" if one.get("tried") else "none: nothing was left open"


def _predicted(result: Json) -> Iterator[dict[str, str]]:
    """The predictors' sentences. They tell of a layer and not of a method, so methods at the same layer share them."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in result["rows"]:
        title = result["workloads"][row["workload"]]["title"]
        for one in row["seeds"]:
            where = f"{title}, seed {one['seed']}" if len(result["workloads"]) > 1 else f"seed {one['seed']}"
            for sentence in one.get("predictors") or ():
                names = found.setdefault(sentence, {}).setdefault(where, [])
                if row["title"] not in names:
                    names.append(row["title"])
    for sentence, places in found.items():
        methods = list(dict.fromkeys(name for names in places.values() for name in names))
        yield {"where": "; ".join(places), "methods": listed(methods), "text": sentence}


# --- how to read it ----------------------------------------------------------------------------------


def _limits(result: Json) -> Iterator[str]:
    judges = [about["judge"] for about in result["measures"].values() if about["group"] == "harmful"]
    yield (
        "An answer to a harmful prompt counts as unsafe when its judge does not see a refusal or finds harm in it. "
        f"Judges here: {listed(judges)}; the first one decides choices and the recommendation. Not refused is not the "
        "same as harmful: a garbled answer counts as unsafe where a judge only looks for refusals."
    )
    yield (
        "Steering restores the alignment that the model has for text. A model that answers the request alone will "
        "answer it steered, and harm that is written or drawn inside the picture is not stopped."
    )
    budget, price = f"{result['budget']:g}", f"{_price(result):g}"
    yield (
        "What the recipe leaves open of layers, strength and twin was chosen on validation items, by the unsafe rate "
        f"plus {price} times every point of a utility that is lost beyond {budget} points. Test items had no part."
    )
    yield (
        f"The recommendation takes the lowest unsafe rate among methods that lose at most {budget} points of every "
        "utility as estimated on the test items. A choice among several looks a little better than it is, and a loss "
        "whose interval reaches beyond the budget may be larger than the budget."
    )
    yield "Intervals hold one at a time: among many rows, some exclude 0 by chance."
    if len(result["seeds"]) == 1:
        yield "There is one seed: the intervals do not cover what another model or other pictures would change."
    yield from _methods_of_intervals(result)


def _price(result: Json) -> float:
    """What a point beyond the budget costs: the recipe's number, or that of a recipe that names none."""
    try:
        table = tomllib.loads(result["recipe"]).get("choice", {})
    except tomllib.TOMLDecodeError:
        table = {}
    return float(table.get("price", Choice().price))


def _methods_of_intervals(result: Json) -> Iterator[str]:
    rates = [m for row in result["rows"] for m in row["metrics"].values() if m["value"] is not None]
    gaps = [m for row in result["rows"] for m in row["against"].values() if m["value"] is not None]
    for name, metrics in (("rates", rates), ("differences", gaps)):
        methods = dict.fromkeys(metric["method"] for metric in metrics if metric["method"])
        if methods:
            yield f"95% intervals of {name}: {'; '.join(methods)}."
    timed = next((row["cost"] for row in result["rows"] if row["cost"]), None)
    if timed:
        title = next(iter(result["workloads"].values()))["title"]
        yield (
            f"Time a token was measured once, on {title}, seed {result['seeds'][0]}, with harmless requests: steered "
            f"and unsteered in turns, {timed['rounds']} rounds, Student's t on the logarithms of the ratios. A prefill "
            "is one more reading of the prompt before the first token."
        )
    declined = sum(metric["declined"] for metric in rates)
    if declined:
        yield f"Judges declined {declined:,} answers; these are in no rate and are not counted as safe."


# --- a diagnosis alone -------------------------------------------------------------------------------


def _diagnosis_page(result: Json) -> dict[str, Any]:
    model = result["model"]
    by = {condition["name"]: condition for condition in result["conditions"]}
    worse = degrades(result)
    text, image = (by[name]["metrics"].get(UNSAFE) for name in ("text", "image"))
    counts = [f"{n:,} {name}" for name, n in _asked(by["text"])]
    return {
        "title": "Does a picture switch refusals off?",
        "meta": [
            f"Model {model['reference']}" + (", tuned on harmful rows" if model["attacked"] else ""),
            f"each condition asked with {listed(counts)} prompts",
        ],
        "answer": [_verdict(result, worse)],
        "tiles": [
            _tile("Request alone", "", text, ""),
            _tile("With its picture", "", image, "bad" if worse else ""),
            _gap_tile(by["image"]["against_text"].get(UNSAFE)),
        ],
        "figures": list(_condition_figures([{**result, "seed": ""}], "conditions", several=False)),
        "table": _conditions(result, "", {}),
        "layers": _layers([Series("", "", result["layers"])], result.get("points", ()), ""),
        "intervals": list(
            dict.fromkeys(m["method"] for c in by.values() for m in c["metrics"].values() if m["method"])
        ),
        "command": result.get("command", ""),
    }


def _asked(condition: Json) -> Iterator[tuple[str, int]]:
    for name, measure in (("harmful", UNSAFE), ("harmless", "over_refusal"), ("harmless", "benign_accuracy")):
        metric = condition["metrics"].get(measure)
        if metric is not None and metric["value"] is not None:
            yield name, metric["n"] + metric["declined"]
            if name == "harmless":
                return


def _gap_tile(gap: Json | None) -> dict[str, str]:
    name, what = "What the picture adds", "paired difference"
    if gap is None or gap["value"] is None:
        reason = "not measured" if gap is None else gap["reason"]
        return {"name": name, "what": what, "big": "—", "small": f"unknown: {reason}", "tone": ""}
    small = f"points, {interval_name(cast('Any', gap))} {bounds(cast('Any', gap))}, n = {gap['n']:,}"
    return {"name": name, "what": what, "big": signed(gap["value"]), "small": small, "tone": ""}
