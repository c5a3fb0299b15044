"""Plans of comparisons: from a recipe to every run that it needs, everything that can fail early checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from holdfast.core.errors import DataError
from holdfast.core.records import Item
from holdfast.core.stage import Request, request_key
from holdfast.data.recipes import for_seed
from holdfast.models.ask import Ask
from holdfast.models.grid import Task
from holdfast.steer.diagnose import Diagnosis
from holdfast.steer.recipe import Compared, Material, Recipe, Workload, material, method_of
from holdfast.steer.stage import AskSteered, FitStage

BASE = "No steering"


@dataclass(frozen=True)
class Cell:
    """One method (none: the model as it is) on one workload and seed."""

    compared: Compared | None
    workload: Workload
    seed: int
    ask: Ask | AskSteered

    @property
    def title(self) -> str:
        """What reports call the method."""
        return self.compared.title if self.compared else BASE


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison makes.

    Attributes:
        recipe, text: the recipe and its TOML.
        materials: items by seed.
        cells: methods x workloads x seeds.
        plain: answers to the test prompts without pictures, by workload and seed.
        diagnoses: by workload and seed.
        tasks: every distinct run, by key; ``parents``: what each starts from.
    """

    recipe: Recipe
    text: str
    materials: Mapping[int, Material]
    cells: tuple[Cell, ...]
    plain: Mapping[tuple[str, int], Ask]
    diagnoses: Mapping[tuple[str, int], Diagnosis]
    tasks: Mapping[str, Task]
    parents: Mapping[str, str]


def make_plan(recipe: Recipe, text: str) -> Plan:
    """All requests of a recipe, everything that can fail early checked.

    Raises:
        HoldfastError: data, pictures, models, methods or knobs that do not fit.
    """
    materials = {seed: material(recipe, seed) for seed in recipe.seeds}
    check_apart(materials)
    cells = tuple(_cells(recipe, materials))
    plain: dict[tuple[str, int], Ask] = {}
    diagnoses: dict[tuple[str, int], Diagnosis] = {}
    for workload in recipe.workload:
        for seed in recipe.seeds:
            model, test = for_seed(workload.model, seed), materials[seed].test
            bare = tuple(replace(item, image="") for group in ("harmful", "benign") for item in test[group].items)
            decoding = {group: test[group].decoding for group in ("harmful", "benign")}
            plain[workload.name, seed] = Ask(model, bare, decoding, recipe.template, recipe.precision)
            exams = {group: materials[seed].validation[group] for group in ("harmful", "benign")}
            diagnoses[workload.name, seed] = Diagnosis(model, exams, recipe.speaking)
    tasks, parents = _tasks(cells, plain, diagnoses)
    return Plan(recipe, text, materials, cells, plain, diagnoses, tasks, parents)


def _cells(recipe: Recipe, materials: Mapping[int, Material]) -> Iterator[Cell]:
    for workload in recipe.workload:
        for seed in recipe.seeds:
            here = materials[seed]
            model = for_seed(workload.model, seed)
            fitted_on = for_seed(workload.fitted_on, seed) or model
            items = tuple(item for exam in here.test.values() for item in exam.items)
            decoding = {group: exam.decoding for group, exam in here.test.items()}
            yield Cell(None, workload, seed, Ask(model, items, decoding, recipe.template, recipe.precision))
            for compared in recipe.method:
                fit = FitStage(
                    method_of(compared, compared.title), fitted_on, here.harmful, here.benign, here.validation,
                    recipe.choice, recipe.speaking,
                )  # fmt: skip
                other = fitted_on != model
                yield Cell(compared, workload, seed, AskSteered(fit, model, items, decoding, recipe.speaking, other))


def _tasks(
    cells: Sequence[Cell],
    plain: Mapping[tuple[str, int], Ask],
    diagnoses: Mapping[tuple[str, int], Diagnosis],
) -> tuple[dict[str, Task], dict[str, str]]:
    requests: list[Request] = [*diagnoses.values(), *plain.values()]
    parents: dict[str, str] = {}
    for cell in cells:
        if isinstance(cell.ask, AskSteered):
            fit = cell.ask.steering
            assert isinstance(fit, FitStage)
            requests.append(fit)
            parents[request_key(cell.ask)] = request_key(fit)
        requests.append(cell.ask)
    checked: set[str] = set()
    tasks: dict[str, Task] = {}
    for request in requests:
        key = request_key(request)
        if key not in tasks:
            tasks[key] = Task(key, request)
            # One of a kind stands for the others of its seed: what is checked is the same.
            sees = any(item.image for item in getattr(request, "items", ()))
            mark = f"{request.kind}/{request.spec['base']}/{request.spec.get('method')}/{sees}"
            if mark not in checked:
                checked.add(mark)
                request.validate()
    return tasks, parents


def check_apart(materials: Mapping[int, Material]) -> None:
    """Refuse test prompts that were learned from or chosen by.

    Raises:
        DataError: a prompt is in two sets.
    """
    for seed, here in materials.items():
        sets = {
            "anchors": [*here.harmful, *here.benign],
            "validation": [i for exam in here.validation.values() for i in exam.items],
        }
        for group, exam in here.test.items():
            asked = {_plainly(item) for item in exam.items}
            for name, items in sets.items():
                # A question about a picture is another question when the picture is another one.
                shared = [item for item in items if _plainly(item) in asked and item.group == group]
                if shared and not (group == "visual" and _other_pictures(shared, exam.items)):
                    raise DataError(
                        f"seed {seed}: {len(shared)} prompts of {name} are in test.{group} too (one begins "
                        f"{shared[0].prompt[:40]!r})",
                        hint="give other prompts: 'start' and 'limit' of a source cut a file in two",
                    )


def _plainly(item: Item) -> str:
    return " ".join(item.prompt.casefold().split())


def _other_pictures(shared: Sequence[Item], asked: Sequence[Item]) -> bool:
    there = {(_plainly(item), item.image) for item in asked}
    return not any((_plainly(item), item.image) in there for item in shared)
