"""All teams of 20 models on 10,000 items: focal diversity and plurality accuracy, against doing one team at a time.

    OMP_NUM_THREADS=1 python benchmarks/ensemble_speed.py --out benchmarks/results/ensemble_speed.json

One at a time is what public code does: count failures and votes of each team with NumPy over all items; it is timed on
some teams and taken times 2^20. To hold: focal diversity of all teams in 1.5 s, with plurality accuracy in 60 s,
memory under 0.6 GB, equality with the definition to 1e-12 on random teams.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.diversity import co_failures, focal_diversity_of_teams, members
from holdfast.ensemble.teams import right_counts_of_teams

ITEMS, OPTIONS = 10_000, 10


def answers(n_models: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Votes of models of 30 to 70% accuracy whose errors go together, and what is right."""
    generator = np.random.default_rng(seed)
    gold, trap = generator.integers(0, OPTIONS, (2, ITEMS, 1))
    ease = generator.random((ITEMS, 1))
    knows = ease + 0.5 * generator.standard_normal((ITEMS, n_models)) < np.linspace(0.3, 0.7, n_models)
    guess = np.where(generator.random((ITEMS, n_models)) < 0.4, trap, generator.integers(0, OPTIONS, (ITEMS, n_models)))
    return np.where(knows, gold, guess), np.arange(OPTIONS) == gold


def focal_one(failed: np.ndarray, team: list[int]) -> float:
    """FD of one team from the definition."""
    found, size = [], len(team)
    for member in team:
        fails = failed[failed[:, member]][:, team].sum(axis=1)
        p = np.bincount(fails, minlength=size + 1) / len(fails)
        j = np.arange(size + 1)
        found.append(1 - (j * (j - 1) / (size * (size - 1)) @ p) / (j / size @ p))
    return float(np.mean(found))


def vote_one(codes: np.ndarray, correct: np.ndarray, team: list[int]) -> int:
    """Items that the plurality of one team gets right; ties to the best (last) member."""
    ballots = codes[:, team, None] == np.arange(OPTIONS)
    score = (ballots * ((1 << len(team)) + (1 << np.arange(len(team))))[None, :, None]).sum(axis=1)
    return int(correct[np.arange(len(codes)), score.argmax(axis=1)].sum())


def measure(n_models: int) -> dict[str, Any]:
    """All figures."""
    codes, correct = answers(n_models)
    failed = ~correct[np.arange(ITEMS)[:, None], codes]
    began = time.perf_counter()
    counts = co_failures(failed)
    diversity = focal_diversity_of_teams(counts)
    focal = time.perf_counter() - began
    began = time.perf_counter()
    right = right_counts_of_teams(codes, correct)
    votes = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    teams = [t for t in np.random.default_rng(1).integers(3, 1 << n_models, 60).tolist() if t.bit_count() > 1]
    began = time.perf_counter()
    slow_focal = {t: focal_one(failed, list(members(t))) for t in teams}
    middle = time.perf_counter()
    slow_votes = {t: vote_one(codes, correct, list(members(t))) for t in teams}
    done = time.perf_counter()
    worst = max(abs(diversity[t] - slow_focal[t]) for t in teams)
    assert worst < 1e-12, f"focal diversity differs from its definition by {worst}"
    assert all(right[t] == slow_votes[t] for t in teams), "votes differ from counting one by one"
    one_focal, one_vote = (middle - began) / len(teams), (done - middle) / len(teams)
    return {
        "models": n_models, "teams": 1 << n_models, "items": ITEMS, "focal_seconds": focal, "votes_seconds": votes,
        "both_seconds": focal + votes, "peak_bytes": peak, "largest_difference": worst,
        "one_team_focal_milliseconds": 1000 * one_focal, "one_team_votes_milliseconds": 1000 * one_vote,
        "focal_times_faster": one_focal * (1 << n_models) / focal,
        "both_times_faster": (one_focal + one_vote) * (1 << n_models) / (focal + votes),
    }  # fmt: skip


def main() -> int:
    """Measure, print, compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given.models)
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    limits = {"focal_seconds": 1.5, "both_seconds": 60, "peak_bytes": 0.6e9}
    missed = [name for name, limit in limits.items() if given.models == 20 and found[name] > limit]
    print(f"missed: {', '.join(missed)}" if missed else "all limits hold")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
