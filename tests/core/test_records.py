from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.records import Item, Metric, Rating, Sample, Scale

words = st.text(max_size=8)
items = st.builds(
    Item, id=words, prompt=words, input=words, system=words, reference=st.none() | st.text(min_size=1),
    category=st.none() | st.text(min_size=1), group=words,
)  # fmt: skip


@given(items, words, st.integers(0, 99), st.sampled_from(["stop", "length"]))
def test_a_sample_survives_its_file(item: Item, text: str, tokens: int, finish: Any) -> None:
    sample = Sample(item, text, tokens, finish)
    assert Sample.from_json(json.loads(json.dumps(sample.as_json()))) == sample


def test_empty_fields_of_an_item_are_not_written() -> None:
    assert Item("1", "say a").as_json() == {"id": "1", "prompt": "say a"}
    assert Item("", "").as_json() == {"id": "", "prompt": ""}


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert Item.from_json({"id": "1", "prompt": "p", "language": "fr"}) == Item("1", "p")
    row = Metric("m", 1.0, 0.5, 1.5, 3, "%", "lower").as_json()
    assert Metric.from_json(row | {"colour": "red"}) == Metric("m", 1.0, 0.5, 1.5, 3, "%", "lower")


def test_a_rating_is_a_number_or_null_with_a_reason() -> None:
    assert Rating("1", None, "declined").as_json() == {"item": "1", "value": None, "reason": "declined"}
    assert Rating("1", 1.0).as_json() == {"item": "1", "value": 1.0}
    assert Rating.from_json({"item": "1", "value": 0.0}) == Rating("1", 0.0)
    with pytest.raises(ValueError, match="null without a reason"):
        Rating("1", None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Rating("1", number)
    for place in range(3):
        numbers = [1.0, 1.0, 1.0]
        numbers[place] = number
        with pytest.raises(ValueError, match="not finite"):
            Metric("m", *numbers, 1, "%", "lower")


def test_an_undefined_metric_says_why() -> None:
    with pytest.raises(ValueError, match="undefined without a reason"):
        Metric("m", None, None, None, 0, "%", "lower")
    assert Metric("m", None, None, None, 0, "%", "lower", reason="no answers").as_json()["reason"] == "no answers"


def test_a_metric_survives_its_file() -> None:
    metric = Metric("m", 1.0, 0.5, 1.5, 3, "%", "lower", method="exact", declined=2, detail={"seeds": [1.0]})
    assert Metric.from_json(json.loads(json.dumps(metric.as_json()))) == metric


def test_a_scale_as_json() -> None:
    assert Scale("harmful", "nominal", (0, 1), "lower").as_json() == {
        "name": "harmful", "level": "nominal", "labels": [0, 1], "better": "lower"
    }  # fmt: skip
