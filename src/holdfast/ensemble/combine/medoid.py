"""The answer that is most like all answers: minimum Bayes risk over the members' texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from holdfast.core.knobs import knob
from holdfast.ensemble.answers import counts_f1, normal
from holdfast.ensemble.combine.base import Arrays
from holdfast.ensemble.outputs import Floats, Outputs


@dataclass(frozen=True)
class Medoid:
    """Score of a candidate = sum over models of weight x token F1 with the model's answer.

    Minimum Bayes risk decoding (Kumar and Byrne 2004) with the members as the sample. Unweighted, it fails where good
    models are a minority (12 chat models: 13.5 against 70.5 for the best alone), so models weigh
    exp(``sharpness`` x (mean training score - the best model's)), and 0 gives the plain medoid. A candidate's own
    author counts among the voters, by ``own``.
    """

    name: ClassVar[str] = "medoid"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "weighted medoid"
    learns: ClassVar[bool] = True

    sharpness: float = knob(10.0, "how much more better models weigh; 0: all alike", low=0)
    own: float = knob(1.0, "share of its own weight that an author adds to its answer", low=0, high=1)

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Weights from mean training scores."""
        quality = outputs.score.mean(axis=0)
        return {"weight": np.exp(self.sharpness * (quality - quality.max()))}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        weights = learned["weight"]
        made = np.zeros(outputs.valid.shape)
        for item, names in enumerate(outputs.candidates):
            votes = weights @ outputs.belief[item, :, : len(names)].astype(np.float64)
            alike = _similarity(names)
            made[item, : len(names)] = alike @ votes - (1 - self.own) * votes
        return made


def _similarity(texts: tuple[str, ...]) -> Floats:
    """Token F1 of all pairs of texts, shape (n, n)."""
    bags = [Counter(normal(text).split()) for text in texts]
    made = np.eye(len(bags))
    for i, left in enumerate(bags):
        for j in range(i):
            made[i, j] = made[j, i] = counts_f1(left, bags[j])
    return made
