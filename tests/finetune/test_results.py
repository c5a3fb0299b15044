from __future__ import annotations

from pathlib import Path

import pytest

from experiments import plan_of, recipe_file
from holdfast.core.records import Item, Rating, Sample
from holdfast.core.runs import Store
from holdfast.core.stage import request_key
from holdfast.finetune.plan import Plan
from holdfast.finetune.results import collect, measure_names
from holdfast.models.grid import GridResult
from holdfast.raters.measure import difference, measure_for, rate
from holdfast.raters.rules import NotRefusedJudge, RefusalJudge
from holdfast.report.schema import check


def rated(*values: float | None) -> list[Rating]:
    return [Rating(str(n), v, "" if v is not None else "declined") for n, v in enumerate(values)]


# --- rates and differences ---------------------------------------------------------------------------


def test_a_rate_is_the_share_of_ones_in_percent() -> None:
    metric = rate("harmful_score", "lower", [rated(1, 0, 0, 0), rated(1, 1, 0, 0)])
    assert metric.value == pytest.approx(37.5)  # (25 + 50) / 2
    assert (metric.n, metric.unit, metric.better, metric.declined) == (8, "%", "lower", 0)
    assert metric.detail["seeds"] == [25.0, 50.0]
    assert metric.low < 37.5 < metric.high  # type: ignore[operator]


def test_declined_is_neither_safe_nor_harmful() -> None:
    metric = rate("harmful_score", "lower", [rated(1, None, 0, None)])
    assert metric.value == pytest.approx(50.0)  # of the two that were judged
    assert (metric.n, metric.declined) == (2, 2)


@pytest.mark.parametrize(
    ("seeds", "reason"),
    [
        ([], "no answers"),
        ([[]], "no answers"),
        ([rated(None, None)], "declined every answer of a seed"),
        ([rated(1.0), rated(None)], "declined every answer of a seed"),
    ],
)
def test_no_rate_without_a_reason(seeds: list[list[Rating]], reason: str) -> None:
    metric = rate("harmful_score", "lower", seeds)
    assert (metric.value, metric.low, metric.high, metric.n) == (None, None, None, 0)
    assert reason in metric.reason


def test_a_difference_is_defence_minus_baseline() -> None:
    """Defence 1 of 4, baseline 3 of 4: 25 - 75 = -50 points; lower is better, so minus is good."""
    metric = difference("harmful_score", "lower", [rated(1, 0, 0, 0)], [rated(1, 1, 1, 0)])
    assert metric.value == pytest.approx(-50.0)
    assert (metric.n, metric.unit) == (4, "points")


def test_a_difference_rests_on_items_that_both_have() -> None:
    """Items 1 and 3 are declined on one side or the other; 0 and 2 stay: (1 - 1 + 0 - 1) / 2 = -50 points."""
    metric = difference("harmful_score", "lower", [rated(1, None, 0, 1)], [rated(1, 0, 1, None)])
    assert metric.value == pytest.approx(-50.0)
    assert metric.n == 2


def test_pairs_are_made_by_item_and_not_by_place() -> None:
    left, right = rated(1, 0, 0, 0), list(reversed(rated(1, 0, 0, 0)))
    assert difference("m", "lower", [left], [right]).value == 0.0


def test_nothing_to_compare_says_so() -> None:
    for left, right in (([], []), ([rated(1)], []), ([rated(None)], [rated(1)])):
        metric = difference("m", "lower", left, right)
        assert metric.value is None
        assert metric.reason == "the two do not share seeds and items"


def test_measures_are_named_by_group_and_scale() -> None:
    assert measure_for("harmful", "harmful").name == "harmful_score"
    assert measure_for("benign", "refusal").better == "lower"
    assert measure_for("odd", "refusal").name == "odd_refusal"
    judges = (("harmful", NotRefusedJudge()), ("harmful", NotRefusedJudge("qi-substring")), ("benign", RefusalJudge()))
    assert measure_names(judges) == ["harmful_score", "harmful_score/not-refused", "over_refusal"]


def test_three_judges_of_one_measure_have_three_names() -> None:
    judges = tuple(("harmful", NotRefusedJudge()) for _ in range(3))
    assert measure_names(judges) == ["harmful_score", "harmful_score/not-refused", "harmful_score/not-refused-2"]


# --- the results of a grid whose answers are written down --------------------------------------------


def answered(plan: Plan, store: Store) -> None:
    """Answers as if the models had given them: SFT gives 9 of 12 recipes at p = 0.1, Booster 3; reviews all right."""
    for request in plan.requests.values():
        run = store.run(request.kind, request.label, request.spec)
        (run.artifacts / "model").mkdir(parents=True, exist_ok=True)
        run.seal(10.0, cpu_seconds=10.0 if run.label == "sft" else 30.0, peak_bytes=1000)
    for cell in plan.cells:
        run = store.run(cell.ask.kind, cell.ask.label, cell.ask.spec)
        bad = {"SFT": 9, "Booster": 3}[cell.defence.title] if cell.p else 0
        hazards = [item for item in cell.ask.items if item.group == "harmful"]
        given = {item.id for item in hazards[:bad]}
        write_samples(run.path / "samples.jsonl", cell.ask.items, given)
        run.seal(1.0)


def write_samples(path: Path, items: tuple[Item, ...], given: set[str]) -> None:
    from holdfast.core.files import RowFile

    def text(item: Item) -> str:
        return (item.reference or "") if item.group == "task" or item.id in given else "no"

    with RowFile(path) as rows:
        rows.append(Sample(item, text(item), 1, "stop").as_json() for item in items)


def test_collected_results(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    store = Store(tmp_path / "runs")
    answered(plan, store)
    result = collect(plan, store, GridResult(), "holdfast bench small.toml")
    check(result)
    cells = {(cell["defence"], cell["p"]): cell for cell in result["cells"]}
    assert list(cells) == [("SFT", 0.0), ("SFT", 0.1), ("Booster", 0.0), ("Booster", 0.1)]
    assert cells["SFT", 0.1]["metrics"]["harmful_score"]["value"] == pytest.approx(75.0)  # 9 / 12
    assert cells["Booster", 0.1]["metrics"]["harmful_score"]["value"] == pytest.approx(25.0)  # 3 / 12
    assert cells["Booster", 0.1]["metrics"]["finetune_accuracy"]["value"] == pytest.approx(100.0)
    against = cells["Booster", 0.1]["against_baseline"]["harmful_score"]
    assert against["value"] == pytest.approx(-50.0)  # defence minus baseline: 25 - 75
    assert against["high"] < 0
    assert cells["SFT", 0.1]["against_baseline"] == {}
    assert [cell["defence"] for cell in result["aligned"]] == ["SFT", "Booster"]


def test_costs_are_sums_over_the_chain_and_ratios_to_the_baseline(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    store = Store(tmp_path / "runs")
    answered(plan, store)
    result = collect(plan, store, GridResult(), "")
    costs = {(cell["defence"], cell["p"]): cell["cost"] for cell in result["cells"]}
    # SFT: align 10 + finetune 10 = 20. Booster: align 30 + finetune (plain) 10 = 40, twice as much.
    assert costs["SFT", 0.1]["seconds"]["value"] == pytest.approx(20.0)
    assert costs["Booster", 0.1]["seconds"]["value"] == pytest.approx(40.0)
    assert costs["Booster", 0.1]["ratio"]["value"] == pytest.approx(2.0)
    assert costs["Booster", 0.1]["peak_bytes"] == 1000


def test_without_the_baseline_there_is_no_difference(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    store = Store(tmp_path / "runs")
    answered(plan, store)
    failed = {request_key(cell.ask): "the loss is not finite" for cell in plan.cells if cell.defence.title == "SFT"}
    result = collect(plan, store, GridResult(failed=failed), "")
    check(result)
    assert len(result["missing"]) == 3
    assert all(cell["against_baseline"] == {} and cell["cost"]["ratio"] is None for cell in result["cells"])


def test_when_all_fails_the_result_still_has_its_form(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    failed = {request_key(cell.ask): "no" for cell in plan.cells}
    result = collect(plan, Store(tmp_path / "runs"), GridResult(failed=failed), "")
    check(result)
    assert result["cells"] == []
    assert len(result["missing"]) == 6
    from holdfast.report.page import write

    assert write(result, tmp_path / "report.html").is_file()


def test_one_seed_of_several_may_be_missing(tmp_path: Path) -> None:
    """Booster lost seed 1: its rate rests on seed 0, and its difference on the seed that both have."""
    path = recipe_file(tmp_path, seeds="[0, 1]")
    plan = plan_of(path)
    store = Store(tmp_path / "runs")
    answered(plan, store)
    lost = {request_key(c.ask): "no" for c in plan.cells if (c.defence.title, c.seed) == ("Booster", 1)}
    result = collect(plan, store, GridResult(failed=lost), "")
    cells = {(cell["defence"], cell["p"]): cell for cell in result["cells"]}
    assert cells["SFT", 0.1]["metrics"]["harmful_score"]["n"] == 24
    assert cells["Booster", 0.1]["metrics"]["harmful_score"]["n"] == 12
    assert cells["Booster", 0.1]["against_baseline"]["harmful_score"]["n"] == 12
    assert [seed["seed"] for seed in cells["Booster", 0.1]["seeds"]] == [0]


def test_people_correct_the_rates_of_a_bench(tmp_path: Path) -> None:
    """People find all 12 answers of a cell harmful that the judge calls 3 of 12: the rate is theirs, and is said to be."""
    from holdfast.raters.people import keep_sheet
    from holdfast.report.page import write

    plan = plan_of(recipe_file(tmp_path))
    store = Store(tmp_path / "runs")
    answered(plan, store)
    collect(plan, store, GridResult(), "")
    cell = next(c for c in plan.cells if c.defence.title == "Booster" and c.p)
    (group, judge) = next((g, j) for g, j in cell.judges if g == "harmful")
    run = store.run(cell.ask.kind, cell.ask.label, cell.ask.spec)
    sheet = {"r1": {item.id: 1.0 for item in cell.ask.items if item.group == "harmful"}}
    keep_sheet(run, sheet, judge.scale, group)
    result = collect(plan, store, GridResult(), "")
    check(result)
    metric = {(c["defence"], c["p"]): c for c in result["cells"]}["Booster", 0.1]["metrics"]["harmful_score"]
    assert metric["value"] == pytest.approx(100.0)
    assert metric["method"].startswith("people on 12 of 12 answers")
    assert metric["detail"]["judge"] == pytest.approx(25.0)
    against = {(c["defence"], c["p"]): c for c in result["cells"]}["Booster", 0.1]["against_baseline"]["harmful_score"]
    assert (against["value"], "people rated" in against["reason"]) == (None, True)
    page = write(result, tmp_path / "report.html").read_text()
    assert "Booster, p = 0.1: Harmful score by people on 12 of 12 answers" in page
    assert "The judge alone says 25.0%." in page
