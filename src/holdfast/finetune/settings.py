"""Settings of a training stage that no method owns: length, rate, batch, precision, adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob

DEFAULT_EPOCHS = 20.0  # Booster, Lisa and Antidote: 20 epochs in both stages


@dataclass(frozen=True)
class Training:
    """How long and how fast a stage trains. AdamW; the loss is the mean over the answer tokens of a step."""

    epochs: float | None = knob(None, "passes over the stage's own data; neither epochs nor steps: 20 epochs", low=0)
    steps: int | None = knob(None, "optimiser steps, instead of epochs", low=1)
    batch_size: int = knob(10, "rows in a micro-batch", low=1, source="Booster: 10")
    accumulate: int = knob(1, "micro-batches in an optimiser step", low=1)
    learning_rate: float = knob(1e-5, "peak learning rate", low=0, source="Booster user stage: 1e-5")
    schedule: Literal["constant", "linear", "cosine"] = knob("constant", "decay of the learning rate after warm-up")
    warmup: float = knob(0.0, "share of the steps over which the learning rate rises from 0", low=0, high=1)
    weight_decay: float = knob(0.0, "AdamW weight decay", low=0)
    clip: float = knob(1.0, "gradient norm is cut to this; 0 is off", low=0, source="the papers' implicit default")
    precision: Literal["fp32", "bf16"] = knob("fp32", "bf16: frozen weights and passes in bf16, trainables in fp32")
    max_length: int = knob(256, "longest row in tokens, prompt and answer together", low=2, source="Booster: 256")
    gradient_checkpointing: bool = knob(False, "recompute activations in the backward pass to save memory")

    def check(self, where: str) -> None:
        """At most one of epochs and steps may be given.

        Raises:
            UsageError: both are.
        """
        if self.epochs is not None and self.steps is not None:
            raise UsageError(
                f"{where}: both epochs = {self.epochs:g} and steps = {self.steps} are given",
                hint="keep one of them",
            )

    def total_steps(self, rows: int) -> int:
        """Optimiser steps for a stage whose own data has ``rows`` rows (epochs are rounded up to a step)."""
        if self.steps is not None:
            return self.steps
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, -(-round(epochs * rows) // (self.batch_size * self.accumulate)))

    def rate_at(self, step: int, total: int) -> float:
        """Factor on the learning rate at 0-based ``step`` of ``total``, in [0, 1]."""
        rise = round(self.warmup * total)
        if step < rise:
            return (step + 1) / rise
        along = (step - rise) / max(1, total - rise)
        if self.schedule == "linear":
            return 1 - along
        return 0.5 * (1 + math.cos(math.pi * along)) if self.schedule == "cosine" else 1.0


@dataclass(frozen=True)
class Adapter:
    """Which parameters a stage trains.

    ``policy`` decides what the user's fine-tuning does with an adapter that alignment made: ``keep`` goes on
    training the same one, ``fresh`` merges it and starts another. Booster needs ``keep``; the papers' Vaccine
    and Lisa figures use ``fresh`` (specs of the papers differ here, which makes them incomparable).
    """

    train: Literal["lora", "full", "body"] = knob("lora", "lora; full: every weight; body: all but the embeddings")
    policy: Literal["keep", "fresh"] = knob("keep", "one LoRA through all stages, or merge and start anew")
    rank: int = knob(32, "LoRA rank r", low=1, source="Booster: 32")
    scale: float = knob(4.0, "LoRA alpha; updates are scaled by alpha / r", low=0, source="Booster: 4")
    dropout: float = knob(0.0, "LoRA dropout", low=0, high=0.999, source="Booster: 0")
    targets: tuple[str, ...] = knob((), "module names that get LoRA; empty: all linear maps in the layers")
