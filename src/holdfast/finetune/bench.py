"""A bench: plan, grid, results, page. What ``holdfast bench`` and ``holdfast demo`` do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.errors import ResourceError
from holdfast.core.events import Sink, Warned, ignore
from holdfast.core.files import free_bytes, write_json
from holdfast.core.runs import Run, Store
from holdfast.finetune.grid import bench_spec, run_plan
from holdfast.finetune.plan import Plan, make_plan
from holdfast.finetune.recipe import find_recipe, read_recipe
from holdfast.finetune.results import collect
from holdfast.finetune.stages import TrainStage
from holdfast.models.engine import Engine
from holdfast.models.load import load_tokenizer, require_torch, resolve
from holdfast.models.template import Template


def bench(recipe: str | Path, *, runs: str | Path = "runs", workers: int = 0, sink: Sink = ignore) -> dict[str, Any]:
    """Run a recipe and return its results; the run folder gets ``metrics.json`` and ``report.html``.

    Args:
        recipe: a TOML file, or the name of a shipped recipe.
        runs: folder of the runs.
        workers: processes; 0 is one for each core.
        sink: where events go.

    Raises:
        HoldfastError: see :mod:`holdfast.core.errors`.
    """
    plan = make_plan(*read_recipe(find_recipe(str(recipe))))
    store = Store(runs)
    check_plan(plan, store, {})
    _, result = run_bench(plan, store, Engine(), workers=workers, command=f"holdfast bench {recipe}", sink=sink)
    return result


def run_bench(
    plan: Plan,
    store: Store,
    engine: Engine,
    *,
    workers: int = 0,
    command: str = "",
    show_text: bool = False,
    sink: Sink = ignore,
) -> tuple[Run, dict[str, Any]]:
    """Make all of a plan, then its results and page; returns the bench's run and the results.

    Raises:
        Interrupted, ResourceError: the grid stopped; the same call goes on.
    """
    from holdfast.report.page import write

    began = time.perf_counter()
    for warning in shared_prompts(plan):
        sink(Warned(message=warning, hint="sets that share prompts make a defence look better than it is"))
    grid = run_plan(plan, store, engine, workers=workers, sink=sink)
    result = collect(plan, store, grid, command)
    run = store.run("bench", "bench", bench_spec(plan))
    with run.working(sink):
        write_json(run.path / "metrics.json", result)
        write(result, run.path / "report.html", show_text=show_text)
        if result["complete"]:
            run.seal(time.perf_counter() - began, stages=grid.made, reused=grid.reused)
    return run, result


def check_plan(plan: Plan, store: Store, guess: Mapping[str, Any]) -> None:
    """Everything that can be seen to fail before anything heavy runs: data, prompts, templates, disk.

    Raises:
        HoldfastError: what would have failed, hours later.
    """
    require_torch()
    first = plan.recipe.seeds[0]
    templates: dict[str, Template] = {}
    for request in plan.requests.values():
        request.validate()
        if isinstance(request, TrainStage) and request.seed == first:
            reference = request.reference
            if reference not in templates:
                templates[reference] = Template(load_tokenizer(resolve(reference)), request.template)
            for name, rows in request.rows().items():
                templates[reference].encode_all(rows, request.training.max_length, name)
    need, free = int(guess.get("disk_bytes", 0)), free_bytes(store.root)
    if need > free:
        raise ResourceError(
            f"the runs need about {need / 2**30:.2f} GiB of disk; {free / 2**30:.2f} are free",
            hint="free some space, choose another folder with --runs DIR, or train a LoRA",
        )


def shared_prompts(plan: Plan) -> list[str]:
    """Sentences about prompts that training and test sets share, for the first seed."""
    first = plan.recipe.seeds[0]
    asked = {item.prompt for cell in plan.cells if cell.seed == first for item in cell.ask.items}
    found: dict[str, str] = {}
    for request in plan.requests.values():
        if not isinstance(request, TrainStage) or request.seed != first:
            continue
        for name, rows in request.rows().items():
            both = {row.prompt for row in rows} & asked
            if both:
                found[name] = f"{len(both)} prompts of the {name} data are also asked in the test sets"
    return list(found.values())


__all__ = ["bench", "check_plan", "run_bench", "shared_prompts"]
