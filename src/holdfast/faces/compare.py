"""Comparing mask methods: the same people, photos and recognisers for all, at the same visibility.

For each recogniser that is left out, a team is picked from the rest by focal diversity, every method learns each
person's mask from the team, and every recogniser of the pool judges held-out photos. Masks are runs of their own, made
once and shared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError, ModelError
from holdfast.core.events import Progressed, Sink, StageFinished, StageStarted, Warned, ignore
from holdfast.core.files import read_json, write_bytes, write_json, write_text
from holdfast.core.keys import digest, file_digest
from holdfast.core.knobs import resolved
from holdfast.core.runs import Run, Store
from holdfast.core.stage import find_or_make, request_key
from holdfast.data import drawn
from holdfast.faces.check import Album, Cloak, Faces, assess, divided, read_album
from holdfast.faces.learn import DRAWN, Kept, photos_of
from holdfast.faces.mask import applied, removed
from holdfast.faces.method import MaskMethod, Subject
from holdfast.faces.people import Gathered, Skipped
from holdfast.faces.recipe import Recipe
from holdfast.faces.recogniser import Recogniser, find_recogniser, identity_of, load_recognisers
from holdfast.faces.team import Team, pick_team
from holdfast.models.engine import Engine, device_of
from holdfast.models.grid import GridResult, Task, run_tasks

KIND = "faces-compare"
FORMAT = 1
_QUALITY = 92


# -- photos ---------------------------------------------------------------------------------------------


def draw_people(recipe: Recipe, folder: Path, sink: Sink = ignore) -> Path:
    """Photos of drawn people on disk, one folder each; those that are there stay.

    Args:
        recipe: how many people and photos.
        folder: where they go.
        sink: told of progress.
    """
    from PIL import Image

    protected = drawn.demo_people(recipe.people)
    strangers = drawn.demo_people(recipe.strangers, first=recipe.people)
    jobs = [
        (f"person-{n:02d}", one, shot) for n, one in enumerate(protected) for shot in range(recipe.learn + recipe.rest)
    ]
    jobs += [(f"stranger-{n:02d}", one, shot) for n, one in enumerate(strangers) for shot in range(_STRANGER_PHOTOS)]
    for done, (name, one, shot) in enumerate(jobs):
        target = folder / name / f"{shot:02d}.jpg"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_suffix(".part")
            Image.fromarray(drawn.photo(one, shot).pixels).save(aside, "JPEG", quality=_QUALITY)
            aside.replace(target)
        sink(Progressed(done=done + 1, total=len(jobs)))
    return folder


_STRANGER_PHOTOS = 3


@dataclass(frozen=True)
class Aligning:
    """Find and align the faces of a folder of people; kept as a run, because it is the same for all methods."""

    folder: Path
    recognisers: tuple[str, ...]

    kind = "album"
    label = "album"
    attacked = False

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Names of people with the content of their photos."""
        files = {
            room.name: sorted(file_digest(path) for path in photos_of([room]))
            for room in sorted(self.folder.iterdir())
            if room.is_dir() and not room.name.startswith(".") and any(room.iterdir())
        }
        return {"version": 1, "people": files, "recognisers": [identity_of(one) for one in self.recognisers]}

    def validate(self) -> None:
        """Refuse a folder that is not there.

        Raises:
            DataError: it is not.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"no folder {self.folder}", hint="give a folder that holds one folder of photos for each person"
            )

    def make(self, store: Store, engine: Any = None, sink: Sink = ignore) -> Run:
        """The sealed run."""
        return find_or_make(self, store, sink, self._work)

    def _work(self, run: Run, sink: Sink) -> dict[str, Any]:
        from safetensors.torch import save

        album = read_album(self.folder, load_recognisers(self.recognisers), sink)
        run.artifacts.mkdir(parents=True, exist_ok=True)
        tensors = {name: one.crops.contiguous() for name, one in album.people.items()}
        write_bytes(run.artifacts / "crops.safetensors", save(tensors))
        about = {
            "people": {name: list(one.paths) for name, one in album.people.items()},
            "skipped": [[one.path, one.reason] for one in album.skipped],
        }
        write_json(run.artifacts / "album.json", about)
        return {"people": len(album.people), "photos": sum(len(one.paths) for one in album.people.values())}


def album_of(run: Run) -> Album:
    """The album that a run aligned."""
    from safetensors.torch import load_file

    about, crops = read_json(run.artifacts / "album.json"), load_file(run.artifacts / "crops.safetensors")
    people = {name: Gathered(crops[name], tuple(paths)) for name, paths in about["people"].items()}
    return Album(people, tuple(Skipped(*one) for one in about["skipped"]))


# -- masks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskOf:
    """What one method makes for one person: a bank of masks, or a change for each photo."""

    method: MaskMethod
    training: Tensor
    photos: Mapping[str, Tensor]
    recognisers: tuple[str, ...]
    others: Tensor
    seed: int

    kind = "face-mask"
    attacked = False

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        return self.method.name

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on; photos count only where each is changed on its own."""
        photos = {part: _tensor_digest(crops) for part, crops in self.photos.items()} if self.method.per_photo else {}
        return {
            "version": 1,
            "method": {"name": self.method.name, "version": self.method.version, "knobs": resolved(self.method)},
            "training": _tensor_digest(self.training),
            "photos": photos,
            "recognisers": [identity_of(reference) for reference in self.recognisers],
            "others": _tensor_digest(self.others),
            "seed": self.seed,
        }

    def validate(self) -> None:
        """Everything was checked with the recipe."""

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run."""
        return find_or_make(self, store, sink, lambda run, log: self._work(run, engine or Engine(), log))

    def _work(self, run: Run, engine: Engine, sink: Sink) -> dict[str, Any]:
        from safetensors.torch import save

        device = device_of(engine)
        torch.set_num_threads(engine.threads or 1)
        team = tuple(one.to(device) for one in load_recognisers(self.recognisers))
        subject = Subject(self.training.to(device), team, self.others.to(device))
        torch.set_flush_denormal(True)
        began = time.process_time()
        try:
            if self.method.per_photo:
                made = {
                    part: self.method.cloak(crops.to(device), subject, self.seed).cpu()
                    for part, crops in self.photos.items()
                    if len(crops)
                }
            else:
                kept = Kept(run.path / "checkpoint" / "search.safetensors", sink, engine.checkpoint_every)
                made = {"masks": self.method.learn(subject, self.seed, kept, kept.found()).cpu()}
        finally:
            torch.set_flush_denormal(False)
        run.artifacts.mkdir(parents=True, exist_ok=True)
        content = save({part: change.to(torch.int8).contiguous() for part, change in made.items()})
        write_bytes(run.artifacts / "masks.safetensors", content)
        return {"cpu_seconds": round(time.process_time() - began, 2)}


def _tensor_digest(value: Tensor) -> str:
    return digest([list(value.shape), value.numpy().tobytes().hex()]) if value.numel() else "empty"


def masks_of(run: Run) -> Tensor | Cloak:
    """What :class:`MaskOf` made."""
    from safetensors.torch import load_file

    found = {part: value.float() for part, value in load_file(run.artifacts / "masks.safetensors").items()}
    return found["masks"] if "masks" in found else Cloak(**found)


# -- the plan -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One method under one team."""

    title: str
    held_out: str
    team: tuple[str, ...]
    masks: Mapping[str, MaskOf]


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison makes."""

    recipe: Recipe
    text: str
    faces: Faces
    pool: tuple[Recogniser, ...]
    teams: Mapping[str, list[Team]]
    cells: tuple[Cell, ...]
    tasks: Mapping[str, Task] = field(default_factory=dict)


def make_plan(recipe: Recipe, text: str, store: Store, sink: Sink = ignore) -> Plan:
    """Align the photos, pick the teams, list the masks to make.

    Raises:
        HoldfastError: a recogniser or photos that do not serve.
    """
    for reference in recipe.recognisers:
        find_recogniser(reference)
    pool = tuple(load_recognisers(recipe.recognisers))
    names = dict(zip(recipe.recognisers, (one.name for one in pool), strict=True))
    folder = draw_people(recipe, store.root / "drawn-people", sink) if recipe.photos == DRAWN else Path(recipe.photos)
    deciding = tuple(ref for ref, one in zip(recipe.recognisers, pool, strict=True) if one.differentiable)
    album = _album([folder, *([Path(recipe.gallery)] if recipe.gallery else [])], deciding, store, sink)
    faces = divided(album, recipe.seed, protect=recipe.protect, learn=recipe.learn)
    others = _others(recipe)
    teams: dict[str, list[Team]] = {}
    cells = []
    for held in recipe.held_out or ("",):
        able = [one for one in pool if one.differentiable and one.name != names.get(held)]
        strangers = {name: one.crops for name, one in album.people.items() if name not in faces.training}
        teams[held] = _teams(able, strangers, album, recipe)
        team = tuple(ref for ref in recipe.recognisers if names[ref] in teams[held][0].members)
        for place, row in enumerate(recipe.method):
            method = row.built(f"method[{place}]")
            masks = {
                person: MaskOf(
                    method, crops,
                    {"probes": faces.probes[person], "gallery": faces.gallery[person], "training": crops},
                    team, others, recipe.seed,
                )
                for person, crops in faces.training.items()
            }  # fmt: skip
            cells.append(Cell(row.title, held, team, masks))
    requests = {request_key(one): one for cell in cells for one in cell.masks.values()}
    tasks = {key: Task(key, one) for key, one in requests.items()}
    return Plan(recipe, text, faces, pool, teams, tuple(cells), tasks)


def _album(folders: Sequence[Path], deciding: tuple[str, ...], store: Store, sink: Sink) -> Album:
    """People of all folders; a name that is there twice is one of each folder."""
    requests = [Aligning(folder, deciding) for folder in folders]
    for request in requests:
        request.validate()
    people: dict[str, Gathered] = {}
    skipped: list[Skipped] = []
    for request in requests:
        found = album_of(request.make(store, None, sink))
        people |= {
            name if name not in people else f"{request.folder.name}/{name}": one for name, one in found.people.items()
        }
        skipped += found.skipped
    return Album(people, tuple(skipped))


def _teams(able: Sequence[Recogniser], strangers: Mapping[str, Tensor], album: Album, recipe: Recipe) -> list[Team]:
    """All teams, the best first, chosen on people without masks.

    Where none of them has two photos, the protected people's serve: the choice is of recognisers, not of a person.
    """
    usable = {name: crops for name, crops in strangers.items() if len(crops) >= 2}
    if len(able) < recipe.team_size:
        raise ModelError(f"{len(able)} recognisers can be learned from", hint=f"team_size = {len(able)}")
    people = usable if len(usable) >= 2 else {name: one.crops for name, one in album.people.items()}
    return pick_team(able, people, recipe.team_size, recipe.seed)


def _others(recipe: Recipe) -> Tensor:
    from holdfast.faces.learn import other_people

    return other_people(recipe.others)


# -- the result -----------------------------------------------------------------------------------------


def run_compare(
    plan: Plan, store: Store, engine: Engine, *, workers: int = 0, command: str = "", sink: Sink = ignore
) -> tuple[Run, dict[str, Any]]:
    """Make all masks, judge them, write result and page.

    Raises:
        Interrupted, ResourceError: it stopped; the same call goes on.
    """
    from holdfast.faces.page import write

    began = time.perf_counter()
    grid = run_tasks(plan.tasks, {}, store, engine, workers=workers, sink=sink)
    for reason in dict.fromkeys(grid.failed.values()):
        sink(Warned(message=f"a mask failed: {reason}"))
    run = store.run(KIND, KIND, compare_spec(plan))
    with run.working(sink) as log:
        log(StageStarted(run=run.name, stage="judge", label=plan.recipe.title, total=len(plan.cells)))
        result = collect(plan, store, grid, run, command, log)
        write_json(run.path / "metrics.json", result)
        write(result, run.path / "report.html")
        write_text(run.path / "recipe.toml", plan.text)
        seconds = time.perf_counter() - began
        if result["complete"]:
            run.seal(seconds, runs=grid.made, reused=grid.reused)
        log(StageFinished(run=run.name, stage="judge", seconds=seconds))
    return run, result


def compare_spec(plan: Plan) -> dict[str, Any]:
    """What a comparison's key is taken over."""
    cells = [
        {"title": c.title, "held_out": c.held_out, "masks": {name: request_key(one) for name, one in c.masks.items()}}
        for c in plan.cells
    ]
    judges = [{"name": one.name, "digest": one.digest} for one in plan.pool]
    photos = {name: _tensor_digest(crops) for name, crops in plan.faces.gallery.items()}
    return {
        "title": plan.recipe.title, "cells": cells, "judges": judges, "gallery": photos,
        "attacks": list(plan.recipe.attacks), "format": FORMAT,
    }  # fmt: skip


def collect(plan: Plan, store: Store, grid: GridResult, run: Run, command: str, sink: Sink = ignore) -> dict[str, Any]:
    """Judge every cell; what was judged before is read from the run."""
    cells = []
    for number, cell in enumerate(plan.cells):
        failed = next(
            (grid.failed[key] for one in cell.masks.values() if (key := request_key(one)) in grid.failed), None
        )
        made = None if failed else _judged(cell, plan, store, run)
        row = next(one for one in plan.recipe.method if one.title == cell.title)
        times = [] if failed else [_seconds(one, store) for one in cell.masks.values()]
        cells.append(
            {
                "title": cell.title, "note": row.note, "method": row.method, "held_out": cell.held_out,
                "knobs": resolved(next(iter(cell.masks.values())).method),
                "learned_from": [_name_of(ref) for ref in cell.team], "failed": failed, "checked": made,
                "cpu_seconds": [value for value in times if value is not None],
            }
        )  # fmt: skip
        sink(Progressed(done=number + 1, total=len(plan.cells)))
    return {
        "format": FORMAT, "title": plan.recipe.title, "notes": list(plan.recipe.notes), "command": command,
        "complete": not grid.failed, "photos": plan.recipe.photos, "gallery": plan.recipe.gallery,
        "others": plan.recipe.others, "learn": plan.recipe.learn,
        "recognisers": [about(one) for one in plan.pool], "attacks": list(plan.recipe.attacks),
        "teams": {held: [one.as_json() for one in teams[:10]] for held, teams in plan.teams.items()},
        "cells": cells, "pictures": pictures(plan, store, grid),
    }  # fmt: skip


def _name_of(reference: str) -> str:
    return find_recogniser(reference).stem if reference.endswith(".onnx") else find_recogniser(reference).name


def _run(request: MaskOf, store: Store) -> Run:
    return store.run(request.kind, request.label, request.spec)


def _seconds(request: MaskOf, store: Store) -> float | None:
    record = _run(request, store).seal_record() or {}
    found = record.get("summary", {}).get("cpu_seconds")
    return None if found is None else float(found)


def _judged(cell: Cell, plan: Plan, store: Store, run: Run) -> dict[str, Any]:
    """The assessment of a cell, kept in the run under the keys of its masks."""
    key = digest([request_key(one) for one in cell.masks.values()] + [cell.held_out])[:16]
    place = run.path / "checked" / f"{key}.json"
    if place.is_file():
        found: dict[str, Any] = read_json(place)
        return found
    masks = {person: masks_of(_run(one, store)) for person, one in cell.masks.items()}
    names = [_name_of(ref) for ref in cell.team]
    made = assess(plan.faces, masks, plan.pool, names, plan.recipe.attacks, plan.recipe.seed)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, made)
    return made


def pictures(plan: Plan, store: Store, grid: GridResult, people: int = 3) -> list[dict[str, Any]]:
    """For a few people, one held-out face as it is, and with each method's mask on, as PNG data addresses."""
    held = plan.cells[0].held_out
    made = []
    for person in list(plan.faces.training)[:people]:
        clean = plan.faces.probes[person][:1]
        views = [{"title": "original", "image": as_png(clean[0])}]
        for cell in plan.cells:
            request = cell.masks[person]
            if cell.held_out != held or request_key(request) in grid.failed:
                continue
            masks = masks_of(_run(request, store))
            change = masks.probes[:1] if isinstance(masks, Cloak) else masks[:1]
            worn = applied(clean, change)
            views.append({"title": cell.title, "image": as_png(worn[0])})
            if cell is plan.cells[0] and not isinstance(masks, Cloak):
                views.append({"title": f"{cell.title}, key applied", "image": as_png(removed(worn, change)[0])})
                views.append({"title": "its mask, around grey", "image": as_png((change[0] * 4 + 128).clamp(0, 255))})
        made.append({"person": person, "views": views})
    return made


def about(one: Recogniser) -> dict[str, Any]:
    """What a report says of a recogniser."""
    shown = ("title", "architecture", "licence", "source", "training")
    return {"name": one.name, **{key: one.card.get(key) for key in shown}}


def as_png(crop: Tensor) -> str:
    """A crop as a PNG data address."""
    import base64
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(crop.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
