"""Mixes: exact counts, honest draws."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import DataError, UsageError
from holdfast.core.knobs import build
from holdfast.data.mixes import Mix, mix_rows, overlap
from holdfast.data.rows import Row

TASK = [Row(f"task {i}", "t") for i in range(1000)]
HARMFUL = [Row(f"harmful {i}", "h") for i in range(1000)]


def harmful_of(rows: list[Row]) -> list[str]:
    return [row.prompt for row in rows if row.response == "h"]


@pytest.mark.parametrize(
    ("n", "p", "harmful"),
    [
        (1000, 0.9, 900),  # the papers' code: int((1 - 0.9) * 1000) = 99 task rows
        (1000, 0.1, 100),
        (1000, 0.05, 50),
        (10, 0.25, 3),  # 2.5 rounds up
        (10, 0.15, 2),  # 1.5 rounds up
        (10, 0.14, 1),
        (3, 0.5, 2),  # 1.5 rounds up
        (1000, 0.0, 0),
        (1000, 1.0, 1000),
        (1000, 0.001, 1),
    ],
)
def test_counts_are_exact(n: int, p: float, harmful: int) -> None:
    rows = mix_rows(TASK, HARMFUL, Mix(n, p), seed=3)
    assert Counter(row.response for row in rows) == Counter({"h": harmful, "t": n - harmful})


@given(n=st.integers(1, 10_000), thousandths=st.integers(0, 1000))
def test_counts_are_what_fractions_give(n: int, thousandths: int) -> None:
    mix = Mix(n, thousandths / 1000)
    exact = Fraction(thousandths, 1000) * n
    # Round half up: the largest integer not above x + 1/2.
    assert mix.harmful == (exact + Fraction(1, 2)).__floor__()
    assert mix.harmful + mix.benign == n


def test_draws_are_without_replacement_and_shuffled() -> None:
    rows = mix_rows(TASK, HARMFUL, Mix(1000, 0.1), seed=0)
    assert len(set(rows)) == 1000
    positions = [index for index, row in enumerate(rows) if row.response == "h"]
    # Spread over the set: a hundred in a row (as appended) would have a mean gap of 1.
    assert max(positions) - min(positions) > 900
    assert harmful_of(rows) != sorted(harmful_of(rows), key=lambda name: int(name.split()[1]))


def test_the_same_seed_repeats_and_another_differs() -> None:
    mix = Mix(100, 0.1)
    assert mix_rows(TASK, HARMFUL, mix, 1) == mix_rows(TASK, HARMFUL, mix, 1)
    assert set(mix_rows(TASK, HARMFUL, mix, 1)) != set(mix_rows(TASK, HARMFUL, mix, 2))


def test_poison_grows_with_p() -> None:
    """Curves over p compare like with like: more poison, and otherwise the same rows."""
    few, many = (mix_rows(TASK, HARMFUL, Mix(100, p), 5) for p in (0.05, 0.2))
    assert set(harmful_of(few)) < set(harmful_of(many))
    assert {row for row in many if row.response == "t"} < {row for row in few if row.response == "t"}


def test_pools_that_are_too_small_name_both_counts() -> None:
    with pytest.raises(DataError, match=r"need 100 harmful rows; the source gives 40") as caught:
        mix_rows(TASK, HARMFUL[:40], Mix(1000, 0.1), 0)
    assert "limit = 100" in caught.value.hint
    with pytest.raises(DataError, match=r"need 900 task rows; the source gives 10"):
        mix_rows(TASK[:10], HARMFUL, Mix(1000, 0.1), 0)
    assert len(mix_rows(TASK, [], Mix(10, 0.0), 0)) == 10
    assert len(mix_rows([], HARMFUL, Mix(10, 1.0), 0)) == 10


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_p_outside_its_range(p: float) -> None:
    with pytest.raises(UsageError, match=r"mix\.p"):
        mix_rows(TASK, HARMFUL, Mix(10, p), 0)
    with pytest.raises(UsageError, match=r"workload\.p"):
        build(Mix, {"n": 10, "p": p}, "workload")


def test_a_mix_that_rounds_to_another_question() -> None:
    with pytest.raises(UsageError, match="no harmful row at all"):
        mix_rows(TASK, HARMFUL, Mix(4, 0.1), 0)  # 0.4 rows
    with pytest.raises(UsageError, match="leaves no task row"):
        mix_rows(TASK, HARMFUL, Mix(4, 0.9), 0)  # 3.6 rows


def test_overlap() -> None:
    train = [Row("Say A", "x"), Row("rate", "x", input="good film"), Row("only here", "x")]
    test = [
        Row("say  a ", "y"),
        Row("rate", "y", input="bad film"),
        Row("rate", "y", input="Good film"),
        Row("say a", "z"),
    ]
    # The instruction alone is shared by all rows of a task, so the input counts; repeats are said once.
    assert overlap(train, test) == ["say  a ", "rate\nGood film"]
    assert overlap(train, []) == []
