"""Intervals for rates measured on items and seeds. NumPy only.

Rates here have two sources of chance: which items were asked and which seeds were drawn (data order,
adapter initialisation, and in the sandbox the world itself). Intervals from items alone are ones that a
second seed walks out of, so both count. With S seeds of n items, W is the item variance of a seed's mean
(averaged over seeds) and s2 the variance of the seeds' means, which contains W:

    variance of the grand mean    V  = max(s2, W) / S
    degrees of freedom            df = (S - 1) (1 + W / s2)      one seed: infinite

A rate gets the Wilson score interval with n_eff = p (1 - p) / V items (at least 1, at most S n) and Student's
quantile (the effective size of Korn and Graubard 1998, "Confidence intervals for proportions with small expected
number of positive counts estimated from survey data", Survey Methodology 24, in Wilson's interval); it needs no special
case at 0 and 1. A difference gets Student's interval.

The degrees of freedom lie between those of Student's interval on the seed means alone (S - 1: right when seeds
differ, twice too wide when they agree) and the normal one. They and the interval were chosen by simulation of 95%
intervals, 256 items a seed, 1,500 experiments (300 for the bootstrap: seeds, then items, widened by
sqrt(S / (S - 1))); each entry is coverage and mean width in points. Seeds' rates follow a beta distribution with
the given mean and standard deviation (both in points):

    seeds   mean   sd between seeds   this interval   two-stage bootstrap   Student on seed means
      1      94           0            .953   5.9       .963   5.8
      3      94           0            .990   5.4       .997   5.1            .950   6.7
      3      94           3            .931  13.6       .910   7.3            .930  12.0
      3      50          10            .917  36.5       .827  21.5            .940  43.1
      3       2           1            .961   5.6       .927   3.4            .917   4.4
      5      94           3            .933   7.4       .927   5.9            .930   7.2
      5      50          10            .941  22.7       .910  17.5            .937  23.7

All of them fail when a rate near an edge varies between seeds by more than its distance from the edge (mean 94, sd
10, three seeds: .831, .670, .760): a few seeds do not show the rare bad one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_NORMAL = 1e4  # degrees of freedom from which Student's quantile is the normal one (to 2e-4)


def mean_interval(groups: Sequence[Values], *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds of the mean over items, with its interval.

    Args:
        groups: per seed, the item values in [0, 1], shape (n_items,).
        level: coverage aimed at.

    Returns:
        estimate, lower and upper bound, all in [0, 1].

    Raises:
        ValueError: no seed, or a seed without items.
    """
    estimate, variance, freedom = _moments(groups)
    return (estimate, *score_interval(estimate, variance, freedom, sum(len(group) for group in groups), level))


def score_interval(
    estimate: float, variance: float, freedom: float, most: float, level: float = 0.95
) -> tuple[float, float]:
    """Wilson's bounds of a rate whose estimate has a given variance.

    Args:
        estimate: in [0, 1].
        variance: of the estimate.
        freedom: degrees of freedom of the variance.
        most: items that the estimate can be worth at most.
        level: coverage aimed at.
    """
    spread = estimate * (1 - estimate)
    size = min(most, max(1.0, spread / variance)) if variance > 0 and spread > 0 else most
    square = student(level, freedom) ** 2
    centre = (estimate + square / (2 * size)) / (1 + square / size)
    half = math.sqrt(square * (spread / size + square / (4 * size**2))) / (1 + square / size)
    return min(max(centre - half, 0.0), estimate), max(min(centre + half, 1.0), estimate)


def difference_interval(
    left: Sequence[Values], right: Sequence[Values], *, level: float = 0.95
) -> tuple[float, float, float]:
    """Paired difference (left minus right) of two rates on the same seeds and items, with its interval.

    What the two sides share cancels item by item. Where no pair differs, the bounds are those of a rate of which
    no case was seen (Clopper and Pearson): "no difference in n pairs" is not "no difference".

    Args:
        left: per seed, item values in [0, 1], shape (n_items,).
        right: the same seeds and items in the same order.
        level: coverage aimed at.

    Returns:
        estimate, lower and upper bound, all in [-1, 1].

    Raises:
        ValueError: the two sides do not pair up, no seed, or a seed without items.
    """
    if len(left) != len(right) or any(len(a) != len(b) for a, b in zip(left, right, strict=True)):
        raise ValueError("the two sides must hold the same seeds and items")
    pairs = [a - b for a, b in zip(left, right, strict=True)]
    estimate, variance, freedom = _moments(pairs)
    together = np.concatenate(pairs)
    if not together.any():
        half = 1 - ((1 - level) / 2) ** (1 / len(together))
    elif np.ptp(together) == 0:
        return (estimate, *_all_alike(estimate, len(together), level))
    else:
        half = student(level, freedom) * math.sqrt(variance)
    return estimate, max(estimate - half, -1.0), min(estimate + half, 1.0)


def _all_alike(difference: float, n: int, level: float) -> tuple[float, float]:
    """Bounds where all n pairs differ by the same amount, so that no spread was seen.

    Half a pair is added to each cell of the two-by-two table (Agresti and Min 2005, Biometrics 61): one pair says
    nothing of the sign, six do.
    """
    more = n + 2
    centre = difference * n / more
    variance = (n * abs(difference) + 1 - (difference * n) ** 2 / more) / more**2
    half = student(level, math.inf) * math.sqrt(variance)
    return min(max(centre - half, -1.0), difference), max(min(centre + half, 1.0), difference)


def student(level: float, freedom: float) -> float:
    """Half-width of the central interval of Student's t, for any real ``freedom`` of at least 1.

    With t = sqrt(freedom) tan(a) the density is proportional to cos(a)^(freedom - 1), which is summed by the
    trapezium rule; the error is below a thousandth of the value (largest near one degree of freedom).
    """
    if freedom >= _NORMAL:
        return NormalDist().inv_cdf((1 + level) / 2)
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(math.sqrt(freedom) * np.tan(np.interp(level, mass / mass[-1], angle)))


def _moments(groups: Sequence[Values]) -> tuple[float, float, float]:
    """Grand mean, its variance over items and seeds, and the degrees of freedom of that variance."""
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError("each group needs at least one item")
    # One item says nothing of a spread: the largest that values in [0, 1] can have.
    items = [group.var(ddof=1) / len(group) if len(group) > 1 else 0.25 for group in groups]
    return over_seeds([float(np.mean(group)) for group in groups], [float(item) for item in items])


def over_seeds(means: Sequence[float], variances: Sequence[float]) -> tuple[float, float, float]:
    """Grand mean of the seeds' means, its variance, and the degrees of freedom of that (see the module).

    Args:
        means: one a seed.
        variances: of each of them over items.
    """
    items = float(np.mean(variances))
    if len(means) == 1:
        return means[0], items, math.inf
    seeds = float(np.var(means, ddof=1))
    freedom = (len(means) - 1) * (1 + items / seeds) if seeds > 0 else math.inf
    return float(np.mean(means)), max(seeds, items) / len(means), float(freedom)
