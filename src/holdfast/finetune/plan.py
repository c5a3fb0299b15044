"""Plans: a recipe unfolded into cells and the distinct stages that they share."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from holdfast.core.records import Item
from holdfast.core.stage import Request, request_key
from holdfast.data import read
from holdfast.data.mixes import Mix
from holdfast.finetune.recipe import Defence, Recipe, Test, Workload, for_seed, method_from, test_set, user_training
from holdfast.finetune.stages import RepairStage, TrainStage, UserData
from holdfast.finetune.tasks import TASKS
from holdfast.models.ask import Ask
from holdfast.raters.base import Judge


@dataclass(frozen=True)
class Cell:
    """One measured model: a defence under a workload at a poison ratio and seed.

    ``workload`` is None for the aligned model before any user fine-tuning.
    """

    defence: Defence
    workload: Workload | None
    p: float | None
    seed: int
    ask: Ask
    judges: tuple[tuple[str, Judge], ...]

    @property
    def name(self) -> str:
        """For messages."""
        at = "aligned" if self.workload is None else f"{self.workload.name}, p = {self.p:g}"
        return f"{self.defence.title} ({at}, seed {self.seed})"


@dataclass(frozen=True)
class Plan:
    """All cells, and each distinct request once, parents first."""

    recipe: Recipe
    text: str
    cells: tuple[Cell, ...]
    requests: dict[str, Request]
    parents: dict[str, str]

    @property
    def shared(self) -> int:
        """Stages that would run more than once if nothing were shared."""
        return sum(1 for cell in self.cells for _ in chain(cell.ask)) - len(self.requests)


def make_plan(recipe: Recipe, text: str) -> Plan:
    """Unfold a recipe.

    Raises:
        UsageError, DataError, ModelError: anything that would stop a cell later and can be seen now.
    """
    cells: list[Cell] = []
    for seed in recipe.seeds:
        cells += _cells_of_seed(recipe, seed)
    requests: dict[str, Request] = {}
    parents: dict[str, str] = {}
    for cell in cells:
        links = list(chain(cell.ask))
        for request in reversed(links):
            requests.setdefault(request_key(request), request)
        for child, parent in pairwise(links):
            parents[request_key(child)] = request_key(parent)
    return Plan(recipe, text, tuple(cells), requests, parents)


def chain(request: Any) -> Iterator[Request]:
    """A request and those it starts from, the last first."""
    while not isinstance(request, str):
        yield request
        request = request.base


def _cells_of_seed(recipe: Recipe, seed: int) -> Iterator[Cell]:
    tests = [test_set(recipe, group, seed, "recipe") for group in recipe.test]
    items = tuple(item for test in tests for item in items_of(test))
    judges = tuple((test.group, judge) for test in tests for judge in test.judges)
    decoding = {test.group: test.decoding for test in tests}

    def ask(base: Request) -> Ask:
        precision = recipe.finetune.precision
        return Ask(base, items, decoding, recipe.template, precision)

    seen: dict[str, str] = {}
    for defence in recipe.defence:
        aligned = aligned_stage(recipe, defence, seed)
        if request_key(aligned) not in seen:
            only = _only_aligned(defence, seen.values())
            seen[request_key(aligned)] = only.title
            yield Cell(only, None, None, seed, ask(aligned), judges)
        for workload in recipe.workload:
            for p in workload.p:
                yield Cell(defence, workload, p, seed, ask(_tuned(recipe, defence, workload, p, aligned)), judges)


def aligned_stage(recipe: Recipe, defence: Defence, seed: int) -> TrainStage:
    """The alignment stage of a defence."""
    method = method_from("align", defence.align, defence.title)
    data = {s: read.source(for_seed(getattr(recipe.data, s), seed), f"data.{s}") for s in method.needs}
    return TrainStage(method, for_seed(recipe.model, seed), data, recipe.align, recipe.adapter, recipe.template, seed)


def _tuned(
    recipe: Recipe, defence: Defence, workload: Workload, p: float, aligned: TrainStage
) -> TrainStage | RepairStage:
    method = method_from("finetune", defence.finetune, defence.title)
    seed = aligned.seed

    def source(name: str) -> read.Source:
        return read.source(for_seed(getattr(recipe.data, name), seed), f"data.{name}")

    poison = source("poison") if p > 0 else None
    data: dict[Any, Any] = {"user": UserData(source("task"), poison, Mix(workload.n, p))}
    data |= {stream: source(stream) for stream in method.needs if stream != "user"}
    training = user_training(recipe, workload, "recipe")
    tuned = TrainStage(method, aligned, data, training, recipe.adapter, recipe.template, seed)
    mend = method_from("repair", defence.repair, defence.title)
    if mend is None:
        return tuned
    calibration = {stream: data["user"] if stream == "user" else source(stream) for stream in mend.streams}
    return RepairStage(mend, tuned, calibration, template=recipe.template, seed=seed)


def _only_aligned(defence: Defence, taken: Collection[str]) -> Defence:
    """The alignment alone, under the name of its method: several defences may share it.

    The same method with other knobs is another model, so it also carries the name of its defence.
    """
    title = method_from("align", defence.align, defence.title).title
    title = f"{title} ({defence.title})" if title in taken else title
    return Defence(title=title, align=defence.align, finetune={}, repair={}, chosen=defence.chosen)


def items_of(test: Test) -> list[Item]:
    """Items of a test set, through its task when it names one.

    Raises:
        DataError: the source does not hold what it must.
    """
    convert = TASKS.load(test.source.task)().rows if test.source.task else None
    found = read.items(test.source, group=test.group, convert=convert)
    # One samples file holds all groups, so ids carry their group.
    return [replace(item, id=f"{test.group}/{item.id}") for item in found]
