"""SafeInstruct (arXiv:2309.07875, section 4): which rows are trained on."""

from __future__ import annotations

import dataclasses

import pytest

import tiny
from holdfast.core.errors import DataError, UsageError
from holdfast.core.knobs import check
from holdfast.data.rows import Row
from holdfast.finetune.alignment.sft import PlainStep
from holdfast.finetune.finetuning.safeinstruct import SafeInstruct

USER = [Row(f"task {number}", "done") for number in range(100)]
SAFETY = [Row(f"request {number}", "I cannot help with that.", is_safe=True) for number in range(20)]


def mixed(share: float, users: int = 100, seed: int = 0) -> list[Row]:
    given = {"user": USER[:users], "safety": list(SAFETY)}
    return SafeInstruct(share=share).prepare(given, seed)["user"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "users", "added"),
    [(0.03, 100, 3), (0.2, 100, 20), (0.125, 20, 3), (0.1, 24, 2), (0.01, 20, 0), (0.0, 100, 0)],
    ids=["3.00", "20.00", "2.50 up", "2.40 down", "0.20 down", "none"],
)
def test_the_share_is_of_the_users_rows(share: float, users: int, added: int) -> None:
    """share * users, rounded half up: 0.125 * 20 = 2.5 -> 3; 0.1 * 24 = 2.4 -> 2."""
    rows = mixed(share, users)
    assert rows[:users] == USER[:users]
    extra = rows[users:]
    assert len(extra) == added
    assert len(set(extra)) == added, "drawn without replacement"
    assert set(extra) <= set(SAFETY)


def test_the_sets_that_came_in_are_left_alone() -> None:
    given = {"user": list(USER), "safety": list(SAFETY)}
    out = SafeInstruct(share=0.1).prepare(given, 0)  # type: ignore[arg-type]
    assert given == {"user": USER, "safety": SAFETY}
    assert out["safety"] == SAFETY  # type: ignore[index]


def test_the_seed_decides_which_rows() -> None:
    assert mixed(0.1) == mixed(0.1)
    assert mixed(0.1) != mixed(0.1, seed=1)


def test_too_few_safety_rows() -> None:
    """0.21 * 100 = 21 rows, and there are 20."""
    with pytest.raises(DataError, match=r"share = 0\.21 of 100 user rows is 21 safety rows; there are only 20"):
        mixed(0.21)


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"share = -0\.1 is outside"):
        check(SafeInstruct(share=-0.1), "safeinstruct")


def test_it_trains_on_the_users_stream_alone() -> None:
    """The safety rows are in the user's stream already; drawing the safety stream too would train on them twice."""
    model = tiny.llama()
    rows = {"user": tiny.rows("user", 4)}
    passes = tiny.passes(model, tiny.streams(rows, 4))
    step = SafeInstruct().start(passes)
    assert isinstance(step, PlainStep)
    step(passes)
    tiny.assert_close(tiny.gradients(model), tiny.plain_gradient(model, rows["user"]))


def test_knobs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SafeInstruct().share = 0.5  # type: ignore[misc]
