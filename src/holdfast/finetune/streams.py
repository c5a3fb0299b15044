"""Streams of rows: which rows a batch holds is a function of (seed, stream, position) alone.

So a position is all that a checkpoint has to keep, and two methods that draw differently from one stream do
not disturb another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.models.template import IGNORED, Encoded

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Micro:
    """A micro-batch, right-padded: ``ids`` and ``labels`` of shape (rows, tokens); labels -100 carry no loss."""

    ids: Tensor
    labels: Tensor
    tokens: int


@dataclass(frozen=True)
class StepBatch:
    """One optimiser step's rows of one stream: its micro-batches, and the seed of their noise (dropout)."""

    micros: tuple[Micro, ...]
    noise: int

    @property
    def tokens(self) -> int:
        """Answer tokens in all micro-batches."""
        return sum(micro.tokens for micro in self.micros)


class RowStream:
    """Endless seeded passes over a set of rows; every row comes once in each pass.

    Args:
        rows: tokenised rows.
        batch_size, accumulate: rows in a micro-batch, micro-batches in a step.
        pad: token that fills short rows.
        seed: seed of the order.
        name: name of the stream, so that streams of one seed differ.
    """

    def __init__(
        self, rows: Sequence[Encoded], batch_size: int, accumulate: int, pad: int, seed: int, name: str
    ) -> None:
        self._rows, self._size, self._accumulate, self._pad = rows, batch_size, accumulate, pad
        self._label = f"{name}-{seed}"
        self._order: tuple[int, list[int]] = (-1, [])
        self.position = 0

    def draw(self, device: torch.device) -> StepBatch:
        """The next step's batch on ``device``; moves the position by one."""
        begin = self.position * self._size * self._accumulate
        micros = tuple(self._micro(begin + part * self._size, device) for part in range(self._accumulate))
        noise = random.Random(f"noise-{self._label}-{self.position}").getrandbits(62)
        self.position += 1
        return StepBatch(micros, noise)

    def _micro(self, begin: int, device: torch.device) -> Micro:
        rows = [self._rows[self._row_at(index)] for index in range(begin, begin + self._size)]
        return collate(rows, self._pad, device)

    def _row_at(self, index: int) -> int:
        number, offset = divmod(index, len(self._rows))
        if self._order[0] != number:
            order = list(range(len(self._rows)))
            random.Random(f"order-{self._label}-{number}").shuffle(order)
            self._order = (number, order)
        return self._order[1][offset]


def collate(rows: Sequence[Encoded], pad: int, device: torch.device) -> Micro:
    """Right-padded tensors of rows. Padding follows every real token, so a causal model needs no mask."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = [[*row.ids, *[pad] * (width - len(row.ids))] for row in rows]
    labels = [
        [*[IGNORED] * row.prompt_length, *row.ids[row.prompt_length :], *[IGNORED] * (width - len(row.ids))]
        for row in rows
    ]
    # The first token is never predicted, so an answer without a prompt has one loss token less.
    tokens = sum(len(row.ids) - max(row.prompt_length, 1) for row in rows)
    return Micro(torch.tensor(ids, device=device), torch.tensor(labels, device=device), tokens)


def calibration_batches(
    rows: Sequence[Encoded], batch_size: int, pad: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Batches for post-fine-tuning methods: input ids, labels, and the mask of real tokens."""
    import torch

    batches = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        micro = collate(part, pad, device)
        lengths = torch.tensor([len(row.ids) for row in part], device=device)
        mask = torch.arange(micro.ids.shape[1], device=device)[None, :] < lengths[:, None]
        batches.append({"input_ids": micro.ids, "labels": micro.labels, "mask": mask})
    return batches
