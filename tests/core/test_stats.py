from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from holdfast.core.stats import difference_interval, mean_interval, student

ITEMS = 256


def ones(count: int, of: int) -> np.ndarray:
    """``count`` ones and the rest zeros."""
    return np.array([1.0] * count + [0.0] * (of - count))


def drawn(rng: np.random.Generator, seeds: int, mean: float, spread: float, items: int = ITEMS) -> list[np.ndarray]:
    """Answers of each seed; the seeds' rates follow a beta distribution with this mean and standard deviation."""
    if spread:
        # Beta(mk, (1-m)k) has variance m(1-m)/(k+1).
        weight = mean * (1 - mean) / spread**2 - 1
        rates = rng.beta(mean * weight, (1 - mean) * weight, size=seeds)
    else:
        rates = np.full(seeds, mean)
    return [(rng.random(items) < rate).astype(float) for rate in rates]


def coverage(seeds: int, mean: float, spread: float, repetitions: int = 800) -> float:
    rng = np.random.default_rng(seeds)
    covered = 0
    for _ in range(repetitions):
        _, low, high = mean_interval(drawn(rng, seeds, mean, spread))
        covered += low <= mean <= high
    return covered / repetitions


# --- quantiles ---------------------------------------------------------------------------------------


@given(st.floats(1, 1e5), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_quantiles_of_student_are_those_of_scipy(freedom: float, level: float) -> None:
    assert student(level, freedom) == pytest.approx(scipy_stats.t.ppf((1 + level) / 2, freedom), rel=1e-3)


def test_quantiles_in_every_table_of_statistics() -> None:
    assert student(0.95, 1) == pytest.approx(12.706, abs=5e-4)
    assert student(0.95, 2) == pytest.approx(4.303, abs=5e-4)
    assert student(0.95, math.inf) == pytest.approx(1.960, abs=5e-4)


# --- one seed: Wilson --------------------------------------------------------------------------------


def test_one_seed_is_wilsons_interval() -> None:
    """81 of 263 (Newcombe 1998, Stat. Med. 17, table I, method 3): 0.2553 to 0.3662.

    The variance here has n - 1 = 262 under it, so n_eff = 262 and the bounds move in the fourth digit.
    """
    estimate, low, high = mean_interval([ones(81, 263)])
    assert estimate == pytest.approx(81 / 263)
    assert low == pytest.approx(0.2553, abs=2e-4)
    assert high == pytest.approx(0.3662, abs=2e-4)


@pytest.mark.parametrize(("count", "of"), [(0, 20), (0, 768), (20, 20), (1, 1), (0, 1)])
def test_rates_at_the_edge_have_an_interval(count: int, of: int) -> None:
    """Wilson at x = 0: [0, z^2 / (n + z^2)], at x = n the mirror image; z = 1.96, z^2 = 3.8415."""
    estimate, low, high = mean_interval([ones(count, of)])
    if count:
        assert (estimate, high) == (1.0, 1.0)
        assert low == pytest.approx(of / (of + 3.8415), abs=1e-4) or of == 1
    else:
        assert (estimate, low) == (0.0, 0.0)
        assert high == pytest.approx(3.8415 / (of + 3.8415), abs=1e-4) or of == 1
    assert low < high


def test_three_seeds_without_a_case_count_all_their_items() -> None:
    _, low, high = mean_interval([np.zeros(256)] * 3)
    assert low == 0.0
    assert high == pytest.approx(3.8415 / (768 + 3.8415), abs=1e-6)  # 0.498%: "under 1" can be said


# --- several seeds -----------------------------------------------------------------------------------


def test_the_estimate_is_the_mean_over_seeds() -> None:
    """Seeds count alike, whatever their number of items: (0.5 + 0.1) / 2, not 70 / 300."""
    estimate, _, _ = mean_interval([ones(50, 100), ones(20, 200)])
    assert estimate == pytest.approx(0.3)


def test_three_seeds_by_hand() -> None:
    """Rates 0.6, 0.5, 0.4 of 100 items.

    s2 = (0.01 + 0 + 0.01) / 2 = 0.01; W = mean of p(1-p)/99 = (0.24 + 0.25 + 0.24) / 3 / 99 = 0.0024579;
    V = 0.01 / 3; df = 2 (1 + 0.24579) = 2.49158, t = 3.5915; n_eff = 0.25 / V = 75;
    half = t sqrt(0.25/75 + t^2/(4 75^2)) / (1 + t^2/75) = 0.19155.
    """
    estimate, low, high = mean_interval([ones(60, 100), ones(50, 100), ones(40, 100)])
    t = scipy_stats.t.ppf(0.975, 2 * (1 + 0.0024579 / 0.01))
    half = t * math.sqrt(0.25 / 75 + t * t / (4 * 75**2)) / (1 + t * t / 75)
    assert estimate == pytest.approx(0.5)
    assert (low, high) == (pytest.approx(0.5 - half, abs=1e-5), pytest.approx(0.5 + half, abs=1e-5))
    assert half == pytest.approx(0.1916, abs=2e-3)


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(*counts: int) -> float:
        _, low, high = mean_interval([ones(count, 100) for count in counts])
        return high - low

    assert width(50, 50, 50) < width(55, 50, 45) < width(70, 50, 30) < width(90, 50, 10)


def test_identical_seeds_are_as_one_with_more_items() -> None:
    together = mean_interval([ones(90, 300)])
    apart = mean_interval([ones(30, 100)] * 3)
    assert apart == pytest.approx(together, abs=1e-3)


def test_a_higher_level_gives_a_wider_interval() -> None:
    groups = [ones(30, 100), ones(40, 100)]
    widths = [high - low for _, low, high in (mean_interval(groups, level=level) for level in (0.8, 0.95, 0.99))]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=20), min_size=1, max_size=5))
def test_bounds_hold_the_estimate_and_stay_in_the_unit_interval(values: list[list[float]]) -> None:
    estimate, low, high = mean_interval([np.array(group) for group in values])
    assert 0 <= low <= estimate + 1e-12
    assert estimate - 1e-12 <= high <= 1
    assert low < high


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12), min_size=1, max_size=4))
def test_a_rate_and_its_complement_mirror_each_other(values: list[list[float]]) -> None:
    groups = [np.array(group) for group in values]
    estimate, low, high = mean_interval(groups)
    assert mean_interval([1 - group for group in groups]) == pytest.approx((1 - estimate, 1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("groups", [[], [np.array([])], [np.ones(3), np.array([])]])
def test_nothing_to_measure_is_an_error(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        mean_interval(groups)


# --- coverage by simulation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "mean", "spread"),
    [
        (1, 0.94, 0.0),
        (1, 0.5, 0.0),
        (1, 0.02, 0.0),
        (3, 0.94, 0.01),
        (3, 0.94, 0.03),
        (3, 0.5, 0.03),
        (3, 0.5, 0.1),
        (3, 0.02, 0.01),
        (4, 0.5, 0.05),
        (5, 0.94, 0.03),
        (5, 0.5, 0.1),
    ],
)
def test_coverage_of_95_percent_intervals(seeds: int, mean: float, spread: float) -> None:
    """800 experiments: the standard error of a coverage of 0.95 is sqrt(0.95 * 0.05 / 800) = 0.008."""
    assert 0.90 <= coverage(seeds, mean, spread) <= 0.985


def test_coverage_when_seeds_do_not_differ_is_on_the_safe_side() -> None:
    assert 0.96 <= coverage(3, 0.5, 0.0) <= 0.995


def test_coverage_where_few_seeds_cannot_show_the_rare_bad_one() -> None:
    """What the docstring admits: mean 94 with a standard deviation of 10 piles up at 100 with a long tail."""
    assert 0.75 <= coverage(3, 0.94, 0.1) <= 0.90


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.05), (5, 0.05)])
def test_coverage_of_paired_differences(seeds: int, spread: float) -> None:
    """Both sides share seeds and items; the right one turns a tenth of the left one's ones into zeros."""
    rng = np.random.default_rng(7)
    covered, repetitions = 0, 600
    for _ in range(repetitions):
        left = drawn(rng, seeds, 0.6, spread)
        right = [group * (rng.random(len(group)) >= 0.1) for group in left]
        # E(left - right) = 0.6 * 0.1 = 0.06
        _, low, high = difference_interval(left, right)
        covered += low <= 0.06 <= high
    assert 0.90 <= covered / repetitions <= 0.99


# --- paired differences ------------------------------------------------------------------------------


def test_a_difference_is_left_minus_right() -> None:
    estimate, low, high = difference_interval([ones(10, 100)], [ones(40, 100)])
    assert estimate == pytest.approx(-0.3)
    # Variance of 30 pairs at -1 and 70 at 0: 0.3 * 0.7 / 99 = 0.0021212; 1.96 * 0.046057 = 0.09027
    assert (low, high) == (pytest.approx(-0.3903, abs=1e-4), pytest.approx(-0.2097, abs=1e-4))


def test_what_both_sides_share_cancels() -> None:
    shared = [ones(50, 100), ones(80, 100), ones(20, 100)]  # seeds differ much, and alike on both sides
    better = [group.copy() for group in shared]
    for group in better:
        group[:5] = 0.0
    estimate, low, high = difference_interval(better, shared)
    assert estimate == pytest.approx(-0.05)
    assert high < 0
    _, wide_low, wide_high = mean_interval(shared)
    assert high - low < (wide_high - wide_low) / 3


def test_swapping_the_sides_changes_the_sign() -> None:
    left, right = [ones(10, 50), ones(12, 50)], [ones(30, 50), ones(20, 50)]
    estimate, low, high = difference_interval(left, right)
    assert difference_interval(right, left) == pytest.approx((-estimate, -high, -low))


def test_no_difference_in_n_pairs_is_not_certainty() -> None:
    """No discordant pair of 100: the exact 95% bound solves (1 - q)^100 = 0.025, q = 1 - 0.025^0.01 = 0.03622."""
    same = [ones(30, 50), ones(30, 50)]
    assert difference_interval(same, same) == (0.0, pytest.approx(-0.03622, abs=1e-5), pytest.approx(0.03622, abs=1e-5))


def test_bounds_of_a_difference_stay_possible() -> None:
    estimate, low, high = difference_interval([np.ones(3)], [np.array([0.0, 0.0, 1.0])])
    assert estimate == pytest.approx(2 / 3)
    assert -1 <= low < high <= 1


@pytest.mark.parametrize(
    ("left", "right"), [([ones(1, 2)], []), ([ones(1, 2)], [ones(1, 3)]), ([], []), ([np.array([])], [np.array([])])]
)
def test_sides_that_do_not_pair_are_an_error(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"same seeds and items|at least one item"):
        difference_interval(left, right)
