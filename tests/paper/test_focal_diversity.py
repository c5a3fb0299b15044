"""Focal diversity and its family against numbers worked out by hand, and against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.diversity import (
    METRICS,
    CoFailures,
    co_failures,
    correlations,
    disagreements,
    double_faults,
    focal_diversities,
    focal_diversity,
    focal_diversity_of_teams,
    generalised_diversity,
    kappas,
    label_fleiss,
    label_kappas,
    mask,
    members,
    pair_counts,
    pair_means_of_teams,
    q_statistics,
    team_sizes,
)
from holdfast.ensemble.combine.base import fit, is_right
from holdfast.ensemble.combine.votes import Plurality, majority
from holdfast.ensemble.prune import Fitness
from holdfast.ensemble.table import Layout, Row, outputs_of

GOLD = np.array([0, 1, 2, 0, 1, 2])
A, B, C = [0, 1, 2, 0, 2, 0], [0, 1, 0, 0, 0, 2], [1, 1, 2, 0, 1, 0]
LABELS = np.array([A, B, C]).T
FAILED = GOLD[:, None] != LABELS
SECOND = np.array(
    [[int(c) for c in row] for row in ["1000", "1100", "1110", "1111", "0100", "0011", "0001", "0000"]], dtype=bool
)


def close(value: float, wanted: float, places: float = 5e-7) -> None:
    assert abs(value - wanted) <= places, f"{value} is not {wanted}"


def definition(failed: np.ndarray, team: list[int]) -> list[float]:
    """focal(S; i) from p_j, as the paper writes it."""
    size, found = len(team), []
    for member in team:
        fails = failed[failed[:, member]][:, team].sum(axis=1)
        if len(fails) == 0:
            found.append(1.0)
            continue
        p = [float((fails == j).mean()) for j in range(size + 1)]
        first = sum(j / size * p[j] for j in range(1, size + 1))
        second = sum(j * (j - 1) / (size * (size - 1)) * p[j] for j in range(1, size + 1))
        found.append(1 - second / first)
    return found


def test_first_example_focal_diversities() -> None:
    counts = co_failures(FAILED)
    for found, wanted in zip(focal_diversities(counts, [0, 1, 2]), [0.5, 2 / 3, 2 / 3], strict=True):
        close(found, wanted)
    close(focal_diversity(counts, [0, 1, 2]), 0.611111)
    close(focal_diversity(counts, [0, 1]), 1 / 3)
    close(focal_diversity(counts, [0, 2]), 1 / 3)
    close(focal_diversity(counts, [1, 2]), 1.0)


def test_first_example_of_the_family() -> None:
    wanted = {
        "disagreement": 4 / 9,
        "Kohavi-Wolpert variance": 0.148148,
        "generalised diversity": 2 / 3,
        "entropy": 2 / 3,
        "correlation": 0.0,
        "Q statistic": 0.0,
        "Cohen's kappa of labels": 0.220952,
        "Fleiss' kappa of labels": 0.198020,
        "focal diversity": 0.611111,
    }
    for name, number in wanted.items():
        metric = METRICS[name]
        close(metric.value(FAILED if metric.of == "failures" else LABELS), number)


def test_first_example_pair() -> None:
    both, none, one = pair_counts(FAILED)
    assert [both[0, 1], none[0, 1], one[0, 1], one[1, 0]] == [3, 1, 1, 1]
    close(q_statistics(FAILED)[0, 1], 0.5)
    close(correlations(FAILED)[0, 1], 0.25)
    close(disagreements(FAILED)[0, 1], 1 / 3)
    close(kappas(FAILED)[0, 1], 0.25)
    close(double_faults(FAILED)[0, 1], 1 / 6)


def test_first_example_focal_restriction() -> None:
    """On each model's failures EnsembleBench reports BD .333333 and KW .777778, as 1 - value."""
    for member in range(3):
        here = FAILED[FAILED[:, member]]
        close(1 - METRICS["disagreement"].value(here), 1 / 3)
        close(1 - METRICS["Kohavi-Wolpert variance"].value(here), 7 / 9)


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        (Fitness(0.5, 0.5), [0.638889, 0.416667, 0.583333, 0.75]),
        (Fitness(0.5, 0.5, size=0.1), [0.538889, 0.35, 0.516667, 0.683333]),
        (Fitness(0.6, 0.4), [0.633333, 0.4, 0.533333, 0.8]),
    ],
)
def test_first_example_fitness(objective: Fitness, wanted: list[float]) -> None:
    """With the accuracies of the paper's vote, where ties go to the smallest label."""
    counts = co_failures(FAILED)
    teams, accuracy = [[0, 1, 2], [0, 1], [0, 2], [1, 2]], [4 / 6, 0.5, 5 / 6, 0.5]
    for team, right, number in zip(teams, accuracy, wanted, strict=True):
        parts = [np.array([x]) for x in (focal_diversity(counts, team), right, len(team) / 3, 0.0)]
        close(float(objective.of(*parts)[0]), number)


@pytest.mark.parametrize(
    ("team", "answers", "accuracy"),
    [("ABC", [0, 1, 2, 0, 0, 0], 4 / 6), ("AB", None, 0.5), ("AC", [0, 1, 2, 0, 1, 0], 5 / 6), ("BC", None, 0.5)],
)
def test_first_example_votes_with_the_papers_ties(team: str, answers: list[int] | None, accuracy: float) -> None:
    rows = [
        Row(
            str(item),
            (str(gold),),
            answers={name: [str(votes[item])] for name, votes in (("A", A), ("B", B), ("C", C)) if name in team},
        )
        for item, gold in enumerate(GOLD.tolist())
    ]
    outputs = outputs_of(rows, Layout(kind="choice", labels=("0", "1", "2")))
    found = fit(Plurality(ties="label"), outputs, 0, folds=0).fitted.answers(outputs)
    if answers is not None:
        assert found.tolist() == answers
    close(float(is_right(found, outputs).mean()), accuracy)
    if team == "ABC":
        assert majority(outputs).tolist() == [0, 1, 2, 0, -1, 0]


def test_second_example() -> None:
    counts = co_failures(SECOND)
    whole = focal_diversities(counts, [0, 1, 2, 3])
    for found, wanted in zip(whole, [0.333333, 0.333333, 0.259259, 0.333333], strict=True):
        close(found, wanted)
    close(whole.mean(), 0.314815)
    for found, wanted in zip(focal_diversities(counts, [0, 1, 2]), [0.222222, 0.222222, 0.142857], strict=True):
        close(found, wanted)
    close(focal_diversity(counts, [0, 1, 2]), 0.195767)
    for found, wanted in zip(focal_diversities(counts, [0, 3]), [0.6, 0.5], strict=True):
        close(found, wanted)


def test_third_example_conventions() -> None:
    together = np.array([[True, True], [False, False]])
    close(generalised_diversity(together), 0.0)
    close(focal_diversity(co_failures(together), [0, 1]), 0.0)
    nobody = np.zeros((4, 3), bool)
    assert generalised_diversity(nobody) == 1.0
    assert focal_diversity(co_failures(nobody), [0, 1, 2]) == 1.0
    assert math.isnan(focal_diversity(co_failures(together), [0]))
    same = np.zeros((5, 2), int)
    assert math.isnan(label_fleiss(same))
    assert math.isnan(label_kappas(same)[0, 1])
    one_sided = np.array([[1, 1], [1, 1], [0, 1], [0, 0]]) == 0
    close(generalised_diversity(one_sided), 1 / 3)  # a public version returns 1/2: it drops a count that is missing


def test_closed_form_is_the_definition_for_all_teams() -> None:
    generator = np.random.default_rng(3)
    failed = generator.random((150, 9)) < generator.random((150, 1)) * 0.9
    failed[:, 4] = False  # never fails
    counts = co_failures(failed)
    found = focal_diversity_of_teams(counts)
    for team in range(1 << 9):
        chosen = list(members(team))
        if len(chosen) < 2:
            assert math.isnan(found[team])
            continue
        wanted = definition(failed, chosen)
        assert abs(found[team] - np.mean(wanted)) < 1e-12
        assert np.abs(focal_diversities(counts, chosen) - wanted).max() < 1e-12


@pytest.mark.parametrize("n_models", [1, 2, 3, 13])
def test_every_pool_size(n_models: int) -> None:
    failed = np.random.default_rng(n_models).random((40, n_models)) < 0.4
    found = focal_diversity_of_teams(co_failures(failed))
    team = (1 << n_models) - 1
    if n_models > 1:
        assert abs(found[team] - np.mean(definition(failed, list(range(n_models))))) < 1e-12
    assert len(found) == 1 << n_models
    assert team_sizes(n_models)[team] == n_models


def test_items_order_and_copies_change_nothing() -> None:
    generator = np.random.default_rng(0)
    failed = generator.random((60, 5)) < 0.5
    wanted = focal_diversity_of_teams(co_failures(failed))[3:]
    for other in (failed[::-1], np.concatenate([failed, failed])):
        np.testing.assert_allclose(focal_diversity_of_teams(co_failures(other))[3:], wanted, atol=1e-12)
    weighted = focal_diversity_of_teams(co_failures(failed, np.full(60, 2.5)))[3:]
    np.testing.assert_allclose(weighted, wanted, atol=1e-12)


def test_models_in_another_order() -> None:
    failed = np.random.default_rng(1).random((60, 6)) < 0.4
    order = [3, 0, 5, 1, 4, 2]
    plain, moved = (focal_diversity_of_teams(co_failures(table)) for table in (failed, failed[:, order]))
    for team in range(1 << 6):
        there = mask([order[place] for place in members(team)])
        np.testing.assert_allclose(moved[team], plain[there], atol=1e-12)


def test_folds_add_up() -> None:
    failed = np.random.default_rng(2).random((50, 4)) < 0.4
    left, right, whole = co_failures(failed[:20]), co_failures(failed[20:]), co_failures(failed)
    for made in (left + right, CoFailures(100, whole.pairs * 2, whole.triples * 2) - whole):
        np.testing.assert_array_equal(made.triples, whole.triples)
        np.testing.assert_array_equal(made.pairs, whole.pairs)
        assert made.items == whole.items


def test_pair_means_of_all_teams() -> None:
    failed = np.random.default_rng(4).random((50, 7)) < 0.4
    found = pair_means_of_teams(disagreements(failed))
    for team in range(1 << 7):
        chosen = list(members(team))
        if len(chosen) > 1:
            assert abs(found[team] - METRICS["disagreement"].value(failed[:, chosen])) < 1e-12


def test_directions_are_those_of_the_names() -> None:
    """Of two teams, one that fails together and one that fails apart, each metric's better end is the second."""
    apart = np.eye(4, dtype=bool)[np.arange(40) % 4]
    together = np.repeat(np.arange(40)[:, None] % 4 == 0, 4, axis=1)
    together[::8, 0] = ~together[::8, 0]  # so that nothing is undefined
    labels = {id(apart): np.where(apart, 1, 0), id(together): np.where(together, 1, 0)}
    for metric in METRICS.values():
        close_by, far = (metric.value(t if metric.of == "failures" else labels[id(t)]) for t in (together, apart))
        assert (far > close_by) == (metric.diverse == "higher"), metric.name


def test_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        co_failures(np.zeros((0, 3), bool))
    with pytest.raises(ValueError, match="each of them once"):
        focal_diversities(co_failures(FAILED), [0, 0])
    with pytest.raises(ValueError, match="24"):
        focal_diversity_of_teams(co_failures(np.zeros((2, 25), bool)))
