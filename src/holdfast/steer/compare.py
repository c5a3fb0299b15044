"""Comparing steering methods: every method on every workload and seed, as shared runs, then one result and one page.

What is compared with what: the unsteered model under the same pictures, the same prompts without pictures, and every
method under both, on test items that neither fitting nor choosing has seen.
"""

from __future__ import annotations

import time
from typing import Any

from holdfast.core.events import Sink, Warned, ignore
from holdfast.core.files import read_json, write_json, write_text
from holdfast.core.runs import Run, Store
from holdfast.core.stage import request_key
from holdfast.data.recipes import for_seed
from holdfast.models.engine import Engine
from holdfast.models.grid import GridResult, run_tasks
from holdfast.steer.cost import Cost, measure_costs
from holdfast.steer.plan import Plan, make_plan
from holdfast.steer.results import FORMAT, collect, run_of
from holdfast.steer.stage import AskSteered, FitStage

__all__ = ["KIND", "make_plan", "run_compare"]

KIND = "steer-compare"


def run_compare(
    plan: Plan, store: Store, engine: Engine, *, workers: int = 0, command: str = "", show_text: bool = False,
    sink: Sink = ignore,
) -> tuple[Run, dict[str, Any]]:  # fmt: skip
    """Make all of a plan, then its result and page.

    Raises:
        Interrupted, ResourceError: the grid stopped; the same call goes on.
    """
    from holdfast.steer.page import write

    began = time.perf_counter()
    grid = run_tasks(plan.tasks, plan.parents, store, engine, workers=workers, sink=sink)
    for key, reason in grid.failed.items():
        sink(Warned(message=f"{plan.tasks[key].request.kind} failed: {reason}"))
    run = store.run(KIND, KIND, compare_spec(plan))
    with run.working(sink):
        costs = kept_costs(run, plan, store, engine, grid)
        result = collect(plan, store, grid, costs, command)
        write_json(run.path / "metrics.json", result)
        write(result, run.path / "report.html", show_text=show_text)
        write_text(run.path / "recipe.toml", plan.text)
        if result["complete"]:
            run.seal(time.perf_counter() - began, runs=grid.made, reused=grid.reused)
    return run, result


def kept_costs(run: Run, plan: Plan, store: Store, engine: Engine, grid: GridResult) -> dict[str, Cost]:
    """Costs of the methods on the first workload and seed: measured once, kept in the run."""
    path = run.path / "costs.json"
    if path.is_file():
        return {title: Cost.from_json(value) for title, value in read_json(path).items()}
    seed, workload = plan.recipe.seeds[0], plan.recipe.workload[0]
    fitted = {
        cell.title: run_of(store, cell.ask.steering)
        for cell in plan.cells
        if isinstance(cell.ask, AskSteered) and cell.seed == seed and cell.workload is workload
        and isinstance(cell.ask.steering, FitStage) and request_key(cell.ask) not in grid.failed
    }  # fmt: skip
    exam = plan.materials[seed].test["benign"]
    costs = measure_costs(for_seed(workload.model, seed), fitted, exam, plan.recipe.speaking, engine)
    if grid.failed:  # what failed is timed when it is there
        return costs
    write_json(path, {title: cost.as_json() for title, cost in costs.items()})
    return costs


def compare_spec(plan: Plan) -> dict[str, Any]:
    """What a comparison's key is taken over: the answers it compares, and who judges them."""
    cells = [
        {"method": c.title, "workload": c.workload.name, "seed": c.seed, "ask": request_key(c.ask)} for c in plan.cells
    ]
    exams = {
        str(seed): {group: exam.identity()["judges"] for group, exam in here.test.items()}
        for seed, here in plan.materials.items()
    }
    return {"title": plan.recipe.title, "cells": cells, "exams": exams, "format": FORMAT}
