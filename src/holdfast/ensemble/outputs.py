"""Outputs of N models on M items, coded so that every part of the ensemble reads the same arrays.

An item has candidates: its options, or the distinct answers that its models gave. A model's belief in the candidates is
a share of its samples, or its probabilities, or 1 on its only answer; all zeros where it gave none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from holdfast.ensemble.answers import Kind

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Outputs:
    """What models answered, and what would have been right.

    Attributes:
        items: ids.
        models: names.
        kind: what an answer is: choice, number, short or long.
        belief: shape (n_items, n_models, n_candidates), in [0, 1]; rows sum to 1, or are 0 where there is no answer.
        valid: whether an item has a candidate, shape (n_items, n_candidates).
        correct: whether a candidate is right, shape (n_items, n_candidates).
        asked: whether a model was asked, shape (n_items, n_models); False is missing, not an abstention.
        candidates: text of each candidate, a tuple an item.
        group: subject of each item, shape (n_items,), a place in ``groups``.
        groups: names of the subjects; one empty name when there are none.
        score: quality of each answer in [0, 1], shape (n_items, n_models): token F1 for texts, else rightness.
        cost: dollars an item of each model, shape (n_models,); None when unknown.
        samples: largest number of answers that a model gave to an item, shape (n_models,).
        probabilities: whether beliefs are the models' own probabilities.
        known: whether the right answer is known, shape (n_items,).
        labels: labels of a choice, folded, in the order of their codes.
        threshold: score from which a long answer is right.
        notes: what a reader should know of how the outputs were read.
    """

    items: tuple[str, ...]
    models: tuple[str, ...]
    kind: Kind
    belief: NDArray[np.float32]
    valid: Bools
    correct: Bools
    asked: Bools
    candidates: tuple[tuple[str, ...], ...]
    group: Codes
    groups: tuple[str, ...]
    score: Floats
    cost: Floats | None
    samples: Codes
    probabilities: bool
    known: Bools
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    notes: tuple[str, ...] = ()

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.models)

    @cached_property
    def codes(self) -> Codes:
        """Candidate that each model believes in most, -1 for none, shape (n_items, n_models)."""
        best = self.belief.argmax(axis=2)
        return np.where(self.belief.any(axis=2), best, -1)

    @cached_property
    def right(self) -> Bools:
        """Whether each model's answer is right, shape (n_items, n_models); an abstention is not."""
        found = np.take_along_axis(self.correct, np.maximum(self.codes, 0), axis=1)
        return found & (self.codes >= 0)

    @property
    def failed(self) -> Bools:
        """Whether each model fails, shape (n_items, n_models)."""
        return ~self.right

    @cached_property
    def accuracy(self) -> Floats:
        """Share of items that each model gets right, shape (n_models,)."""
        return np.asarray(self.right.mean(axis=0))

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Outputs:
        """Some of the items."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            items=tuple(self.items[i] for i in chosen),
            belief=self.belief[chosen],
            valid=self.valid[chosen],
            correct=self.correct[chosen],
            asked=self.asked[chosen],
            candidates=tuple(self.candidates[i] for i in chosen),
            group=self.group[chosen],
            score=self.score[chosen],
            known=self.known[chosen],
        )

    def of(self, models: Sequence[int]) -> Outputs:
        """Some of the models, in this order; the candidates stay."""
        chosen = np.asarray(models, dtype=int)
        return replace(
            self,
            models=tuple(self.models[i] for i in chosen),
            belief=self.belief[:, chosen],
            asked=self.asked[:, chosen],
            score=self.score[:, chosen],
            cost=None if self.cost is None else self.cost[chosen],
            samples=self.samples[chosen],
        )

    def without(self, models: Sequence[str]) -> Outputs:
        """The same with some models silent, as when they could not be reached."""
        gone = np.isin(self.models, list(models))
        belief = np.where(gone[None, :, None], np.float32(0), self.belief)
        return replace(self, belief=belief, asked=self.asked & ~gone)
