"""The votes of all teams against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.core.diversity import members
from holdfast.ensemble.teams import right_counts_of_teams


def one_by_one(codes: np.ndarray, correct: np.ndarray) -> np.ndarray:
    found = np.zeros(1 << codes.shape[1], int)
    for team in range(1 << codes.shape[1]):
        for item, row in enumerate(codes):
            votes: dict[int, list[int]] = {}
            for model in members(team):
                if row[model] >= 0:
                    votes.setdefault(row[model], []).append(model)
            if votes:
                # most votes; between equals, the best (last) model
                winner = max(votes, key=lambda code: (len(votes[code]), max(votes[code])))
                found[team] += correct[item, winner]
    return found


@pytest.mark.parametrize("n_models", [1, 2, 5, 6, 7, 11])
def test_all_teams(n_models: int) -> None:
    generator = np.random.default_rng(n_models)
    codes = generator.integers(-1, 4, (25, n_models))
    correct = np.arange(4) == generator.integers(0, 4, 25)[:, None]
    np.testing.assert_array_equal(right_counts_of_teams(codes, correct), one_by_one(codes, correct))


def test_several_right_candidates_and_none() -> None:
    generator = np.random.default_rng(0)
    codes, correct = generator.integers(-1, 5, (40, 6)), generator.random((40, 5)) < 0.3
    assert (correct.sum(axis=1) == 0).any()
    assert (correct.sum(axis=1) > 1).any()
    np.testing.assert_array_equal(right_counts_of_teams(codes, correct), one_by_one(codes, correct))


def test_many_equal_items_are_counted() -> None:
    codes, correct = np.tile([[0, 1, 1]], (1000, 1)), np.tile([[False, True]], (1000, 1))
    assert right_counts_of_teams(codes, correct).tolist() == [0, 0, 1000, 1000, 1000, 1000, 1000, 1000]


def test_too_many_models() -> None:
    with pytest.raises(ValueError, match="1 to 24"):
        right_counts_of_teams(np.zeros((3, 25), int), np.ones((3, 1), bool))
