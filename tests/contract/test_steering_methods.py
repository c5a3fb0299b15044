"""What every steering method has to keep, on the shipped model that sees; a method is tested by being in the table."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, describe, resolved
from holdfast.core.records import Item, Sample
from holdfast.data import workshop
from holdfast.data.images import open_image, paired
from holdfast.models.answer import Decoding
from holdfast.models.ask import base_identity
from holdfast.models.engine import Engine
from holdfast.steer.artifact import Steering, load_steering, shape_of
from holdfast.steer.method import STEERING, Anchors, Learned, SteeringMethod
from holdfast.steer.stage import FitStage, Speaking, open_subject
from holdfast.steer.subject import VIEWS, Batch, Subject

MODEL = "sandbox/vlm-0"
DECODING = Decoding(12)
NAMES = list(STEERING)
STRONG = [name for name in NAMES if any(field.name == "strength" for field in fields(STEERING.load(name)))]
every_method = pytest.mark.parametrize("name", NAMES)


def requests(kind: workshop.Kind, split: workshop.Split, n: int) -> list[Item]:
    found = workshop.workshop(0).items(kind, split)[:n]
    return paired([replace(item, id=f"{kind}/{i}") for i, item in enumerate(found)], "scenes", 0)


SEEING = [*requests("hazard", "test", 4), *requests("benign", "test", 4)]
BARE = [replace(item, id=f"bare/{item.id}", image="") for item in SEEING[2:6]]
MIXED = [item for pair in zip(SEEING, (*BARE, *BARE), strict=True) for item in pair][:10]


@dataclass
class World:
    """The shipped model, anchors read once for all methods, and what it does when left alone."""

    subject: Subject
    anchors: Anchors
    learned: dict[SteeringMethod, Learned]
    plain: dict[tuple[str, ...], list[Sample]]

    def fitted(self, method: SteeringMethod) -> Learned:
        if method not in self.learned:
            self.learned[method] = method.fit(self.anchors)
        return self.learned[method]

    def unsteered(self, items: Sequence[Item]) -> list[Sample]:
        key = tuple(item.id for item in items)
        if key not in self.plain:
            self.plain[key] = self.subject.samples(items, DECODING)
        return self.plain[key]

    def answers(self, method: SteeringMethod, items: Sequence[Item], batch: int = 64) -> list[Sample]:
        """By a subject that remembers nothing of earlier calls but captions."""
        subject = replace(self.subject, batch=batch, kept={})
        return method.answer(subject, self.fitted(method), items, DECODING)

    def logits(self, method: SteeringMethod | None, items: list[Item]) -> Tensor:
        """Of all positions of the prompts."""
        model: Any = self.subject.vision.model
        inputs = self.subject.vision.inputs(items)
        with torch.inference_mode():
            if method is None:
                return model(**inputs).logits
            with method.around(self.fitted(method), Batch(self.subject, items)):
                return model(**inputs).logits


@pytest.fixture(scope="module")
def world() -> World:
    vision = open_subject(MODEL, Speaking(), Engine(device="cpu")).vision
    pool = tuple(open_image(item.image) for item in requests("benign", "validation", 3))
    subject = Subject(vision, pool, caption_tokens=12)
    anchors = Anchors(subject, tuple(requests("hazard", "align", 6)), tuple(requests("benign", "align", 6)))
    return World(subject, anchors, {}, {})


@cache
def settled(name: str) -> SteeringMethod:
    """One setting of a method, of middling strength at one of its sets of layers; ECSO always closes its eyes."""
    cls = STEERING.load(name)
    choices = list(cls().grid(range(6)))
    made: SteeringMethod = choices[len(choices) // 2]
    return replace(made, tell="always") if hasattr(made, "tell") else made  # type: ignore[call-arg]


def off(name: str) -> SteeringMethod:
    return replace(settled(name), **settled(name).off)


# -- what it is --------------------------------------------------------------------------------------------


@every_method
def test_it_is_a_frozen_dataclass_of_documented_knobs(name: str) -> None:
    cls = STEERING.load(name)
    assert issubclass(cls, SteeringMethod)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.name == name
    assert cls.version >= 1
    assert all(said["doc"] and said["type"] not in ("Any", "object") for said in describe(cls).values())
    check(cls(), name)
    assert build(cls, resolved(cls()), name) == cls()
    hash(cls())


@every_method
def test_its_module_cites_its_paper(name: str) -> None:
    cls = STEERING.load(name)
    doc = sys.modules[cls.__module__].__doc__ or ""
    cited = re.findall(r"arXiv:\d{4}\.\d{5}", cls.paper)
    assert cited
    assert all(paper in doc for paper in cited)
    assert inspect.getdoc(cls)
    assert cls.title
    assert cls.title not in [STEERING.load(other).title for other in NAMES if other != name]


@every_method
def test_its_grid_closes_every_open_knob(name: str) -> None:
    cls = STEERING.load(name)
    method = cls()
    choices = list(method.grid(range(6)))
    assert len(set(choices)) == len(choices) >= 1
    for setting in choices:
        assert setting.settled
        assert not setting.is_off
        assert list(setting.grid(range(6))) == [setting]
        check(setting, name)
        assert build(cls, resolved(setting), name) == setting
        layers = getattr(setting, "layers", (0,))
        assert layers
        assert set(layers) <= set(range(6))
        assert getattr(setting, "strength", 1) > 0
    assert method.settled == (choices == [method])


@every_method
def test_what_is_named_is_not_chosen(name: str) -> None:
    method = settled(name)
    assert list(method.grid(range(6))) == [method]
    for field in fields(method):  # type: ignore[arg-type]
        if field.name == "layers":
            named: Any = replace(type(method)(), layers=(1,))  # type: ignore[call-arg]
            assert {setting.layers for setting in named.grid(range(6))} == {(1,)}


# -- what it does ------------------------------------------------------------------------------------------


@every_method
def test_off_it_changes_nothing_and_on_it_does(name: str, world: World) -> None:
    plain = world.logits(None, SEEING)
    assert off(name).is_off
    assert torch.equal(world.logits(off(name), SEEING), plain)
    assert world.answers(off(name), SEEING) == world.unsteered(SEEING)
    method = settled(name)
    if type(method).answer is SteeringMethod.answer:
        assert not torch.equal(world.logits(method, SEEING), plain), "the method does nothing"
        assert torch.equal(world.logits(None, SEEING), plain), "and leaves nothing behind"
    else:
        assert world.answers(method, SEEING) != world.unsteered(SEEING)


@every_method
def test_saved_and_loaded_it_answers_alike(name: str, world: World, tmp_path: Path) -> None:
    method = settled(name)
    learned = world.fitted(method)
    card = {
        "format": 1, "made_with": "0", "anchors": {"harmful": 6, "benign": 6}, "predictors": {},
        "method": {"name": name, "title": method.title, "paper": method.paper, "knobs": resolved(method)},
        "model": {"reference": MODEL, "identity": base_identity(MODEL), "shape": shape_of(world.subject.vision.model)},
    }  # fmt: skip
    Steering(method, learned, card, world.subject.pool).save(tmp_path)
    found = load_steering(tmp_path)
    found.check_model(world.subject.vision.model, base_identity(MODEL))
    assert found.method == method
    assert found.learned.keys() == learned.keys()
    assert all(torch.equal(found.learned[key], learned[key]) for key in learned)
    subject = replace(world.subject, pool=found.pool)
    assert found.method.answer(subject, found.learned, SEEING, DECODING) == world.answers(method, SEEING)


@every_method
def test_what_it_learns_is_finite_and_of_every_layer(name: str, world: World) -> None:
    learned = world.fitted(settled(name))
    for value in learned.values():
        assert value.dtype == torch.float32
        assert value.shape[0] == 6
        assert torch.isfinite(value).all()
    again = settled(name).fit(replace(world.anchors, _read={}))
    assert all(torch.equal(again[key], learned[key]) for key in learned)


@every_method
def test_requests_without_a_picture_are_answered_as_by_the_unsteered_model(name: str, world: World) -> None:
    method = settled(name)
    assert torch.equal(world.logits(method, BARE), world.logits(None, BARE))
    assert world.answers(method, BARE) == world.unsteered(BARE)
    mixed = world.answers(method, MIXED)
    bare = [sample for sample in mixed if not sample.item.image]
    assert [(s.text, s.tokens) for s in bare] == [
        (s.text, s.tokens) for s in world.unsteered(MIXED) if not s.item.image
    ]
    seeing = [sample for sample in mixed if sample.item.image]
    assert [s.text for s in seeing] == [s.text for s in world.answers(method, [s.item for s in seeing])]


@every_method
def test_it_repeats_whatever_the_batch_and_keeps_the_order(name: str, world: World) -> None:
    method = settled(name)
    before = torch.random.get_rng_state()
    once = world.answers(method, SEEING)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [sample.item for sample in once] == SEEING
    torch.rand(7)  # the global generator has no say
    assert world.answers(method, SEEING) == once
    for batch in (1, 3):
        assert world.answers(method, SEEING, batch) == once
    assert world.answers(method, SEEING[::-1]) == once[::-1]


@every_method
def test_its_further_passes_are_those_that_it_states(name: str, world: World) -> None:
    method = settled(name)
    assert set(method.views) <= set(VIEWS)
    batch = Batch(world.subject, SEEING)
    method.edits(world.fitted(method), batch)
    assert {view for _, view, _ in batch._read} == set(method.views)


@every_method
def test_a_constant_is_all_that_its_edits_add(name: str, world: World) -> None:
    """What can be folded into the weights: methods with a constant add it whatever the state and the row."""
    method = settled(name)
    constant = method.constant(world.fitted(method))
    edits = method.edits(world.fitted(method), Batch(world.subject, SEEING))
    states = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for layer, shift in constant.items():
        (edit,) = (edit for edit in edits if edit.layer == layer)
        found = edit.change(states, torch.tensor([0, 5, 2])) - states
        torch.testing.assert_close(found, shift.expand(3, -1), atol=1e-5, rtol=0)
    assert not constant or {edit.layer for edit in edits} == set(constant)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRONG)
def test_a_negative_strength_is_refused(name: str, world: World) -> None:
    method = replace(settled(name), strength=-0.5)  # type: ignore[call-arg]
    stage = FitStage(method, MODEL, world.anchors.harmful, world.anchors.benign)
    with pytest.raises(UsageError, match=rf"{name}\.strength = -0\.5: a negative strength weakens safety") as caught:
        stage.validate()
    assert "0 or more" in caught.value.hint
    replace(stage, method=settled(name)).validate()


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(name: str, value: float, world: World) -> None:
    method = replace(settled(name), strength=value)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="not a finite number"):
        FitStage(method, MODEL, world.anchors.harmful, world.anchors.benign).validate()
