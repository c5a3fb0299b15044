"""Choosing teams: exhaustive, by search, by the paper's genetic algorithm, and tuned without test items."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from ensemble.conftest import voters
from holdfast.core.diversity import co_failures, focal_diversity, focal_diversity_of_teams
from holdfast.core.errors import UsageError
from holdfast.ensemble import prune
from holdfast.ensemble.combine.base import fit, is_right
from holdfast.ensemble.combine.votes import Plurality
from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.prune import Fitness, Genetic, Pool, search
from holdfast.ensemble.teams import right_counts_of_teams


def by_hand(outputs: Outputs, objective: Fitness, size: int) -> float:
    """The best fitness of a size, team by team, with nothing of the pool's."""
    best = -np.inf
    counts = co_failures(outputs.failed)
    for team in itertools.combinations(range(outputs.n_models), size):
        part = outputs.of(team)
        right = is_right(fit(Plurality(), part, 0, folds=0).fitted.answers(part), part).mean()
        diversity = focal_diversity(counts, team)
        money = 0.0 if outputs.cost is None else float(outputs.cost[list(team)].sum() / outputs.cost.sum())
        parts = [np.array([x]) for x in (diversity, right, size / outputs.n_models, money)]
        best = max(best, float(objective.of(*parts)[0]))
    return best


@pytest.mark.parametrize("objective", [Fitness(), Fitness(1, 0), Fitness(0, 1), Fitness(0.3, 0.7, 0.1, 0.2)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_best_team_is_the_best(pool: Outputs, objective: Fitness, size: int) -> None:
    priced = replace(pool, cost=np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    found = Pool(priced).best(objective, size)
    assert len(found.models) == size
    assert found.fitness == pytest.approx(by_hand(priced, objective, size), abs=1e-12)


def test_all_teams_agree_with_each_on_its_own(pool: Outputs) -> None:
    made = Pool(pool)
    whole = made.fitness(Fitness(0.4, 0.6, 0.1))
    for mask in range(1, 1 << 5):
        team = [n for n in range(5) if mask >> n & 1]
        assert whole[mask] == pytest.approx(made.team(team, Fitness(0.4, 0.6, 0.1)).fitness, abs=1e-12)


def test_search_finds_what_looking_at_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = voters(300, list(np.linspace(0.3, 0.7, 12)))
    made = Pool(outputs)
    for objective in (Fitness(), Fitness(0.1, 0.9)):
        whole = made.best(objective, 4)
        assert search(made, objective, 4) == whole, "495 teams: all are looked at"
        monkeypatch.setattr(prune, "_ENUMERATED", 0)
        assert search(made, objective, 4).fitness == pytest.approx(whole.fitness, abs=0.003), "swaps"
        assert search(made, objective, 4) == search(made, objective, 4)
        monkeypatch.undo()


def test_more_than_24_models() -> None:
    outputs = voters(120, list(np.linspace(0.3, 0.7, 26)))
    made = Pool(outputs)
    assert not made.exhaustive
    found = made.best(Fitness(0.1, 0.9), 2)
    assert len(found.models) == 2
    assert found.accuracy >= outputs.accuracy.max() - 0.05


def test_the_genetic_algorithm_of_the_paper(pool: Outputs) -> None:
    made = Pool(pool)
    objective = Fitness(0.5, 0.5, 0.1)
    best = made.best(objective)
    found = Genetic(generations=60, saturate=20).best(made, objective)
    assert found.fitness == pytest.approx(best.fitness, abs=1e-12), "32 teams: its first generation has them all"
    state = random.getstate()
    assert Genetic(generations=5, seed=1).best(made, objective) == Genetic(generations=5, seed=1).best(made, objective)
    assert random.getstate() == state, "the global generators are put back"


def test_tuning_is_by_held_out_folds() -> None:
    made = Pool(voters(120, [0.5] * 8), seed=3)  # so alike that a leak of a few items changes the choice
    objective, tried = made.tuned()
    assert objective.diversity + objective.accuracy == pytest.approx(1)
    assert tried[objective.diversity] == max(tried.values())
    wanted = dict.fromkeys(prune.WEIGHTS, 0.0)
    for k in range(prune.FOLDS):
        train, held = made.outputs.take(made.fold != k), made.outputs.take(made.fold == k)
        diversity = focal_diversity_of_teams(co_failures(train.failed))
        accuracy = right_counts_of_teams(train.codes, train.correct) / train.n_items
        right = right_counts_of_teams(held.codes, held.correct)
        for weight in prune.WEIGHTS:
            found = np.nan_to_num(weight * diversity) + (1 - weight) * accuracy
            single = np.isnan(diversity)
            found[single] = (1 - weight) * accuracy[single]
            wanted[weight] += right[1 + int(found[1:].argmax())] / made.outputs.n_items
    assert tried == pytest.approx(wanted, abs=1e-12)


def test_a_size_that_is_not_there(pool: Outputs) -> None:
    with pytest.raises(UsageError, match="a team of 6 from 5 models"):
        Pool(pool).best(Fitness(), 6)


def test_identical_models_and_models_that_never_fail(pool: Outputs) -> None:
    same = replace(pool.of([4, 4, 4]), models=("a", "b", "c"))
    made = Pool(same)
    assert made.best(Fitness(0, 1)).models == (made.order[0],) or len(made.best(Fitness(0, 1)).models) == 1
    assert made.team([0, 1, 2], Fitness()).diversity == pytest.approx(0, abs=1e-12)
    perfect = voters(50, [0.5, 0.5])
    belief = np.repeat(perfect.correct[:, None, :].astype(np.float32), 2, axis=1)
    never = Pool(replace(perfect, belief=belief))
    assert never.team([0, 1], Fitness()).diversity == 1.0
    assert never.best(Fitness(0, 1)).accuracy == 1.0
