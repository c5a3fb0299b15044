"""Votes: the best model alone, one vote a model, and votes weighted by what models got right in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from holdfast.core.knobs import knob
from holdfast.ensemble.combine.base import Arrays
from holdfast.ensemble.outputs import Floats, Outputs

_LABEL = 1e-4  # of a vote, which no difference of votes is smaller than
_SMOOTH = 1.0  # successes and failures added to each model, so that no weight is infinite


def ballots(outputs: Outputs) -> Floats:
    """One vote a model for the candidate it believes in most, shape (n_items, n_models, n_candidates)."""
    return np.asarray((outputs.codes[:, :, None] == np.arange(outputs.belief.shape[2])).astype(np.float64))


def weighted(learned: Arrays, outputs: Outputs) -> Floats:
    """Sum of the weights of each candidate's voters."""
    return np.asarray(np.einsum("mnk,n->mk", ballots(outputs), learned["weight"]))


@dataclass(frozen=True)
class BestSingle:
    """The model with the best training accuracy; the next best where it has no answer."""

    name: ClassVar[str] = "best-single"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "best single model"
    learns: ClassVar[bool] = False

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Weights that no weaker model can outvote."""
        order = np.argsort(np.argsort(outputs.accuracy, kind="stable"), kind="stable")
        return {"weight": 2.0 ** (order - outputs.n_models + 1)}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        return weighted(learned, outputs)


def majority(outputs: Outputs) -> NDArray[np.int64]:
    """The candidate that more than half of the models vote for, shape (n_items,); -1 where there is none."""
    votes = ballots(outputs).sum(axis=1)
    return np.where(votes.max(axis=1) > outputs.n_models / 2, votes.argmax(axis=1), -1)


@dataclass(frozen=True)
class Plurality:
    """One vote a model. Ties go to the best model, or, as in the authors' code, to the smallest label."""

    name: ClassVar[str] = "plurality"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "plurality vote"
    learns: ClassVar[bool] = False

    ties: Literal["best", "label"] = knob(
        "best", "to the best model, or to the smallest label", source="authors' code: label"
    )

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Equal weights."""
        return {"weight": np.ones(outputs.n_models)}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        votes = weighted(learned, outputs)
        return votes if self.ties == "best" else votes - _LABEL * np.arange(votes.shape[1])


@dataclass(frozen=True)
class AccuracyVote:
    """Votes weighted by training accuracy."""

    name: ClassVar[str] = "accuracy-vote"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "accuracy-weighted vote"
    learns: ClassVar[bool] = True

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Accuracy of each model."""
        return {"weight": outputs.accuracy}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        return weighted(learned, outputs)


@dataclass(frozen=True)
class LogOddsVote:
    """Votes weighted by log(p (K - 1) / (1 - p)): right for independent models that err evenly over K - 1 answers.

    (Nitzan and Paroush 1982 for K = 2.) p is the accuracy among the items that a model answered, with one success and
    one failure added; K is the mean number of options, or of distinct answers and one more. A model below chance gets
    a negative weight.
    """

    name: ClassVar[str] = "log-odds-vote"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "log-odds vote"
    learns: ClassVar[bool] = True

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Log-odds of each model."""
        answered = (outputs.codes >= 0).sum(axis=0)
        p = (outputs.right.sum(axis=0) + _SMOOTH) / (answered + 2 * _SMOOTH)
        options = float(outputs.valid.sum(axis=1).mean()) + (outputs.kind != "choice")
        return {"weight": np.log(p / (1 - p)) + np.log(max(options - 1, 1.0))}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        return weighted(learned, outputs)
