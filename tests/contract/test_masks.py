"""What every mask method has to keep; a method is tested by being in the table."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from faces import toy
from holdfast.cli.faces import PRESETS
from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, describe, resolved
from holdfast.faces.align import Alignment
from holdfast.faces.mask import applied
from holdfast.faces.method import MASKS, MaskMethod, State, Subject
from holdfast.faces.protect import changed_pixels
from holdfast.faces.recogniser import Recogniser
from holdfast.faces.ssim import ssim
from holdfast.faces.window import window

NAMES = list(MASKS)
LEARNERS = [name for name in NAMES if not MASKS.load(name).per_photo]
every_method = pytest.mark.parametrize("name", NAMES)
every_learner = pytest.mark.parametrize("name", LEARNERS)
SLACK = 1e-4  # photos are compared before rounding while a mask is scaled, after it here


@cache
def subject() -> Subject:
    """Shared, and changed by nobody (one test sees to that)."""
    return toy.subject(photos=3, others=5)


def short(name: str, **knobs: Any) -> MaskMethod:
    """A method at few steps, each of which moves something."""
    cls = MASKS.load(name)
    known = {field.name for field in fields(cls)}
    wanted = {"steps": 4, "step": 2.0, "last_step": 1.0, "batch": 4, **knobs}
    made: MaskMethod = replace(cls(), **{key: value for key, value in wanted.items() if key in known})
    return made


def masks(method: MaskMethod, seed: int = 0, person: Subject | None = None) -> Tensor:
    """What a method makes of the toy person's photos: masks, or a change for each photo."""
    person = person or subject()
    return method.cloak(person.crops, person, seed) if method.per_photo else method.learn(person, seed)


@cache
def made(name: str, seed: int = 0) -> Tensor:
    return masks(short(name), seed)


def least_ssim(changes: Tensor, per_photo: bool) -> float:
    """As the methods promise it: of each photo's own change, or the mean over photos of each mask."""
    crops = subject().crops
    if per_photo:
        return float(ssim(crops, (crops + changes).clamp(0, 255)).min())
    return min(float(ssim(crops, (crops + mask).clamp(0, 255)).mean()) for mask in changes)


# -- what it is ----------------------------------------------------------------------------------------


@every_method
def test_it_is_a_frozen_dataclass_of_documented_knobs(name: str) -> None:
    cls = MASKS.load(name)
    assert issubclass(cls, MaskMethod)
    assert cls.__dataclass_params__.frozen
    assert dataclasses.is_dataclass(cls)
    assert cls.name == name
    assert cls.version >= 1
    assert len(cls.title) > 2
    assert len(cls.paper) > 5
    assert all(said["doc"] and said["type"] not in ("Any", "object") for said in describe(cls).values())
    check(cls(), name)
    assert build(cls, resolved(cls()), name) == cls()
    assert {"ssim", "budget"} <= {field.name for field in fields(cls)}
    assert cls(ssim=0.9).dssim == pytest.approx(0.05)


@every_method
def test_its_docstring_cites_and_shows_the_equation(name: str) -> None:
    text = sys.modules[MASKS.load(name).__module__].__doc__ or ""
    if name != "noise":
        assert re.search(r"arXiv|USENIX|IEEE|CVPR|ICLR|ECCV", text)
        assert re.search(r"minimise|maximise", text)


@every_method
def test_it_says_that_it_is_no_file_of_its_own_kind(name: str) -> None:
    method = short(name)
    other = method.learn if method.per_photo else method.cloak
    arguments = (subject(), 0) if method.per_photo else (subject().crops, subject(), 0)
    with pytest.raises(NotImplementedError):
        other(*arguments)  # type: ignore[arg-type, call-arg]
    assert Path(inspect.getfile(type(method))).stem == name


@every_method
def test_numbers_out_of_range_are_refused(name: str) -> None:
    for knobs in ({"budget": -1.0}, {"budget": 65.0}, {"budget": float("nan")}, {"ssim": 0.4}, {"ssim": 1.1}):
        with pytest.raises(UsageError) as caught:
            check(replace(MASKS.load(name)(), **knobs), name)
        assert caught.value.hint


# -- what it makes -------------------------------------------------------------------------------------


@every_method
def test_changes_are_whole_numbers_inside_the_window(name: str) -> None:
    found = made(name)
    assert found.shape[1:] == (3, 112, 112)
    assert len(found) == (3 if short(name).per_photo else getattr(short(name), "masks", 1))
    assert torch.equal(found, found.round())
    assert float(found.abs().max()) >= 1
    assert bool(found.isfinite().all())
    outside = (window("oval") == 0).expand_as(found)
    assert int(outside.sum()) > 0
    assert float(found[outside].abs().max()) == 0
    assert found.dtype == torch.float32
    assert not found.requires_grad


@every_method
@pytest.mark.parametrize("preset", PRESETS)
def test_budget_and_visibility_hold_at_every_preset(name: str, preset: str) -> None:
    least, budget = PRESETS[preset]
    found = masks(short(name, ssim=least, budget=budget))
    assert float(found.abs().max()) <= budget
    method = short(name, ssim=least)
    assert least_ssim(found, method.per_photo) >= least - SLACK
    # And they are used: half as much again would be seen, or the budget is met.
    more = (found * 1.5).clamp(-budget, budget).round()
    crops = subject().crops
    seen = [float(ssim(crops, (crops + one).clamp(0, 255)).mean()) for one in more]
    assert min(seen) < least or float(found.abs().max()) == budget


def large_photo(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(90, 100, 3)), (2, 2, 0))
    small = np.clip(128 + 60 * field / field.std(), 0, 255).astype(np.uint8)
    return small.repeat(12, 0).repeat(12, 1)


@every_method
@pytest.mark.parametrize("preset", PRESETS)
def test_the_budget_holds_on_a_large_photo_after_spreading(name: str, preset: str) -> None:
    """Bicubic interpolation overshoots; a face of 1120 pixels shows it. Noise at the budget is the worst case."""
    _, budget = PRESETS[preset]
    pixels = large_photo()
    there = Alignment(0.11, 0.3, (20.0, -40.0))
    worst = toy.signs(1, 0, 1.0)[0].sign() * budget
    for mask in (made(name)[0].clamp(-budget, budget), worst):
        changed = changed_pixels(pixels, [there], mask, budget)
        off = np.abs(changed.astype(int) - pixels.astype(int))
        assert off.max() <= budget
        assert off.max() >= 1
    assert off.max() == budget
    assert changed.dtype == np.uint8


@every_method
def test_a_budget_of_zero_changes_nothing(name: str) -> None:
    cls = MASKS.load(name)
    assert cls.off == {"budget": 0.0}
    assert float(masks(short(name, **cls.off)).abs().max()) == 0
    mask = torch.zeros(1, 3, 112, 112)
    assert torch.equal(applied(subject().crops.round(), mask), subject().crops.round())
    pixels = large_photo()
    assert np.array_equal(changed_pixels(pixels, [Alignment(0.2, 0, (0.0, 0.0))], mask[0], 0.0), pixels)
    assert np.array_equal(changed_pixels(pixels, [Alignment(0.2, 0, (0.0, 0.0))], made(name)[0], 0.0), pixels)


@every_method
def test_perfect_likeness_allows_no_change(name: str) -> None:
    assert float(masks(short(name, ssim=1.0)).abs().max()) == 0


# -- seeds ---------------------------------------------------------------------------------------------


@every_method
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    person = toy.subject(photos=3, others=5)
    torch.manual_seed(12345)  # what the global generator does is nobody's business
    state = torch.get_rng_state()
    again = masks(short(name), 0, person)
    assert torch.equal(again, made(name))
    assert torch.equal(torch.get_rng_state(), state)
    if name != "fawkes":  # it draws nothing: it starts at no change
        assert not torch.equal(made(name, 1), made(name))


@every_method
def test_the_person_is_left_as_they_were(name: str) -> None:
    fresh = toy.subject(photos=3, others=5)
    made(name)
    assert torch.equal(subject().crops, fresh.crops)
    assert torch.equal(subject().others, fresh.others)
    weights = [parameter for one in subject().recognisers for parameter in one.network.parameters()]  # type: ignore[attr-defined]
    assert all(parameter.grad is None for parameter in weights)


@every_method
def test_one_photo_and_one_recogniser_will_do(name: str) -> None:
    alone = toy.subject(photos=1, others=1, seeds=(0,))
    found = masks(short(name), 0, alone)
    assert float(found.abs().max()) >= 1
    assert bool(found.isfinite().all())


# -- resuming ------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """The process was killed here."""


@every_learner
@pytest.mark.parametrize("at", [1, 3, 4])
def test_stopped_after_any_step_and_taken_up_again_it_gives_the_same_bits(name: str, at: int) -> None:
    method = short(name)
    steps: list[tuple[int, int]] = []
    stored: list[State] = []

    def keep(done: int, total: int, angle: float, state: Any) -> None:
        steps.append((done, total))
        if done == at and not stored:
            stored.append({key: value.clone() for key, value in state().items()})
            raise StoppedError

    if name == "noise":  # made in one go
        assert torch.equal(method.learn(subject(), 0, keep), made(name))
        assert steps == []
        return
    with pytest.raises(StoppedError):
        method.learn(subject(), 0, keep)
    assert steps == [(done, 4) for done in range(1, at + 1)]
    steps.clear()
    assert torch.equal(method.learn(subject(), 0, keep, stored[0] or None), made(name))
    assert steps[-1:] == ([(4, 4)] if at < 4 or not stored[0] else [])
    if stored[0]:
        assert len(steps) == 4 - at


@every_learner
def test_keeping_changes_nothing(name: str) -> None:
    told: list[Any] = []
    found = short(name).learn(subject(), 0, lambda done, total, angle, state: told.append((done, angle, state())))
    assert torch.equal(found, made(name))
    assert [done for done, _, _ in told] == list(range(1, len(told) + 1))
    assert all(np.isfinite(angle) for _, angle, _ in told)


def test_recognisers_of_a_subject_are_asked_once() -> None:
    calls = []
    one = toy.recogniser(0)

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        found: Tensor = one.network(pixels)
        return found

    person = Subject(toy.crops(3), (Recogniser("counted", counted, one.input),), toy.crops(2, 9))
    for _ in range(3):
        assert len(person.embeddings[0]) == 3
        assert len(person.other_embeddings[0]) == 2
    assert calls == [3, 2]
    assert torch.equal(person.embeddings[0], one.embed_all(toy.crops(3)))
    assert Subject(toy.crops(1), ()).others.shape == (0, 3, 112, 112)
