"""Intervals for rates measured on items and seeds. NumPy only.

Rates here have two sources of chance: which items were asked and which seeds were drawn (data order,
adapter initialisation, and in the sandbox the world itself). Resampling items alone gives intervals
that a second seed walks out of, so both are resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def bootstrap_mean(
    groups: Sequence[Values], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over seeds of the mean over items, with a two-stage bootstrap interval.

    Seeds are resampled with replacement, then items within each drawn seed (Davison and Hinkley 1997,
    section 3.8). With few seeds the first stage alone spreads too little by the factor (S - 1) / S in
    variance; the deviations are widened by sqrt(S / (S - 1)) to make up for it. With one seed only the items
    are resampled. A rate at 0 or 1 has no bootstrap spread at all, so the interval is never narrower than
    the exact binomial (Clopper-Pearson) bound of the pooled count on the side away from the edge.

    Args:
        groups: per seed, the item values in [0, 1], shape (n_items,).
        level: coverage aimed at.
        resamples: bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        estimate, lower and upper bound.

    Raises:
        ValueError: no seed, or a seed without items.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError("each group needs at least one item")
    means = np.array([float(np.mean(group)) for group in groups])
    estimate = float(means.mean())
    draws = _two_stage(groups, resamples, np.random.default_rng(seed))
    if len(groups) > 1:
        widen = np.sqrt(len(groups) / (len(groups) - 1))
        draws = estimate + (draws - estimate) * widen
    tail = 100 * (1 - level) / 2
    low, high = (float(x) for x in np.percentile(draws, [tail, 100 - tail]))
    total = sum(len(group) for group in groups)
    if all(np.isin(group, (0.0, 1.0)).all() for group in groups) and len(set(means)) == 1 and means[0] in (0.0, 1.0):
        # Nothing varies, so the bootstrap says "certain"; the exact bound for x = 0 (or n) does not.
        edge = 1 - ((1 - level) / 2) ** (1 / total)
        low, high = (0.0, edge) if means[0] == 0.0 else (1 - edge, 1.0)
    return estimate, min(max(low, 0.0), estimate), max(min(high, 1.0), estimate)


def bootstrap_difference(
    left: Sequence[Values],
    right: Sequence[Values],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Paired difference of two rates on the same seeds and items, with its interval.

    Both sides are resampled with the same seeds and items, so what they share cancels.

    Args:
        left: per seed, item values, shape (n_items,).
        right: the same seeds and items in the same order.
        level: as in :func:`bootstrap_mean`.
        resamples: as in :func:`bootstrap_mean`.
        seed: as in :func:`bootstrap_mean`.

    Returns:
        estimate, lower and upper bound.

    Raises:
        ValueError: the two sides do not pair up.
    """
    if len(left) != len(right) or any(len(a) != len(b) for a, b in zip(left, right, strict=True)):
        raise ValueError("the two sides must hold the same seeds and items")
    differences = [a - b for a, b in zip(left, right, strict=True)]
    estimate = float(np.mean([d.mean() for d in differences]))
    draws = _two_stage(differences, resamples, np.random.default_rng(seed))
    if len(differences) > 1:
        draws = estimate + (draws - estimate) * np.sqrt(len(differences) / (len(differences) - 1))
    tail = 100 * (1 - level) / 2
    low, high = (float(x) for x in np.percentile(draws, [tail, 100 - tail]))
    return estimate, low, high


def _two_stage(groups: Sequence[Values], resamples: int, rng: np.random.Generator) -> Values:
    """Resampled grand means: seeds with replacement, then items inside each drawn seed."""
    inner = np.stack([_item_means(group, resamples, len(groups), rng) for group in groups])
    picked = rng.integers(len(groups), size=(resamples, len(groups)))
    slot = np.arange(len(groups))[None, :]
    return np.asarray(inner[picked, np.arange(resamples)[:, None], slot].mean(axis=1))


def _item_means(group: Values, resamples: int, slots: int, rng: np.random.Generator) -> Values:
    """Means of resampled items, shape (resamples, slots): one draw for each slot a seed can fill.

    Items are resampled by multinomial counts of the distinct values, which is the same thing and
    costs nothing for rates (two distinct values).
    """
    values, counts = np.unique(group, return_counts=True)
    drawn = rng.multinomial(len(group), counts / len(group), size=(resamples, slots))
    return np.asarray(drawn @ values / len(group))
