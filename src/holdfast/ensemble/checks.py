"""Are the outputs what they seem? Models below chance, and columns that are evidently in another order.

A benchmark's options can be numbered in one order in the answers and in another in the key: a model then looks as if it
knew the answers and gave the wrong letters. A model is flagged when one renaming of its labels, found on half of the
items, raises its accuracy on the other half by more than could be chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.core.stats import mean_interval
from holdfast.ensemble.outputs import Floats, Outputs

_FEWEST = 40
_GAIN = 0.05
_SURE = 4.0  # standard errors; many models and subjects are looked at


@dataclass(frozen=True)
class Finding:
    """Something that a reader should look at before believing anything else.

    Attributes:
        model: which model.
        subject: in which subject; empty for all items.
        kind: ``below chance`` or ``permuted``.
        accuracy: as the columns stand.
        other: chance, or the accuracy after renaming.
        text: one sentence.
    """

    model: str
    subject: str
    kind: str
    accuracy: float
    other: float
    text: str


def findings(outputs: Outputs) -> list[Finding]:
    """All findings, models in order; none for answers that are no options."""
    if outputs.kind != "choice":
        return []
    made: list[Finding] = []
    for model in range(outputs.n_models):
        made += _of(outputs, model, np.ones(outputs.n_items, bool), "")
        for place, name in enumerate(outputs.groups):
            rows = outputs.group == place
            if name and len(outputs.groups) > 1 and rows.sum() >= _FEWEST:
                made += _of(outputs, model, rows, name)
    return made


def _of(outputs: Outputs, model: int, rows: np.ndarray, subject: str) -> list[Finding]:
    answered = rows & (outputs.codes[:, model] >= 0) & outputs.correct.any(axis=1)
    if answered.sum() < _FEWEST:
        return []
    right = outputs.right[answered, model].astype(np.float64)
    chance = float((1 / outputs.valid[answered].sum(axis=1)).mean())
    where = f" in {subject}" if subject else ""
    name = outputs.models[model]
    before, after = _renamed(
        outputs.codes[answered, model], outputs.correct[answered].argmax(axis=1), outputs.valid.shape[1]
    )
    n = int(answered.sum())
    least = max(_GAIN, _SURE * math.sqrt(0.5 / n))
    # A model that is never right also gains by renaming, but never gets far above chance.
    if after - max(before, chance) > least:
        text = f"{name}{where}: {before:.1%} right as its labels stand, {after:.1%} renamed: is this the key's order?"
        return [Finding(name, subject, "permuted", before, after, text)]
    _, _, high = mean_interval([right], level=0.999)
    if high < chance:
        text = f"{name}{where}: {right.mean():.1%} right, below chance ({chance:.1%})"
        return [Finding(name, subject, "below chance", float(right.mean()), chance, text)]
    return []


def _renamed(codes: np.ndarray, gold: np.ndarray, size: int) -> tuple[float, float]:
    """Accuracy as it stands, and after the best renaming of labels, each half of the items renamed by the other."""
    from scipy.optimize import linear_sum_assignment

    half = np.arange(len(codes)) % 2
    hits = 0.0
    for side in (0, 1):
        table: Floats = np.zeros((size, size))
        np.add.at(table, (codes[half != side], gold[half != side]), 1)
        table += 1e-6 * np.eye(size)  # as it stands, where nothing speaks against it
        name = linear_sum_assignment(-table)[1]
        hits += float((name[codes[half == side]] == gold[half == side]).sum())
    return float((codes == gold).mean()), hits / len(codes)
