"""Which models to keep: fitness of teams, and three ways to look for the best one.

The paper's fitness of a team S of the N models is (LLM-TOPLA, section 3.2; FusionShot's settings 0.5 and 0.5)

    diversity x FD(S) + accuracy x plurality accuracy(S) - size x |S| / N - money x cost(S) / cost(all)

Up to 24 models every team is looked at, so the best team is known to be the best. Beyond, all teams of a given size are
looked at while they are few, and else swaps of single members improve seeded random teams. The paper's genetic
algorithm is there for parity. The weights can be tuned: a team chosen on four fifths of the items is scored on the
rest, for each weight of diversity (nested inside training: no test item is touched).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from holdfast.core.diversity import (
    MOST_EXHAUSTIVE,
    CoFailures,
    co_failures,
    focal_diversity,
    focal_diversity_of_teams,
    mask,
    members,
    team_sizes,
)
from holdfast.core.errors import MissingExtra, UsageError
from holdfast.core.knobs import knob
from holdfast.ensemble.combine.base import FOLDS, fold_of
from holdfast.ensemble.outputs import Floats, Outputs
from holdfast.ensemble.teams import right_counts_of_teams

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Weights of diversity that tuning tries; accuracy has the rest."""

_ENUMERATED = 20_000
_RESTARTS = 8


@dataclass(frozen=True)
class Fitness:
    """What makes a team good."""

    diversity: float = knob(0.5, "weight of focal diversity", low=0, source="FusionShot scripts; its defaults: 0.6")
    accuracy: float = knob(0.5, "weight of plurality accuracy", low=0, source="FusionShot scripts; its defaults: 0.4")
    size: float = knob(0.0, "penalty of the whole pool's size; a team pays its share", low=0, source="FusionShot: 0.1")
    money: float = knob(0.0, "penalty of the whole pool's cost; a team pays its share", low=0)

    def of(self, diversity: Floats, accuracy: Floats, size: Floats, money: Floats) -> Floats:
        """Fitness of teams; undefined diversity (one member) counts as 0.

        Args:
            diversity: focal diversity of the teams.
            accuracy: plurality accuracy.
            size: share of the pool's models.
            money: share of the pool's cost.
        """
        spread = np.nan_to_num(diversity, nan=0.0)
        return np.asarray(self.diversity * spread + self.accuracy * accuracy - self.size * size - self.money * money)


@dataclass(frozen=True)
class Team:
    """A team and what training says of it.

    Attributes:
        models: places in the pool's outputs, best model first.
        fitness: by the objective that chose it.
        diversity: focal diversity; NaN for one model.
        accuracy: plurality accuracy.
    """

    models: tuple[int, ...]
    fitness: float
    diversity: float
    accuracy: float


class Pool:
    """Models to choose from, with what is needed to score their teams.

    Args:
        outputs: training outputs, right answers known.
        seed: of folds and searches.

    Models are kept in order of accuracy, worst first, so that votes' ties go to the best member.
    """

    def __init__(self, outputs: Outputs, seed: int = 0) -> None:
        if outputs.n_models < 1 or outputs.n_items < FOLDS:
            raise UsageError(
                f"{outputs.n_models} models and {outputs.n_items} items to choose from", hint="give more answers"
            )
        self.order = tuple(int(n) for n in np.argsort(outputs.accuracy, kind="stable"))
        self.outputs, self.seed = outputs.of(self.order), seed
        self.fold = fold_of(outputs.n_items, FOLDS, seed)
        self._known: dict[tuple[int, ...], tuple[float, float]] = {}

    @property
    def n_models(self) -> int:
        """Number of models."""
        return self.outputs.n_models

    @property
    def exhaustive(self) -> bool:
        """Whether all teams can be looked at."""
        return self.n_models <= MOST_EXHAUSTIVE

    @cached_property
    def counts_by_fold(self) -> tuple[CoFailures, ...]:
        """Common failures in each fold."""
        return tuple(co_failures(self.outputs.failed[self.fold == k]) for k in range(FOLDS))

    @cached_property
    def counts(self) -> CoFailures:
        """Common failures."""
        first, *rest = self.counts_by_fold
        return sum(rest, first)

    @cached_property
    def right_by_fold(self) -> NDArray[np.int32]:
        """Items that each team's plurality gets right, shape (folds, 2^n_models)."""
        codes, correct = self.outputs.codes, self.outputs.correct
        return np.stack([right_counts_of_teams(codes[self.fold == k], correct[self.fold == k]) for k in range(FOLDS)])

    @cached_property
    def _ballots(self) -> Floats:
        """One vote a model, shape (n_items, n_models, n_candidates)."""
        codes = self.outputs.codes
        return np.asarray((codes[:, :, None] == np.arange(self.outputs.correct.shape[1])).astype(np.float64))

    @cached_property
    def diversities(self) -> Floats:
        """Focal diversity of all teams."""
        return focal_diversity_of_teams(self.counts)

    @cached_property
    def accuracies(self) -> Floats:
        """Plurality accuracy of all teams."""
        return np.asarray(self.right_by_fold.sum(axis=0) / self.outputs.n_items)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Members of all teams."""
        return team_sizes(self.n_models)

    @cached_property
    def money(self) -> Floats:
        """Share of the pool's cost of all teams; zeros when costs are not known."""
        cost = self.outputs.cost
        total = np.zeros(1)
        if cost is None or not cost.sum():
            return np.zeros(1 << self.n_models)
        for one in cost / cost.sum():
            total = np.concatenate([total, total + one])
        return total

    def fitness(self, objective: Fitness) -> Floats:
        """Fitness of all teams; minus infinity for the empty one."""
        found = objective.of(self.diversities, self.accuracies, self.sizes / self.n_models, self.money)
        found[0] = -np.inf
        return found

    def team(self, chosen: Iterable[int], objective: Fitness) -> Team:
        """A team of pool places (worst first), scored on its own."""
        models = tuple(sorted(chosen, reverse=True))
        diversity, accuracy = self._scored(models)
        cost = self.outputs.cost
        money = float(cost[list(models)].sum() / cost.sum()) if cost is not None and cost.sum() else 0.0
        parts = [np.array([x]) for x in (diversity, accuracy, len(models) / self.n_models, money)]
        fitness = float(objective.of(*parts)[0])
        return Team(tuple(self.order[n] for n in models), fitness, diversity, accuracy)

    def _scored(self, models: tuple[int, ...]) -> tuple[float, float]:
        """Diversity and accuracy of a team; searches come back to the same teams."""
        if models not in self._known:
            self._known[models] = focal_diversity(self.counts, models), self._plurality(models)
        return self._known[models]

    def _plurality(self, models: Sequence[int]) -> float:
        """Plurality accuracy of one team; ties to the best member."""
        ordered = sorted(models)
        worth = ((1 << len(ordered)) + (1 << np.arange(len(ordered)))).astype(np.float64)
        score = np.tensordot(self._ballots[:, ordered], worth, axes=(1, 0))
        chosen = score.argmax(axis=1)
        right = np.take_along_axis(self.outputs.correct, chosen[:, None], axis=1)[:, 0]
        return float((right & (score.max(axis=1) > 0)).mean())

    def best(self, objective: Fitness, size: int | None = None) -> Team:
        """The best team (of a size), over all teams or by search; equal fitness: the smaller, cheaper mask.

        Raises:
            UsageError: there is no team of that size.
        """
        if size is not None and not 1 <= size <= self.n_models:
            raise UsageError(f"a team of {size} from {self.n_models} models", hint=f"--size 1 to {self.n_models}")
        if not self.exhaustive:
            sizes = [size] if size else range(1, min(self.n_models, MOST_EXHAUSTIVE) + 1)
            return max((search(self, objective, k) for k in sizes), key=lambda team: team.fitness)
        found = self.fitness(objective)
        if size is not None:
            found = np.where(self.sizes == size, found, -np.inf)
        ties = np.flatnonzero(found >= found.max() - 1e-12)
        return self.team(members(int(ties[np.argmin(self.sizes[ties])])), objective)

    def top(self, objective: Fitness, size: int, n: int) -> list[Team]:
        """The best teams of a size, best first."""
        if not self.exhaustive:
            return [search(self, objective, size)]
        of_size = np.flatnonzero(self.sizes == size)
        found = self.fitness(objective)[of_size]
        chosen = of_size[np.argsort(-found, kind="stable")[:n]]
        return [self.team(members(int(team)), objective) for team in chosen]

    def best_singles(self, size: int, objective: Fitness) -> Team:
        """The models that are best on their own."""
        return self.team(range(self.n_models - size, self.n_models), objective)

    def tuned(self, objective: Fitness = Fitness()) -> tuple[Fitness, dict[float, float]]:
        """The objective with the weight of diversity that chooses best for items not seen.

        Returns:
            the objective (diversity w, accuracy 1 - w), and for each weight tried the accuracy, on the held-out folds,
            of the teams that it chose on the others. Equal accuracies: the smaller weight.
        """
        tried: dict[float, float] = {}
        for weight in WEIGHTS:
            tried[weight] = 0.0
        if not self.exhaustive:
            return replace(objective, diversity=0.1, accuracy=0.9), {}
        whole = self.right_by_fold.sum(axis=0)
        for k in range(FOLDS):
            here = int((self.fold == k).sum())
            diversity = focal_diversity_of_teams(self.counts - self.counts_by_fold[k])
            accuracy = (whole - self.right_by_fold[k]) / (self.outputs.n_items - here)
            for weight in WEIGHTS:
                one = replace(objective, diversity=weight, accuracy=1 - weight)
                found = one.of(diversity, accuracy, self.sizes / self.n_models, self.money)
                found[0] = -np.inf
                tried[weight] += float(self.right_by_fold[k, int(found.argmax())]) / self.outputs.n_items
        best = max(tried, key=lambda weight: (round(tried[weight], 12), -weight))
        return replace(objective, diversity=best, accuracy=1 - best), tried


def search(pool: Pool, objective: Fitness, size: int) -> Team:
    """The best team of a size among all of them where they are few, else by swaps from seeded random teams."""
    n = pool.n_models
    if math.comb(n, size) <= _ENUMERATED:
        return max((pool.team(team, objective) for team in itertools.combinations(range(n), size)), key=_fitness)
    generator = np.random.default_rng([pool.seed, size])
    starts = [tuple(range(n - size, n))]
    starts += [tuple(generator.choice(n, size, replace=False).tolist()) for _ in range(_RESTARTS - 1)]
    return max((_climb(pool, objective, start) for start in starts), key=_fitness)


def _climb(pool: Pool, objective: Fitness, start: Sequence[int]) -> Team:
    """Swaps one member for one outsider as long as that helps, the best swap of each member first."""
    here, best = set(start), pool.team(start, objective)
    improved = True
    while improved:
        improved = False
        for member in sorted(here):
            outside = [n for n in range(pool.n_models) if n not in here]
            found = max((pool.team((here - {member}) | {n}, objective) for n in outside), key=_fitness, default=best)
            if found.fitness > best.fitness + 1e-12:
                best, improved = found, True
                here = {pool.order.index(n) for n in found.models}
    return best


def _fitness(team: Team) -> float:
    return team.fitness


@dataclass(frozen=True)
class Genetic:
    """The paper's genetic algorithm, on PyGAD, with its settings. For parity: up to 24 models all teams are looked at.

    There is no mutation, so it can only recombine its first 100 teams. Differs: a seed, and teams of fewer than two
    members are unfit as in the authors' code (-99).
    """

    generations: int = knob(1000, "generations at most", low=1, source="FusionShot run_ga.py")
    population: int = knob(100, "teams of a generation", low=4, source="FusionShot run_ga.py")
    parents: int = knob(50, "teams that mate", low=2, source="FusionShot run_ga.py")
    saturate: int = knob(100, "generations without progress before it stops", low=1, source="FusionShot run_ga.py")
    seed: int = knob(0, "of all chance", low=0)

    def best(self, pool: Pool, objective: Fitness) -> Team:
        """The fittest team of the last generation.

        Raises:
            MissingExtra: PyGAD is not installed.
        """
        try:
            import pygad
        except ModuleNotFoundError as error:
            raise MissingExtra("genetic", "pygad") from error
        known: dict[int, float] = {}

        def fit(_search: object, genes: NDArray[np.integer], _place: int) -> float:
            team = mask(np.flatnonzero(genes).tolist())
            if team not in known:
                known[team] = pool.team(members(team), objective).fitness if team.bit_count() > 1 else -99.0
            return known[team]

        before = random.getstate(), np.random.get_state()  # noqa: NPY002  (PyGAD seeds the global generators)
        run = pygad.GA(
            num_generations=self.generations, num_parents_mating=self.parents, sol_per_pop=self.population,
            num_genes=pool.n_models, gene_space=[0, 1], gene_type=int, fitness_func=fit, parent_selection_type="sss",
            crossover_type="two_points", mutation_probability=0.0, stop_criteria=f"saturate_{self.saturate}",
            random_seed=self.seed, suppress_warnings=True,
        )  # fmt: skip
        try:
            run.run()
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
        best = max(known, key=lambda team: known[team])
        return pool.team(members(best), objective)
