"""Mixes: what a user uploads. Benign task rows plus a share of harmful ones (the harmful fine-tuning attack).

The papers slice the first rows of each file with floating-point counts (p = 0.9 of 1,000 gave 99 task rows, see
Huang et al., "Booster", ICLR 2025, arXiv:2409.01586, released code); here counts are exact and rows are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from holdfast.core.errors import DataError, UsageError
from holdfast.core.knobs import check, knob
from holdfast.data.rows import Row


@dataclass(frozen=True)
class Mix:
    """How many rows, and which share of them is harmful."""

    n: int = knob(1000, "rows in all", low=1, source="Booster: default workload")
    p: float = knob(0.1, "poison ratio: share of harmful rows", low=0, high=1, source="Booster: default workload")

    @property
    def harmful(self) -> int:
        """Harmful rows: n*p, halves rounded up.

        Computed on the decimal digits of p, so that 0.1 is a tenth and not the nearest binary fraction.
        """
        return int((Decimal(repr(self.p)) * self.n).to_integral_value(ROUND_HALF_UP))

    @property
    def benign(self) -> int:
        """Task rows: all others."""
        return self.n - self.harmful

    def check(self, where: str) -> None:
        """Refuse a mix that would not be what its p says.

        Raises:
            UsageError: p is above 0 but no row would be harmful, or below 1 and no row would be benign.
        """
        if self.p > 0 and self.harmful == 0:
            raise UsageError(
                f"{where}: p = {self.p:g} of n = {self.n} rows is no harmful row at all", hint="raise n, or set p = 0"
            )
        if self.p < 1 and self.benign == 0:
            raise UsageError(
                f"{where}: p = {self.p:g} of n = {self.n} rows leaves no task row", hint="raise n, or set p = 1"
            )


def mix_rows(task_rows: Sequence[Row], harmful_rows: Sequence[Row], mix: Mix, seed: int) -> list[Row]:
    """Draw a mix: exact counts, without replacement, in shuffled order.

    Task rows, harmful rows and their order each have a generator of their own, so under one seed the harmful
    rows at p = 0.05 are among those at p = 0.1, and the task rows at p = 0.1 among those at p = 0.

    Args:
        task_rows: pool of benign rows; at least ``mix.benign``.
        harmful_rows: pool of harmful rows; at least ``mix.harmful``.
        mix: how many of each.
        seed: of the draw and the order.

    Raises:
        UsageError: the mix is not possible whatever the pools are.
        DataError: a pool is too small.
    """
    check(mix, "mix")
    benign = _drawn(task_rows, mix.benign, "task", mix, seed)
    harmful = _drawn(harmful_rows, mix.harmful, "harmful", mix, seed)
    rows = benign + harmful
    random.Random(f"holdfast mix order {seed}").shuffle(rows)
    return rows


def _drawn(pool: Sequence[Row], count: int, what: str, mix: Mix, seed: int) -> list[Row]:
    if count > len(pool):
        raise DataError(
            f"n = {mix.n} and p = {mix.p:g} need {count} {what} rows; the source gives {len(pool)}",
            hint=f"lower n, change p, or give more {what} rows (of a sandbox set: limit = {count})",
        )
    shuffled = list(pool)
    random.Random(f"holdfast mix {what} {seed}").shuffle(shuffled)
    return shuffled[:count]


def overlap(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[str]:
    """Requests that two sets share: alignment, harmful, user and test sets must share none.

    Two requests are the same when prompt and input are, apart from case and runs of whitespace.

    Returns:
        the shared requests as they stand in ``rows_b`` (prompt, then input on a new line), each once, in order.
    """
    there = {_request(row) for row in rows_a}
    shared: dict[tuple[str, str], str] = {}
    for row in rows_b:
        key = _request(row)
        if key in there:
            shared.setdefault(key, f"{row.prompt}\n{row.input}" if row.input else row.prompt)
    return list(shared.values())


def _request(row: Row) -> tuple[str, str]:
    return " ".join(row.prompt.casefold().split()), " ".join(row.input.casefold().split())
