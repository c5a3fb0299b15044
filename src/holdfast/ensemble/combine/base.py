"""What a combining method is, and one that was fitted: chosen answers, probabilities, save and load.

A combining method is a frozen dataclass of knobs. ``fit`` learns arrays from outputs whose right answers are known;
``scores`` gives each candidate of each item a number. Two things are the same for all methods and live here: ties go to
the candidate of the model that was best in training (the smallest label, as usual elsewhere, costs 1.2 points on
MMLU-Pro), and probabilities are softmax(scores / T) with the temperature T that is best on scores out of fold. Where
answers are no options, all of them may be wrong: "none of these" is one more candidate, with a score fitted with T.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import DataError, UsageError
from holdfast.core.files import read_json, write_json
from holdfast.core.knobs import build, resolved
from holdfast.ensemble.outputs import Codes, Floats, Outputs

Arrays = Mapping[str, NDArray[Any]]

FOLDS = 5
_TIE = 1e-9
_IMPOSSIBLE = -1e30
_UNLIKELY = 1e-12
_PULL = 1e-6  # keeps the score of "none" finite where nobody is ever wrong


@runtime_checkable
class Combiner(Protocol):
    """A combining method.

    Attributes:
        name: the table's name.
        version: raised whenever the same outputs could lead to other answers than before.
        title: for tables and charts.
        learns: whether it learns more than which model is best.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    title: ClassVar[str]
    learns: ClassVar[bool]

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """What is learned from outputs whose right answers are known."""
        ...

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """A number for each candidate, shape (n_items, n_candidates); what is not valid is ignored."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A method with what it learned on some models.

    Attributes:
        method: the combining method.
        models: names, in the order of the arrays.
        arrays: what was learned; ``rank`` (place of each model by training accuracy, 0 worst) is always there.
        groups: names of the subjects in training.
        temperature: of the probabilities.
        none: score of "none of these"; None where the right answer always is a candidate.
    """

    method: Combiner
    models: tuple[str, ...]
    arrays: Arrays
    groups: tuple[str, ...]
    temperature: float = 1.0
    none: float | None = None

    def answers(self, outputs: Outputs) -> Codes:
        """The candidate chosen for each item, shape (n_items,); -1 where no model answered.

        Raises:
            DataError: the outputs are of other models.
        """
        outputs = self._aligned(outputs)
        return _choose(self._scores(outputs), outputs, self.arrays["rank"])

    def probabilities(self, outputs: Outputs) -> Floats:
        """Calibrated probabilities, shape (n_items, n_candidates).

        Rows sum to 1 over valid candidates; to less where answers are no options: the rest is "none of these".
        """
        outputs = self._aligned(outputs)
        return _stated(self._scores(outputs), self.temperature, self.none)[:, : outputs.valid.shape[1]]

    def _scores(self, outputs: Outputs) -> Floats:
        return np.where(outputs.valid, self.method.scores(self.arrays, outputs), _IMPOSSIBLE)

    def _aligned(self, outputs: Outputs) -> Outputs:
        """The outputs with our models in our order, and subjects numbered as in training (unknown ones -1)."""
        from dataclasses import replace

        if outputs.models != self.models:
            missing = [name for name in self.models if name not in outputs.models]
            if missing:
                raise DataError(
                    f"no answers of {missing[0]!r}, which the ensemble has",
                    hint="give a column a member; empty where it has no answer",
                )
            outputs = outputs.of([outputs.models.index(name) for name in self.models])
        if outputs.groups != self.groups:
            places = {name: place for place, name in enumerate(self.groups)}
            new = np.array([places.get(name, -1) for name in outputs.groups], dtype=np.int64)
            outputs = replace(outputs, group=new[outputs.group], groups=self.groups)
        return outputs

    def save(self, folder: Path) -> None:
        """Write ``combiner.json`` and ``combiner.safetensors`` into a folder."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        save_file(arrays, folder / "combiner.safetensors")
        card = {
            "method": self.method.name, "version": self.method.version, "knobs": resolved(self.method),
            "models": list(self.models), "groups": list(self.groups), "temperature": self.temperature,
            "none": self.none,
        }  # fmt: skip
        write_json(folder / "combiner.json", card)


def load_fitted(folder: Path) -> Fitted:
    """Inverse of :meth:`Fitted.save`.

    Raises:
        DataError: the folder has no combiner, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from holdfast.ensemble.combine import COMBINERS

    try:
        card: dict[str, Any] = read_json(folder / "combiner.json")
        arrays = load_file(folder / "combiner.safetensors")
        method = build(COMBINERS.load(card["method"]), card["knobs"], str(folder))
        version = card["version"]
        made = Fitted(
            method, tuple(card["models"]), arrays, tuple(card["groups"]), float(card["temperature"]), card["none"]
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError, UsageError) as error:
        raise DataError(
            f"{folder}: no combiner can be read: {error}", hint="fit the ensemble again: holdfast ensemble fit"
        ) from error
    if version != method.version:
        raise DataError(
            f"{folder}: fitted by version {version} of {method.name}, this is {method.version}",
            hint="holdfast ensemble fit",
        )
    return made


@dataclass(frozen=True)
class Trial:
    """A method fitted on outputs, with what it would have said of items it had not seen.

    Attributes:
        fitted: on all items, with its temperature.
        right: whether the method, fitted without the item's fold, is right, shape (n_items,).
        likelihood: mean log of the probability of a right candidate, out of fold, in nats.
    """

    fitted: Fitted
    right: NDArray[np.bool_]
    likelihood: float

    @cached_property
    def accuracy(self) -> float:
        """Share right out of fold."""
        return float(self.right.mean())


def fit(method: Combiner, outputs: Outputs, seed: int, folds: int = FOLDS) -> Trial:
    """Fit a method, and cross-validate it on the way.

    Args:
        method: what is fitted.
        outputs: with right answers.
        seed: of folds and of the method's own chance.
        folds: of the cross-validation; fewer than 2 skip it (temperature 1, nothing out of fold).

    Raises:
        DataError: fewer items than folds.
    """
    if outputs.n_items < max(folds, 2):
        raise DataError(
            f"{outputs.n_items} items to learn from", hint=f"at least {max(folds, 2)}, better some hundreds"
        )
    whole = _fit(method, outputs, np.random.default_rng([seed, 0]))
    if folds < 2:
        return Trial(whole, np.zeros(0, bool), float("nan"))
    fold = fold_of(outputs.n_items, folds, seed)
    scores = np.full(outputs.correct.shape, _IMPOSSIBLE)
    chosen = np.full(outputs.n_items, -1)
    for k in range(folds):
        part = _fit(method, outputs.take(fold != k), np.random.default_rng([seed, 1 + k]))
        held = outputs.take(fold == k)
        scores[fold == k] = part._scores(held)
        chosen[fold == k] = _choose(scores[fold == k], held, part.arrays["rank"])
    temperature, none, likelihood = _calibrated(scores, outputs)
    made = Fitted(method, whole.models, whole.arrays, whole.groups, temperature, none)
    return Trial(made, is_right(chosen, outputs), likelihood)


def fold_of(n_items: int, folds: int, seed: int) -> Codes:
    """Fold of each item, shape (n_items,): equal parts, drawn at random."""
    return np.random.default_rng([seed, 77]).permutation(n_items) % folds


def is_right(chosen: Codes, outputs: Outputs) -> NDArray[np.bool_]:
    """Whether chosen candidates are right, shape (n_items,); -1 is not."""
    found = np.take_along_axis(outputs.correct, np.maximum(chosen, 0)[:, None], axis=1)[:, 0]
    return np.asarray(found & (chosen >= 0))


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis."""
    lifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(lifted / lifted.sum(axis=-1, keepdims=True))


def _fit(method: Combiner, outputs: Outputs, generator: np.random.Generator) -> Fitted:
    order = np.argsort(outputs.accuracy, kind="stable")
    rank = np.empty(outputs.n_models, dtype=np.int64)
    rank[order] = np.arange(outputs.n_models)
    return Fitted(method, outputs.models, {**method.fit(outputs, generator), "rank": rank}, outputs.groups)


def _choose(scores: Floats, outputs: Outputs, rank: NDArray[np.integer]) -> Codes:
    """Best score; between equal ones, the candidate of the best model that has one of them."""
    best = scores.max(axis=1, keepdims=True)
    tied = scores >= best - _TIE * np.maximum(1, np.abs(best))
    backed = np.where(outputs.belief > 0, (rank + 1)[None, :, None], 0).max(axis=1)
    chosen = np.where(tied, backed, -1).argmax(axis=1)
    return np.where(outputs.belief.any(axis=(1, 2)), chosen, -1)


def _stated(scores: Floats, temperature: float, none: float | None) -> Floats:
    """Probabilities of the candidates, and of "none of these" in a last column where there is one."""
    lifted = scores / temperature
    if none is not None:
        lifted = np.concatenate([lifted, np.full((len(scores), 1), none)], axis=1)
    return softmax(lifted)


def _calibrated(scores: Floats, outputs: Outputs) -> tuple[float, float | None, float]:
    """Temperature and score of "none of these" with the largest likelihood, and its mean over items, in nats.

    For options, items that have no right one say nothing; for other answers they are what "none" is learned from.
    """
    from scipy.optimize import minimize, minimize_scalar

    right = np.asarray(outputs.correct.any(axis=1))
    if outputs.kind == "choice":
        if not right.any():
            return 1.0, None, float("nan")
        rows, target = scores[right], outputs.correct[right]

        def loss(log_temperature: float) -> float:
            p = (_stated(rows, float(np.exp(log_temperature)), None) * target).sum(axis=1)
            return float(-np.log(np.maximum(p, _UNLIKELY)).mean())

        found = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
        return float(np.exp(found.x)), None, -float(found.fun)
    targets = np.concatenate([outputs.correct, ~right[:, None]], axis=1)

    def both(knobs: Floats) -> float:
        p = (_stated(scores, float(np.exp(np.clip(knobs[0], -4, 4))), float(knobs[1])) * targets).sum(axis=1)
        return float(-np.log(np.maximum(p, _UNLIKELY)).mean() + _PULL * knobs[1] ** 2)

    best = minimize(both, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7, "maxiter": 400})
    temperature, none = float(np.exp(np.clip(best.x[0], -4, 4))), float(best.x[1])
    return temperature, none, -float(best.fun)
