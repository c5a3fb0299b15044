"""Order, styles, verdicts and Pareto fronts; numbers as text; labels that do not cover one another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report import facts, labels, phrases

Result = dict[str, Any]


def test_baseline_first_then_from_most_to_least_harmful(result: Result) -> None:
    assert facts.defences(result) == ["SFT", "Vaccine", "Antidote", "Lisa", "Booster", "Stack"]


def test_defences_without_a_number_come_last(result: Result, sample: Any) -> None:
    one = sample.find(result, "Vaccine")["metrics"]["harmful_score"]
    one.update(value=None, low=None, high=None, reason="no answers")
    assert facts.defences(result)[-1] == "Vaccine"


def test_colours_do_not_depend_on_the_numbers(result: Result, sample: Any) -> None:
    before = facts.styles(result)
    sample.find(result, "Booster")["metrics"]["harmful_score"].update(value=99.0)
    assert facts.styles(result) == before
    assert len({(style.colour, style.shape) for style in before.values()}) == 6


def test_fifty_defences_look_different(result: Result, sample: Any) -> None:
    result["cells"] += [sample.cell(f"D{i}", "mixed", 0.1, 50.0, 90.0) for i in range(50)]
    found = facts.styles(result)
    assert len({(style.colour, style.shape) for style in found.values()}) == len(found)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_stands_out_from_white(result: Result, sample: Any) -> None:
    # WCAG 2.2, 1.4.11: graphics need 3:1.
    result["cells"] += [sample.cell(f"D{i}", "mixed", 0.1, 50.0, 90.0) for i in range(20)]
    for style in facts.styles(result).values():
        assert 1.05 / (_luminance(style.colour) + 0.05) >= 3.0


def test_pareto_keeps_what_nothing_beats() -> None:
    points = [(94.0, -99.0), (1.0, -99.0), (0.2, -94.0), (16.0, -95.0), (1.0, -99.0)]
    # The twins at (1, -99) do not beat each other; (94, -99) and (16, -95) lose to them.
    assert facts.pareto(points) == [False, True, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_each_beaten_point_is_beaten_by_a_kept_one(points: list[tuple[int, int]]) -> None:
    kept = facts.pareto(points)
    front = [point for point, keep in zip(points, kept, strict=True) if keep]
    assert front
    for point, keep in zip(points, kept, strict=True):
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in front)
        assert beaten != keep


def test_front_of_the_sample(result: Result) -> None:
    assert facts.front(facts.cells_at(result, "mixed", 0.1)) == {"Booster", "Stack"}


def test_verdicts_follow_the_paired_interval(result: Result, sample: Any) -> None:
    base, booster = sample.find(result, "SFT"), sample.find(result, "Booster")
    assert facts.verdict(booster, base, "harmful_score", "lower") == "better"
    assert facts.verdict(booster, base, "finetune_accuracy", "higher") == "unclear"
    stack = sample.find(result, "Stack")
    assert facts.verdict(stack, base, "finetune_accuracy", "higher") == "worse"


def test_without_a_paired_difference_overlap_decides(result: Result, sample: Any) -> None:
    base, booster = sample.find(result, "SFT"), sample.find(result, "Booster")
    booster["against_baseline"] = {}
    assert facts.verdict(booster, base, "harmful_score", "lower") == "better"
    booster["metrics"]["harmful_score"].update(value=93.0, low=90.0, high=95.0)
    assert facts.verdict(booster, base, "harmful_score", "lower") == "unclear"
    assert facts.verdict(booster, None, "harmful_score", "lower") == "unknown"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (94.0, "%", "94.0%"), (0.0, "%", "0.0%"), (0.01, "%", "<0.1%"), (99.99, "%", ">99.9%"), (100.0, "%", "100.0%"),
        (-4.94, "points", "−4.9 points"), (-0.01, "points", "0.0 points"), (3.046, "x", "3.05×"),
        (0.42, "s", "0.42 s"), (41.3, "s", "41 s"), (185.0, "s", "3 min 5 s"), (180.0, "s", "3 min"),
        (7810.0, "s", "2 h 10 min"), (5.0, "GiB", "5 GiB"),
    ],
)  # fmt: skip
def test_numbers_are_rounded_honestly(value: float, unit: str, text: str) -> None:
    assert phrases.number(value, unit) == text


def test_signs() -> None:
    assert [phrases.signed(x) for x in (0.3, -93.1, 0.0, 0.04, -0.04)] == ["+0.3", "−93.1", "0.0", "0.0", "0.0"]


def test_axis_titles_have_unit_and_direction() -> None:
    assert phrases.axis_title("Harmful score", "%", "lower") == "Harmful score, % (lower is better)"
    assert phrases.axis_title("Length", "tokens", "none") == "Length, tokens"


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.floats(0, 100), min_size=1, max_size=12))
def test_labels_pushed_apart_keep_gap_and_order(values: dict[str, float]) -> None:
    frame = labels.Frame((0.0, 100.0), 200.0)
    places = labels.apart(values, frame, gap=15)
    ordered = sorted(values, key=lambda name: -values[name])
    for upper, lower in pairwise(ordered):
        assert places[upper] - places[lower] >= 7.5 - 1e-9


def test_labels_that_have_room_stay_where_they_are() -> None:
    values = {"a": 90.0, "b": 50.0, "c": 10.0}
    assert labels.apart(values, labels.Frame((0.0, 100.0), 200.0), gap=15) == values


def test_plane_labels_do_not_cover_marks() -> None:
    rows = [
        {"label": name, "value": x, "low": x - 1, "high": x + 1, "accuracy": y, "accuracy_low": y - 1,
         "accuracy_high": y + 1}
        for name, x, y in (("one", 20.0, 80.0), ("two", 26.0, 80.0), ("three", 90.0, 60.0))
    ]  # fmt: skip
    labels.place(rows, width=400, height=300, x_domain=(0, 100), y_domain=(0, 100))
    sides = {row["label"]: labels._SIDES[row["side"]] for row in rows}
    # "one" cannot stand to its right, where "two" is.
    assert (sides["one"].align, sides["one"].dy) != ("left", 0)
    assert len(labels.by_side(rows)) >= 2
