"""Greedy ensemble selection with replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from holdfast.core.knobs import knob
from holdfast.ensemble.combine.base import Arrays
from holdfast.ensemble.outputs import Floats, Outputs

_TIE = 1e-6


@dataclass(frozen=True)
class Caruana:
    """Adds, again and again, the model whose beliefs improve the sum's accuracy most; a model may be added often.

    Caruana, Niculescu-Mizil, Crew and Ksikes 2004, "Ensemble selection from libraries of models", with sorted
    initialisation. The round with the best training accuracy is kept (the earliest of equals).
    """

    name: ClassVar[str] = "caruana"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Caruana selection"
    learns: ClassVar[bool] = True

    start: int = knob(3, "best models that the selection starts with", low=1, source="Caruana et al. 2004, section 2.3")
    rounds: int = knob(50, "models added at most, repeats counted", low=1)

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """How often each model was chosen, as shares."""
        # A model's own small advantage breaks ties between candidates without changing any sum that differs.
        beliefs = outputs.belief * (1 + _TIE * outputs.accuracy)[None, :, None].astype(np.float64)
        order = np.argsort(-outputs.accuracy, kind="stable")
        counts = np.zeros(outputs.n_models)
        counts[order[: self.start]] = 1
        total = beliefs[:, counts > 0].sum(axis=1)
        best, kept = _accuracy(total, outputs), counts.copy()
        for _ in range(self.rounds):
            found = [_accuracy(total + beliefs[:, n], outputs) for n in range(outputs.n_models)]
            chosen = int(np.argmax(found))
            counts[chosen] += 1
            total = total + beliefs[:, chosen]
            if found[chosen] > best:
                best, kept = found[chosen], counts.copy()
        return {"weight": kept / kept.sum()}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        return np.asarray(np.einsum("mnk,n->mk", outputs.belief.astype(np.float64), learned["weight"]))


def _accuracy(total: Floats, outputs: Outputs) -> float:
    chosen = total.argmax(axis=1)
    right = np.take_along_axis(outputs.correct, chosen[:, None], axis=1)[:, 0]
    return float((right & (total.max(axis=1) > 0)).mean())
