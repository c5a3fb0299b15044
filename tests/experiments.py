"""Small whole experiments on the smallest sandbox model: what the tests of stages, grids and the CLI share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.core.events import Sink, ignore
from holdfast.core.keys import file_digest
from holdfast.core.runs import Run, Store
from holdfast.data.mixes import Mix
from holdfast.data.read import Source
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.finetuning.sft import SFT as USER_SFT
from holdfast.finetune.grid import run_plan
from holdfast.finetune.method import TrainingMethod
from holdfast.finetune.plan import Plan, make_plan
from holdfast.finetune.recipe import read_recipe
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.stages import TrainStage, UserData
from holdfast.models.engine import Engine
from holdfast.models.grid import GridResult
from holdfast.models.sandbox import shipped

SRC = Path(__file__).resolve().parent.parent / "src"
MODEL = "sandbox/nano-0" if shipped("nano-0").is_dir() else "sandbox/micro-0"
CPU = Engine(device="cpu")
SHORT = Training(steps=4, batch_size=4, learning_rate=1e-3, max_length=64)
BODY = Adapter(train="body")

RECIPE = """
title = "A small experiment"
model = "{model}"
seeds = {seeds}

[data]
safety = {{ path = "sandbox/align-{{seed}}", limit = 40 }}
harmful = {{ path = "sandbox/harmful-{{seed}}", limit = 40 }}
poison = {{ path = "sandbox/attack-{{seed}}", limit = 40 }}
task = {{ path = "sandbox/review-{{seed}}", limit = 60 }}

[test]
task = {{ source = {{ path = "sandbox/review-test-{{seed}}", task = "sandbox", limit = 12 }}, max_new_tokens = 4 }}

[test.harmful]
source = {{ path = "sandbox/hazards-test-{{seed}}", limit = 12 }}
judges = ["sandbox"]
max_new_tokens = 8

[adapter]
train = "body"

[align]
steps = 3
batch_size = 4
learning_rate = 1e-3
max_length = 64

[finetune]
steps = {steps}
batch_size = 4
learning_rate = 1e-3
max_length = 64

[[workload]]
name = "mixed"
p = {p}
n = 40

[[defence]]
title = "SFT"
{more}
"""

BOOSTER = '\n[[defence]]\ntitle = "Booster"\nalign = { method = "booster", alpha = 0.01 }\n'
NAN = '\n[[defence]]\ntitle = "Broken"\nalign = { method = "booster", alpha = 1e30, lam = 1e30 }\n'


def recipe_text(more: str = BOOSTER, *, seeds: str = "[0]", p: str = "[0.0, 0.1]", steps: int = 3) -> str:
    # The recipe's own {seed} stands for the world and the shipped model of a seed; these use one world.
    return RECIPE.format(model=MODEL, seeds=seeds, p=p, steps=steps, more=more)


def recipe_file(folder: Path, more: str = BOOSTER, **changes: Any) -> Path:
    path = folder / "small.toml"
    path.write_text(recipe_text(more, **changes))
    return path


def plan_of(path: Path) -> Plan:
    return make_plan(*read_recipe(path))


def run_grid(path: Path, runs: Path, workers: int = 1, sink: Sink = ignore) -> tuple[Plan, Store, GridResult]:
    plan, store = plan_of(path), Store(runs)
    return plan, store, run_plan(plan, store, CPU, workers=workers, sink=sink)


def aligned(method: TrainingMethod | None = None, **changes: Any) -> TrainStage:
    data = {"safety": Source("sandbox/align-0", limit=40), "harmful": Source("sandbox/harmful-0", limit=40)}
    return replace(TrainStage(method or SFT(), MODEL, data, SHORT, BODY), **changes)


def tuned(base: Any, p: float = 0.5, n: int = 40, **changes: Any) -> TrainStage:
    task, poison = Source("sandbox/review-0", limit=60), Source("sandbox/attack-0", limit=40)
    data = {"user": UserData(task, poison if p else None, Mix(n, p)), "safety": Source("sandbox/align-0", limit=40)}
    return replace(TrainStage(USER_SFT(), base, data, SHORT, BODY), **changes)


def made_files(run: Run) -> dict[str, str]:
    """Digest of everything in a run that must not depend on when or how often it was made.

    The card holds the seconds and bytes that this making took, losses the numbers beside them; the seconds go.
    """
    found = {}
    for path in sorted([*run.artifacts.rglob("*"), *run.path.glob("ratings/*"), run.path / "samples.jsonl"]):
        if not path.is_file() or path.name == "README.md":
            continue
        name = path.relative_to(run.path).as_posix()
        if path.name == "holdfast.json":
            card = json.loads(path.read_text())
            timeless = {k: v for k, v in card.items() if not k.endswith(("seconds", "bytes"))}
            found[name] = json.dumps(timeless, sort_keys=True)
        else:
            found[name] = file_digest(path)
    return found


def store_files(runs: Path) -> dict[str, dict[str, str]]:
    """Name -> files of every finished run of a store but the benches."""
    from holdfast.core.runs import open_run

    return {
        info.name: made_files(open_run(runs / info.name))
        for info in Store(runs).list()
        if info.sealed and info.kind != "bench"
    }


def metric_values(result: dict[str, Any]) -> dict[str, Any]:
    """What a bench measured, without times and costs."""
    measured = {}
    for cell in [*result["cells"], *result["aligned"]]:
        seeds = [{name: value for name, value in line.items() if name != "runs"} for line in cell["seeds"]]
        place = f"{cell['defence']} {cell['workload']} {cell['p']}"
        measured[place] = [cell["metrics"], cell["against_baseline"], seeds]
    return measured


def command(*words: str | Path, python: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *python, "-m", "holdfast.cli.main", *map(str, words)]


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a command: ours, with the package of this checkout, warnings as they are."""
    path = os.pathsep.join(filter(None, [more.pop("PYTHONPATH", ""), str(SRC), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def holdfast(*words: str | Path, cwd: Path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        command(*words), cwd=cwd, env=surroundings(**env), capture_output=True, text=True, timeout=timeout, check=False
    )


def leave_a_thread_behind() -> bool:
    """What an interruption at a bad moment leaves in a worker: a thread that the interpreter waits for at its end."""
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    return True
