"""The conditional logit: learned weights of models' votes, the same for every option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from holdfast.core.knobs import knob
from holdfast.ensemble.combine.base import Arrays, softmax
from holdfast.ensemble.outputs import Floats, Outputs

_FLOOR = 1e-3
_IMPOSSIBLE = -1e30


@dataclass(frozen=True)
class ConditionalLogit:
    """P(candidate k of item m) = softmax_k sum_n (w_n + v_{n, subject(m)}) x_mnk (McFadden 1974).

    x is model n's belief in k, or log(p / 0.001) where models gave probabilities. A weight belongs to a model (and a
    subject), not to an option: options that change places change nothing else. A model that is silent adds nothing, so
    missing models need no care. Answers that are not options (numbers, short texts) have one more candidate, "none of
    these", with a bias of its own. Weights are shrunk: ``ridge`` to 0, ``subject_ridge`` to the common weight. Several
    right candidates count together.

    ``position_ridge`` adds weights of a model at each option's place, for models that favour a letter: better where
    option order is as in training, and not symmetric any more.
    """

    name: ClassVar[str] = "conditional-logit"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "conditional logit"
    learns: ClassVar[bool] = True

    ridge: float = knob(1.0, "pull of the models' weights towards 0", low=0, source="measured on MMLU-Pro")
    subject_ridge: float = knob(
        10.0, "pull of subjects' weights towards the common one; 0: no subjects", low=0, source="measured on MMLU-Pro"
    )
    position_ridge: float = knob(
        0.0,
        "pull of weights by place of the option towards 0; 0: none, symmetric",
        low=0,
        source="measured: 20 on MMLU-Pro",
    )
    steps: int = knob(300, "L-BFGS steps at most", low=1)

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Maximum penalised likelihood, from zero."""
        from scipy.optimize import minimize

        design = _Design(self, outputs)
        rows = design.target.any(axis=1)
        design = design.take(np.asarray(rows))

        def loss(flat: Floats) -> tuple[float, Floats]:
            scores = design.scores(flat)
            p = softmax(scores)
            q = p * design.target
            likely = np.maximum(q.sum(axis=1, keepdims=True), 1e-300)
            gradient = design.gradient(p - q / likely)
            return float(-np.log(likely).sum() + (design.pull * flat**2).sum() / 2), gradient + design.pull * flat

        found = minimize(loss, np.zeros(design.size), jac=True, method="L-BFGS-B", options={"maxiter": self.steps})
        return design.arrays(found.x)

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        design = _Design(self, outputs, len(learned["subject_weight"]))
        none = float(learned["none"][0])
        made = design.scores(design.flat(learned))
        return np.asarray(made if outputs.kind == "choice" else made[:, :-1] - none)


class _Design:
    """Features of the candidates and the layout of the weights: models, subjects x models, places x models, none."""

    def __init__(self, knobs: ConditionalLogit, outputs: Outputs, n_groups: int = 0) -> None:
        x = outputs.belief.astype(np.float64)
        if outputs.probabilities:
            x = np.log(np.maximum(x, _FLOOR) / _FLOOR)
        target, valid = outputs.correct, outputs.valid
        self.open = outputs.kind != "choice"
        if self.open:
            x = np.concatenate([x, np.zeros((*x.shape[:2], 1))], axis=2)
            target = np.concatenate([target, ~target.any(axis=1, keepdims=True)], axis=1)
            valid = np.concatenate([valid, np.ones((len(valid), 1), bool)], axis=1)
        self.x, self.target, self.valid, self.group = (
            np.ascontiguousarray(x.transpose(0, 2, 1)),
            target,
            valid,
            outputs.group,
        )
        n, k = outputs.n_models, x.shape[2]
        self.n_models = n
        self.n_groups = n_groups or (len(outputs.groups) if knobs.subject_ridge and len(outputs.groups) > 1 else 0)
        self.n_places = k if knobs.position_ridge else 0
        self.pull = np.concatenate(
            [
                np.full(n, knobs.ridge),
                np.full(self.n_groups * n, knobs.subject_ridge),
                np.full(self.n_places * n, knobs.position_ridge),
                np.zeros(1),
            ]
        )
        self.size = len(self.pull)

    def take(self, rows: NDArray[np.bool_]) -> _Design:
        """Only some of the items."""
        self.x, self.target, self.valid, self.group = (
            self.x[rows],
            self.target[rows],
            self.valid[rows],
            self.group[rows],
        )
        return self

    def _split(self, flat: Floats) -> tuple[Floats, Floats, Floats, float]:
        n = self.n_models
        first, second = n * (1 + self.n_groups), n * (1 + self.n_groups + self.n_places)
        return flat[:n], flat[n:first].reshape(-1, n), flat[first:second].reshape(-1, n), float(flat[-1])

    def scores(self, flat: Floats) -> Floats:
        weight, of_group, of_place, none = self._split(flat)
        per_item = np.broadcast_to(weight, (len(self.x), self.n_models))
        if self.n_groups:
            # A subject that training did not have (-1) gets the common weights.
            per_item = per_item + np.concatenate([of_group, np.zeros((1, self.n_models))])[self.group]
        made = (self.x @ per_item[:, :, None])[:, :, 0]
        if self.n_places:
            places = min(self.n_places, self.x.shape[1])
            made[:, :places] += np.einsum("mkn,kn->mk", self.x[:, :places], of_place[:places])
        if self.open:
            made[:, -1] += none
        return np.where(self.valid, made, _IMPOSSIBLE)

    def gradient(self, error: Floats) -> Floats:
        per_item = (error[:, None, :] @ self.x)[:, 0]
        parts = [per_item.sum(axis=0)]
        if self.n_groups:
            known = self.group >= 0
            of_group = np.zeros((self.n_groups, self.n_models))
            np.add.at(of_group, self.group[known], per_item[known])
            parts.append(of_group.ravel())
        if self.n_places:
            parts.append(np.einsum("mk,mkn->kn", error, self.x).ravel())
        parts.append(np.array([error[:, -1].sum() if self.open else 0.0]))
        return np.concatenate(parts)

    def arrays(self, flat: Floats) -> Arrays:
        weight, of_group, of_place, none = self._split(flat)
        return {"weight": weight, "subject_weight": of_group, "place_weight": of_place, "none": np.array([none])}

    def flat(self, learned: Arrays) -> Floats:
        self.n_groups, self.n_places = len(learned["subject_weight"]), len(learned["place_weight"])
        parts = [learned[name].ravel() for name in ("weight", "subject_weight", "place_weight", "none")]
        return np.concatenate(parts).astype(np.float64)
