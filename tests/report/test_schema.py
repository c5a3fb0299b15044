"""``check`` lets good results pass and says where a damaged one is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.core.errors import RunError
from holdfast.core.records import Metric
from holdfast.report.schema import check

Result = dict[str, Any]


def test_a_good_result_passes_also_after_json(result: Result) -> None:
    assert check(result) is result
    assert check(json.loads(json.dumps(result)))


def test_unknown_fields_are_for_newer_versions(result: Result) -> None:
    result["later"] = 1
    result["cells"][0]["later"] = {}
    check(result)


def test_the_records_metric_is_the_schemas_metric(result: Result) -> None:
    metric = Metric("harmful_score", 1.0, 0.5, 2.0, 600, "%", "lower")
    assert set(metric.as_json()) == set(result["cells"][0]["metrics"]["harmful_score"])
    result["cells"][0]["metrics"]["harmful_score"] = metric.as_json()
    check(result)


def _without(name: str) -> Callable[[Result], Any]:
    return lambda result: result.pop(name)


DAMAGE: dict[str, tuple[Callable[[Result], Any], str]] = {
    "no cells": (_without("cells"), "cells is missing"),
    "no threat model": (_without("threat_model"), "threat_model is missing"),
    "no format": (_without("format"), "format is None"),
    "text for a number": (
        lambda r: r["cells"][2]["metrics"]["harmful_score"].update(value="94"),
        "cells[2].metrics.harmful_score.value is str",
    ),
    "NaN": (
        lambda r: r["cells"][0]["metrics"]["harmful_score"].update(value=float("nan")),
        "cells[0].metrics.harmful_score.value is not a finite number",
    ),
    "NaN of a seed": (lambda r: r["cells"][0]["seeds"][1].update(harmful_score=float("nan")), "cells[0].seeds[1]"),
    "value without interval": (
        lambda r: r["cells"][0]["metrics"]["harmful_score"].update(low=None),
        "a value without its interval",
    ),
    "null without reason": (
        lambda r: r["cells"][0]["metrics"]["harmful_score"].update(value=None, low=None, high=None),
        "cells[0].metrics.harmful_score.reason is empty",
    ),
    "unlisted workload": (lambda r: r["cells"][0].update(workload="mixde"), "cells[0].workload is 'mixde'"),
    "no poison ratio": (lambda r: r["cells"][0].update(p=None), "cells[0].p is null"),
    "a list for an object": (lambda r: r.update(measures=[]), "measures is not an object"),
    "text for a list": (lambda r: r.update(notes="none"), "notes is not a list"),
    "true for a number": (lambda r: r["cells"][0].update(p=True), "cells[0].p is true or false"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_place_and_a_way_out(result: Result, name: str) -> None:
    break_it, message = DAMAGE[name]
    break_it(result)
    with pytest.raises(RunError) as caught:
        check(result)
    assert message in caught.value.message
    assert "run the bench again" in caught.value.hint


def test_what_is_no_object_is_damaged() -> None:
    with pytest.raises(RunError, match="not a JSON object"):
        check([])  # type: ignore[arg-type]


def test_a_newer_format_asks_for_an_update(result: Result) -> None:
    result["format"] = 2
    with pytest.raises(RunError) as caught:
        check(result)
    assert "update" in caught.value.hint
