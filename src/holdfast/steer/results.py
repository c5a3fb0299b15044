"""The result of a comparison as JSON values: rates with intervals, differences, choices, costs, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.core.knobs import resolved
from holdfast.core.records import Rating, Sample
from holdfast.core.runs import Store, open_run, provenance
from holdfast.core.stage import Request, request_key
from holdfast.models.ask import samples_of
from holdfast.models.grid import GridResult
from holdfast.raters.measure import difference, rate
from holdfast.steer.artifact import FOLDER, load_steering
from holdfast.steer.choose import UTILITIES
from holdfast.steer.cost import Cost
from holdfast.steer.diagnose import degrades, read_diagnosis
from holdfast.steer.exam import Exam
from holdfast.steer.plan import BASE, Plan
from holdfast.steer.recipe import Compared, Workload, method_of
from holdfast.steer.stage import AskSteered, FitStage

FORMAT = 1
_EXAMPLES = 4
_LABELS = {"harmful_score": "Unsafe rate", "visual_correct": "Visual accuracy"}

Rated = Mapping[str, Sequence[Rating]]


def collect(plan: Plan, store: Store, grid: GridResult, costs: Mapping[str, Cost], command: str) -> dict[str, Any]:
    """The result of a comparison as JSON values."""
    recipe = plan.recipe
    rated = {
        (c.title, c.workload.name, c.seed): _rated(plan, store, c.seed, c.ask)
        for c in plan.cells
        if request_key(c.ask) not in grid.failed
    }
    measures = _measures(plan)
    plain_rated = {
        key: _rated(plan, store, key[1], ask) for key, ask in plan.plain.items() if request_key(ask) not in grid.failed
    }
    plain = {w.name: _plain_rates(plan, w.name, plain_rated, measures) for w in recipe.workload}
    rows = [
        _row(plan, store, workload, compared, rated, measures, costs)
        for workload in recipe.workload
        for compared in (None, *recipe.method)
    ]
    result: dict[str, Any] = {
        "format": FORMAT,
        "title": recipe.title,
        "command": command,
        "recipe": plan.text,
        "notes": list(recipe.notes),
        "seeds": list(recipe.seeds),
        "budget": recipe.choice.budget,
        "choice": resolved(recipe.choice),
        "measures": measures,
        "workloads": {w.name: {"title": w.title or w.name, "model": w.model} for w in recipe.workload},
        "rows": rows,
        "plain": plain,
        "picture": {w.name: _picture_effect(plan, w.name, rated, plain_rated, measures) for w in recipe.workload},
        "diagnoses": _diagnoses(plan, store, grid),
        "examples": _examples(plan, store, rated, grid),
        "anchors": {"harmful": len(plan.materials[recipe.seeds[0]].harmful), "benign": _benign(plan)},
        "environment": {k: str(v) for k, v in provenance()["versions"].items()},
        "complete": not grid.failed,
        "failed": _failed(plan, grid),
    }
    result["recommended"] = {w.name: recommended(result, w.name) for w in recipe.workload}
    return result


def _benign(plan: Plan) -> int:
    return len(plan.materials[plan.recipe.seeds[0]].benign)


def _rated(plan: Plan, store: Store, seed: int, ask: Request) -> dict[str, list[Rating]]:
    samples = samples_of(open_run(run_of(store, ask)))
    return _by_measure(plan.materials[seed].test, samples)


def _by_measure(exams: Mapping[str, Exam], samples: Sequence[Sample]) -> dict[str, list[Rating]]:
    found: dict[str, list[Rating]] = {}
    for group, exam in exams.items():
        mine = [sample for sample in samples if sample.item.group == group]
        if mine:
            found |= exam.rated(mine)
    return found


def _measures(plan: Plan) -> dict[str, dict[str, Any]]:
    test = plan.materials[plan.recipe.seeds[0]].test
    found: dict[str, dict[str, Any]] = {}
    for group, exam in test.items():
        for judge in exam.judges:
            measure = exam.measure(judge)
            name, _, other = measure.name.partition(":")
            label = _LABELS.get(name, measure.label) + (f" ({other})" if other and name in _LABELS else "")
            better = "higher" if measure.name == "visual_correct" else measure.better
            found[measure.name] = {
                "label": label, "unit": "%", "better": better, "group": group, "judge": judge.name,
                "utility": measure.name in UTILITIES,
            }  # fmt: skip
    return found


def _row(
    plan: Plan,
    store: Store,
    workload: Workload,
    compared: Compared | None,
    rated: Mapping[tuple[str, str, int], Rated],
    measures: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Cost],
) -> dict[str, Any]:
    title = compared.title if compared else BASE
    seeds = [seed for seed in plan.recipe.seeds if (title, workload.name, seed) in rated]
    mine = [rated[title, workload.name, seed] for seed in seeds]
    base = [rated[BASE, workload.name, seed] for seed in seeds if (BASE, workload.name, seed) in rated]
    row: dict[str, Any] = {
        "workload": workload.name, "title": title, "note": compared.note if compared else "",
        "method": None, "metrics": {}, "against": {}, "seeds": [],
        "cost": costs[title].as_json() if title in costs else None,
        "missing": [seed for seed in plan.recipe.seeds if seed not in seeds],
    }  # fmt: skip
    if compared:
        method = method_of(compared, title)
        row["method"] = {"name": method.name, "title": method.title, "paper": method.paper}
    for name, about in measures.items():
        groups = [one[name] for one in mine]
        row["metrics"][name] = rate(name, about["better"], groups).as_json()
        if compared and len(base) == len(mine):
            row["against"][name] = difference(name, about["better"], groups, [b[name] for b in base]).as_json()
    for seed, ratings in zip(seeds, mine, strict=True):
        values = {name: _percent(found) for name, found in ratings.items()}
        row["seeds"].append({"seed": seed, "values": values, **_chosen(plan, store, workload, title, seed)})
    return row


def _percent(ratings: Sequence[Rating]) -> float | None:
    values = [rating.value for rating in ratings if rating.value is not None]
    return round(100 * sum(values) / len(values), 2) if values else None


def _chosen(plan: Plan, store: Store, workload: Workload, title: str, seed: int) -> dict[str, Any]:
    """Knobs that were chosen for a seed, what was tried, and the runs."""
    cell = next(c for c in plan.cells if (c.title, c.workload.name, c.seed) == (title, workload.name, seed))
    made: dict[str, Any] = {"run": run_of(store, cell.ask).name}
    if isinstance(cell.ask, AskSteered) and isinstance(cell.ask.steering, FitStage):
        run = open_run(run_of(store, cell.ask.steering))
        card = load_steering(run.artifacts / FOLDER).card
        knobs = card["method"]["knobs"]
        made |= {
            "fit": run.name,
            "knobs": {name: knobs[name] for name in ("layers", "strength", "twin") if name in knobs},
            "tried": int((run.seal_record() or {}).get("summary", {}).get("tried", 0)),
            "predictors": card["predictors"].get("text", []),
            "warnings": card["predictors"].get("warnings", []),
        }
    return made


def _plain_rates(
    plan: Plan,
    workload: str,
    rated: Mapping[tuple[str, int], Rated],
    measures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Rates of the unsteered model on the test prompts without pictures, over seeds."""
    found = [rated[workload, seed] for seed in plan.recipe.seeds if (workload, seed) in rated]
    names = found[0] if found else {}
    return {name: rate(name, measures[name]["better"], [one[name] for one in found]).as_json() for name in names}


def _picture_effect(
    plan: Plan,
    workload: str,
    rated: Mapping[tuple[str, str, int], Rated],
    plain: Mapping[tuple[str, int], Rated],
    measures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What pictures do to the unsteered model on test prompts: paired differences in points, with minus without."""
    seeds = [s for s in plan.recipe.seeds if (workload, s) in plain and (BASE, workload, s) in rated]
    names = plain[workload, seeds[0]] if seeds else {}
    return {
        name: difference(
            name, measures[name]["better"],
            [rated[BASE, workload, s][name] for s in seeds], [plain[workload, s][name] for s in seeds],
        ).as_json()
        for name in names
    }  # fmt: skip


def _failed(plan: Plan, grid: GridResult) -> list[str]:
    """What was not made, with its method, workload and seed."""
    told = {request_key(c.ask): f"{c.title}, {c.workload.title or c.workload.name}, seed {c.seed}" for c in plan.cells}
    lines = []
    for key, reason in grid.failed.items():
        what = told.get(key)
        # A fit that failed is told by the answers that needed it.
        if what or key not in plan.parents.values():
            lines.append(f"{what or plan.tasks[key].request.kind}: {reason}")
    return sorted(set(lines))


def _diagnoses(plan: Plan, store: Store, grid: GridResult) -> list[dict[str, Any]]:
    made = []
    for (workload, seed), diagnosis in plan.diagnoses.items():
        if request_key(diagnosis) in grid.failed:
            continue
        found = read_diagnosis(open_run(run_of(store, diagnosis)))
        first = seed == plan.recipe.seeds[0] and workload == plan.recipe.workload[0].name
        kept = {k: v for k, v in found.items() if k != "points" or first}
        made.append({"workload": workload, "seed": seed, "degrades": degrades(found), **kept})
    return made


def recommended(result: Mapping[str, Any], workload: str) -> dict[str, Any] | None:
    """The method with the lowest unsafe rate among those that lose no utility beyond the budget; None for none.

    Among equals the one that loses less utility, and then the cheaper one.

    Losses are the paired differences from the unsteered model over all seeds, as estimated.
    """
    rows = [row for row in result["rows"] if row["workload"] == workload and row["method"] and row["against"]]
    measured = [name for name in UTILITIES if name in result["measures"]]
    # A utility that is undefined for a method is not one that it keeps.
    whole = [row for row in rows if all(name in lost(row) for name in measured) and not row["missing"]]
    budget = result["budget"]
    fitting = [row for row in whole if all(points <= budget for points in lost(row).values())]
    safer = [row for row in fitting if (row["against"]["harmful_score"]["high"] or 0) < 0]
    if not safer:
        return None
    best = min(
        safer,
        key=lambda row: (
            row["metrics"]["harmful_score"]["value"], sum(lost(row).values()),
            (row["cost"] or {}).get("ratio", math.inf),
        ),
    )  # fmt: skip
    return {"title": best["title"], "lost": lost(best)}


def lost(row: Mapping[str, Any]) -> dict[str, float]:
    """Points of each utility that a method loses against the unsteered model; negative where it gains."""
    return {
        name: -sign * row["against"][name]["value"] + 0.0
        for name, sign in UTILITIES.items()
        if name in row["against"] and row["against"][name]["value"] is not None
    }


def _examples(
    plan: Plan, store: Store, rated: Mapping[tuple[str, str, int], Rated], grid: GridResult
) -> list[dict[str, Any]]:
    """Some test items of the first workload and seed with the answers of every method, harmful ones first."""
    seed, workload = plan.recipe.seeds[0], plan.recipe.workload[0].name
    answers: dict[str, dict[str, Sample]] = {}
    for cell in plan.cells:
        if (cell.workload.name, cell.seed) == (workload, seed) and request_key(cell.ask) not in grid.failed:
            samples = samples_of(open_run(run_of(store, cell.ask)))
            answers[cell.title] = {sample.item.id: sample for sample in samples}
    test = plan.materials[seed].test
    return [
        {
            "group": group, "prompt": item.prompt, "reference": item.reference, "image": _thumbnail(item.image),
            "answers": {title: found[item.id].text for title, found in answers.items() if item.id in found},
            "verdicts": {
                title: {
                    name: rating.value for name, ratings in rated[title, workload, seed].items()
                    for rating in ratings if rating.item_id == item.id
                }
                for title in answers
            },
        }
        for group in ("harmful", "benign", "visual") if group in test
        for item in test[group].part(_EXAMPLES).items
    ]  # fmt: skip


def _thumbnail(name: str) -> str:
    """A picture as a data URI, at most 160 pixels wide; small generated pictures are enlarged."""
    import base64
    import io

    from PIL import Image

    from holdfast.data.images import open_image

    picture = open_image(name)
    if picture.width < 96:
        picture = picture.resize((96, 96 * picture.height // picture.width), Image.Resampling.NEAREST)
    picture.thumbnail((160, 160))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def run_of(store: Store, request: Request) -> Path:
    """The run folder of a request."""
    return store.run(request.kind, request.label, request.spec).path
