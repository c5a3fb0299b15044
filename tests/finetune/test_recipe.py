from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from experiments import recipe_text
from holdfast.core.errors import DataError, HoldfastError, UsageError
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.recipe import (
    find_recipe,
    for_seed,
    judge_from,
    make_recipe,
    method_from,
    read_recipe,
    shipped_recipes,
    test_set,
    user_training,
)


def values() -> dict[str, Any]:
    return tomllib.loads(recipe_text())


def changed(place: str, value: Any) -> dict[str, Any]:
    """The small recipe with one value set (``defence.1.align`` is the second defence's)."""
    found = values()
    *path, last = place.split(".")
    here: Any = found
    for part in path:
        here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
    here[int(last) if last.isdigit() else last] = value
    return found


def test_the_small_recipe_is_right() -> None:
    recipe = make_recipe(values(), "small.toml")
    assert [d.title for d in recipe.defence] == ["SFT", "Booster"]
    assert recipe.defence[0].align == {"method": "sft"}, "what is left out is plain SFT"
    assert recipe.workload[0].p == (0.0, 0.1)


@pytest.mark.parametrize(
    ("place", "value", "message", "hint"),
    [
        ("titel", "x", "small.toml: unknown key 'titel'", "did you mean 'title'?"),
        ("align.lerning_rate", 1, "small.toml.align: unknown key 'lerning_rate'", "did you mean 'learning_rate'?"),
        ("adapter.ranks", 1, "small.toml.adapter: unknown key 'ranks'", "did you mean 'rank'?"),
        ("data.safty", "x", "small.toml.data: unknown key 'safty'", "did you mean 'safety'?"),
        ("workload.0.pp", [0], "small.toml.workload: unknown key 'pp'", "valid: finetune, n, name, p, text, title"),
        ("defence.1.algn", {}, "small.toml.defence: unknown key 'algn'", "did you mean 'align'?"),
        ("test.harmful.judge", ["x"], ".test.harmful: unknown key 'judge'", "did you mean 'judges'?"),
        ("test.harmful.judges", ["sandbx"], ".test.harmful: unknown judge 'sandbx'", "did you mean 'sandbox'?"),
        ("test.harmful.judges", [{"name": "refusal", "phrase": 1}], "unknown key 'phrase'", "did you mean 'phrases'?"),
        ("test.task.source.task", "sandbx", "unknown task 'sandbx'", "did you mean 'sandbox'?"),
        ("test.harmful.source.limt", 3, ".test.harmful.source: unknown key 'limt'", "did you mean 'limit'?"),
        ("defence.1.align.method", "boster", "defence 2 (Booster).align: unknown alignment-stage method 'boster'",
         "did you mean 'booster'? valid: booster, sft, vaccine"),
        ("defence.1.align.alhpa", 1, "defence 2 (Booster).align.booster: unknown key 'alhpa'", "did you mean 'alpha'?"),
        ("defence.1.align.alpha", -1, "align.booster.alpha = -1 is outside [0, inf]", ""),
        ("defence.1.align", {"alpha": 1}, "defence 2 (Booster).align: no method is named", "one of: sft, vaccine"),
        ("defence.1.align", {}, "defence 2 (Booster).align: no method is named", "leave it out for plain SFT"),
        ("defence.1.finetune", {}, "defence 2 (Booster).finetune: no method is named", "leave it out"),
        ("defence.1.repair", {"method": "antidot"}, "unknown post-fine-tuning-stage method 'antidot'",
         "did you mean 'antidote'?"),
        ("workload.0.p", [0.0, 1.1], "small.toml.workload.p = 1.1 is outside [0, 1]", ""),
        ("workload.0.p", [-0.1], "small.toml.workload.p = -0.1 is outside [0, 1]", ""),
        ("workload.0.p", [], "must not be empty", ""),
        ("workload.0.p", [0.1, 0.1], "p of workload mixed 0.1 is used twice", ""),
        ("workload.0.finetune", {"step": 3}, ".workload.mixed.finetune: unknown key 'step'", "did you mean 'steps'?"),
        ("align.epochs", 1, "small.toml.align: both epochs = 1 and steps = 3 are given", "keep one"),
        ("workload.0.finetune", {"steps": 3, "epochs": 2}, "both epochs = 2 and steps = 3", "keep one"),
        ("baseline", "Vaccine", "baseline 'Vaccine' is not a defence", "one of: SFT, Booster"),
        ("defence.1.title", "SFT", "defence title 'SFT' is used twice", ""),
        ("seeds", [0, 1, 0], "seed 0 is used twice", ""),
        ("seeds", [], "must not be empty", ""),
        ("seeds", [-1], "seeds = -1 is outside [0, inf]", ""),
        ("defence", [], "must not be empty", ""),
        ("test", {}, "must not be empty", ""),
        ("test.harmful.judges", [], ".test.harmful: no judge", "add judges"),
        ("adapter.train", "lorra", "adapter.train: unknown value 'lorra'", "did you mean 'lora'?"),
        ("align.learning_rate", float("nan"), "align.learning_rate = nan is not a finite number", ""),
        ("test.harmful.max_new_tokens", 0, "max_new_tokens = 0 is outside [1, inf]", ""),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_its_place(place: str, value: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe(changed(place, value), "small.toml")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_poison_is_asked_for_only_when_some_p_needs_it() -> None:
    found = values()
    del found["data"]["poison"]
    with pytest.raises(UsageError, match="p > 0 needs harmful rows") as caught:
        make_recipe(found, "small.toml")
    assert "data.poison" in caught.value.hint
    found["workload"][0]["p"] = [0.0]
    assert make_recipe(found, "small.toml").data.poison is None


def test_two_workloads_need_two_names() -> None:
    found = values()
    found["workload"].append(dict(found["workload"][0]))
    with pytest.raises(UsageError, match="workload name 'mixed' is used twice"):
        make_recipe(found, "small.toml")


@pytest.mark.parametrize("missing", ["title", "model", "data", "test", "align", "finetune", "workload", "defence"])
def test_a_missing_key_is_named(missing: str) -> None:
    found = values()
    del found[missing]
    with pytest.raises(UsageError, match=f"missing required key '{missing}'"):
        make_recipe(found, "small.toml")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("title = \n")
    with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML: .*line 1"):
        read_recipe(bad)
    bad.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not valid TOML"):
        read_recipe(bad)
    with pytest.raises(DataError, match="cannot read"):
        read_recipe(tmp_path)


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text())
    assert find_recipe(str(path)) == path
    assert find_recipe("sandbox") == shipped_recipes()["sandbox"]
    with pytest.raises(UsageError, match="no recipe 'sandbx'") as caught:
        find_recipe("sandbx")
    assert "did you mean 'sandbox'?" in caught.value.hint
    with pytest.raises(UsageError, match="no recipe file"):
        find_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_right(name: str) -> None:
    """Their methods, knobs, judges and tasks all exist; the data need not be there."""
    recipe, text = read_recipe(shipped_recipes()[name])
    assert recipe.title
    assert text == shipped_recipes()[name].read_text("utf-8")


def test_methods_are_built_with_their_knobs() -> None:
    assert method_from("align", {"method": "booster", "lam": 7}, "x") == Booster(lam=7.0)
    assert method_from("repair", {}, "x") is None


def test_a_workload_changes_the_length_in_its_own_unit() -> None:
    """[finetune] has steps = 3; a workload in epochs drops them, and the other way round."""
    recipe = make_recipe(changed("workload.0.finetune", {"epochs": 2.0, "learning_rate": 0.5}), "small.toml")
    made = user_training(recipe, recipe.workload[0], "")
    assert (made.epochs, made.steps, made.learning_rate, made.batch_size) == (2.0, None, 0.5, 4)


def test_a_seed_stands_where_it_is_named() -> None:
    value = {"a": ["x-{seed}", 3], "b": {"c": "{seed}{seed}"}}
    assert for_seed(value, 7) == {"a": ["x-7", 3], "b": {"c": "77"}}


def test_a_test_set_without_judges_is_judged_by_its_task() -> None:
    recipe = make_recipe(values(), "small.toml")
    found = test_set(recipe, "task", 0)
    assert [judge.name for judge in found.judges] == ["sandbox"]
    assert found.judges[0].scale.name == "correct"
    assert found.decoding.max_new_tokens == 4


def test_judges_come_by_name_or_table() -> None:
    assert judge_from("refusal", "x").phrases == "xstest-prefix"  # type: ignore[attr-defined]
    assert judge_from({"name": "refusal", "phrases": "qi-substring"}, "x").phrases == "qi-substring"  # type: ignore[attr-defined]
    assert judge_from("task:sst2", "x").name == "sst2"
    with pytest.raises(HoldfastError, match="unknown value 'qi'"):
        judge_from({"name": "refusal", "phrases": "qi"}, "x")
    with pytest.raises(HoldfastError, match="unknown judge ''"):
        judge_from({"phrases": "qi"}, "x")
