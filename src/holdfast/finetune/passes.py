"""Forward and backward passes of Holdfast's own loop: what :class:`holdfast.finetune.method.Passes` promises."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from holdfast.finetune.streams import Micro, RowStream, StepBatch
from holdfast.models.architecture import inner
from holdfast.models.template import IGNORED

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from holdfast.finetune.method import Stream


class LoopPasses:
    """Passes over prepared streams. See the protocol for what each method does.

    Args:
        accelerator: does mixed precision, sharding and the backward pass.
        model: the prepared model.
        parameters: its trainable parameters.
        streams: stream name -> rows.
        total_steps: optimiser steps of the stage.
        seed: seed of randomness that belongs to steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        streams: Mapping[Stream, RowStream],
        total_steps: int,
        seed: int = 0,
    ) -> None:
        self._accelerator = accelerator
        self.model = model
        self.parameters = parameters
        self.streams = streams
        self.total_steps = total_steps
        self.step = 0
        self._seed = seed
        self.measured: dict[str, float | Tensor] = {}
        self._noisy = draws_noise(model)
        self._keeps = "logits_to_keep" in inspect.signature(inner(model).forward).parameters

    def draw(self, stream: Stream) -> StepBatch:
        """See :class:`Passes`."""
        return self.streams[stream].draw(self._accelerator.device)

    def backward(self, batch: StepBatch, scale: float = 1.0) -> Tensor:
        """See :class:`Passes`."""
        parts = []
        for loss in self.losses(batch):
            self.back(loss if scale == 1.0 else scale * loss)
            parts.append(loss.detach())
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def gradient(self, batch: StepBatch) -> tuple[list[Tensor], Tensor]:
        """See :class:`Passes`."""
        held = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        loss = self.backward(batch)
        # A parameter that a batch does not reach (an unused expert) has gradient zero.
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for p, before in zip(self.parameters, held, strict=True):
            p.grad = before
        return found, loss

    def losses(self, batch: StepBatch) -> Iterator[Tensor]:
        """See :class:`Passes`."""
        total = batch.tokens
        for number, micro in enumerate(batch.micros):
            last = number == len(batch.micros) - 1
            sync = nullcontext() if last else self._accelerator.no_sync(self.model)
            with sync, self._noise(batch.noise + number):
                loss = self._loss_sum(micro) / total
            yield loss

    def back(self, loss: Tensor) -> None:
        """See :class:`Passes`."""
        self._accelerator.backward(loss)

    def generator(self) -> torch.Generator:
        """See :class:`Passes`."""
        return torch.Generator().manual_seed(random.Random(f"step-{self._seed}-{self.step}").getrandbits(62))

    def log(self, **numbers: float | Tensor) -> None:
        """See :class:`Passes`."""
        self.measured.update(numbers)

    def _loss_sum(self, micro: Micro) -> Tensor:
        """Sum of the cross-entropies of the micro-batch's answer tokens, in nats."""
        targets = micro.labels[:, 1:]
        if self._keeps:
            # Projecting prompt positions on the vocabulary would be thrown away: a quarter of a step
            # on the sandbox models.
            where = (targets != IGNORED).any(0).nonzero()[:, 0]
            logits = self.model(input_ids=micro.ids, use_cache=False, logits_to_keep=where).logits
            targets = targets[:, where]
        else:
            logits = self.model(input_ids=micro.ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )

    @contextmanager
    def _noise(self, seed: int) -> Iterator[None]:
        """Dropout drawn from the batch's own seed: the same in every pass over it, and after a restart."""
        if not self._noisy:
            yield
            return
        device = self._accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def draws_noise(model: nn.Module) -> bool:
    """Whether a forward pass in training mode is random.

    Dropout modules make it so, and the rates that attention and the like keep as plain numbers.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        if any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in vars(module).items()):
            return True
    return False


def as_numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """What a step logged, as floats (one synchronisation with the device)."""
    return {name: float(value) for name, value in measured.items()}
