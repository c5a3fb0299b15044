"""Comparison recipes: models, anchors, validation and test sets, and methods, in one TOML file checked before work.

``{seed}`` in any text stands for the seed of the cell. The fields below are the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, knob
from holdfast.core.records import Item
from holdfast.data.recipes import for_seed, read_toml
from holdfast.models.vision import check_template
from holdfast.steer.choose import Choice
from holdfast.steer.exam import Exam, exam, items_from
from holdfast.steer.method import STEERING, SteeringMethod
from holdfast.steer.stage import Speaking, check_unsafe
from holdfast.steer.subject import CAPTION_PROMPT


@dataclass(frozen=True)
class AnchorSets:
    """Where the prompts come from that methods learn from; each gets a picture."""

    harmful: Any = knob(doc="harmful prompts: a path, or a table with a path and the keys of data.read.Source")
    benign: Any = knob(doc="harmless prompts")
    images: str = knob("", "pictures for prompts that name none: a folder, 'scenes', or plain:white")
    limit: int = knob(128, "prompts of each class", low=2)


@dataclass(frozen=True)
class Compared:
    """One method of a comparison."""

    title: str = knob(doc="what reports call it")
    method: str = knob(doc="name of a steering method")
    knobs: dict[str, Any] = knob({}, "its knobs; open ones are chosen on validation items")
    note: str = knob("", "a sentence for the report")


@dataclass(frozen=True)
class Workload:
    """A way in which the models come: as they are, or with a language model tuned by somebody else."""

    model: str = knob(doc="model reference: sandbox/vlm-{seed}, a folder, a run, a hub id")
    name: str = knob("released", "short name")
    title: str = knob("", "what reports call it")
    fitted_on: str = knob("", "model that methods are fitted on, where it is not the one that is asked")


@dataclass(frozen=True)
class Recipe:
    """A comparison: methods x workloads x seeds."""

    title: str = knob(doc="what the report is called")
    workload: tuple[Workload, ...] = knob(doc="models under test")
    anchors: AnchorSets = knob(doc="what methods learn from")
    validation: dict[str, Any] = knob(doc="exams that open knobs are chosen by: harmful, benign, visual")
    test: dict[str, Any] = knob(doc="exams that are reported: harmful, benign, visual")
    method: tuple[Compared, ...] = knob(doc="what is compared")
    seeds: tuple[int, ...] = knob((0,), "one repetition each: another model, or another draw of pictures", low=0)
    choice: Choice = knob(Choice(), "how open knobs are chosen")
    template: str = knob("auto", "how the model is spoken to: auto, or a text with {prompt} and {image}")
    precision: str = knob("fp32", "type of the weights: fp32 or bf16")
    caption_prompt: str = knob(CAPTION_PROMPT, "how the model is asked to describe a picture")
    notes: tuple[str, ...] = knob((), "sentences for the report")

    @property
    def speaking(self) -> Speaking:
        """How models are spoken to."""
        return Speaking(self.template, self.precision, self.caption_prompt)

    def check(self, where: str) -> None:
        """Cross-field rules.

        Raises:
            UsageError: names repeat, something is empty, or a group is missing.
        """
        titles, names = [m.title for m in self.method], [w.name for w in self.workload]
        for values, what in ((titles, "method title"), (names, "workload name"), (list(self.seeds), "seed")):
            repeated = [value for value in values if list(values).count(value) > 1]
            if repeated:
                raise UsageError(f"{where}: {what} {repeated[0]!r} is used twice", hint="give each its own")
        if not (self.seeds and titles and names):
            raise UsageError(f"{where}: seeds, method and workload must not be empty", hint="see recipes/steer/")
        for name, table in (("validation", self.validation), ("test", self.test)):
            if "harmful" not in table or "benign" not in table:
                raise UsageError(
                    f"{where}.{name} needs harmful and benign items: safety alone says nothing",
                    hint=f"add [{name}.benign] with a source",
                )
        if len(self.seeds) > 1 and "{seed}" not in str([w.model for w in self.workload]) + str(self.test):
            raise UsageError(
                f"{where}: {len(self.seeds)} seeds would ask the same model the same prompts, and intervals would take "
                "them for new ones",
                hint="seeds = [0], or put {seed} into the model's or the test set's name",
            )
        check_template(self.template)
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"{where}.precision = {self.precision!r}", hint="fp32 or bf16")


def read_recipe(path: Path) -> tuple[Recipe, str]:
    """Parse and check a recipe; returns it with its text.

    Raises:
        UsageError: not TOML, an unknown key, a value or method that does not fit.
        DataError: the file cannot be read.
    """
    values, text = read_toml(path)
    recipe = build(Recipe, values, path.name)
    for number, compared in enumerate(recipe.method, 1):
        method_of(compared, f"{path.name}: method {number} ({compared.title})")
    return recipe, text


def method_of(compared: Compared, where: str) -> SteeringMethod:
    """The method of an entry, with its knobs.

    Raises:
        UsageError: no such method, or a knob that it does not have.
    """
    cls = STEERING.load(compared.method, where)
    made: SteeringMethod = build(cls, compared.knobs, f"{where}.{compared.method}")
    check(made, f"{where}.{compared.method}")
    return made


@dataclass(frozen=True)
class Material:
    """The items of one seed: anchors and exams."""

    harmful: tuple[Item, ...]
    benign: tuple[Item, ...]
    validation: Mapping[str, Exam]
    test: Mapping[str, Exam]


def material(recipe: Recipe, seed: int) -> Material:
    """Anchors and exams of a seed; prompts are paired with other pictures in each set.

    Raises:
        DataError, UsageError: see :mod:`holdfast.steer.exam`.
    """
    anchors = recipe.anchors
    found = {
        group: anchor_items(for_seed(getattr(anchors, group), seed), group, anchors, seed)
        for group in ("harmful", "benign")
    }
    sets = {
        name: {g: exam(g, for_seed(v, seed), f"{name}.{g}", seed=seed + 1000 * step) for g, v in table.items()}
        for step, (name, table) in enumerate((("validation", recipe.validation), ("test", recipe.test)), 1)
    }
    for exams in sets.values():
        check_unsafe(exams["harmful"])
    return Material(found["harmful"], found["benign"], sets["validation"], sets["test"])


def anchor_items(value: Any, group: str, anchors: AnchorSets, seed: int) -> tuple[Item, ...]:
    """Anchors of a class: the first prompts of a source that are not there twice."""
    items = items_from(group, value, f"anchors.{group}", images=anchors.images, seed=seed)
    distinct: dict[str, Item] = {}
    for item in items:
        distinct.setdefault(item.prompt, item)
    chosen = list(distinct.values())[: anchors.limit]
    return tuple(replace(item, id=f"anchor-{item.id}") for item in chosen)
