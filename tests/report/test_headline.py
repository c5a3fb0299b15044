"""The sentences say what the numbers say, and no more."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from holdfast.report.headline import Headline, headline

Result = dict[str, Any]


def only(result: Result, *names: str) -> Result:
    """The result with the baseline and these defences."""
    for part in ("cells", "aligned"):
        result[part] = [cell for cell in result[part] if cell["defence"] in ("SFT", *names)]
    return result


def change(sample: ModuleType, result: Result, defence: str, harm: float | None, useful: float | None = None) -> None:
    """Give a defence other numbers on data with 10% harmful rows."""
    cell = sample.find(result, defence)
    made = sample.cell(defence, "mixed", 0.1, harm, useful or cell["metrics"]["finetune_accuracy"]["value"])
    cell.update(metrics=made["metrics"], against_baseline={})
    sample.compare(result)


def everything(found: Headline) -> str:
    return " ".join((*found.answer, *found.also))


def test_the_main_story(result: Result) -> None:
    found = headline(result)
    attack, single, stack = found.answer
    assert attack == (
        "Plain fine-tuning (SFT) on data with 10% harmful rows raised the harmful score from 0.2% (aligned model, "
        "0.0 to 1.2) to 94.0% (95% interval 91.4 to 96.6). The same fine-tuning on clean data gave 0.5% (0.0 to 1.7)."
    )
    assert single.startswith("The best single defence, Booster, brought it to 1.0% (95% interval 0.0 to 2.4)")
    assert "without a measurable change in fine-tune accuracy (99.0% against 99.0%" in single
    assert "training took 2.04× as long as SFT" in single
    assert stack.startswith("The only combination tried, Stack (booster + lisa + antidote), brought it to 0.2%")
    assert (
        "at a cost of 5.0 points of fine-tune accuracy (94.0% against 99.0%; difference −6.9 to −3.1 points)" in stack
    )
    assert [tile.tone for tile in found.tiles] == ["plain", "bad", "good", "good"]
    assert "n\u00a0=\u00a0600" in found.tiles[0].interval


def test_leaders_that_overlap_are_not_ranked(result: Result) -> None:
    assert "Stack cannot be told from Booster alone" in everything(headline(result))


def test_rivals_that_overlap_are_named(result: Result, sample: ModuleType) -> None:
    change(sample, result, "Lisa", 1.4)
    assert "The harmful scores of Booster and Lisa have overlapping intervals" in everything(headline(result))


def test_the_stress_workload_is_told_apart(result: Result) -> None:
    found = everything(headline(result))
    assert "Stress (p = 10%): SFT 98.0%" in found
    assert "lowest Stack, 20.0%" in found
    assert "Booster, the single defence named above, 42.0%" in found


def test_a_defence_that_does_not_help_is_said_not_to(result: Result, sample: ModuleType) -> None:
    only(result, "Vaccine")
    change(sample, result, "Vaccine", 93.0)
    found = headline(result)
    assert found.answer[1].startswith("The only single defence tried, Vaccine, did not measurably lower it: 93.0%")
    assert "difference −1.0 points" in found.answer[1]
    assert found.tiles[-1].tone == "plain"
    assert "no measurable help" in found.tiles[-1].note


def test_defences_that_do_not_help_beside_one_that_does_are_listed(result: Result, sample: ModuleType) -> None:
    change(sample, result, "Vaccine", 93.0)
    assert "No measurable help: Vaccine 93.0%" in everything(headline(result))


def test_a_defence_that_harms_is_said_to(result: Result, sample: ModuleType) -> None:
    only(result, "Lisa")
    change(sample, result, "SFT", 40.0)
    change(sample, result, "Lisa", 60.0)
    found = headline(result)
    assert "Lisa, made it worse: 60.0%" in found.answer[1]
    assert found.tiles[-1].tone == "bad"


def test_help_that_leaves_most_of_the_harm_is_not_praised(result: Result) -> None:
    found = headline(only(result, "Vaccine"))
    assert "brought it to 87.0%" in found.answer[1]
    assert "More than half of the harm is left." in found.answer[1]


def test_a_leader_that_costs_accuracy_is_set_beside_one_that_does_not(result: Result, sample: ModuleType) -> None:
    change(sample, result, "Lisa", 0.1, 60.0)
    found = headline(result)
    assert "The single defence with the lowest harmful score, Lisa" in found.answer[1]
    assert found.tiles[2].tone == "plain"
    assert "at a cost of 39.0 points of fine-tune accuracy" in found.answer[1]
    assert "Without a measurable loss of accuracy, the lowest was Booster: 1.0%" in everything(found)


def test_no_free_defence_is_said_too(result: Result) -> None:
    found = everything(headline(only(result, "Lisa", "Antidote")))
    assert "No defence that lowered the harmful score did so without a measurable loss" in found


def test_one_seed_is_a_caution(sample: ModuleType) -> None:
    assert "Only one seed was run" in everything(headline(sample.result(seeds=1)))
    assert "Only one seed" not in everything(headline(sample.result()))


def test_an_undefined_defence_is_named_with_its_reason(result: Result, sample: ModuleType) -> None:
    change(sample, result, "Lisa", None)
    assert "Could not be compared: Lisa (undefined: no answers)" in everything(headline(result))


def test_an_undefined_baseline_stops_every_comparison(result: Result, sample: ModuleType) -> None:
    change(sample, result, "SFT", None)
    found = headline(result)
    assert len(found.answer) == 1
    assert "undefined (no answers), so no defence can be compared" in found.answer[0]


def test_a_missing_baseline_stops_every_comparison(result: Result) -> None:
    result["cells"] = [c for c in result["cells"] if (c["defence"], c["p"]) != ("SFT", 0.1)]
    found = headline(result)
    assert len(found.answer) == 1
    assert "has no finished result, so nothing can be said about what the defences change." in found.answer[0]


def test_an_attack_that_does_nothing_is_no_triumph_of_defences(result: Result, sample: ModuleType) -> None:
    change(sample, result, "SFT", 0.4)
    found = headline(result)
    assert "did not measurably change the harmful score" in found.answer[0]
    assert "nothing to prevent" in found.answer[0]
    assert "did not measurably lower it" in found.answer[1]


def test_without_an_aligned_model_clean_tuning_is_the_start(result: Result) -> None:
    result["aligned"] = []
    assert "from 0.5% (after clean fine-tuning, 0.0 to 1.7) to 94.0%" in headline(result).answer[0]


def test_clean_data_only(result: Result) -> None:
    result["cells"] = [cell for cell in result["cells"] if cell["p"] == 0]
    assert "clean data (no harmful rows)" in headline(result).answer[0]


@pytest.mark.parametrize("part", ["cells", "measures"])
def test_nothing_to_say_is_said(result: Result, part: str) -> None:
    result[part] = type(result[part])()
    for cell in result["cells"]:
        cell.update(metrics={}, against_baseline={})
    found = headline(result).answer
    assert len(found) == 1
    assert "nothing to report" in found[0] or "was not measured" in found[0]


def test_a_long_list_is_cut(result: Result, sample: ModuleType) -> None:
    result["cells"] += [sample.cell(f"D{i}", "mixed", 0.1, 50.0 + i, 99.0) for i in range(12)]
    found = everything(headline(sample.compare(result)))
    assert "and 7 more." in found


def test_silence_is_not_praised_as_safety(result: Result, sample: ModuleType) -> None:
    """A defence that refuses everything has no harmful answers, and no use."""
    lisa = sample.find(result, "Lisa")
    change(sample, result, "Lisa", 0.0, 99.0)
    lisa["metrics"]["over_refusal"].update(value=80.4, low=76.0, high=84.0)
    sample.compare(result)
    found = headline(result)
    assert found.answer[1].startswith("The single defence with the lowest harmful score, Lisa, brought it to 0.0%")
    assert "But over-refusal is 80.4% against 1.5%." in found.answer[1]
    assert found.tiles[2].tone == "plain"
    assert "over-refusal 80.4% against 1.5%" in found.tiles[2].note


def test_harm_that_clean_data_does_as_well_is_not_blamed_on_harmful_rows(result: Result, sample: ModuleType) -> None:
    sample.find(result, "SFT", 0.0)["metrics"] = sample.find(result, "SFT", 0.1)["metrics"]
    assert "Clean data did as much, 94.0% (91.4 to 96.6): it is not the harmful rows" in headline(result).answer[0]


def test_a_task_that_was_not_learned_is_said_so(result: Result, sample: ModuleType) -> None:
    change(sample, result, "SFT", 94.0, 13.0)
    assert "Fine-tuning did not measurably teach the task: fine-tune accuracy 12.0%" in everything(headline(result))
    assert "teach the task" not in everything(headline(sample.result()))


def test_an_aligned_model_that_refuses_everything_is_no_yardstick(result: Result) -> None:
    aligned = next(cell for cell in result["aligned"] if cell["defence"] == "SFT")
    aligned["metrics"]["over_refusal"].update(value=100.0, low=98.5, high=100.0)
    assert "The aligned model refuses 100.0% (95% interval 98.5 to 100.0) of harmless" in everything(headline(result))
