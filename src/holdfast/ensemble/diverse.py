"""Diversity metrics of a team with their intervals."""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.diversity import DiversityMetric
from holdfast.core.records import Metric
from holdfast.ensemble.outputs import Outputs

RESAMPLES = 200
_WIDTH = 1.959964  # standard errors


def measured(metric: DiversityMetric, outputs: Outputs, seed: int = 0) -> Metric:
    """A metric of all the models of some outputs, over items.

    The interval is value +- 1.96 standard errors, which are taken from resamples of the items.

    Args:
        metric: of :data:`holdfast.core.diversity.METRICS`.
        outputs: of the team.
        seed: of the resamples.
    """
    table = outputs.failed if metric.of == "failures" else outputs.codes
    value, n, better = metric.value(table), outputs.n_items, metric.diverse
    if not math.isfinite(value):
        return Metric(metric.name, None, None, None, n, "", better, reason=metric.undefined)
    generator = np.random.default_rng([seed, 99])
    drawn = np.array([metric.value(table[generator.integers(0, n, n)]) for _ in range(RESAMPLES)])
    error = float(np.nanstd(drawn)) if np.isfinite(drawn).sum() > RESAMPLES / 2 else 0.0
    half = _WIDTH * error
    how = f"bootstrap standard error, {RESAMPLES} resamples of items"
    return Metric(metric.name, value, value - half, value + half, n, "", better, method=how)
