"""``holdfast demo | bench | report``: a recipe in, a table and a page out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from holdfast.cli.common import Common, emit, this_command
from holdfast.core.errors import RunError
from holdfast.core.files import read_json
from holdfast.models.engine import Engine

Flat = Parameter(name="*")


def demo(
    *,
    workers: int = 0,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Run the main job on the embedded sandbox: every defence, three seeds, one report.

    Args:
        workers: processes; 0 is one for each core.
    """
    return bench("sandbox", workers=workers, engine=engine, common=common)


def bench(
    recipe: str,
    *,
    dry_run: bool = False,
    workers: int = 0,
    show_text: bool = False,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Compare defences: a recipe in, a table and a report out.

    Args:
        recipe: a TOML file, or the name of a shipped recipe ('holdfast list recipes').
        dry_run: print what would run, how long and how large, and stop.
        workers: processes; 0 is one for each core.
        show_text: print answers to harmful prompts in the report.
    """
    from holdfast.models.load import require_torch

    require_torch()  # before the modules that need it: a missing extra is a message, not a trace
    from holdfast.finetune import bench as benches
    from holdfast.finetune.estimate import estimate, estimate_text
    from holdfast.finetune.plan import make_plan
    from holdfast.finetune.recipe import find_recipe, read_recipe

    plan = make_plan(*read_recipe(find_recipe(recipe)))
    guess = estimate(plan, common.store, workers, engine)
    benches.check_plan(plan, common.store, guess)
    if dry_run:
        emit(common, guess, estimate_text(plan, guess), then=f"holdfast bench {recipe}")
        return 0
    if not common.json and not common.quiet:
        print(estimate_text(plan, guess), file=sys.stderr)
    with common.sink() as sink:
        run, result = benches.run_bench(
            plan, common.store, engine, workers=workers, command=this_command(), show_text=show_text, sink=sink
        )
    page = run.path / "report.html"
    emit(common, result, table_text(result) + f"\n\nreport: {page}", run=run.path, then=f"holdfast report {run.path}")
    return 0 if result["complete"] else 1


def report(
    run: str,
    *,
    out: Path | None = None,
    show_text: bool = False,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Write the HTML report of a bench again.

    Args:
        run: run folder, name or key of a 'holdfast bench' or 'holdfast demo'.
        out: file to write; by default report.html in the run folder.
        show_text: print answers to harmful prompts.
    """
    from holdfast.report.page import write

    found = common.store.find(run)
    if found.kind != "bench":
        raise RunError(f"{found.name} is a {found.kind} run", hint="reports are made of benches: holdfast bench RECIPE")
    result = _metrics(found.path)
    page = out or found.path / "report.html"
    write(result, page, show_text=show_text)
    emit(common, {"report": str(page)}, f"report: {page}", run=found.path)
    return 0


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise RunError(f"{folder} has no metrics.json: the bench has not finished", hint="run its command again")
    found = read_json(path)
    assert isinstance(found, dict)
    return found


def table_text(result: dict[str, Any]) -> str:
    """The results for a terminal (coloured when it is one) or a pipe."""
    from holdfast.report import terminal

    return terminal.text(result, colour=sys.stdout.isatty())
