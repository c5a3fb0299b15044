"""TOPLA-Weighted: a small network over all members' option scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from holdfast.core.knobs import knob
from holdfast.ensemble.combine.base import Arrays, softmax
from holdfast.ensemble.outputs import Codes, Floats, Outputs

_IMPOSSIBLE = -1e30
_LAYERS = 3


@dataclass(frozen=True)
class ToplaWeighted:
    """Linear(N K, h) sigmoid Linear(h, h) sigmoid Linear(h, K) on the concatenated beliefs (LLM-TOPLA, section 4.1).

    Differs from the authors' code: logits go into one softmax (theirs pass a sigmoid and two softmaxes, so no
    probability can exceed e / (e + K - 1), 0.475 for four options); invalid options are masked; the validation items
    are no training items; accuracy is over items, not a mean of batch means; the weights of the best epoch are kept;
    a seed. Slots of open answers are sorted by total belief, as theirs, and a last slot stands for none of them where
    theirs are filled up with zeros that a gold answer of 0 matches. ``drop`` silences members at random in training, so
    that a missing member is nothing new; the paper has none.

    The network is not symmetric in the options: it learns letters.
    """

    name: ClassVar[str] = "topla-weighted"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "TOPLA-Weighted"
    learns: ClassVar[bool] = True

    hidden: int = knob(100, "units of a hidden layer", low=1, source="authors' code")
    slots: int = knob(30, "answers of an open question that the network sees", low=2, source="authors' code, GSM8K")
    epochs: int = knob(300, "passes over the items at most", low=1, source="authors' code")
    patience: int = knob(30, "epochs without a better validation loss before it stops; authors' code: 200", low=1)
    batch: int = knob(64, "items a step", low=1, source="authors' code")
    learning_rate: float = knob(1e-3, "of Adam", low=0, source="authors' code")
    decay: float = knob(1e-3, "weight decay (AdamW); the authors have none and overfit", low=0)
    drop: float = knob(0.1, "chance that a member is silent at a step", low=0, high=0.9)
    validation: float = knob(
        0.125, "share of the items kept to choose the epoch", low=0.01, high=0.5, source="paper: 10 of 80%"
    )

    def fit(self, outputs: Outputs, generator: np.random.Generator) -> Arrays:
        """Adam on the cross-entropy; the epoch with the best validation loss."""
        x, _, target, valid = self._slots(outputs)
        rows = np.flatnonzero(target.any(axis=1))
        order = generator.permutation(rows)
        held = max(1, round(self.validation * len(order)))
        check, train = order[:held], order[held:]
        net = _network((x.shape[1] * x.shape[2], self.hidden, self.hidden, x.shape[2]), generator)
        moments = [(np.zeros_like(w), np.zeros_like(w)) for w in net]
        if not len(train):  # nothing is ever right, or one item: there is nothing to learn
            return {f"layer_{place}": w for place, w in enumerate(net)}
        best, kept, waited, step = np.inf, [w.copy() for w in net], 0, 0
        for _ in range(self.epochs):
            for part in _batches(generator.permutation(train), self.batch):
                there = generator.random((len(part), x.shape[1])) >= self.drop
                step += 1
                slopes = _slopes(net, (x[part] * there[:, :, None]).reshape(len(part), -1), target[part], valid[part])
                self._adam(net, moments, slopes, step)
            loss = _loss(net, x[check].reshape(len(check), -1), target[check], valid[check])
            waited = waited + 1
            if loss < best:
                best, kept, waited = loss, [w.copy() for w in net], 0
            if waited >= self.patience:
                break
        return {f"layer_{place}": w for place, w in enumerate(kept)}

    def scores(self, learned: Arrays, outputs: Outputs) -> Floats:
        """See :class:`holdfast.ensemble.combine.base.Combiner`."""
        net = [learned[f"layer_{place}"] for place in range(2 * _LAYERS)]
        x, place, _, _ = self._slots(outputs, net[-1].shape[0])
        logits = _forward(net, x.reshape(len(x), -1))[-1]
        # Candidates beyond the slots come last, in the order of belief.
        made = np.full(outputs.valid.shape, logits.min() - 1.0)
        made += 1e-6 * outputs.belief.sum(axis=1)
        inside = place < logits.shape[1] - (outputs.kind != "choice")
        rows, columns = np.nonzero(inside & outputs.valid)
        made[rows, columns] = logits[rows, place[rows, columns]]
        return made

    def _slots(self, outputs: Outputs, width: int = 0) -> tuple[Floats, Codes, NDArray[np.bool_], NDArray[np.bool_]]:
        """Beliefs (n_items, n_models, slots), slot of each candidate, targets and valid slots."""
        belief = outputs.belief.astype(np.float64)
        if outputs.kind == "choice":
            # Learned with as many options as training had.
            width = width or belief.shape[2]
            short = width - belief.shape[2]
            pad = ((0, 0), (0, max(short, 0)))
            x = np.pad(belief, ((0, 0), *pad))[:, :, :width]
            place = np.broadcast_to(np.arange(belief.shape[2]), outputs.valid.shape)
            return x, place, np.pad(outputs.correct, pad)[:, :width], np.pad(outputs.valid, pad)[:, :width]
        width = width or min(self.slots, belief.shape[2]) + 1
        mass = np.where(outputs.valid, belief.sum(axis=1), -1)
        order = np.argsort(-mass, axis=1, kind="stable")
        place = np.argsort(order, axis=1, kind="stable")
        top = order[:, : width - 1]
        x = np.take_along_axis(belief, top[:, None, :], axis=2)
        x = np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[2])))
        target, valid = np.zeros((len(x), width), bool), np.zeros((len(x), width), bool)
        target[:, : top.shape[1]] = np.take_along_axis(outputs.correct, top, axis=1)
        valid[:, : top.shape[1]] = np.take_along_axis(outputs.valid, top, axis=1)
        target[:, -1], valid[:, -1] = ~target.any(axis=1), True
        return x, place, target, valid

    def _adam(self, net: list[Floats], moments: list[tuple[Floats, Floats]], slopes: list[Floats], step: int) -> None:
        for place, slope in enumerate(slopes):
            first, second = moments[place]
            first = first + 0.1 * (slope - first)
            second = second + 0.001 * (slope**2 - second)
            moments[place] = first, second
            size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            shrunk = net[place] * (1 - self.learning_rate * self.decay) if net[place].ndim == 2 else net[place]
            net[place] = shrunk - self.learning_rate * (first / (1 - 0.9**step)) / size


def _network(sizes: tuple[int, ...], generator: np.random.Generator) -> list[Floats]:
    """Weights (Xavier, uniform) and biases (0.01, as the authors') by turns."""
    net: list[Floats] = []
    for above, below in zip(sizes[1:], sizes, strict=False):
        bound = np.sqrt(6 / (above + below))
        net += [generator.uniform(-bound, bound, (above, below)), np.full(above, 0.01)]
    return net


def _forward(net: list[NDArray[np.float64]], x: Floats) -> list[Floats]:
    """Inputs of each layer, then the logits."""
    seen = [x]
    for layer in range(_LAYERS):
        z = seen[-1] @ net[2 * layer].T + net[2 * layer + 1]
        seen.append(z if layer == _LAYERS - 1 else 1 / (1 + np.exp(-z)))
    return seen


def _loss(net: list[Floats], x: Floats, target: NDArray[np.bool_], valid: NDArray[np.bool_]) -> float:
    p = softmax(np.where(valid, _forward(net, x)[-1], _IMPOSSIBLE))
    return float(-np.log(np.maximum((p * target).sum(axis=1), 1e-12)).mean())


def _slopes(net: list[Floats], x: Floats, target: NDArray[np.bool_], valid: NDArray[np.bool_]) -> list[Floats]:
    """Gradient of the mean cross-entropy, by hand."""
    seen = _forward(net, x)
    p = softmax(np.where(valid, seen[-1], _IMPOSSIBLE))
    q = p * target
    back = (p - q / np.maximum(q.sum(axis=1, keepdims=True), 1e-300)) / len(x)
    slopes: list[Floats] = [np.zeros(0)] * (2 * _LAYERS)
    for layer in reversed(range(_LAYERS)):
        slopes[2 * layer], slopes[2 * layer + 1] = back.T @ seen[layer], back.sum(axis=0)
        if layer:
            back = (back @ net[2 * layer]) * seen[layer] * (1 - seen[layer])
    return slopes


def _batches(order: NDArray[np.integer], size: int) -> Iterator[NDArray[np.integer]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
