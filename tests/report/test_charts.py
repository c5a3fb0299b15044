"""Chart specifications hold the values they draw, and become files of every kind."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import UsageError
from holdfast.report import charts, facts

Result = dict[str, Any]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return list(chain.from_iterable(spec["datasets"].values()))


def texts(value: Any, key: str) -> list[Any]:
    """All values of a key anywhere in a specification."""
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [found for inner in value.values() for found in texts(inner, key)]
    return [found for inner in value for found in texts(inner, key)] if isinstance(value, list) else []


MADE = {
    "harm": charts.harm_chart, "plane": charts.plane_chart, "curves": charts.curves_chart, "cost": charts.cost_chart,
    "side": charts.side_effects_chart,
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_specifications_are_valid_and_of_one_style(result: Result, name: str) -> None:
    chart = MADE[name](result, "mixed")
    assert chart is not None
    spec = chart.to_dict(validate=True)
    assert spec["usermeta"]["margin"] > 0
    styles = facts.styles(result)
    scales = [scale for scale in texts(spec, "scale") if isinstance(scale, dict) and "SFT" in scale.get("domain", [])]
    assert scales
    for scale in scales:
        drawn = dict(zip(scale["domain"], scale["range"], strict=True))
        assert drawn in ({k: v.colour for k, v in styles.items()}, {k: v.shape for k, v in styles.items()})
    assert "NaN" not in json.dumps(spec)


def test_harm_chart_holds_values_intervals_seeds_and_baseline(result: Result) -> None:
    spec = charts.specification(charts.harm_chart(result, "mixed"))
    found = rows(spec)
    booster = next(row for row in found if row.get("shown") == "1.0%" and row["defence"] == "Booster")
    assert (booster["value"], booster["n"]) == (1.0, "600")
    assert booster["interval"] == "95% interval 0.0 to 2.4"
    assert {row["seed"] for row in found if row.get("defence") == "Lisa" and "seed" in row} == {"0", "1", "2"}
    assert {"value": 94.0} in found
    assert "Harmful score, % (lower is better)" in texts(spec, "title")
    assert "10% harmful rows in the user's data (p = 0.1)" in texts(spec, "title")


def test_undefined_is_written_not_drawn(result: Result, sample: Any) -> None:
    cell = sample.find(result, "Lisa")
    cell["metrics"]["harmful_score"].update(value=None, low=None, high=None, reason="no answers")
    for seed in cell["seeds"]:
        seed["harmful_score"] = None
    spec = charts.specification(charts.harm_chart(result, "mixed"))
    assert {"defence": "Lisa", "label": "undefined"} in rows(spec)
    plane = charts.plane_chart(result, "mixed")
    assert plane is not None
    assert "Lisa" not in {row.get("defence") for row in rows(charts.specification(plane))}


def test_plane_marks_the_front_and_names_the_good_corner(result: Result) -> None:
    plane = charts.plane_chart(result, "mixed")
    assert plane is not None
    found = rows(charts.specification(plane))
    assert {row["defence"] for row in found if row.get("front")} == {"Booster", "Stack"}
    booster = next(row for row in found if row.get("label") == "Booster · 2.04×")
    assert (booster["value"], booster["accuracy"], booster["cost"]) == (1.0, 99.0, "2.04×")
    assert any("good corner" in row.get("words", "") for row in found)


def test_curves_need_two_poison_ratios(result: Result) -> None:
    assert charts.curves_chart(result, "stress") is None
    curves = charts.curves_chart(result, "mixed")
    assert curves is not None
    sft = [(r["p"], r["value"]) for r in rows(charts.specification(curves)) if r.get("defence") == "SFT" and "p" in r]
    assert (0.0, 0.5) in sft
    assert (10.0, 94.0) in sft


def test_of_many_poison_ratios_three_get_a_panel(result: Result, sample: Any) -> None:
    result["cells"] += [sample.cell("SFT", "mixed", p, 50.0, 99.0) for p in (0.02, 0.05, 0.2)]
    chart = charts.specification(charts.harm_chart(result, "mixed"))
    assert [panel["title"].split("%")[0] for panel in chart["vconcat"]] == ["20", "10", "Clean user data (p = 0)"]


def test_charts_of_what_was_not_measured_are_absent(result: Result) -> None:
    for cell in result["cells"]:
        cell["cost"] = {"seconds": None, "ratio": None, "peak_bytes": None}
        for name in ("finetune_accuracy", "benign_accuracy", "over_refusal"):
            del cell["metrics"][name]
    assert charts.cost_chart(result, "mixed") is None
    assert charts.plane_chart(result, "mixed") is None
    assert charts.side_effects_chart(result, "mixed") is None


STARTS = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF", ".html": b"<!doctype html>", ".json": b"{"}


@pytest.mark.parametrize("ending", STARTS)
def test_one_specification_becomes_every_kind_of_file(result: Result, tmp_path: Path, ending: str) -> None:
    path = charts.save(charts.harm_chart(result, "stress"), tmp_path / f"chart{ending}")
    content = path.read_bytes()
    assert content.startswith(STARTS[ending])
    assert len(content) > 5000
    if ending in (".svg", ".json", ".html"):
        assert "Booster" in content.decode()


def test_an_unknown_ending_is_refused_before_drawing(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        charts.save(charts.harm_chart(result, "stress"), tmp_path / "chart.pgn")
    assert ".png" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_drawing_fetches_nothing(result: Result) -> None:
    spec = charts.specification(charts.harm_chart(result, "stress"))
    spec["vconcat"][0]["layer"][0]["data"] = {"url": "http://127.0.0.1:9/rows.json"}
    with pytest.raises(ValueError, match=r"(?i)url"):
        charts.svg(spec)
