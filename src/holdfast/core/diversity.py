"""Diversity of models from the items on which they fail: focal diversity and its family. NumPy only.

The focal diversity of a team S of s models (LLM-TOPLA, section 3; Wu et al. 2021, "Boosting ensemble accuracy by
revisiting ensemble diversity metrics") looks, for each member i in turn, only at the items on which i fails (its focal
negatives). There, with p_j the share of items on which exactly j of the s members fail,

    P1 = sum_j (j / s) p_j,    P2 = sum_j (j (j - 1) / (s (s - 1))) p_j,    focal(S; i) = 1 - P2 / P1

(the generalised diversity of Partridge and Krzanowski 1997), and FD(S) is the mean of focal(S; i) over the members:
1 when whoever fails always fails alone, 0 when all members always fail together. P2 / P1 is the focal negative
correlation.

Nothing has to be counted again for each team. With the counts C_ij = #(i and j fail) and T_ijk = #(i, j and k fail),

    FD(S) = 1 - 1 / (s (s - 1)) * sum_{i in S} B_i / A_i,   A_i = sum_{j in S} C_ij,   B_i = sum_{j != k in S} T_ijk

so the items enter once (:func:`co_failures`), and all 2^N teams follow from sums over pairs of members
(:func:`focal_diversity_of_teams`): members are split into two halves, whose masks make the rows and the columns of one
matrix product per focal model.

Where nobody fails there is nothing to share: a focal model that never fails counts as 1 (perfectly diverse), and so
does a group without failures. A team of one model has no diversity: NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.integer]

MOST_EXHAUSTIVE = 24
"""Models of which all teams fit in memory: 2^24 teams are 128 MB a number."""

_EXACT_IN_SINGLE = 2**24


@dataclass(frozen=True)
class CoFailures:
    """How often models fail together: all that focal diversity needs of the items.

    Attributes:
        items: number (or total weight) of the items.
        pairs: C_ij, shape (n_models, n_models); the diagonal counts each model's failures.
        triples: T_ijk, shape (n_models, n_models, n_models).
    """

    items: float
    pairs: Floats
    triples: Floats

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.pairs)

    def __add__(self, other: CoFailures) -> CoFailures:
        return CoFailures(self.items + other.items, self.pairs + other.pairs, self.triples + other.triples)

    def __sub__(self, other: CoFailures) -> CoFailures:
        return CoFailures(self.items - other.items, self.pairs - other.pairs, self.triples - other.triples)

    def of(self, models: Sequence[int]) -> CoFailures:
        """The counts of some of the models, in this order."""
        chosen = np.asarray(models, dtype=int)
        return CoFailures(self.items, self.pairs[np.ix_(chosen, chosen)], self.triples[np.ix_(chosen, chosen, chosen)])


def co_failures(failed: Bools, weight: Floats | None = None) -> CoFailures:
    """Counts of common failures.

    Args:
        failed: whether each model fails on each item, shape (n_items, n_models).
        weight: weight of each item, shape (n_items,); 1 each when None. Bootstrap counts are weights.

    Raises:
        ValueError: ``failed`` is not a matrix, or has no items.
    """
    if failed.ndim != 2 or len(failed) == 0:
        raise ValueError("failures must be a matrix (n_items, n_models) with at least one item")
    # Counts below 2^24 are exact in single precision, whose products are twice as fast.
    single = weight is None and len(failed) < _EXACT_IN_SINGLE
    f: NDArray[Any] = np.ascontiguousarray(failed, dtype=np.float32 if single else np.float64)
    weighted: NDArray[Any] = f if weight is None else f * weight[:, None]
    n_models = f.shape[1]
    triples = np.empty((n_models, n_models, n_models))
    for i in range(n_models):
        there = failed[:, i].astype(bool)
        triples[i] = f[there].T @ weighted[there]
    total = float(len(failed)) if weight is None else float(weight.sum())
    return CoFailures(total, np.einsum("iij->ij", triples).copy(), triples)


def focal_diversities(counts: CoFailures, team: Sequence[int]) -> Floats:
    """focal(S; i) of each member of a team, in the team's order, shape (s,); NaN for a team of one.

    Args:
        counts: of all models.
        team: numbers of the members.

    Raises:
        ValueError: no member, or one named twice.
    """
    if not len(team) or len(set(team)) < len(team):
        raise ValueError("a team needs members, each of them once")
    size = len(team)
    if size == 1:
        return np.full(1, np.nan)
    here = counts.of(team)
    first = here.pairs.sum(axis=1)
    second = here.triples.sum(axis=(1, 2)) - np.einsum("ijj->i", here.triples)
    never = here.pairs.diagonal() == 0
    return np.where(never, 1.0, 1 - second / ((size - 1) * np.where(never, 1.0, first)))


def focal_diversity(counts: CoFailures, team: Sequence[int]) -> float:
    """FD(S) of one team: the mean of :func:`focal_diversities`; NaN for a team of one."""
    return float(np.mean(focal_diversities(counts, team)))


def team_sizes(n_models: int) -> NDArray[np.int64]:
    """Number of members of every team, shape (2^n_models,): team t has the models whose bits are set in t."""
    return np.bitwise_count(np.arange(1 << n_models, dtype=np.uint32)).astype(np.int64)


def members(team: int) -> tuple[int, ...]:
    """The models of a team's mask, ascending."""
    return tuple(place for place in range(int(team).bit_length()) if int(team) >> place & 1)


def mask(team: Sequence[int]) -> int:
    """The mask of a team: inverse of :func:`members`."""
    return sum(1 << int(model) for model in set(team))


def focal_diversity_of_teams(counts: CoFailures) -> Floats:
    """FD of all teams, shape (2^n_models,), at most 24 models; NaN for teams of fewer than two.

    Raises:
        ValueError: more than 24 models.
    """
    n = counts.n_models
    halves = _Halves(n)
    total = np.zeros((len(halves.high), len(halves.low)))
    for focal in np.flatnonzero(counts.pairs.diagonal() > 0).tolist():
        ratio = halves.pair_sums(counts.triples[focal], focal)
        ratio /= halves.sums(counts.pairs[focal], focal)
        halves.with_member(total, focal)[...] += ratio
    sizes = team_sizes(n).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        diversity = 1 - total.ravel() / (sizes * (sizes - 1))
    diversity[sizes < 2] = np.nan
    return diversity


def pair_means_of_teams(values: Floats) -> Floats:
    """Mean of a symmetric pairwise value over the pairs of every team, shape (2^n_models,); NaN below two members.

    Args:
        values: shape (n_models, n_models); the diagonal is not used.
    """
    n = len(values)
    sums = _Halves(n).pair_sums(values).ravel()
    sizes = team_sizes(n).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / (sizes * (sizes - 1))
    means[sizes < 2] = np.nan
    return np.asarray(means)


class _Halves:
    """All teams as a matrix: rows are the masks of the upper half of the models, columns those of the lower half."""

    def __init__(self, n_models: int) -> None:
        if not 1 <= n_models <= MOST_EXHAUSTIVE:
            raise ValueError(f"{n_models} models: all teams can be had of 1 to {MOST_EXHAUSTIVE}")
        self.n_low = n_models // 2
        self.low, self.high = _masks(self.n_low), _masks(n_models - self.n_low)

    def with_member(self, table: Floats, member: int | None) -> Floats:
        """View of the part of a table (rows, columns) whose teams have a member."""
        if member is None:
            return table
        rows, columns = table.shape
        if member < self.n_low:
            return table.reshape(rows, -1, 2, 1 << member)[:, :, 1]
        return table.reshape(-1, 2, 1 << (member - self.n_low), columns)[:, 1]

    def _kept(self, member: int | None) -> tuple[Floats, Floats]:
        """Masks of the rows and of the columns that have a member."""
        if member is None:
            return self.high, self.low
        if member < self.n_low:
            return self.high, self.low[self.low[:, member] > 0]
        return self.high[self.high[:, member - self.n_low] > 0], self.low

    def _shaped(self, found: Floats, member: int | None) -> Floats:
        if member is None:
            return found
        if member < self.n_low:
            return found.reshape(len(found), -1, 1 << member)
        return found.reshape(-1, 1 << (member - self.n_low), found.shape[1])

    def sums(self, values: Floats, member: int | None = None) -> Floats:
        """Sum of a value over the members of each team (that has a member)."""
        high, low = self._kept(member)
        found = (high @ values[self.n_low :])[:, None] + (low @ values[: self.n_low])[None, :]
        return self._shaped(found, member)

    def pair_sums(self, values: Floats, member: int | None = None) -> Floats:
        """Sum of values over the ordered pairs of different members of each team (that has a member)."""
        high, low = self._kept(member)
        off = values - np.diag(values.diagonal())
        inner, outer, cross = (
            off[: self.n_low, : self.n_low],
            off[self.n_low :, self.n_low :],
            off[self.n_low :, : self.n_low],
        )
        of_high, of_low = ((high @ outer) * high).sum(axis=1), ((low @ inner) * low).sum(axis=1)
        # One product gives the pairs across the halves and those inside them.
        left = np.concatenate([2 * high @ cross, of_high[:, None], np.ones((len(high), 1))], axis=1)
        right = np.concatenate([low, np.ones((len(low), 1)), of_low[:, None]], axis=1)
        return self._shaped(left @ right.T, member)


def _masks(n: int) -> Floats:
    return (np.arange(1 << n)[:, None] >> np.arange(n)[None, :] & 1).astype(np.float64)


# --- the family: one number a team, from failures or from labels -------------------------------------


@dataclass(frozen=True)
class DiversityMetric:
    """A diversity metric of a team.

    Attributes:
        name: the field's name.
        diverse: which end means diverse.
        of: what it is made of: ``failures`` (n_items, s) or ``labels`` (n_items, s), codes with -1 for none.
        value: the function; NaN where undefined, with the reason in ``undefined``.
        undefined: why it may be undefined.
        source: where it is from.
    """

    name: str
    diverse: Literal["higher", "lower"]
    of: Literal["failures", "labels"]
    value: Callable[[Any], float]
    undefined: str
    source: str


def pair_counts(failed: Bools) -> tuple[Floats, Floats, Floats]:
    """N11 (both right), N00 (both fail) and N10 (row right, column fails), each of shape (n_models, n_models)."""
    wrong = failed.astype(np.float64)
    right = 1 - wrong
    return right.T @ right, wrong.T @ wrong, right.T @ wrong


def q_statistics(failed: Bools) -> Floats:
    """Yule's Q of each pair, (N11 N00 - N01 N10) / (N11 N00 + N01 N10); NaN where both products are 0."""
    both, none, one = pair_counts(failed)
    like, unlike = both * none, one * one.T
    return _ratio(like - unlike, like + unlike)


def correlations(failed: Bools) -> Floats:
    """Correlation rho of each pair's correctness; NaN where a model is always right or always wrong."""
    both, none, one = pair_counts(failed)
    spread = (both + one) * (none + one.T) * (both + one.T) * (none + one)
    return _ratio(both * none - one * one.T, np.sqrt(np.maximum(spread, 0)))


def kappas(failed: Bools) -> Floats:
    """Kappa of each pair's correctness, 2 (N11 N00 - N01 N10) / ((N11+N10)(N10+N00) + (N11+N01)(N01+N00))."""
    both, none, one = pair_counts(failed)
    below = (both + one) * (one + none) + (both + one.T) * (one.T + none)
    return _ratio(2 * (both * none - one * one.T), below)


def disagreements(failed: Bools) -> Floats:
    """Share of items on which exactly one of each pair is right."""
    _, _, one = pair_counts(failed)
    return np.asarray((one + one.T) / len(failed))


def double_faults(failed: Bools) -> Floats:
    """Share of items on which both of each pair fail (Giacinto and Roli 2001)."""
    return np.asarray(pair_counts(failed)[1] / len(failed))


def generalised_diversity(failed: Bools) -> float:
    """GD = 1 - P2 / P1 over all items (Partridge and Krzanowski 1997); 1 where nobody fails, NaN for one model."""
    size = failed.shape[1]
    if size < 2:
        return float("nan")
    fails = failed.sum(axis=1).astype(np.float64)
    first = float((fails / size).sum())
    return 1.0 if first == 0 else 1 - float((fails * (fails - 1) / (size * (size - 1))).sum()) / first


def kohavi_wolpert(failed: Bools) -> float:
    """KW variance, mean of l (L - l) / L^2 with l of L members right (Kohavi and Wolpert 1996)."""
    size = failed.shape[1]
    right = size - failed.sum(axis=1).astype(np.float64)
    return float((right * (size - right)).mean() / size**2)


def entropy(failed: Bools) -> float:
    """E, mean of min(l, L - l) / (L - ceil(L / 2)) with l of L members right (Cunningham and Carney 2000)."""
    size = failed.shape[1]
    if size < 2:
        return float("nan")
    right = size - failed.sum(axis=1)
    return float(np.minimum(right, size - right).mean() / (size - (size + 1) // 2))


def label_kappas(labels: Codes) -> Floats:
    """Cohen's kappa of each pair's labels, whatever is right; NaN where both always give one label.

    Args:
        labels: codes from 0, -1 for none (a label of its own here), shape (n_items, n_models).
    """
    codes = labels - labels.min(initial=0)
    n_labels = int(codes.max(initial=0)) + 1
    given = codes[:, :, None] == np.arange(n_labels)
    shares = given.mean(axis=0)
    equal = np.einsum("mik,mjk->ij", given.astype(np.float32), given.astype(np.float32)) / len(codes)
    chance = shares @ shares.T
    return _ratio(equal - chance, 1 - chance)


def label_fleiss(labels: Codes) -> float:
    """Fleiss' kappa of the labels, whatever is right; NaN where only one label is ever given."""
    codes = labels - labels.min(initial=0)
    counts = (codes[:, :, None] == np.arange(int(codes.max(initial=0)) + 1)).sum(axis=1).astype(np.float64)
    size = labels.shape[1]
    if size < 2:
        return float("nan")
    observed = float(((counts**2).sum(axis=1) - size).mean() / (size * (size - 1)))
    chance = float(((counts.mean(axis=0) / size) ** 2).sum())
    return float(_ratio(np.float64(observed - chance), np.float64(1 - chance)))


def _ratio(above: Floats | np.float64, below: Floats | np.float64) -> Floats:
    zero = np.asarray(below) == 0
    return np.asarray(np.where(zero, np.nan, above / np.where(zero, 1.0, below)))


def _pair_mean(pairwise: Callable[[Any], Floats]) -> Callable[[Any], float]:
    def mean(table: NDArray[Any]) -> float:
        pairs = pairwise(table)[np.triu_indices(table.shape[1], 1)]
        return float(pairs.mean()) if len(pairs) else float("nan")

    return mean


def _focal(failed: Bools) -> float:
    return focal_diversity(co_failures(failed), range(failed.shape[1]))


_ONE = "a team needs two members"
_SURE = f"{_ONE}, none of them always right or always wrong"
METRICS: dict[str, DiversityMetric] = {
    one.name: one
    for one in (
        DiversityMetric("focal diversity", "higher", "failures", _focal, _ONE, "Tekin et al. 2024"),
        DiversityMetric(
            "generalised diversity", "higher", "failures", generalised_diversity, _ONE, "Partridge and Krzanowski 1997"
        ),
        DiversityMetric("disagreement", "higher", "failures", _pair_mean(disagreements), _ONE, "Skalak 1996"),
        DiversityMetric("double fault", "lower", "failures", _pair_mean(double_faults), _ONE, "Giacinto and Roli 2001"),
        DiversityMetric("Q statistic", "lower", "failures", _pair_mean(q_statistics), _SURE, "Yule 1900"),
        DiversityMetric("correlation", "lower", "failures", _pair_mean(correlations), _SURE, "Sneath and Sokal 1973"),
        DiversityMetric("kappa of correctness", "lower", "failures", _pair_mean(kappas), _SURE, "Dietterich 2000"),
        DiversityMetric(
            "Kohavi-Wolpert variance", "higher", "failures", kohavi_wolpert, _ONE, "Kohavi and Wolpert 1996"
        ),
        DiversityMetric("entropy", "higher", "failures", entropy, _ONE, "Cunningham and Carney 2000"),
        DiversityMetric(
            "Cohen's kappa of labels", "lower", "labels", _pair_mean(label_kappas), "all give one label", "Cohen 1960"
        ),
        DiversityMetric(
            "Fleiss' kappa of labels", "lower", "labels", label_fleiss, "all give one label", "Fleiss 1971"
        ),
    )
}
"""The metrics of the family, each with the end that means diverse."""
