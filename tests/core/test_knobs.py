from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import UsageError
from holdfast.core.keys import canonical
from holdfast.core.knobs import build, check, describe, knob, resolved


@dataclass(frozen=True)
class Inner:
    rank: int = knob(8, "rank", low=1)


@dataclass(frozen=True)
class Knobs:
    name: str = knob(doc="a name")
    rate: float = knob(0.5, "a rate", low=0, high=1, source="paper, table 2")
    steps: int | None = knob(None, "steps", low=1)
    kind: Literal["plain", "fancy"] = knob("plain", "which kind")
    flag: bool = knob(False, "a switch")
    ratios: tuple[float, ...] = knob((0.1, 0.2), "ratios", low=0, high=1)
    inner: Inner = knob(Inner(), "nested")
    parts: tuple[Inner, ...] = knob((), "several nested")
    table: dict[str, int] = knob({}, "free table")
    either: int | str = knob(0, "number or text")

    def check(self, where: str) -> None:
        if self.kind == "fancy" and self.steps is None:
            raise UsageError(f"{where}: kind = 'fancy' needs steps", hint="add steps")


def refused(**values: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        build(Knobs, {"name": "x"} | values, "recipe.toml")
    assert caught.value.hint
    return caught.value


def test_every_default_is_filled_in() -> None:
    made = build(Knobs, {"name": "x"}, "here")
    assert resolved(made) == {
        "name": "x", "rate": 0.5, "steps": None, "kind": "plain", "flag": False, "ratios": [0.1, 0.2],
        "inner": {"rank": 8}, "parts": [], "table": {}, "either": 0,
    }  # fmt: skip


def test_values_take_the_type_of_their_field() -> None:
    values = {"name": "x", "rate": 1, "steps": 3.0, "ratios": [0, 1], "inner": {"rank": 2}, "parts": [{"rank": 3}]}
    made = build(Knobs, values, "here")
    assert (type(made.rate), made.rate) == (float, 1.0)
    assert (type(made.steps), made.steps) == (int, 3)
    assert made.ratios == (0.0, 1.0)
    assert made.inner == Inner(2)
    assert made.parts == (Inner(3),)


def test_an_integer_and_the_same_float_give_the_same_key() -> None:
    left, right = (build(Knobs, {"name": "x", "rate": rate}, "here") for rate in (1, 1.0))
    assert canonical(resolved(left)) == canonical(resolved(right))


def test_a_mistyped_key_names_the_nearest_one() -> None:
    error = refused(ratez=0.1)
    assert error.message == "recipe.toml: unknown key 'ratez'"
    assert error.hint.startswith("did you mean 'rate'? valid: either, flag, inner, kind, name,")


def test_a_mistyped_choice_names_the_nearest_one() -> None:
    error = refused(kind="fance", steps=1)
    assert error.message == "recipe.toml.kind: unknown value 'fance'"
    assert error.hint == "did you mean 'fancy'? valid: fancy, plain"


def test_a_nested_place_is_named() -> None:
    assert refused(inner={"rnk": 2}).message == "recipe.toml.inner: unknown key 'rnk'"
    assert refused(inner={"rank": 0}).message == "recipe.toml.inner.rank = 0 is outside [1, inf]"
    assert refused(parts=[{"rank": 0}]).message == "recipe.toml.parts.rank = 0 is outside [1, inf]"


def test_a_required_key_must_be_there() -> None:
    with pytest.raises(UsageError, match="missing required key 'name'") as caught:
        build(Knobs, {}, "recipe.toml")
    assert caught.value.hint == "add name = ...: a name"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": "0.5"}, "recipe.toml.rate = '0.5' is not a float"),
        ({"rate": True}, "recipe.toml.rate = True is not a float"),
        ({"rate": 1.5}, "recipe.toml.rate = 1.5 is outside [0, 1]"),
        ({"rate": -0.001}, "recipe.toml.rate = -0.001 is outside [0, 1]"),
        ({"rate": math.nan}, "recipe.toml.rate = nan is not a finite number"),
        ({"rate": math.inf}, "recipe.toml.rate = inf is not a finite number"),
        ({"steps": 2.5}, "recipe.toml.steps = 2.5 is not a int"),
        ({"steps": 0}, "recipe.toml.steps = 0 is outside [1, inf]"),
        ({"flag": 1}, "recipe.toml.flag = 1 is not a bool"),
        ({"name": 3}, "recipe.toml.name = 3 is not a str"),
        ({"ratios": 0.1}, "recipe.toml.ratios = 0.1 is not a list"),
        ({"ratios": [0.1, 2]}, "recipe.toml.ratios = 2 is outside [0, 1]"),
        ({"inner": 3}, "recipe.toml.inner = 3 is not a table"),
        ({"table": [1]}, "recipe.toml.table = [1] is not a table"),
        ({"either": 1.5}, "recipe.toml.either = 1.5 is not a str"),
        ({"kind": "fancy"}, "recipe.toml: kind = 'fancy' needs steps"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    assert refused(**values).message == message


def test_bounds_are_inclusive() -> None:
    for rate in (0, 1, 0.0, 1.0):
        assert build(Knobs, {"name": "x", "rate": rate}, "").rate == rate


def test_a_whole_number_too_large_for_a_float_is_refused() -> None:
    assert "is not a float" in refused(rate=10**400).message


def test_check_sees_knobs_that_were_set_in_python() -> None:
    with pytest.raises(UsageError, match=r"align\.rate = 7 is outside \[0, 1\]"):
        check(Knobs("x", rate=7), "align")
    with pytest.raises(UsageError, match=r"align\.inner\.rank = -1 is outside"):
        check(Knobs("x", inner=Inner(-1)), "align")


def test_describe_says_what_help_and_list_show() -> None:
    said = describe(Knobs)
    assert said["rate"] == {
        "type": "float", "default": 0.5, "low": 0, "high": 1, "doc": "a rate", "source": "paper, table 2"
    }  # fmt: skip
    assert said["steps"]["type"] == "int | null"
    assert said["kind"]["type"] == "'plain' | 'fancy'"
    assert said["inner"]["default"] == {"rank": 8}
    assert list(said) == [field.name for field in fields(Knobs)]


def test_defaults_are_not_shared_between_instances() -> None:
    one, other = build(Knobs, {"name": "x"}, ""), Knobs("y")
    assert one.table == other.table == {}
    one.table["a"] = 1
    assert resolved(build(Knobs, {"name": "x", "table": {"b": 2}}, ""))["table"] == {"b": 2}


valid = st.fixed_dictionaries(
    {"name": st.text()},
    optional={
        "rate": st.floats(0, 1) | st.integers(0, 1),
        "steps": st.none() | st.integers(1, 10**9),
        "flag": st.booleans(),
        "ratios": st.lists(st.floats(0, 1), max_size=4),
        "inner": st.fixed_dictionaries({}, optional={"rank": st.integers(1, 100)}),
        "either": st.integers() | st.text(),
    },
)


@given(valid)
def test_what_was_resolved_builds_the_same_knobs_again(values: dict[str, Any]) -> None:
    made = build(Knobs, values, "here")
    again = build(Knobs, resolved(made), "here")
    assert again == made
    assert canonical(resolved(again)) == canonical(resolved(made))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([field.name for field in fields(Knobs)]) | st.text(max_size=4), anything))
def test_whatever_comes_is_taken_whole_or_refused_in_words(values: dict[str, Any]) -> None:
    made: Knobs | UsageError
    try:
        made = build(Knobs, values, "recipe.toml")
    except UsageError as error:
        made = error
    if isinstance(made, UsageError):
        assert made.message.startswith("recipe.toml")
        assert made.hint
    else:
        assert 0 <= made.rate <= 1
        assert made.inner.rank >= 1
        assert all(0 <= ratio <= 1 for ratio in made.ratios)
