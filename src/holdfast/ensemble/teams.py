"""Plurality accuracy of all teams of up to 24 models at once. NumPy only.

A team's vote goes to the candidate with most votes; between equal numbers of votes the team's best model decides. With
models in order, worst first, that is the candidate whose mask x of voters (within the team) has the largest

    score(x) = popcount(x) * 2^n + x

because tied candidates have different voters and the highest bit that differs is the better model. The score of a
team is the score of its members in the lower ten models plus that of its members above. So the team is right when, for
each wrong candidate c, score difference low(c) < -high(c): for a team's upper part the lower parts that pass are a
prefix of one sorted order, kept as a bit set. One item then costs, for all 2^n teams, one AND of bit sets a wrong
candidate; bits are counted over items by carry-save addition. No team is ever visited on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int32]
Bits = NDArray[np.uint64]

MOST = 24
_LOW = 10  # models of the lower part: 2^10 bits a set
_LEAST = 6  # bits of one word


def right_counts_of_teams(codes: Codes, correct: Bools) -> Counts:
    """Number of items that the plurality of each team gets right, shape (2^n_models,).

    Args:
        codes: candidate that each model votes for, shape (n_items, n_models), -1 for none; worst model first.
        correct: whether each candidate is right, shape (n_items, n_candidates).

    Raises:
        ValueError: no model, or more than 24.
    """
    n_models = codes.shape[1]
    if not 1 <= n_models <= MOST:
        raise ValueError(f"{n_models} models: the votes of all teams can be counted for 1 to {MOST}")
    low = min(_LOW, max(n_models, _LEAST))
    kernel = _Kernel(low, max(n_models - low, 0), n_models)
    sums = _CarrySave(kernel.shape)
    for (right, wrong), times in sorted(_ballots(codes, correct).items()):
        bits = kernel.right(right, wrong)
        for level in range(times.bit_length()):
            if times >> level & 1:
                sums.add(bits, level)
    return sums.total()[: 1 << n_models]


Ballot = tuple[tuple[int, ...], tuple[int, ...]]


def _ballots(codes: Codes, correct: Bools) -> Counter[Ballot]:
    """Masks of the voters of right and of wrong candidates, with the number of items that have them."""
    n_models = codes.shape[1]
    bits = (1 << np.arange(n_models)).astype(np.int64)
    masks = np.stack([((codes == k) * bits).sum(axis=1) for k in range(correct.shape[1])], axis=1)
    right = np.where(correct, masks, 0)
    wrong = -np.sort(-np.where(correct, 0, masks), axis=1)
    right = -np.sort(-right, axis=1)
    found, times = np.unique(np.concatenate([right, wrong], axis=1), axis=0, return_counts=True)
    split = right.shape[1]
    made: Counter[Ballot] = Counter()
    for row, n in zip(found.tolist(), times.tolist(), strict=True):
        if row[0]:  # nobody right: never right
            made[tuple(x for x in row[:split] if x), tuple(x for x in row[split:] if x)] += n
    return made


class _Kernel:
    """Bit sets of the teams that are right, for one ballot at a time."""

    def __init__(self, low: int, high: int, n_models: int) -> None:
        self.low = low
        lower, upper = np.arange(1 << low), np.arange(1 << high) << low
        self.shape = (1 << high, (1 << low) // 64)
        self._ones = np.full(self.shape, ~np.uint64(0))

        def score(masks: Codes) -> NDArray[np.int64]:
            return (np.bitwise_count(masks).astype(np.int64) << n_models) + masks

        score_low, score_high = score(lower), score(upper)

        @lru_cache(maxsize=4096)
        def high_limits(right: int, wrong: int) -> NDArray[np.int64]:
            r, w = (upper & right) >> low, (upper & wrong) >> low
            return np.asarray(score_high[r] - score_high[w])

        @lru_cache(maxsize=512)
        def prefixes(right: int, wrong: int) -> tuple[NDArray[np.int64], Bits]:
            values, rank = np.unique(score_low[lower & wrong] - score_low[lower & right], return_inverse=True)
            below = rank.ravel()[None, :] < np.arange(len(values) + 1)[:, None]
            return values, np.packbits(below, axis=1, bitorder="little").view(np.uint64)

        self._high_limits, self._prefixes = high_limits, prefixes

    def right(self, right: tuple[int, ...], wrong: tuple[int, ...]) -> Bits:
        """The teams that are right: some right candidate beats all wrong ones."""
        found = self._beats(right[0], wrong)
        for other in right[1:]:
            found = found | self._beats(other, wrong)
        return found

    def _beats(self, right: int, wrong: tuple[int, ...]) -> Bits:
        sets = self._sets(right, wrong or (0,))  # somebody must vote for it
        found = next(sets)
        for bits in sets:
            found &= bits
        return found

    def _sets(self, right: int, wrong: tuple[int, ...]) -> Iterator[Bits]:
        lower = (1 << self.low) - 1
        for mask in wrong:
            values, prefix = self._prefixes(right & lower, mask & lower)
            limits = self._high_limits(right & ~lower, mask & ~lower)
            yield prefix[np.searchsorted(values, limits, side="left")]


class _CarrySave:
    """Adds bit sets up: binary digits of the count of each bit, with additions put off until three digits meet."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.planes: list[Bits | None] = []
        self.waiting: list[Bits | None] = []

    def add(self, bits: Bits, level: int = 0) -> None:
        """Add 2^level wherever a bit is set. The array may be kept."""
        while True:
            while len(self.planes) <= level:
                self.planes.append(None)
                self.waiting.append(None)
            first, second = self.planes[level], self.waiting[level]
            if first is None:
                self.planes[level] = bits
                return
            if second is None:
                self.waiting[level] = bits
                return
            odd = first ^ second
            carry = (first & second) | (odd & bits)
            self.planes[level], self.waiting[level] = odd ^ bits, None
            bits, level = carry, level + 1

    def total(self) -> Counts:
        """The counts."""
        made = np.zeros(self.shape[0] * self.shape[1] * 64, dtype=np.int32)
        for level, pair in enumerate(zip(self.planes, self.waiting, strict=True)):
            for bits in pair:
                if bits is not None:
                    flat = np.ascontiguousarray(bits).view(np.uint8).ravel()
                    made += np.unpackbits(flat, bitorder="little").astype(np.int32) << level
        return made
