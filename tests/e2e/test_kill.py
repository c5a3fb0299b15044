"""Killed at any moment, the same command finishes the run with the result that an unbroken run would have had."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments import MODEL, command, made_files, metric_values, recipe_file, store_files, surroundings
from holdfast.core.runs import open_run

ALIGN = (
    "align", "booster", "--model", MODEL, "--safety", "sandbox/align-0", "--harmful", "sandbox/harmful-0",
    "--alpha", "0.01", "--steps", "60", "--batch-size", "4", "--max-length", "64", "--learning-rate", "1e-3",
    "--adapter.train", "body", "--device", "cpu", "--checkpoint-every", "5", "--json",
)  # fmt: skip


def started(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), cwd=cwd, env=surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def killed_after(process: subprocess.Popen[str], events: int, pause: float, *, group: bool) -> bool:
    """Kill -9 a little after the n-th event; returns whether the process was still at work.

    Event counts and not seconds say when: how long starting takes says nothing of how far the work is.
    """
    assert process.stderr is not None
    for line in process.stderr:
        assert json.loads(line)["event"]
        events -= 1
        if events == 0:
            break
    time.sleep(pause)
    at_work = process.poll() is None
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    elif at_work:
        process.kill()
    process.stderr.close()
    process.wait()
    return at_work


def finished(*words: str, cwd: Path) -> None:
    done = subprocess.run(command(*words), cwd=cwd, env=surroundings(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def unbroken(folder: Path) -> dict[str, str]:
    finished(*ALIGN, cwd=folder)
    return made_files(open_run(next((folder / "runs").glob("booster-*"))))


def broken(folder: Path, kills: int, seed: int) -> tuple[dict[str, str], int]:
    rng = random.Random(seed)
    hits = 0
    for _ in range(kills):
        # 2 events before the first step, then one a step (there are 60, fewer after each restart).
        hits += killed_after(started(*ALIGN, cwd=folder), rng.randint(3, 22), rng.uniform(0, 0.05), group=False)
    finished(*ALIGN, cwd=folder)
    return made_files(open_run(next((folder / "runs").glob("booster-*")))), hits


def test_a_training_killed_twice_ends_as_if_it_was_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = unbroken(tmp_path / "a")
    after, hits = broken(tmp_path / "b", kills=2, seed=1)
    assert hits == 2
    assert after == whole
    assert "artifacts/model/model.safetensors" in whole


@pytest.mark.slow
def test_a_training_killed_six_times_ends_as_if_it_was_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = unbroken(tmp_path / "a")
    after, hits = broken(tmp_path / "b", kills=6, seed=2)
    assert hits >= 4  # late kills may come when all is done
    assert after == whole


def nobody_is_left(group: int) -> bool:
    """Whether every process of the group ends within 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine starts of three processes each
def test_a_grid_killed_six_times_ends_as_if_it_was_not(tmp_path: Path) -> None:
    """In turn the whole group dies, or the first process alone: then its workers must end by themselves."""
    for name in "ab":
        (tmp_path / name).mkdir()
        recipe_file(tmp_path / name, p="[0.0, 0.1]", steps=30)
    words = ("bench", "small.toml", "--workers", "2", "--device", "cpu", "--checkpoint-every", "3", "--json")
    finished(*words, cwd=tmp_path / "a")
    rng = random.Random(3)
    hits = 0
    for number in range(6):
        process = started(*words, cwd=tmp_path / "b")
        hits += killed_after(process, rng.randint(5, 40), rng.uniform(0, 0.3), group=number % 2 == 0)
        assert nobody_is_left(process.pid), "a worker outlived the process that it worked for"
    assert hits >= 3
    finished(*words, cwd=tmp_path / "b")
    assert store_files(tmp_path / "b" / "runs") == store_files(tmp_path / "a" / "runs")
    left, right = (json.loads(next((tmp_path / n / "runs").glob("bench-*/metrics.json")).read_text()) for n in "ab")
    assert metric_values(left) == metric_values(right)
    assert left["complete"]
    assert right["complete"]


ASK = (
    "ask", "--model", MODEL, "--items", "sandbox/hazards-test-0", "--limit", "120", "--max-new-tokens", "6",
    "--answer-batch", "6", "--device", "cpu", "--json",
)  # fmt: skip


def test_answers_cut_off_anywhere_are_completed(tmp_path: Path) -> None:
    """What a kill leaves of an unsealed samples file is some of its first bytes: any of them must do."""
    from holdfast.cli.main import run

    runs = ("--runs", str(tmp_path / "runs"))
    assert run([*ASK, *runs, "--quiet"]) == 0
    (folder,) = (tmp_path / "runs").glob("ask-*")
    whole = (folder / "samples.jsonl").read_bytes()
    before = made_files(open_run(folder))
    rng = random.Random(4)
    for size in [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(5))]:
        (folder / "SEALED").unlink()
        (folder / "samples.jsonl").write_bytes(whole[:size])
        assert run([*ASK, *runs, "--quiet"]) == 0
        assert (folder / "samples.jsonl").read_bytes() == whole
    assert made_files(open_run(folder)) == before


def test_ratings_cut_off_anywhere_are_completed(tmp_path: Path) -> None:
    from holdfast.cli.main import run

    runs = ("--runs", str(tmp_path / "runs"))
    assert run([*ASK, *runs, "--quiet"]) == 0
    (folder,) = (tmp_path / "runs").glob("ask-*")
    assert run(["judge", str(folder), "-j", "sandbox", *runs, "--quiet"]) == 0
    (header,) = (folder / "ratings").glob("*.json")
    rows = header.with_suffix(".jsonl")
    whole, said = rows.read_bytes(), header.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        header.unlink()
        rows.write_bytes(whole[:size])
        assert run(["judge", str(folder), "-j", "sandbox", *runs, "--quiet"]) == 0
        assert (rows.read_bytes(), header.read_bytes()) == (whole, said)
