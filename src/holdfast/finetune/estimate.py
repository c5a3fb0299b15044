"""What a plan will cost before it runs: stages, seconds, disk. Steps are timed on this machine, not guessed."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from holdfast.core.runs import Store
from holdfast.finetune.making import training_bytes
from holdfast.finetune.plan import Plan
from holdfast.finetune.settings import Training
from holdfast.finetune.stages import RepairStage, TrainStage, UserData, rows_of
from holdfast.models.ask import Ask
from holdfast.models.engine import Engine, device_of, set_threads
from holdfast.models.grid import default_workers
from holdfast.models.load import load_model, require_torch, resolve
from holdfast.models.size import Size, size_of

_TIMED = 200_000_000  # parameters up to which a step is timed; larger models are counted in operations
_WORKER_START = 6.0  # seconds to start a worker and import the training stack (measured: 4 to 7)


def estimate(plan: Plan, store: Store, workers: int, engine: Engine) -> dict[str, Any]:
    """Counts, seconds and bytes of what is still to do.

    Args:
        plan: what would run.
        store: where; finished runs cost nothing.
        workers: as in :func:`holdfast.models.grid.run_tasks`.
        engine: device and threads.

    Raises:
        ModelError: the model's files cannot be read.
    """
    require_torch()
    todo = [r for r in plan.requests.values() if not store.run_exists(r.kind, r.label, r.spec)]
    counts = Counter(request.kind for request in todo)
    kinds = {kind: counts[kind] for kind in ("align", "finetune", "repair", "ask") if counts[kind]}
    pace = _Pace(engine)
    seconds = sum(pace.seconds(request) for request in todo)
    disk = sum(pace.disk(request) for request in todo)
    used = min(workers or default_workers(engine), max(1, len(todo)))
    return {
        "cells": len(plan.cells),
        "stages": kinds,
        "finished": len(plan.requests) - len(todo),
        "shared": plan.shared,
        "workers": used,
        "seconds": round(seconds / used + (_WORKER_START if todo and used > 1 else 0)),
        "disk_bytes": disk,
    }


def estimate_text(plan: Plan, guess: dict[str, Any]) -> str:
    """The estimate in two lines."""
    recipe = plan.recipe
    stages = ", ".join(f"{count} {kind}" for kind, count in guess["stages"].items()) or "nothing"
    minutes, rest = divmod(guess["seconds"], 60)
    return (
        f"{recipe.title}: {len(recipe.defence)} defences, {len(recipe.workload)} workloads, {len(recipe.seeds)} seeds: "
        f"{guess['cells']} cells\n"
        f"to do: {stages} ({guess['finished']} already there, {guess['shared']} shared); about {minutes} min {rest} s "
        f"in {guess['workers']} processes, {guess['disk_bytes'] / 2**20:.0f} MiB"
    )


class _Pace:
    """Seconds and bytes of one request, from one timed step a model and batch shape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._steps: dict[tuple[str, int, int], float] = {}
        self._sizes: dict[str, Size] = {}

    def seconds(self, request: Any) -> float:
        if isinstance(request, TrainStage):
            rows = self._own_rows(request)
            steps = request.training.total_steps(rows)
            return 0.3 + steps * request.method.passes * self._step(request.reference, request.training)
        if isinstance(request, RepairStage):
            return 0.5 + request.samples / 50 * self._forward(request.reference)
        if isinstance(request, Ask):
            longest = max(self._tokens(request, group) for group in {i.group for i in request.items})
            batches = -(-len(request.items) // self._engine.answer_batch)
            return 0.3 + batches * longest * 2 * self._forward(_start(request))
        return 0.0

    def disk(self, request: Any) -> int:
        if isinstance(request, TrainStage):
            return training_bytes(request, self._size(request.reference))["disk"]
        if isinstance(request, RepairStage):
            return self._size(request.reference).stored_bytes
        return len(request.items) * 600 if isinstance(request, Ask) else 0

    def _own_rows(self, stage: TrainStage) -> int:
        if stage.training.steps is not None:
            return 1
        source = stage.data["safety" if stage.kind == "align" else "user"]
        return source.mix.n if isinstance(source, UserData) else len(rows_of(source))

    def _tokens(self, request: Ask, group: str) -> int:
        found = request.decoding.get(group)
        return found.max_new_tokens if found is not None else 512

    def _size(self, reference: str) -> Size:
        if reference not in self._sizes:
            self._sizes[reference] = size_of(resolve(reference).folder)
        return self._sizes[reference]

    def _step(self, reference: str, training: Training) -> float:
        rows = training.batch_size * training.accumulate
        size = self._size(reference)
        key = (f"{size.parameters}", rows, min(training.max_length, 64))
        if key not in self._steps:
            self._steps[key] = (
                self._timed(reference, *key[1:]) if size.parameters <= _TIMED else self._counted(size, rows)
            )
        return self._steps[key]

    def _forward(self, reference: str) -> float:
        return self._step(reference, Training(batch_size=16, max_length=24)) / 3

    def _timed(self, reference: str, rows: int, width: int) -> float:
        """Seconds of one training step on made-up tokens, the best of three."""
        import torch

        set_threads(self._engine, self._size(reference))
        model = load_model(resolve(reference), torch.float32).to(device_of(self._engine))
        ids = torch.ones((rows, width // 2 + 4), dtype=torch.long, device=device_of(self._engine))
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            float(loss.detach())
            best = min(best, time.perf_counter() - began)
        return best * 1.15  # clip and optimiser

    def _counted(self, size: Size, rows: int) -> float:
        """Six operations a parameter and token, over the rate of a large matrix product here."""
        import torch

        device = device_of(self._engine)
        a = torch.randn(1024, 1024, device=device)
        began = time.perf_counter()
        for _ in range(4):
            a = (a @ a).clamp(-1, 1)
        float(a.sum())
        rate = 4 * 2 * 1024**3 / (time.perf_counter() - began)
        return 6 * size.parameters * rows * 256 / rate


def _start(request: Ask) -> str:
    base: Any = request.base
    return base if isinstance(base, str) else str(base.reference)
