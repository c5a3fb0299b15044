"""Results of a grid: rates, paired differences and costs of each defence, in the report's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.core.records import Direction, Metric, Rating
from holdfast.core.runs import Run, Store, provenance
from holdfast.core.stage import request_key
from holdfast.finetune.grid import cell_run
from holdfast.finetune.plan import Cell, Plan, chain
from holdfast.finetune.threat import LIMITS, threat_model
from holdfast.models.ask import samples_of
from holdfast.models.grid import GridResult
from holdfast.raters.base import Judge
from holdfast.raters.judging import judge_run
from holdfast.raters.measure import difference, measure_for, rate
from holdfast.raters.people import people_values

_SHOWN_ANSWERS = 3


@dataclass(frozen=True)
class Measured:
    """One cell's ratings and costs. ``ratings`` and ``people``: measure name -> ratings, item -> people's value."""

    cell: Cell
    run: Run
    chain: tuple[Run, ...]
    ratings: Mapping[str, list[Rating]]
    people: Mapping[str, Mapping[str, float]]


def collect(plan: Plan, store: Store, grid: GridResult, command: str) -> dict[str, Any]:
    """All results of a plan as JSON values (the schema is that of :mod:`holdfast.report.schema`).

    Args:
        plan: what was made.
        store: where.
        grid: what failed.
        command: how to make it again.
    """
    measured, missing = _measure_all(plan, store, grid)
    groups: dict[tuple[str, str | None, float | None], list[Measured]] = {}
    for one in measured:
        where = one.cell.workload.name if one.cell.workload else None
        groups.setdefault((one.cell.defence.title, where, one.cell.p), []).append(one)
    baseline = {k[1:]: v for k, v in groups.items() if k[0] == plan.recipe.baseline}
    cells = [_summary(part, baseline.get(key[1:], [])) for key, part in groups.items() if key[1] is not None]
    aligned = [_summary(part, []) for key, part in groups.items() if key[1] is None]
    recipe = plan.recipe
    return {
        "format": 1,
        "title": recipe.title,
        "command": command,
        "recipe": plan.text,
        "model": recipe.model,
        "seeds": list(recipe.seeds),
        "baseline": recipe.baseline,
        "measures": _measures(plan),
        "workloads": {w.name: {"title": w.title or w.name, "text": w.text} for w in recipe.workload},
        "threat_model": threat_model(),
        "cells": cells,
        "aligned": aligned,
        "answers": _answers(measured, recipe.seeds[0]),
        "notes": [*recipe.notes, *LIMITS],
        "environment": _environment(measured),
        "complete": not missing,
        "missing": missing,
    }


def measure_names(judges: Sequence[tuple[str, Judge]]) -> list[str]:
    """Names of what each judge measures; a second judge of the same measure is named behind it."""
    names: list[str] = []
    for group, judge in judges:
        name = measure_for(group, judge.scale.name).name
        others = (f"{name}/{judge.name}{number}" for number in ("", *(f"-{n}" for n in range(2, len(judges) + 2))))
        names.append(next(free for free in (name, *others) if free not in names))
    return names


def _measure_all(plan: Plan, store: Store, grid: GridResult) -> tuple[list[Measured], list[dict[str, Any]]]:
    measured, missing = [], []
    for cell in plan.cells:
        reason = grid.failed.get(request_key(cell.ask))
        if reason is not None:
            where = cell.workload.name if cell.workload else None
            title = cell.defence.title
            missing.append({"defence": title, "workload": where, "p": cell.p, "seed": cell.seed, "reason": reason})
            continue
        run = cell_run(store, cell.ask)
        samples = samples_of(run)
        rated = [judge_run(run, judge, samples, group=group).ratings for group, judge in cell.judges]
        links = tuple(store.run(r.kind, r.label, r.spec) for r in chain(cell.ask.base))
        people = [people_values(run, judge.scale.name, group) for group, judge in cell.judges]
        names = measure_names(cell.judges)
        measured.append(
            Measured(cell, run, links, dict(zip(names, rated, strict=True)), dict(zip(names, people, strict=True)))
        )
    return measured, missing


def _measures(plan: Plan) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    judges = plan.cells[0].judges
    for name, (group, judge) in zip(measure_names(judges), judges, strict=True):
        measure = measure_for(group, judge.scale.name)
        label = measure.label if name == measure.name else f"{measure.label} ({judge.name})"
        found[name] = {"label": label, "unit": "%", "better": measure.better}
    return found


def _against(name: str, better: Direction, pairs: Sequence[tuple[Measured, Measured]]) -> Metric:
    """Difference from the baseline by the judge; none beside rates that people corrected, which it may contradict."""
    if any(one.people[name] for pair in pairs for one in pair):
        why = "people rated answers: compare the corrected rates and their intervals"
        return Metric(name, None, None, None, 0, "points", better, reason=why)
    return difference(name, better, [a.ratings[name] for a, _ in pairs], [b.ratings[name] for _, b in pairs])


def _summary(part: Sequence[Measured], baseline: Sequence[Measured]) -> dict[str, Any]:
    """One line of the table: the same defence, workload and p over its seeds."""
    first = part[0].cell
    names = list(part[0].ratings)
    judges = dict(zip(names, first.judges, strict=True))

    def better(name: str) -> Any:
        group, judge = judges[name]
        return measure_for(group, judge.scale.name).better

    metrics = {
        name: rate(name, better(name), [one.ratings[name] for one in part], [one.people[name] for one in part])
        for name in names
    }
    against = {}
    if baseline and baseline[0].cell.defence.title != first.defence.title:
        pairs = _same_seeds(part, baseline)
        against = {name: _against(name, better(name), pairs) for name in names}
    return {
        "defence": first.defence.title,
        "workload": first.workload.name if first.workload else "none",
        "p": first.p,
        "stages": _stages(part[0]),
        "metrics": {name: metric.as_json() for name, metric in metrics.items()},
        "seeds": [_seed_line(one) for one in part],
        "against_baseline": {name: metric.as_json() for name, metric in against.items()},
        "cost": _cost(part, baseline),
    }


def _same_seeds(part: Sequence[Measured], baseline: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    by_seed = {one.cell.seed: one for one in baseline}
    return [(one, by_seed[one.cell.seed]) for one in part if one.cell.seed in by_seed]


def _seed_line(one: Measured) -> dict[str, Any]:
    line: dict[str, Any] = {"seed": one.cell.seed}
    for name, ratings in one.ratings.items():
        values = [rating.value for rating in ratings if rating.value is not None]
        line[name] = 100 * sum(values) / len(values) if values else None
    return line | {"runs": [one.run.name, *(run.name for run in one.chain)]}


def _stages(one: Measured) -> list[dict[str, Any]]:
    lines = []
    for request, run in zip(reversed(list(chain(one.cell.ask.base))), reversed(one.chain), strict=True):
        spec = request.spec
        lines.append(
            {
                "stage": request.kind,
                "method": spec["method"]["name"],
                "knobs": spec["method"]["knobs"],
                "training": spec.get("training", {}),
                "chosen": one.cell.defence.chosen,
                "run": run.name,
            }
        )
    return lines


def _cost(part: Sequence[Measured], baseline: Sequence[Measured]) -> dict[str, Any]:
    """Seconds to make the defended model (all its stages), and their ratio to the baseline's at equal seeds."""
    seconds = [_seconds(one) for one in part]
    ratios = [_seconds(a) / max(_seconds(b), 1e-9) for a, b in _same_seeds(part, baseline)]
    peaks = [run.seal_record()["summary"].get("peak_bytes") for one in part for run in one.chain if run.seal_record()]  # type: ignore[index]
    known = [peak for peak in peaks if peak is not None]
    return {
        "seconds": _spread("seconds", seconds, "s"),
        "ratio": _spread("cost_ratio", ratios, "x") if ratios else None,
        "peak_bytes": max(known) if known else None,
    }


def _seconds(one: Measured) -> float:
    """Processor seconds where they were measured (fair on a shared machine), else wall seconds."""
    total = 0.0
    for run in one.chain:
        record = run.seal_record() or {}
        summary = record.get("summary", {})
        total += float(summary.get("cpu_seconds") or record.get("seconds", 0.0))
    return total


def _spread(name: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return Metric(
        name, mean, min(values), max(values), len(values), unit, "lower", level=1.0, method="mean and range over seeds"
    ).as_json()


def _answers(measured: Sequence[Measured], seed: int) -> list[dict[str, Any]]:
    """A few answers of the first seed's attacked cells, for the reader's own eyes."""
    shown = []
    for one in measured:
        cell = one.cell
        if cell.seed != seed or cell.workload is None:
            continue
        samples = {s.item.id: s for s in samples_of(one.run)}
        for name, (group, _judge) in zip(one.ratings, cell.judges, strict=True):
            for rating in one.ratings[name][:_SHOWN_ANSWERS]:
                sample = samples[rating.item_id]
                shown.append(
                    {
                        "defence": cell.defence.title,
                        "workload": cell.workload.name,
                        "p": cell.p,
                        "seed": seed,
                        "group": group,
                        "measure": name,
                        "prompt": sample.item.prompt,
                        "text": sample.text,
                        "value": rating.value,
                        "reason": rating.reason,
                    }
                )
    return shown


def _environment(measured: Sequence[Measured]) -> dict[str, str]:
    here = provenance()
    flat = {"python": here["python"], "platform": here["platform"], "commit": here["commit"] or "installed package"}
    flat |= {f"{package} version": version for package, version in here["versions"].items()}
    if measured:
        flat["runs"] = str(len({run.name for one in measured for run in (one.run, *one.chain)}))
    return flat
