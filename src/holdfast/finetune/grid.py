"""Running a plan of defences: every distinct stage once (:mod:`holdfast.models.grid`), and what identifies a bench."""

from __future__ import annotations

from typing import Any

from holdfast.core.events import Sink, ignore
from holdfast.core.keys import key_of
from holdfast.core.runs import Run, Store
from holdfast.finetune.plan import Plan
from holdfast.models.ask import Ask
from holdfast.models.engine import Engine
from holdfast.models.grid import GridResult, Task, run_tasks


def run_plan(plan: Plan, store: Store, engine: Engine, *, workers: int = 0, sink: Sink = ignore) -> GridResult:
    """Make every stage of a plan; see :func:`holdfast.models.grid.run_tasks`.

    Raises:
        Interrupted: Ctrl-C; what was finished is kept.
        ResourceError: a process was killed (usually for memory).
    """
    judges = {id(cell.ask): cell.judges for cell in plan.cells}
    tasks = {key: Task(key, request, judges.get(id(request), ())) for key, request in plan.requests.items()}
    return run_tasks(tasks, plan.parents, store, engine, workers=workers, sink=sink)


def cell_run(store: Store, ask: Ask) -> Run:
    """The run folder of a cell's answers."""
    return store.run(ask.kind, ask.label, ask.spec)


def bench_spec(plan: Plan) -> dict[str, Any]:
    """What a bench's key is taken over: the answers it compares and who judges them."""
    from holdfast.raters.base import judge_spec

    cells = [
        {
            "defence": cell.defence.title,
            "workload": cell.workload.name if cell.workload else None,
            "p": cell.p,
            "seed": cell.seed,
            "ask": key_of({"kind": cell.ask.kind, "spec": cell.ask.spec}),
            "judges": [[group, judge_spec(judge)] for group, judge in cell.judges],
        }
        for cell in plan.cells
    ]
    return {"title": plan.recipe.title, "baseline": plan.recipe.baseline, "cells": cells}
