"""The training loop: the part of a training stage that can be read in one sitting.

Rows -> streams -> step object -> clip -> AdamW -> schedule, on Accelerate. A run can be killed at any moment:
the same call goes on from the last checkpoint and ends with the weights that an unbroken run has, to the bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from holdfast.core.errors import Interrupted, TrainingError, UsageError
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.finetune import checkpoint
from holdfast.finetune.method import Stream, TrainingMethod
from holdfast.finetune.passes import LoopPasses, as_numbers
from holdfast.finetune.settings import Training
from holdfast.finetune.streams import RowStream
from holdfast.models.engine import Engine

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

_CHECK_EVERY = 20  # steps between looks at the loss (each one waits for the device)
_CHECKPOINT_SECONDS = 60.0


@dataclass
class Outcome:
    """What training leaves beside the weights.

    Attributes:
        steps: optimiser steps made.
        seconds: time in the loop over all sittings, checkpoints included.
        losses: ``(step, loss)`` about a hundred times over the run.
        measured: last value of each number that the method logged.
        first: first value of each.
    """

    steps: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)


@dataclass
class Job:
    """What is to be trained, and how.

    Attributes:
        model: on any device; moved to the engine's, trained in place.
        method: its knobs.
        streams: the rows of each stream that the method draws from.
        training: length, rate and so on.
        total_steps: optimiser steps to make.
        folder: where checkpoints go.
        seed: seed of randomness that belongs to steps (see ``Passes.generator``).
    """

    model: nn.Module
    method: TrainingMethod
    streams: Mapping[Stream, RowStream]
    training: Training
    total_steps: int
    folder: Path
    seed: int = 0


def train(job: Job, engine: Engine, sink: Sink = ignore) -> Outcome:
    """Train ``job.model`` in place, from the start or from the last checkpoint in ``job.folder``.

    Args:
        job: what and how.
        engine: device and how often to checkpoint.
        sink: where progress goes.

    Raises:
        TrainingError: the loss is not finite, or no gradient reaches the parameters.
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    sitting = _Sitting(job, engine, sink)
    try:
        sitting.resume()
        sitting.run()
    except KeyboardInterrupt:
        sitting.pause()
        raise Interrupted(
            f"stopped at step {sitting.passes.step} of {job.total_steps}", hint="the same command goes on from there"
        ) from None
    sitting.stepper.finish(sitting.passes)
    return sitting.outcome()


class _Sitting:
    """One sitting of a training run: from its start or last checkpoint to its end or interruption."""

    def __init__(self, job: Job, engine: Engine, sink: Sink) -> None:
        training = job.training
        self._training, self._folder, self._engine, self._sink = training, job.folder, engine, sink
        self._accelerator = make_accelerator(training.precision, engine.device)
        if training.gradient_checkpointing:
            _recompute_activations(job.model)
        parameters = [p for p in job.model.parameters() if p.requires_grad]
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        optimizer = torch.optim.AdamW(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=fused
        )
        prepared, self._optimizer = self._accelerator.prepare(job.model, optimizer)
        prepared.train()
        self.passes = LoopPasses(self._accelerator, prepared, parameters, job.streams, job.total_steps, job.seed)
        self.stepper = job.method.start(self.passes)
        self._losses: list[tuple[int, float]] = []
        self._pending: list[torch.Tensor] = []
        self._first: dict[str, float] = {}
        self._updating = False
        self._hold()
        self._before = 0.0
        self._began = self._saved = time.perf_counter()

    def run(self) -> None:
        passes, total = self.passes, self.passes.total_steps
        shown = max(1, total // 100)
        while passes.step < total:
            loss = self._step()
            self._pending.append(torch.as_tensor(loss).detach())
            self._hold()
            passes.step += 1
            self._updating = False
            if passes.step % _CHECK_EVERY == 0 or passes.step == total:
                self._check_finite()
            if passes.step % shown == 0 or passes.step == total:
                self._show(float(loss))
            if self._due() and passes.step < total:
                self._save()
        self._check_weights()

    def _step(self) -> Any:
        training, passes = self._training, self.passes
        rate = training.learning_rate * training.rate_at(passes.step, passes.total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self.stepper(passes)
        if passes.step == 0:
            self._first_step()
        if training.clip:
            torch.nn.utils.clip_grad_norm_(passes.parameters, training.clip, foreach=True)
        self._updating = True
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _first_step(self) -> None:
        if all(p.grad is None or not p.grad.any() for p in self.passes.parameters):
            raise TrainingError(
                "the first step gave no gradient at all",
                hint="check that the answers are not empty and that the adapter's targets exist in this model",
            )
        self._first = self._measured()

    def _check_finite(self) -> None:
        values = torch.stack([loss.float().cpu() for loss in self._pending])
        if not bool(torch.isfinite(values).all()):
            bad = self.passes.step - len(values) + int((~torch.isfinite(values)).nonzero()[0]) + 1
            raise TrainingError(
                f"the loss is not finite at step {bad} of {self.passes.total_steps}",
                hint="lower learning_rate, keep clip = 1.0, use precision fp32, or weaken the method's strength",
            )
        self._pending.clear()

    def _show(self, loss: float) -> None:
        self._losses.append((self.passes.step, loss))
        self._sink(
            Progressed(
                done=self.passes.step,
                total=self.passes.total_steps,
                loss=loss if math.isfinite(loss) else None,
                detail=self._measured(),
            )
        )

    def _measured(self) -> dict[str, float]:
        return {name: value for name, value in as_numbers(self.passes.measured).items() if math.isfinite(value)}

    def _due(self) -> bool:
        every = self._engine.checkpoint_every
        if every:
            return self.passes.step % every == 0
        return time.perf_counter() - self._saved > _CHECKPOINT_SECONDS

    def _hold(self) -> None:
        """Remember what a step moves beside the weights, as it is between two steps."""
        positions = {name: stream.position for name, stream in self.passes.streams.items()}
        tensors, values = checkpoint.flatten(self.stepper.state())
        versions = {name: tensor._version for name, tensor in tensors.items()}
        self._held = positions, tensors, versions, copy.deepcopy(values)

    def pause(self) -> None:
        """Checkpoint on the way out, as of the beginning of the interrupted step.

        Nothing is saved before the first step, nor when the weights or the method's tensors may be half
        changed: then the last checkpoint counts.
        """
        _, tensors, versions, _ = self._held
        if self.passes.step and not self._updating and all(t._version == versions[n] for n, t in tensors.items()):
            self._save()

    def _save(self) -> None:
        self._check_pending()
        self._check_weights()
        optimizer, settings = _optimizer_state(self._optimizer)
        positions, tensors, _, values = self._held
        parameters = {str(i): p for i, p in enumerate(self.passes.parameters)}
        state = {
            "positions": positions,
            "method": values,
            "optimizer": settings,
            "seconds": self._seconds(),
            "losses": self._losses,
            "first": self._first,
        }
        groups: dict[str, Mapping[str, Any]] = {"parameters": parameters, "optimizer": optimizer, "method": tensors}
        checkpoint.save(self._folder, checkpoint.Checkpoint(self.passes.step, groups, state))
        self._saved = time.perf_counter()

    def _check_pending(self) -> None:
        """A checkpoint must not keep weights that a NaN has reached."""
        if self._pending:
            self._check_finite()

    def _check_weights(self) -> None:
        """A finite loss can have a gradient that is not; no result and no checkpoint may hold its weights."""
        if not all(bool(torch.isfinite(p).all()) for p in self.passes.parameters):
            raise TrainingError(
                f"the weights are not finite after step {self.passes.step} of {self.passes.total_steps}",
                hint="lower learning_rate, keep clip = 1.0, use precision fp32, or weaken the method's strength",
            )

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = checkpoint.load(self._folder, self._sink)
        if found is None:
            return
        with torch.no_grad():
            for number, parameter in enumerate(self.passes.parameters):
                parameter.copy_(found.tensors["parameters"][str(number)])
        _restore_optimizer(self._optimizer, found.tensors["optimizer"], found.values["optimizer"])
        device = self._accelerator.device
        self.stepper.restore(checkpoint.unflatten(found.tensors["method"], found.values["method"], device))
        for name, position in found.values["positions"].items():
            self.passes.streams[name].position = position
        self._losses = [(int(step), float(loss)) for step, loss in found.values["losses"]]
        self._first, self._before = found.values["first"], found.values["seconds"]
        self._hold()
        self.passes.step = found.step
        self._sink(Warned(message=f"going on from step {found.step} of {self.passes.total_steps}"))

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def outcome(self) -> Outcome:
        """What to write in the run's summary."""
        return Outcome(self.passes.step, self._seconds(), self._losses, self._measured(), self._first)


def _recompute_activations(model: nn.Module) -> None:
    """Under the name that the installed transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # type: ignore[operator]


def make_accelerator(precision: str, device: str) -> Accelerator:
    """An Accelerator for one stage.

    Accelerate keeps one global state a process; stages of different precision follow each other in one
    process here, so it is reset before each.

    Raises:
        UsageError: several processes, or a device that is not there.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    made = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=device == "cpu")
    if made.num_processes > 1:
        raise UsageError(
            "training on several processes is not supported yet", hint="run on one process: holdfast ..., no launcher"
        )
    if device not in ("auto", "cpu"):
        wanted = torch.device(device)
        if wanted.type != made.device.type:
            raise UsageError(f"device {device!r} is not there", hint=f"this machine has {made.device.type!r}")
        PartialState().device = made.state.device = wanted
    return made


def _optimizer_state(optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Per-parameter tensors under ``number.name``, per-parameter plain values beside them."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            place = tensors if isinstance(value, torch.Tensor) else values
            place[f"{number}.{name}"] = value
    return tensors, values


def _restore_optimizer(optimizer: Any, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**values, **tensors}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
