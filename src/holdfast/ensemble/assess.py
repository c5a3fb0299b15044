"""Which k of my models, and is it worth it? From outputs to one JSON document.

Honest by construction: items are split once (at random within subjects); everything is fitted and chosen on the
training part, by cross-validation inside it where there is something to choose; every number that is reported comes
from the test part. Best single model, plurality of all and oracle are always there, and beside each team the best
single model at equal cost (several samples of it), or the reason why that is not known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core import diversity
from holdfast.core.errors import DataError
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.knobs import knob, resolved
from holdfast.core.records import Metric
from holdfast.core.resample import Statistic, estimate, independent
from holdfast.core.stats import difference_interval, mean_interval
from holdfast.ensemble.answers import counts_f1, normal
from holdfast.ensemble.checks import findings
from holdfast.ensemble.combine import COMBINERS
from holdfast.ensemble.combine.base import Combiner, Fitted, Trial, fit, is_right
from holdfast.ensemble.combine.logit import ConditionalLogit
from holdfast.ensemble.combine.medoid import Medoid
from holdfast.ensemble.diverse import measured
from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.prune import Fitness, Pool, Team

Bools = NDArray[np.bool_]

RESAMPLES = 4000
_FEWEST = 20
_SHOWN_TEAMS = 1500
_TOP = 8
_SOME = 500
_TITLES = {
    "plain medoid": "medoid, all models alike",
    "conditional-logit, no subjects": "conditional logit, no subjects",
}


@dataclass(frozen=True)
class Settings:
    """What is decided before looking at test items.

    Attributes:
        test: share of the items kept for the report.
        seed: of the split and of all fitting.
        fitness: what a team is chosen by; None tunes the weight of diversity by cross-validation.
        size: size of the recommended team; 0: chosen in training.
        method: how the team's answers are combined; empty: chosen in training among all.
    """

    test: float = knob(0.5, "share of the items kept for the report", low=0.05, high=0.9)
    seed: int = knob(0, "seed of the split and of all fitting", low=0)
    fitness: Fitness | None = knob(None, "what a team is chosen by; none: tuned")
    size: int = knob(0, "models of the team; 0: chosen", low=0)
    method: str = knob("", "combining method; empty: chosen")


@dataclass(frozen=True)
class Assessed:
    """What was found, and the ensemble that it recommends.

    Attributes:
        result: JSON values: what reports are made of.
        fitted: the recommended team's combiner, fitted on training items.
    """

    result: dict[str, Any]
    fitted: Fitted


def assess(outputs: Outputs, settings: Settings = Settings(), sink: Sink = ignore) -> Assessed:
    """Choose a team and a way to combine it on one part of the items, and measure on the other.

    Raises:
        DataError: too few items with right answers that all models were asked.
        UsageError: no such size or method.
    """
    usable = outputs.known & outputs.asked.all(axis=1)
    if usable.sum() < _FEWEST:
        raise DataError(
            f"items with a right answer that were asked of all {outputs.n_models} models: {int(usable.sum())}",
            hint=f"at least {_FEWEST} are needed; leave out a model that was asked little: --models A,B,C",
        )
    whole = outputs.take(usable)
    train, test = split(whole, settings.test, settings.seed)
    return _Assessment(whole, train, test, settings, sink).run(int((~usable).sum()))


def split(outputs: Outputs, share: float, seed: int) -> tuple[Outputs, Outputs]:
    """Training and test part, at random within each subject."""
    generator = np.random.default_rng([seed, 1234])
    place = np.empty(outputs.n_items)
    for group in range(len(outputs.groups)):
        rows = np.flatnonzero(outputs.group == group)
        place[generator.permutation(rows)] = (np.arange(len(rows)) + generator.random()) / max(len(rows), 1)
    test = place >= 1 - share
    return outputs.take(~test), outputs.take(test)


def rate(name: str, right: Bools) -> Metric:
    """Share right with Wilson's interval."""
    value, low, high = mean_interval([right.astype(np.float64)])
    return Metric(name, 100 * value, 100 * low, 100 * high, len(right), "%", "higher", method="Wilson")


def gain(name: str, right: Bools, other: Bools) -> Metric:
    """Difference of two shares right on the same items, by a paired bootstrap (BCa)."""
    kinds = np.array([[0, 0], [1, 0], [0, 1]])
    left, both = right.astype(int), right.astype(int) - other.astype(int)
    n = len(left)
    if not both.any():
        value, low, high = difference_interval([right.astype(np.float64)], [other.astype(np.float64)])
        return Metric(
            name, 100 * value, 100 * low, 100 * high, n, "points", "higher", method="no pair differs: Clopper-Pearson"
        )
    times = np.array([(both == 0).sum(), (both == 1).sum(), (both == -1).sum()])
    features = np.array([kinds[:, 0] - kinds[:, 1], np.ones(3)]).T.astype(np.float64)
    statistic = Statistic(name, features, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]), "no items")
    found = estimate(statistic, independent(times, RESAMPLES, np.random.default_rng(0)))
    value = 100 * float(both.mean())
    low, high = (value if x is None else 100 * x for x in (found.low, found.high))
    return Metric(name, value, low, high, n, "points", "higher", method=f"paired bootstrap, BCa, {RESAMPLES} resamples")


class _Assessment:
    """One assessment under way."""

    def __init__(self, whole: Outputs, train: Outputs, test: Outputs, settings: Settings, sink: Sink) -> None:
        self.whole, self.train, self.test, self.settings, self.sink = whole, train, test, settings, sink
        self.pool = Pool(train, settings.seed)
        tuned, self.tried = self.pool.tuned(settings.fitness or Fitness())
        self.fitness = settings.fitness or tuned
        self.done, self.total = 0, 3 + len(self._methods()) + train.n_models

    def _tick(self) -> None:
        self.done += 1
        self.sink(Progressed(done=min(self.done, self.total), total=self.total))

    def run(self, unused: int) -> Assessed:
        best = fit(COMBINERS.load("best-single")(), self.train, self.settings.seed, folds=0).fitted
        self.single = self._right(best)
        self._tick()
        methods = self._methods()
        trials = {label: fit(method, self.train, self.settings.seed) for label, method in methods.items()}
        self._tick()
        learned = max(trials, key=lambda label: _worth(trials[label]))
        rows = list(self._frontier(methods[learned]))
        chosen = self._recommended(rows)
        self._tick()
        result = {
            "models": self._models(),
            "items": {
                "all": self.whole.n_items + unused,
                "unused": unused,
                "train": self.train.n_items,
                "test": self.test.n_items,
            },
            "kind": self.whole.kind,
            "subjects": [name for name in self.whole.groups if name],
            "settings": resolved(self.settings),
            "fitness": resolved(self.fitness),
            "tried": [[weight, 100 * value] for weight, value in self.tried.items()],
            "findings": [asdict(one) for one in findings(self.train)],
            "baselines": self._baselines(best),
            "methods": [self._method(label, trial, label == learned) for label, trial in trials.items()],
            "learned": learned,
            "frontier": [row["json"] for row in rows],
            "choices": list(self._choices()),
            "recommended": chosen["json"]["size"],
            "calibration": _calibration(chosen["trial"].fitted, self.test),
            "diversity": self._diversity(chosen["team"]),
            "map": self._map(),
            "notes": [*self.whole.notes, *self._searched()],
        }
        return Assessed(_plain(result), chosen["trial"].fitted)

    # --- parts ---------------------------------------------------------------------------------------

    def _methods(self) -> dict[str, Combiner]:
        if self.settings.method:
            return {self.settings.method: COMBINERS.load(self.settings.method)()}
        found: dict[str, Combiner] = {}
        for name in COMBINERS:
            method = COMBINERS.load(name)()
            if isinstance(method, Medoid):
                if self.train.kind in ("short", "long"):
                    found |= {"plain medoid": Medoid(sharpness=0.0), name: method}
            elif isinstance(method, ConditionalLogit) and self.train.kind == "choice" and len(self.train.groups) > 1:
                found["conditional-logit, no subjects"] = ConditionalLogit(subject_ridge=0)
                found["conditional-logit"] = method
            elif self.train.kind != "long" and name != "best-single":
                found[name] = method
        if self.train.kind == "long":
            found["best-single"] = COMBINERS.load("best-single")()
        return found

    def _right(self, fitted: Fitted) -> Bools:
        return is_right(fitted.answers(self.test), self.test)

    def _quality(self, fitted: Fitted) -> Metric | None:
        """Mean score of the chosen answers, where scores are more than right and wrong."""
        if self.test.kind not in ("short", "long"):
            return None
        chosen = fitted.answers(self.test)
        hit = (self.test.codes == chosen[:, None]) & (chosen >= 0)[:, None]
        score = np.where(hit, self.test.score, -1).max(axis=1)
        value, low, high = mean_interval([np.maximum(score, 0)])
        return Metric(
            "score", 100 * value, 100 * low, 100 * high, len(score), "%", "higher", method="normal, Wilson-shaped"
        )

    def _searched(self) -> Iterator[str]:
        """What a reader should know where not all teams were looked at."""
        if not self.pool.exhaustive:
            yield (
                f"{self.train.n_models} models: all teams can be looked at up to {diversity.MOST_EXHAUSTIVE}; here "
                f"teams of up to {_TOP} were found by search, and the weight of diversity was not tuned"
            )

    def _models(self) -> list[dict[str, Any]]:
        test, cost = self.test, self.whole.cost
        return [
            {
                "name": name,
                "accuracy": rate("accuracy", test.right[:, place]).as_json(),
                "silent": float((test.codes[:, place] < 0).mean()),
                "samples": int(self.whole.samples[place]),
                "cost": None if cost is None else float(cost[place]),
                "train": float(self.train.accuracy[place]),
            }
            for place, name in enumerate(self.whole.models)
        ]

    def _baselines(self, best: Fitted) -> dict[str, Any]:
        plurality = fit(COMBINERS.load("plurality")(), self.train, self.settings.seed, folds=0).fitted
        right = self._right(plurality)
        name = self.train.models[int(np.argmax(self.train.accuracy))]
        return {
            "best_single": {
                "name": name,
                "accuracy": rate("best single", self.single).as_json(),
                "score": _json(self._quality(best)),
            },
            "plurality": {
                "accuracy": rate("plurality of all", right).as_json(),
                "gain": gain("plurality - best single", right, self.single).as_json(),
                "score": _json(self._quality(plurality)),
            },
            "oracle": {"accuracy": rate("any model right", np.asarray(self.test.right.any(axis=1))).as_json()},
        }

    def _method(self, label: str, trial: Trial, chosen: bool) -> dict[str, Any]:
        right = self._right(trial.fitted)
        self._tick()
        return {
            "name": label,
            "title": _TITLES.get(label, trial.fitted.method.title),
            "validation": 100 * trial.accuracy,
            "likelihood": trial.likelihood,
            "accuracy": rate(label, right).as_json(),
            "gain": gain(f"{label} - best single", right, self.single).as_json(),
            "score": _json(self._quality(trial.fitted)),
            "chosen": chosen,
        }

    def _frontier(self, learned: Combiner) -> Iterator[dict[str, Any]]:
        """For each size the team that training chooses, with its plurality and its learned combination."""
        train, test, cost = self.train, self.test, self.whole.cost
        sizes = range(1, train.n_models + 1)
        if not self.pool.exhaustive:
            sizes = range(1, min(train.n_models, _TOP) + 1)
        for size in sizes:
            team = self.pool.best(self.fitness, size)
            names = [train.models[place] for place in team.models]
            trial = fit(learned, train.of(team.models), self.settings.seed)
            plurality = fit(COMBINERS.load("plurality")(), train.of(team.models), self.settings.seed, folds=0).fitted
            right, voted = self._right(trial.fitted), self._right(plurality)
            dollars = None if cost is None else float(cost[list(team.models)].sum())
            self._tick()
            yield {
                "team": team,
                "trial": trial,
                "json": {
                    "size": size,
                    "models": names,
                    "diversity": team.diversity,
                    "train_plurality": 100 * team.accuracy,
                    "validation": 100 * trial.accuracy,
                    "plurality": rate("plurality", voted).as_json(),
                    "learned": rate("learned", right).as_json(),
                    "gain": gain("learned - best single", right, self.single).as_json(),
                    "oracle": rate("any right", np.asarray(test.right[:, list(team.models)].any(axis=1))).as_json(),
                    "score": _json(self._quality(trial.fitted)),
                    "cost": dollars,
                    "same_cost": self._same_cost(size, dollars),
                },
            }

    def _same_cost(self, size: int, dollars: float | None) -> dict[str, Any]:
        """Self-consistency of the best single model at the team's cost."""
        place = int(np.argmax(self.train.accuracy))
        name, cost = self.train.models[place], self.whole.cost
        wanted = size if dollars is None or cost is None or not cost[place] else max(1, int(dollars / cost[place]))
        have = int(self.whole.samples[place])
        if wanted > 1 and have < 2:
            return {
                "samples": wanted,
                "accuracy": None,
                "reason": f"{name} gave one answer an item; {wanted} samples of it cost as much",
            }
        right = self.test.right[:, place]
        more = "" if have >= wanted else f"{have} samples, though {wanted} would cost as much"
        return {
            "samples": min(wanted, have),
            "accuracy": rate(f"{name}, {have} samples", right).as_json(),
            "reason": more,
        }

    def _recommended(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The size asked for; else the smallest within one standard error of the best, by cross-validation."""
        if self.settings.size:
            found = [row for row in rows if row["json"]["size"] == self.settings.size]
            if not found:
                raise DataError(
                    f"no team of {self.settings.size} models: there are {self.train.n_models}",
                    hint=f"--size 1 to {len(rows)}",
                )
            return found[0]
        values = np.array([row["trial"].accuracy for row in rows])
        top = int(values.argmax())
        best = rows[top]["trial"].right
        for row in rows:
            apart = best.astype(float) - row["trial"].right
            if apart.mean() <= apart.std() / math.sqrt(len(apart)) + 1e-12:
                return row
        return rows[top]

    def _choices(self) -> Iterator[dict[str, Any]]:
        """Ways to choose a team, against one another on test items: whether diversity earns its place."""
        ways = {
            "accuracy alone": Fitness(0.0, 1.0),
            f"tuned: {self.fitness.diversity:g} diversity": self.fitness,
            "paper: 0.5 diversity, 0.5 accuracy": Fitness(0.5, 0.5),
            "diversity alone": Fitness(1.0, 0.0),
        }
        sizes = [k for k in (2, 3, 5, 8) if k < self.train.n_models] or [self.train.n_models]
        for size in (*sizes, 0):
            if not size and not self.pool.exhaustive:
                continue
            teams = {label: self.pool.best(one, size or None) for label, one in ways.items()}
            if size:
                teams["best models alone"] = self.pool.best_singles(size, self.fitness)
            base = self._voted(teams["accuracy alone"])
            for label, team in teams.items():
                right = self._voted(team)
                yield {
                    "size": size,
                    "way": label,
                    "models": [self.train.models[place] for place in team.models],
                    "diversity": team.diversity,
                    "accuracy": rate(label, right).as_json(),
                    "against": None
                    if set(team.models) == set(teams["accuracy alone"].models)
                    else gain(f"{label} - accuracy alone", right, base).as_json(),
                }

    def _voted(self, team: Team) -> Bools:
        part = self.train.of(team.models)
        return self._right(fit(COMBINERS.load("plurality")(), part, self.settings.seed, folds=0).fitted)

    def _diversity(self, team: Team) -> dict[str, Any]:
        """The family of metrics for the recommended team and for all models, on training items."""
        made: dict[str, Any] = {"metrics": []}
        groups = {"team": self.train.of(team.models), "all": self.train}
        for metric in diversity.METRICS.values():
            if metric.of == "labels" and self.train.kind != "choice":
                continue
            row: dict[str, Any] = {"name": metric.name, "diverse": metric.diverse, "source": metric.source}
            row |= {key: measured(metric, part, self.settings.seed).as_json() for key, part in groups.items()}
            made["metrics"].append(row)
        if len(team.models) > 1:
            part = groups["team"]
            focal = diversity.focal_diversities(diversity.co_failures(part.failed), range(part.n_models))
            made["focal"] = [[name, float(x)] for name, x in zip(part.models, focal, strict=True)]
        made["agreement"] = _agreement(self.train)
        return made

    def _map(self) -> dict[str, Any]:
        """Pairs of models (a square), and a sample of teams (diversity against accuracy)."""
        order = list(self.pool.order)[::-1]
        part = self.train.of(order)
        both, apart = diversity.double_faults(part.failed), diversity.disagreements(part.failed)
        pairs = [
            [part.models[i], part.models[j], float(apart[i, j]), float(both[i, j])]
            for i in range(part.n_models)
            for j in range(part.n_models)
            if i != j
        ]
        teams: list[list[float]] = []
        if self.pool.exhaustive and self.train.n_models > 2:
            generator = np.random.default_rng(self.settings.seed)
            there = np.flatnonzero(self.pool.sizes >= 2)
            some = generator.choice(there, min(_SHOWN_TEAMS, len(there)), replace=False)
            teams = [
                [int(self.pool.sizes[t]), float(self.pool.diversities[t]), 100 * float(self.pool.accuracies[t])]
                for t in np.sort(some)
            ]
        return {"models": list(part.models), "pairs": pairs, "teams": teams, "correlations": self._collinear()}

    def _collinear(self) -> list[list[float]]:
        """Correlation of focal diversity with plurality accuracy over the teams of each size."""
        if not self.pool.exhaustive:
            return []
        made = []
        for size in range(2, self.train.n_models):
            rows = self.pool.sizes == size
            x, y = self.pool.diversities[rows], self.pool.accuracies[rows]
            if len(x) > 2 and x.std() > 0 and y.std() > 0:
                made.append([size, float(np.corrcoef(x, y)[0, 1]), len(x)])
        return made


def _worth(trial: Trial) -> tuple[float, float]:
    """What a method is chosen by: log-likelihood out of fold, which is less noisy than the accuracy there."""
    return trial.likelihood if math.isfinite(trial.likelihood) else -math.inf, trial.accuracy


def _agreement(outputs: Outputs) -> float | None:
    """Diversity that needs no right answers: 1 - mean agreement of two models' answers over items."""
    codes = outputs.codes
    if outputs.n_models < 2:
        return None
    if outputs.kind in ("short", "long"):
        return _text_diversity(outputs)
    same = (codes[:, :, None] == codes[:, None, :]) & (codes >= 0)[:, :, None]
    off = ~np.eye(outputs.n_models, dtype=bool)
    return float(1 - same[:, off].mean())


def _text_diversity(outputs: Outputs) -> float:
    """1 - mean token F1 of two models' answers, over at most 500 items."""
    apart = []
    for item in range(0, outputs.n_items, max(1, outputs.n_items // _SOME)):
        names = outputs.candidates[item]
        bags = [Counter(normal(names[code]).split()) if code >= 0 else Counter[str]() for code in outputs.codes[item]]
        apart.append(np.mean([1 - counts_f1(bags[i], bags[j]) for i in range(len(bags)) for j in range(i)]))
    return float(np.mean(apart))


def _calibration(fitted: Fitted, test: Outputs) -> dict[str, Any]:
    """How far stated probabilities are from what happens: bins of equal numbers of test items."""
    aligned = test.of([test.models.index(name) for name in fitted.models])
    chosen = fitted.answers(aligned)
    rows = chosen >= 0
    stated = fitted.probabilities(aligned)[np.arange(len(chosen)), np.maximum(chosen, 0)][rows]
    right = is_right(chosen, aligned)[rows]
    order = np.argsort(stated, kind="stable")
    bins = []
    for part in np.array_split(order, min(10, max(1, len(order) // 20))):
        if len(part):
            value, low, high = mean_interval([right[part].astype(np.float64)])
            bins.append([float(stated[part].mean()), value, low, high, len(part)])
    error = sum(n * abs(said - seen) for said, seen, _, _, n in bins) / max(1, len(order))
    return {"bins": bins, "error": float(error)}


def _json(metric: Metric | None) -> dict[str, Any] | None:
    return None if metric is None else metric.as_json()


def _plain(value: Any) -> Any:
    """JSON values: absence instead of NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
