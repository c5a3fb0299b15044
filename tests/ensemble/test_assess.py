"""The assessment: honest numbers, defined results for odd input, the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.conftest import voters
from holdfast.core.diversity import METRICS
from holdfast.core.errors import DataError
from holdfast.ensemble.assess import Settings, assess, gain, rate, split
from holdfast.ensemble.checks import findings
from holdfast.ensemble.diverse import measured
from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.page import render
from holdfast.ensemble.prune import Fitness
from holdfast.ensemble.table import Layout, Row, outputs_of
from holdfast.ensemble.terminal import table


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    outputs = voters(700, [0.4, 0.5, 0.55, 0.6], subjects=2)
    return assess(replace(outputs, cost=np.array([1.0, 2.0, 3.0, 4.0]) / 1000)).result


def test_it_is_json_without_nan(result: dict[str, object]) -> None:
    json.dumps(result, allow_nan=False)


def test_a_team_of_peers_is_worth_it(result: dict[str, object]) -> None:
    text = table(result)
    assert "Worth it: " in text
    assert "dollars for 1,000 items" in text
    assert all(len(line) <= 100 for line in text.splitlines()), max(text.splitlines(), key=len)
    best = max(one["accuracy"]["value"] for one in result["methods"])  # type: ignore[index]
    assert best <= result["baselines"]["oracle"]["accuracy"]["value"]  # type: ignore[index]
    sizes = [team["size"] for team in result["frontier"]]  # type: ignore[index]
    assert sizes == [1, 2, 3, 4]


def test_no_test_item_is_touched() -> None:
    """Test answers that are scrambled change no choice, no weight and nothing of training."""
    outputs = voters(400, [0.4, 0.5, 0.6])
    train, test = split(outputs, 0.5, 0)
    assert not set(train.items) & set(test.items)
    rows = np.isin(outputs.items, test.items)
    scrambled = np.where(rows[:, None], np.roll(outputs.correct, 1, axis=1), outputs.correct)
    honest, other = assess(outputs), assess(replace(outputs, correct=scrambled))
    assert honest.fitted.models == other.fitted.models
    assert honest.result["learned"] == other.result["learned"]
    assert honest.result["tried"] == other.result["tried"]
    for name, array in honest.fitted.arrays.items():
        np.testing.assert_array_equal(other.fitted.arrays[name], array)
    assert other.result["baselines"]["plurality"]["accuracy"]["value"] < 40


def test_the_split_keeps_subjects_together_in_both() -> None:
    outputs = voters(300, [0.5], subjects=3)
    train, test = split(outputs, 1 / 3, 5)
    assert abs(test.n_items - 100) <= 3
    for part, n in ((train, 200), (test, 100)):
        assert np.abs(np.bincount(part.group) - n / 3).max() <= 2


def test_intervals_cover() -> None:
    """Paired gains of two voters with known accuracies, 300 experiments of 200 items."""
    generator = np.random.default_rng(0)
    covered = [0, 0]
    for _ in range(300):
        first = generator.random(200) < 0.6
        second = np.where(generator.random(200) < 0.7, first, generator.random(200) < 0.5)
        truth = 0.6 - (0.7 * 0.6 + 0.3 * 0.5)
        apart, alone = gain("g", first, second), rate("r", first)
        covered[0] += apart.low <= 100 * truth <= apart.high  # type: ignore[operator]
        covered[1] += alone.low <= 60 <= alone.high  # type: ignore[operator]
    assert all(0.915 <= n / 300 <= 0.98 for n in covered), covered


def test_intervals_of_diversity_cover() -> None:
    """Focal diversity of three models, 100 experiments of 300 items against its value on 200,000."""
    metric, skills = METRICS["focal diversity"], [0.5, 0.6, 0.7]

    def drawn(n: int, generator: np.random.Generator) -> np.ndarray:
        return (generator.random((n, 1)) < 0.5) & (generator.random((n, 3)) < skills)

    truth = metric.value(drawn(200_000, np.random.default_rng(1)))
    base = voters(300, [0.5, 0.5, 0.5])
    covered = 0
    for seed in range(100):
        wrong = drawn(300, np.random.default_rng([7, seed]))
        belief = np.stack([~wrong, wrong], axis=2).astype(np.float32)
        two = replace(base, belief=belief, correct=np.tile([True, False], (300, 1)), valid=np.ones((300, 2), bool))
        found = measured(metric, two, seed)
        covered += found.low <= truth <= found.high  # type: ignore[operator]
    assert 88 <= covered <= 99, covered


def test_gain_of_equal_answers_is_not_sure_to_be_nothing() -> None:
    right = np.ones(100, bool)
    found = gain("g", right, right)
    assert (found.value, found.low < 0 < found.high) == (0, True)  # type: ignore[operator]


def test_several_samples_of_the_best_model_are_the_opponent() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for item in range(200):
        gold = "ABCD"[int(generator.integers(4))]
        many = [gold if generator.random() < 0.7 else "ABCD"[int(generator.integers(4))] for _ in range(5)]
        one = gold if generator.random() < 0.6 else "ABCD"[int(generator.integers(4))]
        rows.append(Row(str(item), (gold,), n_options=4, answers={"many": many, "one": [one], "two": [one]}))  # type: ignore[dict-item]
    made = assess(outputs_of(rows), Settings(size=3)).result
    same = made["frontier"][2]["same_cost"]
    assert same["accuracy"]["value"] > 60
    assert "Self-consistency of the best single model, 3 samples" in table(made)


def test_odd_pools() -> None:
    one = assess(voters(100, [0.5])).result
    assert one["recommended"] == 1
    assert "One model is enough" in table(one)
    nobody = voters(100, [0.6, 0.6])
    sure = replace(nobody, belief=np.repeat(nobody.correct[:, None].astype(np.float32), 2, axis=1))
    made = assess(sure).result
    assert made["baselines"]["best_single"]["accuracy"]["value"] == 100
    json.dumps(made, allow_nan=False)
    render(made, command="", title="")
    never = assess(replace(nobody, correct=np.zeros_like(nobody.correct))).result
    assert never["baselines"]["oracle"]["accuracy"]["value"] == 0
    json.dumps(never, allow_nan=False)


def test_items_that_not_all_were_asked_are_left_out() -> None:
    outputs = voters(100, [0.5, 0.6])
    asked = outputs.asked.copy()
    asked[:30, 1] = False
    made = assess(replace(outputs, asked=asked)).result
    assert made["items"]["unused"] == 30
    assert made["items"]["train"] + made["items"]["test"] == 70
    with pytest.raises(DataError, match="asked of all 2 models: 0"):
        assess(replace(outputs, asked=np.zeros_like(asked)))
    with pytest.raises(DataError, match="no team of 3 models"):
        assess(outputs, Settings(size=3))


def test_numbers_and_texts_have_their_tables() -> None:
    generator = np.random.default_rng(3)
    rows = []
    for item in range(120):
        gold = f"word{int(generator.integers(50))} x"
        given = {
            f"m{k}": [gold if generator.random() < 0.5 else f"word{int(generator.integers(50))} x"] for k in range(3)
        }
        rows.append(Row(str(item), (gold,), answers=given))  # type: ignore[arg-type]
    for kind in ("short", "long"):
        made = assess(outputs_of(rows, Layout(kind=kind)), Settings(fitness=Fitness(0.2, 0.8))).result  # type: ignore[arg-type]
        assert all(one["score"]["value"] > 0 for one in made["methods"])
        assert "token F1" in render(made, command="", title="")


def test_permuted_columns_and_models_below_chance_are_named() -> None:
    outputs = voters(400, [0.6, 0.7, 0.65])
    assert findings(outputs) == []
    belief = outputs.belief.copy()
    belief[:, 1] = belief[:, 1][:, [1, 0, 3, 2]]
    belief[:, 2] = np.where(outputs.correct, 0, belief[:, 2])
    found = findings(replace(outputs, belief=belief))
    assert [(one.model, one.kind) for one in found] == [("m1", "permuted"), ("m2", "below chance")]
    assert found[0].other > 0.6
    text = table(assess(replace(outputs, belief=belief)).result)
    assert "look first: m1" in text
    two = voters(300, [0.6, 0.7], subjects=2)
    only = two.belief.copy()
    only[two.group == 1, 0] = only[two.group == 1, 0][:, [1, 2, 3, 0]]
    assert ("m0", "s1") in {(one.model, one.subject) for one in findings(replace(two, belief=only))}


def test_foreign_names_are_escaped_and_pages_repeat(result: dict[str, object]) -> None:
    first = render(result, command="holdfast", title="<script>alert(1)</script>")
    assert "<script>alert(1)" not in first
    assert render(result, command="holdfast", title="<script>alert(1)</script>") == first


def test_the_page_draws_in_a_browser(result: dict[str, object], chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(result, command="holdfast ensemble pick x.csv", title="Ensemble: x"))
    arguments = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        "--window-size=1200,4000", "--virtual-time-budget=8000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert done.stdout.count('class="vega-embed') >= 5
    assert shutil.which(chromium)


def test_every_chart_can_be_saved(pool: Outputs, tmp_path: Path) -> None:
    from holdfast.ensemble import charts
    from holdfast.report.charts import save

    made = assess(pool).result
    assert charts.frontier(made, "cost") is None
    for name, chart in (
        ("f", charts.frontier(made)),
        ("p", charts.pairs(made)),
        ("t", charts.teams(made)),
        ("c", charts.calibration(made)),
    ):
        assert chart is not None
        assert save(chart, tmp_path / f"{name}.svg").stat().st_size > 1000
