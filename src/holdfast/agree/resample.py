"""Estimates with intervals from one shared set of resamples.

An item bootstrap draws items with replacement; over distinct rows (:mod:`holdfast.agree.counts`) that is one
multinomial draw of the rows' multiplicities, exactly. Items that share a document or a system are not independent:
then the rows are to be whole clusters, their features summed. All coefficients see the same draws, so their
differences have intervals too.

The interval is BCa (Efron 1987) with the acceleration from the influence values (Efron and Tibshirani 1993, eq. 14.15,
with the infinitesimal jackknife in place of the jackknife).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from holdfast.agree.coefficients import Coefficient, Floats

_STEP = 1e-20  # of a complex-step derivative: no cancellation, so it may be as small as one likes


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its interval.

    Attributes:
        name: the coefficient.
        value: the estimate; None when undefined, with ``reason``.
        low, high: bounds at ``level``; None when there is no interval, with ``reason``.
        error: standard error by the infinitesimal jackknife.
        n: items it rests on.
        level: coverage aimed at.
        undefined: share of resamples in which the coefficient was undefined.
        reason: why there is no value or no interval; empty otherwise.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    error: float | None
    n: int
    level: float
    undefined: float = 0.0
    reason: str = ""


def draw(times: NDArray[np.integer], resamples: int, generator: np.random.Generator) -> Floats:
    """Weights of an item bootstrap over distinct rows, shape (resamples, n_rows).

    Args:
        times: how many items have each row; all ones when rows are items (or clusters).
        resamples: how many.
        generator: source of chance.
    """
    total = int(times.sum())
    return generator.multinomial(total, times / total, size=resamples).astype(np.float64)


def estimate(coefficient: Coefficient, times: NDArray[np.integer], weights: Floats, *, level: float = 0.95) -> Estimate:
    """Estimate of a coefficient with its BCa interval.

    Args:
        coefficient: on the rows that ``times`` counts.
        times: multiplicity of each row, shape (n_rows,).
        weights: from :func:`draw`, shape (resamples, n_rows), shared between coefficients.
        level: coverage aimed at.
    """
    count = times.astype(np.float64)
    point = float(coefficient.value(count @ coefficient.features))
    n = int(times.sum())
    if not np.isfinite(point):
        return Estimate(coefficient.name, None, None, None, None, n, level, reason=coefficient.undefined)
    slopes = influence(coefficient, times)
    error = float(np.sqrt((count * slopes**2).sum()))
    drawn = coefficient.value(weights @ coefficient.features).real.astype(np.float64)
    good = drawn[np.isfinite(drawn)]
    lost = 1 - len(good) / len(drawn)
    if error == 0:
        why = "it does not vary between these items: resampling them says nothing about others"
        return Estimate(coefficient.name, point, None, None, None, n, level, lost, why)
    if lost > 0.05:
        why = f"undefined in {lost:.0%} of the resamples: {coefficient.undefined}"
        return Estimate(coefficient.name, point, None, None, error, n, level, lost, why)
    low, high = bca(point, good, slopes, times, level)
    return Estimate(coefficient.name, point, low, high, error, n, level, lost)


def influence(coefficient: Coefficient, times: NDArray[np.integer]) -> Floats:
    """Change of the coefficient with the weight of each row, centred over items, shape (n_rows,).

    The derivative with respect to the sums is taken by complex steps, exact to rounding.
    """
    count = times.astype(np.float64)
    sums = count @ coefficient.features
    steps = sums[None, :] + 1j * _STEP * np.eye(len(sums))
    gradient = np.imag(coefficient.value(steps)) / _STEP
    slopes = coefficient.features @ gradient
    return np.asarray(slopes - (count * slopes).sum() / count.sum(), dtype=np.float64)


def bca(
    point: float, drawn: Floats, slopes: Floats, times: NDArray[np.integer], level: float = 0.95
) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds.

    Args:
        point: the estimate.
        drawn: its values in the resamples, shape (resamples,).
        slopes: influence values of the rows, shape (n_rows,).
        times: multiplicity of each row, shape (n_rows,).
        level: coverage aimed at.
    """
    below = (np.count_nonzero(drawn < point) + np.count_nonzero(drawn == point) / 2) / len(drawn)
    edge = 0.5 / len(drawn)
    bias = norm.ppf(min(max(below, edge), 1 - edge))
    acceleration = (times * slopes**3).sum() / (6 * (times * slopes**2).sum() ** 1.5)
    tail = norm.ppf([(1 - level) / 2, (1 + level) / 2])
    shares = norm.cdf(bias + (bias + tail) / (1 - acceleration * (bias + tail)))
    low, high = np.quantile(drawn, shares)
    return float(low), float(high)


def difference(left: Coefficient, right: Coefficient, name: str = "") -> Coefficient:
    """The difference of two coefficients on the same rows, as a coefficient."""
    split = left.features.shape[1]

    def value(sums: NDArray[np.inexact]) -> NDArray[np.inexact]:
        return np.asarray(left.value(sums[..., :split]) - right.value(sums[..., split:]))

    return Coefficient(
        name or f"{left.name} - {right.name}",
        np.concatenate([left.features, right.features], axis=1),
        value,
        left.undefined if left.undefined == right.undefined else f"{left.undefined}; or {right.undefined}",
    )
