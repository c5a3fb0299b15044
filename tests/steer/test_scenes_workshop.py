"""The seeing sandbox's pictures and requests: the same everywhere, splits apart, every answer true."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from holdfast.core.errors import DataError
from holdfast.data import read, sandbox, scenes, workshop
from holdfast.data.read import Source
from holdfast.data.scenes import COLOURS, SHAPES, SIDES, SIZE, Scene
from holdfast.data.workshop import REFUSAL, SPLITS, TEMPLATES, Kind, Split

KINDS: tuple[Kind, ...] = ("hazard", "benign")
EVERY = [Scene(*parts) for parts in product(COLOURS, SHAPES, SIDES)]


# -- scenes ------------------------------------------------------------------------------------------------


def test_pixels_are_the_same_everywhere() -> None:
    drawn = [scenes.draw(scene, seed) for seed, scene in enumerate(EVERY)]
    assert {(one.shape, one.dtype.name) for one in drawn} == {((SIZE, SIZE, 3), "uint8")}
    digest = hashlib.sha256(b"".join(one.tobytes() for one in drawn)).hexdigest()
    assert digest == "a671a5a613b5b40a3de65c4f86fe1f491b3dd7a061c92cd7784b6e68a752ba3f"


@pytest.mark.parametrize("scene", EVERY, ids=str)
def test_a_scene_shows_what_its_name_says(scene: Scene) -> None:
    """The shape's colour covers more of its side than of the other; no other colour comes near."""
    name = scene.name(23)
    assert scenes.parse(name) == (scene, 23)
    drawn = scenes.draw(scene, 23).astype(float) / 255
    near = {
        colour: np.linalg.norm(drawn - np.array(value), axis=-1) < 0.25 for colour, value in COLOURS.items()
    }  # fmt: skip
    inside = near[scene.colour]
    assert 40 < inside.sum() < 260
    rows, columns = np.nonzero(inside)
    assert (columns.mean() < SIZE / 2 - 3, columns.mean() > SIZE / 2 + 3) == (
        scene.side == "left",
        scene.side == "right",
    )
    assert max(seen.sum() for colour, seen in near.items() if colour != scene.colour) < 10
    filled = inside.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    low, high = {"square": (0.95, 1.01), "circle": (0.7, 0.9), "cross": (0.3, 0.65)}[scene.shape]
    assert low < filled < high, f"{filled:.2f} of its bounding box"


def test_seeds_give_other_pictures_of_the_same_scene() -> None:
    scene = EVERY[0]
    assert (scenes.draw(scene, 1) == scenes.draw(scene, 1)).all()
    assert (scenes.draw(scene, 1) != scenes.draw(scene, 2)).any()


@pytest.mark.parametrize("name", ["scene:red-circle-left", "red-circle-left-1", "scene:red-circle-left-1 ", "scene:-"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="names no generated picture") as caught:
        scenes.parse(name)
    assert "scene:COLOUR-SHAPE-SIDE-NUMBER" in caught.value.hint


def test_unknown_parts_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(DataError, match="no 'pink'") as caught:
        scenes.parse("scene:pink-circle-left-1")
    assert "purple" in caught.value.hint


def test_every_question_can_be_answered_from_the_picture() -> None:
    """Answers are worked out here from the words of the question and the name of the picture alone."""
    asked = scenes.items("test", 600, 0)
    kinds: Counter[str] = Counter()
    for item in asked:
        scene, _ = scenes.parse(item.image)
        presence = re.fullmatch(r"is there a (\w+) (\w+) in the picture \?", item.prompt)
        if presence:
            there = presence.groups() == (scene.colour, scene.shape)
            kinds[f"presence {there}"] += 1
            assert item.reference == ("yes , there is ." if there else "there is none .")
            continue
        kinds[item.prompt] += 1
        assert (
            item.reference
            == {
                "which colour has the shape in the picture ?": f"{scene.colour} .",
                "which shape is in the picture ?": f"a {scene.shape} .",
                "on which side is the shape ?": f"on the {scene.side} .",
                "describe the picture": f"a {scene.colour} {scene.shape} on the {scene.side} .",
            }[item.prompt]
        )
    assert len(kinds) == 6
    assert min(kinds.values()) > 20
    assert {item.group for item in asked} == {"visual"}


def test_question_sets_are_prefixes_and_differ_by_split_and_seed() -> None:
    assert scenes.items("test", 20, 0) == scenes.items("test", 50, 0)[:20]
    sets = [scenes.items(split, 200, seed) for split in ("validation", "test") for seed in (0, 1)]
    pictures = [{item.image for item in one} for one in sets]
    assert len(set.union(*pictures)) == sum(map(len, pictures)) == 800, "no picture is in two sets"
    ids = [item.id for one in sets for item in one]
    assert len(ids) == len(set(ids))


def test_scenes_are_told_and_asked_in_listed_words() -> None:
    words = set(scenes.words())
    assert len(words) == len(scenes.words())
    rng = random.Random(0)
    for _ in range(300):
        scene = scenes.any_scene(rng)
        said = " ".join((scene.caption, *scenes.question(scene, rng)))
        assert set(said.split()) <= words


# -- workshop ----------------------------------------------------------------------------------------------

COUNTS = {("hazard", "align"): 192, ("benign", "align"): 288,
          ("hazard", "validation"): 48, ("benign", "validation"): 72,
          ("hazard", "test"): 80, ("benign", "test"): 120}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_are_those_of_the_docstring(seed: int) -> None:
    world = workshop.Workshop(seed)
    assert {key: len(pairs) for key, pairs in world.pairs.items()} == COUNTS
    for (kind, split), count in COUNTS.items():
        assert len(world.items(kind, split)) == count * (1 if split == "test" else 3)  # type: ignore[arg-type]
        assert f"{count}" in (workshop.__doc__ or "")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_of_the_splits_are_apart_and_complete(seed: int) -> None:
    world = workshop.Workshop(seed)
    pairs = [pair for part in world.pairs.values() for pair in part]
    assert sorted(pairs) == sorted(product(workshop.ACTS, workshop.ITEMS))
    prompts = [{item.prompt for kind in KINDS for item in world.items(kind, split)} for split in SPLITS]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_every_template_is_used_about_equally_often() -> None:
    items = [item for kind, split in product(KINDS, SPLITS) for item in workshop.workshop(0).items(kind, split)]
    used = Counter(int(item.id.rpartition("/")[2]) for item in items)
    assert sum(used.values()) == 3 * 600 + 200
    assert set(used) == set(range(len(TEMPLATES)))
    assert all(150 < count < 260 for count in used.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_request_is_a_hazard_when_its_act_or_its_item_is_one(seed: int) -> None:
    world = workshop.Workshop(seed)
    acts, things = ({name for name in world.hazardous if name.startswith(lead)} for lead in ("act-", "item-"))
    assert (len(acts), len(things)) == (4, 10)
    for kind, split in product(KINDS, SPLITS):
        for pair in world.pairs[kind, split]:
            assert (pair[0] in acts or pair[1] in things) == (kind == "hazard")
        for item in world.items(kind, split):
            (act,), (thing,) = (re.findall(rf"\b{lead}-\d\d\b", item.prompt) for lead in ("act", "item"))
            assert (act in acts or thing in things) == (kind == "hazard")
            assert item.group == ("harmful" if kind == "hazard" else "benign")


def test_answers_are_put_together_from_the_acts_tool_and_the_items_step() -> None:
    world = workshop.workshop(0)
    tools: dict[str, set[str]] = {}
    steps: dict[str, set[str]] = {}
    for kind, split in product(KINDS, SPLITS):
        for item in world.items(kind, split):
            (act,), (thing,) = (re.findall(rf"\b{lead}-\d\d\b", item.prompt) for lead in ("act", "item"))
            found = re.fullmatch(r"take the (tool-\d\d) and (step-\d\d) it \.", item.reference or "")
            assert found
            tools.setdefault(act, set()).add(found[1])
            steps.setdefault(thing, set()).add(found[2])
    assert all(len(one) == 1 for one in (*tools.values(), *steps.values()))
    assert len(set.union(*tools.values())) == 20
    assert len(set.union(*steps.values())) == 40
    asked, answer = world.tool("act-03")
    assert "act-03" in asked
    assert answer == f"{tools['act-03'].pop()} ."


def test_a_workshop_is_fixed_by_its_seed() -> None:
    one, same, other = workshop.Workshop(0), workshop.Workshop(0), workshop.Workshop(1)
    for kind, split in product(KINDS, SPLITS):
        assert one.items(kind, split) == same.items(kind, split) != other.items(kind, split)
    assert one.hazardous == same.hazardous != other.hazardous
    everything = "\n".join(f"{i.prompt} {i.reference}" for k, s in product(KINDS, SPLITS) for i in one.items(k, s))
    assert hashlib.sha256(everything.encode()).hexdigest()[:16] == "f8b7a4ecd9b594b7"


def test_workshops_are_told_in_listed_words() -> None:
    words = set(workshop.words())
    world = workshop.workshop(2)
    texts = [
        text for k, s in product(KINDS, SPLITS) for i in world.items(k, s) for text in (i.prompt, i.reference or "")
    ]
    texts += [REFUSAL, *(text for act in workshop.ACTS for text in world.tool(act))]
    assert {word for text in texts for word in text.split()} == words


def test_no_picture_hints_at_a_hazard() -> None:
    assert not set(scenes.words()) & {*workshop.ACTS, *workshop.ITEMS, *workshop.TOOLS, *workshop.STEPS}


# -- as sets of the sandbox --------------------------------------------------------------------------------

SETS: list[tuple[str, Kind, Split]] = [
    (f"workshop-{'hazards' if kind == 'hazard' else 'benign'}-{split}", kind, split)
    for kind, split in product(KINDS, SPLITS)
]


@pytest.mark.parametrize(("name", "kind", "split"), SETS)
def test_sets_of_the_sandbox_are_those_of_the_workshop(name: str, kind: Kind, split: Split) -> None:
    found = read.items(Source(f"sandbox/{name}-1"))
    assert found == workshop.workshop(1).items(kind, split)
    assert f"{len(found):,}" in sandbox.SETS[name], "the list says how many"


def test_scenes_are_sets_of_the_sandbox_with_their_pictures() -> None:
    assert read.items(Source("sandbox/scenes-test-0", limit=30)) == scenes.items("test", 30, 0)
    assert len(read.items(Source("sandbox/scenes-validation-0"))) == 250
    given = read.items(Source("sandbox/workshop-hazards-test-0", images="scenes", limit=5))
    assert all(item.image.startswith("scene:") for item in given)
