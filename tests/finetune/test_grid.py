from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import (
    BOOSTER,
    CPU,
    NAN,
    leave_a_thread_behind,
    metric_values,
    plan_of,
    recipe_file,
    run_grid,
    store_files,
)
from holdfast.core.errors import Interrupted, ResourceError
from holdfast.core.events import Event, GridProgressed, StageFinished, Warned
from holdfast.core.runs import Store
from holdfast.finetune.bench import check_plan, run_bench, shared_prompts
from holdfast.finetune.estimate import estimate, estimate_text
from holdfast.finetune.results import collect
from holdfast.models import grid
from holdfast.models.engine import Engine
from holdfast.report.schema import check


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """SFT and Booster, made by one process; its folder and results."""
    folder = tmp_path_factory.mktemp("grid")
    path = recipe_file(folder)
    run, result = run_bench(plan_of(path), Store(folder / "runs"), CPU, workers=1, command="holdfast bench small.toml")
    assert run.sealed
    return folder, result


def test_every_stage_is_made_once(small: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = small
    # SFT and Booster: 2 align + 2 x 2 finetune + (2 x 2 + 2) ask = 12 runs, and the bench.
    assert len(Store(folder / "runs").list()) == 13
    events: list[Event] = []
    plan, store, grid = run_grid(folder / "small.toml", folder / "runs", sink=events.append)
    assert (grid.made, grid.reused, grid.failed) == (0, 12, {})
    assert collect(plan, store, grid, "")["complete"]
    counts = [event.done for event in events if isinstance(event, GridProgressed)]
    assert counts == list(range(1, 13))
    assert all(event.reused for event in events if isinstance(event, StageFinished))


def test_results_have_the_form_that_reports_read(small: tuple[Path, dict[str, Any]]) -> None:
    folder, result = small
    check(result)
    (bench,) = (folder / "runs").glob("bench-*")
    assert json.loads((bench / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert "A small experiment" in (bench / "report.html").read_text("utf-8")


def missing(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    assert all("not finite" in m["reason"] for m in result["missing"])
    return sorted((m["defence"], str(m["workload"]), m["p"], m["seed"]) for m in result["missing"])


def test_two_processes_make_the_same_as_one_and_a_failing_cell_stops_no_other(
    small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The grid of ``small`` and a third defence whose loss overflows: by one process on top of what is there, and by
    two from nothing."""
    folder, before = small
    path = recipe_file(tmp_path, BOOSTER + NAN)
    results = []
    for runs, workers in ((folder / "runs", 1), (tmp_path / "runs", 2)):
        run, result = run_bench(plan_of(path), Store(runs), CPU, workers=workers)
        check(result)
        results.append(result)
        assert not result["complete"]
        assert not run.sealed
        assert (run.path / "report.html").is_file()
        # Broken's alignment fails, and with it the answers of the aligned model and of both user stages.
        assert missing(result) == [
            ("Booster (Broken)", "None", None, 0),
            ("Broken", "mixed", 0.0, 0),
            ("Broken", "mixed", 0.1, 0),
        ]
        assert [(cell["defence"], cell["p"]) for cell in result["cells"]] == [
            ("SFT", 0.0), ("SFT", 0.1), ("Booster", 0.0), ("Booster", 0.1)
        ]  # fmt: skip
    assert metric_values(results[0]) == metric_values(results[1]) == metric_values(before)
    assert store_files(tmp_path / "runs") == store_files(folder / "runs")


def test_a_failed_stage_is_tried_again(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, NAN, p="[0.1]")
    _, _, first = run_grid(path, tmp_path / "runs")
    _, _, second = run_grid(path, tmp_path / "runs")
    # Broken, at one p: align, finetune and two sets of answers fail; SFT: align, finetune, two sets of answers.
    assert (first.made, len(first.failed)) == (4, 4)
    assert (second.reused, second.made, len(second.failed)) == (4, 0, 4)


def test_answers_lost_after_the_grid_are_made_again(small: tuple[Path, dict[str, Any]]) -> None:
    folder, result = small
    hurt = next(path for path in sorted((folder / "runs").glob("ask-*")))
    before = (hurt / "samples.jsonl").read_bytes()
    (hurt / "samples.jsonl").write_bytes(before[:-20])
    events: list[Event] = []
    plan, store, grid = run_grid(folder / "small.toml", folder / "runs", sink=events.append)
    assert (grid.made, grid.reused) == (1, 11)
    assert any("changed its size; making it again" in e.message for e in events if isinstance(e, Warned))
    assert (hurt / "samples.jsonl").read_bytes() == before
    assert metric_values(collect(plan, store, grid, "")) == metric_values(result)


def test_the_estimate_counts_what_is_still_to_do(small: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = small
    plan = plan_of(folder / "small.toml")
    guess = estimate(plan, Store(tmp_path), 1, CPU)
    # Chains: 4 cells of 3 requests and 2 aligned ones of 2 are 16; 12 are distinct, so 4 are shared.
    assert guess["stages"] == {"align": 2, "finetune": 4, "ask": 6}
    assert (guess["cells"], guess["finished"], guess["shared"], guess["workers"]) == (6, 0, 4, 1)
    assert guess["seconds"] > 0
    assert guess["disk_bytes"] > 0
    assert "to do: 2 align, 4 finetune, 6 ask (0 already there, 4 shared)" in estimate_text(plan, guess)
    done = estimate(plan, Store(folder / "runs"), 1, CPU)
    assert (done["stages"], done["finished"], done["seconds"], done["disk_bytes"]) == ({}, 12, 0, 0)
    assert "to do: nothing" in estimate_text(plan, done)


def test_too_little_disk_is_said_first(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    with pytest.raises(ResourceError, match=r"need about 1048576\.00 GiB of disk"):
        check_plan(plan, Store(tmp_path), {"disk_bytes": 2**50})  # 2^50 / 2^30 = 1,048,576 GiB
    check_plan(plan, Store(tmp_path), {"disk_bytes": 1})


def test_prompts_shared_by_training_and_test_are_counted(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    assert shared_prompts(plan_of(path)) == []
    path.write_text(
        path.read_text().replace('path = "sandbox/hazards-test-{seed}", limit = 12', f'path = "{tmp_path}/q.jsonl"')
    )
    from holdfast.data.read import Source, read

    rows = read(Source("sandbox/align-0", limit=40))[:3]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": r.prompt, "response": "x"}) + "\n" for r in rows))
    assert shared_prompts(plan_of(path)) == ["3 prompts of the safety data are also asked in the test sets"]


def test_a_worker_that_cannot_end_keeps_nobody_from_ending(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begin = (Store(tmp_path / "runs"), Engine(device="cpu"), context.SimpleQueue())
    ours = context.Process(target=time.sleep, args=(60,))
    ours.start()
    with pytest.raises(Interrupted), grid._pool(context, 1, begin, []) as pool:
        assert pool.submit(leave_a_thread_behind).result()
        (child,) = set(multiprocessing.active_children()) - {ours}
        raise KeyboardInterrupt
    deadline = time.monotonic() + 10
    while child.exitcode is None and time.monotonic() < deadline:  # the pool's own thread may be collecting it
        time.sleep(0.01)
    assert child.exitcode == -signal.SIGKILL
    assert ours.is_alive(), "a process of the calling program is not ours to end"
    ours.kill()
    ours.join(10)
