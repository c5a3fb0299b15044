"""Recipes: a whole experiment in one TOML file, checked completely before anything runs.

``{seed}`` in any text of a recipe stands for the seed of the cell. The fields below are the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, knob
from holdfast.core.methods import Table
from holdfast.data import read
from holdfast.data.recipes import find_recipe, for_seed, read_toml, shipped_recipes
from holdfast.finetune.alignment import ALIGNMENT
from holdfast.finetune.finetuning import FINETUNING
from holdfast.finetune.method import RepairMethod, TrainingMethod
from holdfast.finetune.post_finetuning import POST_FINETUNING
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.tasks import TASKS
from holdfast.models.answer import Decoding
from holdfast.raters import base as judges
from holdfast.raters.base import Judge

__all__ = ["Recipe", "Test", "find_recipe", "for_seed", "judge_from", "read_recipe", "shipped_recipes", "test_set"]

METHODS: Mapping[str, Table] = {"align": ALIGNMENT, "finetune": FINETUNING, "repair": POST_FINETUNING}


@dataclass(frozen=True)
class DataSets:
    """Where training rows come from: a path, or a table with a path and the keys of ``data.read.Source``."""

    safety: Any = knob(doc="alignment set: harmful requests refused, and harmless ones answered")
    task: Any = knob(doc="the user's benign task rows")
    harmful: Any = knob(None, "the provider's own harmful set (Booster, Antidote)")
    poison: Any = knob(None, "harmful rows that the attacker mixes into the upload")


@dataclass(frozen=True)
class TestSet:
    """What is asked after training, and who rates the answers."""

    __test__ = False  # pytest: not a test class

    source: Any = knob(doc="a path, or a table with a path and the keys of data.read.Source")
    judges: tuple[Any, ...] = knob((), "names of judges, or tables {name = ..., knobs}; none: the source's task")
    max_new_tokens: int = knob(512, "longest answer in tokens", low=1)


@dataclass(frozen=True)
class Workload:
    """One way of fine-tuning that the defences have to stand."""

    name: str = knob(doc="short name")
    title: str = knob("", "what reports call it")
    text: str = knob("", "one sentence for reports")
    p: tuple[float, ...] = knob((0.0, 0.1), "poison ratios: shares of harmful rows", low=0, high=1)
    n: int = knob(1000, "rows in the upload", low=1)
    finetune: dict[str, Any] = knob({}, "training settings of the user stage that differ from [finetune]")


@dataclass(frozen=True)
class Defence:
    """One method a stage. What is left out is plain SFT (and no repair)."""

    title: str = knob(doc="what reports call it")
    align: dict[str, Any] = knob({"method": "sft"}, "alignment-stage method and its knobs")
    finetune: dict[str, Any] = knob({"method": "sft"}, "fine-tuning-stage method and its knobs")
    repair: dict[str, Any] = knob({}, "post-fine-tuning-stage method and its knobs")
    chosen: str = knob("", "how these knobs were chosen, for the report")


@dataclass(frozen=True)
class Recipe:
    """An experiment: defences x workloads x poison ratios x seeds, with shared stages made once."""

    title: str = knob(doc="what the report is called")
    model: str = knob(doc="model reference: sandbox/micro-{seed}, a folder, a hub id")
    data: DataSets = knob(doc="training data")
    test: dict[str, Any] = knob(doc="test sets by group: harmful, task, benign, ...")
    align: Training = knob(doc="training settings of the alignment stage")
    finetune: Training = knob(doc="training settings of the user stage")
    workload: tuple[Workload, ...] = knob(doc="ways of fine-tuning")
    defence: tuple[Defence, ...] = knob(doc="what is compared")
    adapter: Adapter = knob(Adapter(), "which parameters are trained")
    template: str = knob("auto", "how the model is spoken to: auto, alpaca, or a text with {prompt}")
    seeds: tuple[int, ...] = knob((0, 1, 2), "one complete repetition each", low=0)
    baseline: str = knob("SFT", "title of the defence that others are compared with")
    notes: tuple[str, ...] = knob((), "sentences for the report")

    def check(self, where: str) -> None:
        """Cross-field rules.

        Raises:
            UsageError: names repeat, the baseline is not among the defences, or poison is missing.
        """
        titles, names = [d.title for d in self.defence], [w.name for w in self.workload]
        ratios = [(workload.p, f"p of workload {workload.name}") for workload in self.workload]
        for values, what in ((titles, "defence title"), (names, "workload name"), (self.seeds, "seed"), *ratios):
            repeated = [value for value in values if list(values).count(value) > 1]
            if repeated:
                raise UsageError(f"{where}: {what} {repeated[0]!r} is used twice", hint="give each its own")
        if not self.seeds or not titles or not names or not self.test or not all(w.p for w in self.workload):
            raise UsageError(f"{where}: seeds, defence, workload, p and test must not be empty", hint="see recipes/")
        if self.baseline not in titles:
            raise UsageError(
                f"{where}: baseline {self.baseline!r} is not a defence", hint=f"one of: {', '.join(titles)}"
            )
        poisoned = any(p > 0 for workload in self.workload for p in workload.p)
        if poisoned and self.data.poison is None:
            raise UsageError(f"{where}: p > 0 needs harmful rows", hint="add data.poison = 'FILE', or set p = [0]")


def read_recipe(path: Path) -> tuple[Recipe, str]:
    """Parse and check a recipe; returns it with its text.

    Raises:
        UsageError: not TOML, an unknown key, a value that does not fit, a method that does not exist.
        DataError: the file cannot be read.
    """
    values, text = read_toml(path)
    return make_recipe(values, path.name), text


def make_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """A checked recipe from TOML values.

    Every method, judge and source in it is built once, so that whatever is wrong is said now.

    Raises:
        UsageError, DataError: as in :func:`read_recipe`.
    """
    recipe = build(Recipe, values, where)
    check(recipe, where)
    for number, defence in enumerate(recipe.defence, 1):
        place = f"{where}: defence {number} ({defence.title})"
        for stage in ("align", "finetune", "repair"):
            if method_from(stage, getattr(defence, stage), place) is None and stage != "repair":
                raise UsageError(f"{place}.{stage}: no method is named", hint="leave it out for plain SFT")
    for group in recipe.test:
        test_set(recipe, group, recipe.seeds[0], where)
    for workload in recipe.workload:
        user_training(recipe, workload, where)
    return recipe


def method_from(stage: str, table: Mapping[str, Any], where: str) -> Any:
    """The method that a table names, with its knobs; None for an empty table.

    Raises:
        UsageError: no such method, or a knob that it does not have.
    """
    if not table:
        return None
    if "method" not in table:
        raise UsageError(f"{where}.{stage}: no method is named", hint=f"one of: {', '.join(METHODS[stage])}")
    cls = METHODS[stage].load(str(table["method"]), f"{where}.{stage}")
    knobs = {name: value for name, value in table.items() if name != "method"}
    method: TrainingMethod | RepairMethod = build(cls, knobs, f"{where}.{stage}.{table['method']}")
    check(method, f"{where}.{stage}.{table['method']}")
    return method


def user_training(recipe: Recipe, workload: Workload, where: str) -> Training:
    """Training settings of the user stage under a workload: its own over the recipe's.

    Raises:
        UsageError: an unknown or unfit setting.
    """
    base = {name: getattr(recipe.finetune, name) for name in recipe.finetune.__dataclass_fields__}
    if "steps" in workload.finetune:
        base["epochs"] = None
    if "epochs" in workload.finetune:
        base["steps"] = None
    place = f"{where}.workload.{workload.name}.finetune"
    made = build(Training, base | workload.finetune, place)
    check(made, place)
    return made


@dataclass(frozen=True)
class Test:
    """A test set made ready: its source, its judges and how long answers may be."""

    __test__ = False

    group: str
    source: read.Source
    judges: tuple[Judge, ...]
    decoding: Decoding


def test_set(recipe: Recipe, group: str, seed: int, where: str = "") -> Test:
    """The test set of a group for a seed.

    Raises:
        UsageError: a judge or task that does not exist, or no judge at all.
    """
    place = f"{where}.test.{group}"
    value = recipe.test[group]
    table = value if isinstance(value, Mapping) and "source" in value else {"source": value}
    entry = build(TestSet, table, place)
    source = read.source(for_seed(entry.source, seed), f"{place}.source")
    chosen = [judge_from(judge, place) for judge in entry.judges]
    if not chosen:
        if not source.task:
            raise UsageError(f"{place}: no judge", hint="add judges = ['not-refused'], or a task to the source")
        chosen = [TASKS.load(source.task, place)()]
    return Test(group, source, tuple(chosen), Decoding(entry.max_new_tokens))


test_set.__test__ = False  # type: ignore[attr-defined]


def judge_from(value: Any, where: str) -> Judge:
    """A judge from its name, or from a table with its name and knobs (tasks are judges too).

    Raises:
        UsageError: no such judge, or a knob that it does not have.
    """
    table = value if isinstance(value, Mapping) else {"name": value}
    name = str(table.get("name", ""))
    if not name.startswith("task:"):
        return judges.judge_from(value, where)
    cls = TASKS.load(name.removeprefix("task:"), where)
    judge: Judge = build(cls, {k: v for k, v in table.items() if k != "name"}, f"{where}.{name}")
    return judge
