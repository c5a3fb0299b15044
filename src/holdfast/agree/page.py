"""The verdict page: one HTML file that needs no network, made of nothing but an assessment.

Names of items, raters and labels are foreign text: the template escapes everything that is not marked as ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from holdfast.agree import charts
from holdfast.agree.terminal import more_of
from holdfast.agree.verdict import KEPT
from holdfast.report import parts

_TODO = {
    "replaceable": "Use it in place of a person on items like these.",
    "usable with correction": "Not for single labels. For averages: let people label a random part, and correct.",
    "not replaceable": "Keep people, or look for a better judge.",
    "undecided": "Too little is known: see the reasons for what is missing.",
    "task unclear": "Mend the task first: people do not agree enough to check any judge.",
}
_TONE = {"replaceable": "good", "not replaceable": "bad", "task unclear": "bad"}
_NAMES = {
    "contrast": "judge − person", "contrast_agree": "judge − person, others agree",
    "contrast_split": "judge − person, others split", "share_agree": "share of items on which others agree",
    "judge_score": "judge's agreement with people", "person_score": "a person's agreement with the others",
    "judge_kappa": "judge's agreement beyond chance", "person_kappa": "a person's agreement beyond chance",
    "alpha_one_person": "alpha of judge and one person", "contrast_other_score": "judge − person, the other score",
    "pearson": "Pearson's r of means", "spearman": "Spearman's rho of means", "kendall": "Kendall's tau-b of means",
    "spearman_median": "Spearman's rho of medians", "js_b": "JS_b of the paper, bits",
    "js_judge": "JS from a person, cross-fit, bits", "js_floor": "the same for one more person",
    "js_excess": "JS beyond one more person", "multiplier": "worth of a human label with the judge's help",
    "corrected_mean": "mean by people, with the judge's help",
    "invalid": "answers that are no label", "self_alpha": "alpha over the judge's runs",
    "system_tau": "tau-b of the systems' ranking", "system_sign_errors": "pairs of systems the wrong way round",
    "alpha_nominal": "Krippendorff's alpha (nominal)", "alpha_ordinal": "Krippendorff's alpha (ordinal)",
    "alpha_interval": "Krippendorff's alpha (interval)", "pairwise_agreement": "equal labels of two people",
    "gwet_ac1": "Gwet's AC1", "gwet_ac2": "Gwet's AC2 (quadratic)", "fleiss_kappa": "Fleiss' kappa",
    "randolph_kappa": "Randolph's kappa",
}  # fmt: skip


def render(result: Mapping[str, Any], *, command: str, title: str) -> str:
    """The page as HTML. Equal assessments give equal bytes.

    Args:
        result: JSON object of an assessment.
        command: that makes the page again.
        title: of the page.
    """
    return parts.page("agree.html.j2", _page(result, command, title))


def _page(result: Mapping[str, Any], command: str, title: str) -> dict[str, Any]:
    judges, controls = result["judges"], result["controls"]
    people = [one for one in controls if one["role"] == "held-out person"]
    several = sum(one["role"] == "judge" for one in judges)
    alternative = list(_alternative_rows(judges + people))
    return {
        "title": title,
        "meta": _meta(result),
        "sections": list(_sections(bool(alternative))),
        "answer": list(_answer(result)),
        "notes": result["notes"],
        "tiles": [_tile(one, more_of(result)) for one in judges],
        "margin": f"{result['margin']:.3f}",
        "margin_how": "set by rule" if result["settings"]["margin"] is None else "declared",
        "joint": f"The bounds that decide hold jointly for the {several} judges." if several > 1 else "",
        "reasons": [_reasons(one, more_of(result)) for one in judges],
        "people_text": _people_text(result),
        "people": _numbers_table("People among themselves", result["people"]),
        "contrasts": list(_contrast_figures(result)),
        "replacement": _replacement(result),
        "differences": _differences(result),
        "perception": list(_perception_figures(result)),
        "confusions": [_confusion(result, one) for one in judges],
        "worst": [_worst(one) for one in judges if one["worst"]],
        "alternative": {
            "caption": "Each person in turn, against the judge", "heads": _ALTERNATIVE_HEADS, "rows": alternative,
        } if alternative else None,
        "alternative_text": _alternative_text(result),
        "numbers": [_numbers_table(f"{one['name']} ({one['role']})", one["metrics"]) for one in (*judges, *controls)],
        "health": _health(result),
        "command": command,
        "method": f"{result['people']['pairwise_agreement']['method']}, {result['settings']['level']:.0%} intervals.",
        "seed": result["settings"]["seed"],
    }  # fmt: skip


def _sections(alternative: bool) -> Iterator[tuple[str, str]]:
    yield from (("reasons", "Why"), ("people", "People"), ("replacement", "Judge against person"))
    yield from (("perception", "Perception"), ("errors", "Differences"))
    if alternative:
        yield "alternative", "Alternative annotator test"
    yield from (("numbers", "All numbers"), ("health", "Ratings"), ("again", "Run it again"), ("words", "Pitfalls"))


def _meta(result: Mapping[str, Any]) -> str:
    health, labels = result["health"], result["labels"]
    parts = [
        f"{health['items']:,} items", f"{health['ratings_by_people']:,} ratings by {health['people']:,} people",
        f"{len(result['judges'])} judges", f"labels {', '.join(map(str, labels['names'][:12]))} ({labels['level']})",
    ]  # fmt: skip
    return " · ".join(parts)


def _answer(result: Mapping[str, Any]) -> Iterator[str]:
    judges = [one for one in result["judges"] if one["role"] == "judge"]
    if not judges:
        yield "The table has no judge: this page shows how well people agree, which is what a judge would be held to."
        return
    for kind, todo in _TODO.items():
        names = [one["name"] for one in judges if one["verdict"]["kind"] == kind]
        if names:
            yield f"{_listed(names)}: {kind}. {todo}"


def _tile(one: Mapping[str, Any], more: str) -> dict[str, str]:
    verdict = one["verdict"]
    todo = _TODO[verdict["kind"]]
    if verdict["items_needed"]:
        todo += f" About {verdict['items_needed']:,} items in all{more} would decide."
    if verdict["kind"] == "undecided" and any("worth" in reason for reason in verdict["reasons"]):
        todo += " For averages it helps already, with correction."
    return {"name": one["name"], "kind": verdict["kind"], "todo": todo, "tone": _TONE.get(verdict["kind"], "")}


def _reasons(one: Mapping[str, Any], more: str) -> dict[str, Any]:
    verdict = one["verdict"]
    reasons = [*verdict["reasons"]]
    if verdict["items_needed"]:
        reasons.append(
            f"about {verdict['items_needed']:,} items in all{more} would decide, if the estimates stayed as they are"
        )
    return {"name": one["name"], "kind": verdict["kind"], "reasons": [f"{r[0].upper()}{r[1:]}." for r in reasons]}


def _people_text(result: Mapping[str, Any]) -> str:
    level = result["labels"]["level"]
    alpha, pairs = result["people"][f"alpha_{level}"], result["people"]["pairwise_agreement"]
    if alpha["value"] is None or pairs["value"] is None:
        return f"Agreement among people is undefined: {alpha['reason'] or pairs['reason']}."
    shown = _shown(alpha)
    return (
        f"Two people give the same label to {pairs['value']:.0%} of the items. Their agreement as alpha ({level}) is "
        f"{shown['value']} {shown['interval']}, where 1 is perfect and 0 is chance."
    )


def _contrast_figures(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    told = (
        ("contrast", "All items", "Dots are estimates, bars intervals. The dashed line is the margin."),
        (
            "contrast_agree",
            "Items on which the other people agree",
            "A judge that fails here misses what is plain to people.",
        ),
        ("contrast_split", "Items on which the other people are split", ""),
    )
    for place, (key, title, text) in enumerate(told):
        chart = charts.contrasts(result, key)
        if chart is not None:
            yield parts.figure(f"contrast-{place}", chart, title, text)


def _perception_figures(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for place, one in enumerate(result["judges"]):
        chart = charts.perception(result, one)
        if chart is not None:
            yield parts.figure(f"perception-{place}", chart, f"Perception chart: {one['name']}", "")


def _replacement(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "contrast",
        "contrast_agree",
        "contrast_split",
        "judge_score",
        "person_score",
        "judge_kappa",
        "person_kappa",
    )
    rows = [
        {
            "name": one["name"],
            "role": one["role"],
            "cells": [_shown(one["metrics"][key], sign=key.startswith("c")) for key in keys],
        }
        for one in (*result["judges"], *result["controls"])
    ]
    caption = f"A judge is replaceable only if it also keeps {KEPT:.0%} of a person's agreement beyond chance"
    return {"caption": caption, "heads": ["", *(_NAMES[key] for key in keys)], "rows": rows}


def _differences(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Pairs of judges: whether one is better than the other on the same items and resamples."""
    rows = [
        {
            "name": f"{pair['left']} − {pair['right']}",
            "role": "",
            "cells": [_shown(pair["metrics"][key], sign=True) for key in ("contrast", "judge_kappa")],
        }
        for pair in result["differences"]
    ]
    heads = ["", "difference in judge − person", "difference in agreement beyond chance"]
    return (
        {"caption": "Judges compared with one another, on the same items", "heads": heads, "rows": rows}
        if rows
        else None
    )


def _confusion(result: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    names = [*map(str, result["labels"]["names"]), "INVALID"]
    table = one["confusion"]
    used = [j for j in range(len(names)) if j < len(names) - 1 or any(row[j] for row in table)]
    rows = [
        {"name": f"people say {names[i]}", "role": "", "cells": [f"{row[j]:.1%}" for j in used]}
        for i, row in enumerate(table)
    ]
    heads = ["", *(f"{one['name']} says {names[j]}" for j in used)]
    return {"caption": f"{one['name']}: share of (person, judge) pairs of labels", "heads": heads, "rows": rows}


def _worst(one: Mapping[str, Any]) -> dict[str, Any]:
    def told(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{label} ×{n}" if n > 1 else label for label, n in counts.items())

    rows = [
        {"name": row["item"], "role": "", "cells": [told(row["people"]), told(row["judge"])]} for row in one["worst"]
    ]
    table = {
        "caption": "The judge scores lowest here, compared with people",
        "heads": ["item", "people", "judge"],
        "rows": rows,
    }
    return {"name": one["name"], "rows": rows, "table": table}


_ALTERNATIVE_HEADS = ["", "winning rate", "passes", "advantage probability", "epsilon"]


def _alternative_rows(judges: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in judges:
        test = one.get("alttest")
        if test is None:
            continue
        if test["winning_rate"] is None:
            cells = [test["reason"], "", "", ""]
        else:
            passed = "yes" if test["passed"] else "no"
            cells = [f"{test['winning_rate']:.2f}", passed, f"{test['advantage']:.3f}", f"{test['epsilon']:g}"]
        yield {"name": one["name"], "role": one["role"], "cells": cells}


def _alternative_text(result: Mapping[str, Any]) -> str:
    point = result["health"].get("alttest_operating_point")
    if not point or point["random"] is None:
        return "Calderon, Reichart and Dror 2025."
    return (
        f"Calderon, Reichart and Dror 2025. At {point['n_items']:,} items and {point['n_humans']} people it passes "
        f"{point['random']:.0%} of judges that answer at random among people who do, and {point['exchangeable']:.0%} "
        "of judges that answer exactly as one more person would (simulated)."
    )


def _numbers_table(caption: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "name": _name(key),
            "role": "",
            "cells": [_shown(number), f"{number['n']:,}", number["method"] or number["reason"]],
        }
        for key, number in metrics.items()
    ]
    return {"caption": caption, "heads": ["", "estimate and interval", "n", "how"], "rows": rows}


def _name(key: str) -> str:
    for start, told in (
        ("true_positive_rate_", "true positive rate of"),
        ("false_positive_rate_", "false positive rate of"),
    ):
        if key.startswith(start):
            return f"{told} {key.removeprefix(start)}"
    for start, told in (("cohen_quadratic_", "Cohen's kappa (quadratic) with"), ("cohen_", "Cohen's kappa with")):
        if key.startswith(start):
            return f"{told} {key.removeprefix(start)}"
    if key.startswith("corrected_share_"):
        return f"share of {key.removeprefix('corrected_share_')} by people, with the judge's help"
    return _NAMES.get(key, key.replace("_", " "))


def _shown(number: Mapping[str, Any], sign: bool = False) -> dict[str, str]:
    """A number as the page shows it; empty value and a reason where undefined."""
    if number["value"] is None:
        return {"value": "", "interval": "", "reason": number["reason"]}
    form = "+.3f" if sign else ".3f"
    unit = "%" if number["unit"] == "%" else ""
    interval = ""
    if number["low"] is not None:
        interval = f"[{_text(number['low'], form)}, {_text(number['high'], form)}]"
    return {"value": f"{_text(number['value'], form)}{unit}", "interval": interval, "reason": number["reason"]}


def _text(value: float, form: str) -> str:
    text = f"{value:{form}}"
    return text.replace("-", "−") if float(text) else text.lstrip("-+")


def _health(result: Mapping[str, Any]) -> dict[str, Any]:
    health = result["health"]
    names = [str(name) for name in result["labels"]["names"]]

    def shares(values: Sequence[float]) -> str:
        return ", ".join(f"{name} {value:.0%}" for name, value in zip(names, values, strict=True))

    each = ", ".join(f"{n:,} items with {size}" for size, n in health["people_per_item"].items())
    rows = [
        ("items", f"{health['items']:,}"),
        ("people an item", each),
        ("documents", f"{health['documents']:,}" if health["documents"] else "none repeats"),
        ("systems", f"{health['systems']:,}" if health["systems"] else "none repeats"),
        ("people's labels", shares(health["label_shares_people"])),
    ]
    for name, judge in health["judges"].items():
        told = f"{judge['ratings']:,} in {judge['runs']} runs, {judge['invalid']:,} invalid; "
        told += shares(judge["label_shares"])
        rows.append((f"labels of {name}", told))
    rows.extend(
        (f"design effect, {one['name']}", f"{one['design_effect']:.1f} (variance over that of independent items)")
        for one in result["judges"]
        if one["design_effect"] is not None
    )
    table = [{"name": name, "role": "", "cells": [text]} for name, text in rows]
    return {"caption": "What was rated", "heads": ["", ""], "rows": table}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
