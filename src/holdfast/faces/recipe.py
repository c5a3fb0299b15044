"""Recipes of comparisons: photos, recognisers and methods in one TOML file, checked before work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, knob
from holdfast.data.recipes import read_toml
from holdfast.faces.method import MASKS, MaskMethod


@dataclass(frozen=True)
class Compared:
    """One row of a comparison."""

    title: str = knob(doc="what reports call it")
    method: str = knob(doc="name of a mask method")
    knobs: dict[str, Any] = knob({}, "its knobs")
    note: str = knob("", "a sentence for the report")

    def built(self, where: str) -> MaskMethod:
        """The method with its knobs.

        Raises:
            UsageError: no such method, or knobs that do not fit.
        """
        made: MaskMethod = build(MASKS.load(self.method, where), self.knobs, where)
        return made


@dataclass(frozen=True)
class Recipe:
    """A comparison of methods on people, each recogniser named in ``held_out`` left out of learning in turn."""

    title: str = knob(doc="what the report is called")
    method: tuple[Compared, ...] = knob(doc="rows")
    photos: str = knob("drawn", "a folder with one folder of photos for each person, or drawn: generated people")
    gallery: str = knob("", "a folder with more people for the gallery, one folder each")
    protect: tuple[str, ...] = knob((), "people who get masks; none: everybody with enough photos")
    people: int = knob(8, "with drawn: people who get masks", low=1, high=100)
    strangers: int = knob(24, "with drawn: other people in the gallery", low=2, high=400)
    learn: int = knob(6, "photos of each person that masks are learned from", low=3)
    rest: int = knob(6, "with drawn: further photos of each person, half of them to be recognised", low=2)
    recognisers: tuple[str, ...] = knob((), "the pool: shipped names, folders, .onnx files (which only judge)")
    held_out: tuple[str, ...] = knob((), "each of these is left out in turn, with a mask learned without it")
    team_size: int = knob(2, "recognisers that a mask learns from, picked by focal diversity", low=1)
    attacks: tuple[str, ...] = knob((), "what adversaries do; see docs/faces-attacks.md")
    others: str = knob("drawn", "faces of other people that methods may use: drawn, or a folder of photos")
    seed: int = knob(0, "seed of every draw", low=0)
    notes: tuple[str, ...] = knob((), "sentences for the report")


@dataclass(frozen=True)
class Checking:
    """Who judges one person's key, against whom, and after what."""

    recognisers: tuple[str, ...] = knob(
        ("openvino-0095", "mobileface-v2", "mobileface-v3"), "judges: shipped names, folders, or .onnx files"
    )
    others: str = knob("drawn", "other people in the gallery: a folder with one folder each, or drawn")
    attacks: tuple[str, ...] = knob(("jpeg75", "blur1", "average8"), "what adversaries do to the photos first")
    seed: int = knob(0, "seed of who is in the gallery and who is recognised", low=0)


def read_recipe(path: Path) -> tuple[Recipe, str]:
    """A recipe and its text.

    Raises:
        UsageError: a key, a name or a number that does not fit, named with the file.
    """
    table, text = read_toml(path)
    made = build(Recipe, table, path.name)
    validate(made, path.name)
    return made, text


def validate(recipe: Recipe, where: str) -> None:
    """Refuse what cannot be compared.

    Raises:
        UsageError: rows of one title, a left-out recogniser that is not in the pool, a team larger than the pool.
    """
    check(recipe, where)
    titles = [row.title for row in recipe.method]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two methods are called {twice!r}", hint="give each row a title of its own")
    if not titles:
        raise UsageError(f"{where}: no method", hint='add [[method]] with title = "..." and method = "chameleon"')
    for place, row in enumerate(recipe.method):
        row.built(f"{where}: method[{place}]")
    if len(set(recipe.recognisers)) < len(recipe.recognisers) or not recipe.recognisers:
        raise UsageError(f"{where}: recognisers {list(recipe.recognisers)}", hint="name one or more, each once")
    strange = next((name for name in recipe.held_out if name not in recipe.recognisers), None)
    if strange is not None:
        raise UsageError(f"{where}: held_out names {strange!r}, which is not among recognisers", hint="add it there")
    left = len([name for name in recipe.recognisers if not name.endswith(".onnx")]) - bool(recipe.held_out)
    if recipe.team_size > left:
        raise UsageError(
            f"{where}: a team of {recipe.team_size}, and {left} recognisers can be learned from",
            hint=f"team_size = {left}, or more recognisers",
        )
