"""Chameleon (arXiv:2407.13975): the objective by hand, its slope by differences, the code's values and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from faces import toy
from holdfast.core.errors import UsageError
from holdfast.core.knobs import check
from holdfast.faces.method import Subject
from holdfast.faces.methods.chameleon import Chameleon
from holdfast.faces.search import Search, chosen_decoys, learn, strength, visibility
from holdfast.faces.ssim import Reference, ssim
from holdfast.faces.window import flatness, window

PLAIN = Chameleon(
    masks=1, ssim=0.94, budget=16.0, steps=6, batch=4, step=1.0, last_step=0.5, rule="adam", momentum=0.9, scales=(112,),
    toward="own", diversity=0.0, coarse=0.0, admix=0.0, apart=0.0, cancel=0.0, pull=0.0, shape="oval", colour=1.0,
    weight="dual", metric="ssim", starts=1, patience=0,
)  # fmt: skip
FULL = replace(
    PLAIN, masks=3, batch=5, scales=(112, 28), toward="all", diversity=1.0, coarse=1.0, admix=0.4, apart=1.3, cancel=0.7,
    pull=0.6, colour=0.4, metric="ms-ssim",
)  # fmt: skip
SIGNS = replace(PLAIN, rule="sign", momentum=0.0, step=0.5, last_step=0.5)


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in double precision, so that differences have digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Held(Search):
    """A search that computes its loss and slope where it stands, and stays there."""

    def _move(self, length: float) -> None:
        self.moved = length

    def _adapt(self, seen: float) -> None:
        self.seen = seen


def loss_of(search: Held, monkeypatch: pytest.MonkeyPatch) -> float:
    """The loss of one step, drawn as every time; slopes are left on the patterns."""
    caught: list[float] = []
    original = Tensor.backward

    def noted(loss: Tensor, *args: Any, **given: Any) -> None:
        caught.append(float(loss.detach()))
        original(loss, *args, **given)

    state, centres, done = search.generator.get_state(), [one.clone() for one in search.centres], search.done
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "backward", noted)
        search.advance()
    search.generator.set_state(state)
    search.centres, search.done = centres, done
    (loss,) = caught
    return loss


def held(method: Chameleon, subject: Subject, ahead: int = 2) -> Held:
    """A search some steps in: patterns have size, and every mask's faces were seen."""
    begun = Search(method, subject, 3)
    for _ in range(ahead):
        begun.advance()
    made = Held(method, subject, 3)
    made.load(begun.state())
    return made


# -- the objective -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        PLAIN, SIGNS, FULL, replace(FULL, toward="own"), replace(FULL, metric="ssim", shape="none"),
        replace(FULL, ssim=0.5), replace(FULL, masks=1), replace(PLAIN, masks=2, cancel=1.0), replace(PLAIN, masks=2, pull=1.0),
    ],
    ids=["plain", "signs", "everything", "own", "one scale of ssim", "invisible", "one mask", "cancel", "pull"],
)  # fmt: skip
@pytest.mark.usefixtures("double")
def test_the_slope_of_the_whole_loss_is_that_of_finite_differences(
    method: Chameleon, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = held(method, toy.subject())
    for pattern in search.patterns:
        pattern.data.mul_(4 if method.rule == "adam" else 20)  # visible: above the limit of SSIM
    at = loss_of(search, monkeypatch)
    slopes = [pattern.grad.clone() for pattern in search.patterns if pattern.grad is not None]
    assert len(slopes) == len(method.scales)
    assert (search.seen > method.dssim) == (method.ssim > 0.5)
    for number, pattern in enumerate(search.patterns):
        for way in (torch.randn(pattern.shape, generator=toy.generator(number)), slopes[number]):
            along = way / way.norm()
            start, ends = pattern.data.clone(), []
            for sign in (1, -1):
                pattern.data.copy_(start + sign * 1e-4 * along)
                ends.append(loss_of(search, monkeypatch))
            pattern.data.copy_(start)
            found = float((slopes[number] * along).sum())
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(found, rel=1e-4, abs=1e-9)
            assert abs(found) > 1e-7
    assert loss_of(search, monkeypatch) == at


def dssim_by_scipy(clean: Tensor, other: Tensor) -> list[float]:
    def mean(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = ndimage.gaussian_filter(x, (0, 0, 1.5, 1.5), radius=(0, 0, 5, 5))[..., 5:-5, 5:-5]
        return found

    a, b = clean.double().numpy(), other.double().numpy()
    ma, mb = mean(a), mean(b)
    va, vb, cross = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    whole = (2 * ma * mb + 6.5025) * (2 * cross + 58.5225) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))
    return ((1 - whole.mean((1, 2, 3))) / 2).tolist()  # type: ignore[no-any-return]


def drawn_photos(search: Search, method: Chameleon, n: int) -> list[int]:
    """The photos of the next step, drawn as the search draws them."""
    copy = toy.generator()
    copy.set_state(search.generator.get_state())
    order: list[int] = []
    while len(order) < method.batch:
        order += torch.randperm(n, generator=copy).tolist()
    return order[: method.batch]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("toward", ["own", "all"])
@pytest.mark.parametrize("masks", [1, 3])
def test_the_loss_is_the_papers_by_hand(masks: int, toward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles by the arc cosine of numpy, SSIM by scipy's filter, one photo and one recogniser at a time."""
    method = replace(PLAIN, masks=masks, batch=4, toward=toward, apart=0.5, cancel=0.8, pull=0.3)
    subject = toy.subject()
    search = held(method, subject)
    search.patterns[0].data.mul_(5)
    numbers = [(place + search.done * 4) % masks for place in range(4)]
    photos = drawn_photos(search, method, 4)
    pattern = search.patterns[0].detach()
    worn = (pattern * window("oval").double()).clamp(-16, 16)
    shown = (subject.crops[photos] + worn[numbers]).clamp(0, 255)
    gain = 0.0
    for place, one in enumerate(subject.recognisers):
        found = one.embed(shown).numpy()
        clean = subject.embeddings[place].numpy()
        rows = [[photos[i]] if toward == "own" else range(4) for i in range(4)]
        mine = np.mean([math.acos(float(found[i] @ clean[j])) for i in range(4) for j in rows[i]])
        gain += float(mine)
        if masks > 1:
            decoy = search.decoys[place].numpy()
            gain += 0.3 * float(np.mean([found[i] @ decoy[numbers[i]] for i in range(4)]))
            centre = search.centres[place].numpy()
            apart = [sum(found[i] @ centre[k] for k in range(masks) if k != numbers[i]) for i in range(4)]
            gain -= 0.5 * float(np.mean(apart)) / (masks - 1)
    seen = float(np.mean(dssim_by_scipy(subject.crops[photos], shown)))
    expected = search.weight * max(seen - 0.03, 0) - gain
    if masks > 1:
        expected += 0.8 * float((worn.mean(0) ** 2).mean() / (worn**2).mean())
    assert seen > 0.03
    assert loss_of(search, monkeypatch) == pytest.approx(expected, rel=1e-9)
    assert search.seen == pytest.approx(seen, rel=1e-9)


@pytest.mark.usefixtures("double")
def test_the_angle_told_is_the_running_mean_in_degrees() -> None:
    subject = toy.subject()
    search = Search(PLAIN, subject, 0)
    shown = subject.crops[drawn_photos(search, PLAIN, 4)]
    told = []
    expected = 0.0
    for step in range(3):
        photos = drawn_photos(search, PLAIN, 4)
        shown = (subject.crops[photos] + search.masks()).clamp(0, 255)
        angles = [
            math.degrees(float(np.mean(np.arccos((one.embed(shown) * clean[photos]).sum(1).numpy()))))
            for one, clean in zip(subject.recognisers, subject.embeddings, strict=True)
        ]
        now = float(np.mean(angles))
        expected = now if step == 0 else 0.9 * expected + 0.1 * now
        search.advance()
        told.append(search.angle)
        assert search.angle == pytest.approx(expected, rel=1e-6)
    assert told[2] > told[0]  # it goes up


def test_equal_vectors_have_a_finite_slope() -> None:
    """The authors' arc cosine has none: here a mask of zero still moves."""
    search = Search(replace(PLAIN, step=0.0, last_step=0.0, rule="sign"), toy.subject(), 0)
    assert float(search.masks().abs().max()) == 0
    search.advance()
    slope = search.patterns[0].grad
    assert slope is not None
    assert bool(slope.isfinite().all())
    assert 0 < search.angle < 0.1  # arccos(1 - 1e-6) is 0.081 degrees


def test_the_visibility_of_several_sizes_is_the_mean_over_them() -> None:
    clean, other = toy.crops(3), toy.crops(3, 4)
    sizes = [1, 2, 4]
    parts = []
    for factor in sizes:
        small = [
            torch.from_numpy(x.numpy().reshape(3, 3, 112 // factor, factor, 112 // factor, factor).mean((3, 5)))
            for x in (clean, other)
        ]
        parts.append(float(np.mean(dssim_by_scipy(*small))))
    assert float(visibility(Reference(clean), other, "ssim")) == pytest.approx(parts[0], rel=1e-4)
    assert float(visibility(Reference(clean), other, "ms-ssim")) == pytest.approx(float(np.mean(parts)), rel=1e-4)


# -- steps, schedules ----------------------------------------------------------------------------------


def test_sign_steps_are_the_papers() -> None:
    """u <- clip(u - step sign(slope), -eps, eps), from a uniform start within one step."""
    method = replace(SIGNS, budget=0.6)
    search = Search(method, toy.subject(), 5)
    start = search.patterns[0].detach().clone()
    assert 0.49 < float(start.abs().max()) <= 0.5
    assert abs(float(start.mean())) < 0.01
    search.advance()
    slope = search.patterns[0].grad
    assert slope is not None
    torch.testing.assert_close(search.patterns[0].detach(), (start - 0.5 * slope.sign()).clamp(-0.6, 0.6))


def test_momentum_adds_slopes_of_mean_size_one() -> None:
    method = replace(SIGNS, momentum=0.7, steps=10)
    search = Search(method, toy.subject(), 5)
    speed = torch.zeros(1, 3, 112, 112)
    for _ in range(3):
        before = search.patterns[0].detach().clone()
        search.advance()
        slope = search.patterns[0].grad
        assert slope is not None
        speed = 0.7 * speed + slope / slope.abs().mean()
        torch.testing.assert_close(search.speed, speed, rtol=1e-4, atol=1e-5)
        expected = (before - 0.5 * speed.sign()).clamp(-16, 16)
        assert float((search.patterns[0].detach() - expected).abs().gt(1e-5).float().mean()) < 1e-3


@pytest.mark.parametrize("rule", ["sign", "adam"])
def test_steps_shorten_evenly_from_first_to_last(rule: Any) -> None:
    search = Held(replace(PLAIN, rule=rule, steps=5, step=2.0, last_step=1.0), toy.subject(), 0)
    lengths = []
    for _ in range(5):
        search.advance()
        lengths.append(search.moved)
    assert lengths == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])
    assert search.over


def test_adam_moves_by_its_step_against_the_slope() -> None:
    search = Search(replace(PLAIN, step=0.8), toy.subject(), 0)
    before = search.patterns[0].detach().clone()
    assert 0.49 < float(before.abs().max()) <= 0.5
    search.advance()
    slope = search.patterns[0].grad
    assert slope is not None
    moved = search.patterns[0].detach() - before
    big = slope.abs() > slope.abs().median()  # Adam's first step is its length in the sign's direction
    torch.testing.assert_close(moved[big], -0.8 * slope.sign()[big], atol=2e-2, rtol=0)
    assert search.rates.defaults["betas"] == (0.9, 0.98)


@pytest.mark.parametrize(
    ("before", "seen", "after"),
    [
        (1.0, 0.026, 0.5), (1.0, 0.0271, 1.0), (4.0, 0.0271, 1.0), (4.0, 0.0329, 1.0), (4.0, 0.034, 8.0), (1.0, 0.034, 2.0),
        (1 / 128, 0.0, 1 / 256), (1 / 256, 0.0, 1 / 256), (128.0, 1.0, 256.0), (256.0, 1.0, 256.0), (256.0, 0.036, 256.0), (256.0, 0.0, 128.0), (1 / 256, 0.025, 1 / 256),
        (1 / 256, 1.0, 1 / 128), (0.25, 0.03, 1.0),
    ],
)  # fmt: skip
def test_the_weight_doubles_and_halves_outside_a_tenth_and_is_one_inside(
    before: float, seen: float, after: float
) -> None:
    search = Search(replace(SIGNS, weight="doubling"), toy.subject(), 0)
    assert search.weight == 1
    search.weight = before
    search._adapt(seen)
    assert search.weight == after


def test_the_dual_weight_rises_above_the_limit_and_falls_below_it() -> None:
    search = Search(PLAIN, toy.subject(), 0)
    first = search.weight
    search._adapt(0.04)
    assert search.weight == pytest.approx(first * (1 + 60 * 0.01))
    search.weight = first
    search._adapt(0.03)
    assert search.weight == pytest.approx(first)
    search._adapt(0.02)
    assert search.weight == pytest.approx(first * (1 - 60 * 0.01))
    search.weight = 5.0
    search._adapt(0.0)
    assert search.weight == 5.0


# -- what a mask is made of ----------------------------------------------------------------------------


def test_a_mask_is_the_sum_of_its_patterns_in_the_window_with_calmed_colours() -> None:
    subject = toy.subject()
    search = Search(replace(PLAIN, scales=(112, 28), colour=0.3), subject, 1)
    for pattern in search.patterns:
        pattern.data.mul_(30)
    fine, coarse = (pattern.detach() for pattern in search.patterns)
    whole = fine + torch.nn.functional.interpolate(coarse, (112, 112), mode="bicubic", align_corners=False)
    luma = (whole * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    share = 1 - 0.7 * flatness(subject.crops)
    expected = ((luma + share * (whole - luma)) * window("oval")).clamp(-16, 16)
    torch.testing.assert_close(search.masks(), expected, atol=1e-4, rtol=1e-4)
    assert float(expected.abs().max()) == 16


def test_each_step_shows_every_mask_in_turn_and_each_photo_once_a_round() -> None:
    search = Search(replace(PLAIN, masks=3, batch=5), toy.subject(photos=2), 0)
    seen: list[int] = []
    for step in range(3):
        photos, numbers = search._drawn()
        assert len(photos) == len(numbers) == 5
        assert sorted(photos[:2].tolist()) == sorted(photos[2:4].tolist()) == [0, 1]
        seen += numbers.tolist()
        search.done = step + 1
    assert seen == [place % 3 for place in range(15)]
    photos, numbers = Search(replace(PLAIN, batch=9), toy.subject(photos=4), 0)._drawn()
    assert sorted(photos.tolist()) == [0, 1, 2, 3]  # one mask: no photo twice
    assert numbers.tolist() == [0] * 4


def test_centres_follow_each_masks_own_faces() -> None:
    search = Search(replace(PLAIN, masks=3, apart=1.0), toy.subject(), 0)
    centres = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    search._follow(centres, torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
    length = math.hypot(0.9, 1.0)
    torch.testing.assert_close(centres[0], torch.tensor([0.9 / length, 1 / length]))
    torch.testing.assert_close(centres[1], torch.tensor([0.8, 0.4]) / math.hypot(0.8, 0.4))
    torch.testing.assert_close(centres[2], torch.tensor([0.0, 1.0]))


def test_decoys_are_chosen_farthest_first_by_hand() -> None:
    def unit(degrees: float) -> Tensor:
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    own = [torch.stack([unit(-10), unit(10)])]
    others = [torch.stack([unit(d) for d in (30, 170, 100, -120, 175)])]
    # From 0 degrees, 175 is farthest; then of 30, 170, 100, -120 the one whose nearest of {0, 175} is farthest: 100
    # (75 away; -120 is 65 from 175); then -120 (65), then 30 (30 from 0), then 170.
    assert chosen_decoys(own, others, 1) == [4]
    assert chosen_decoys(own, others, 5) == [4, 2, 3, 0, 1]
    assert chosen_decoys(own, others, 6) == []
    # Two recognisers: the mean of their cosines decides.
    second = [torch.stack([unit(d) for d in (170, 0, 0, 0, 0)])]
    assert chosen_decoys([*own, torch.stack([unit(0)])], [*others, *second], 1) == [0]


def test_decoys_are_what_tells_each_stranger_from_the_others() -> None:
    subject = toy.subject(others=7)
    search = Search(replace(PLAIN, masks=2), subject, 0)
    ways = []
    for others in subject.other_embeddings:
        middle = sum(others[1:], others[0]) / 7
        ways.append(torch.stack([(one - middle) / (one - middle).norm() for one in others]))
    chosen = chosen_decoys(subject.embeddings, ways, 2)
    for decoys, way in zip(search.decoys, ways, strict=True):
        torch.testing.assert_close(decoys, way[chosen], atol=1e-5, rtol=1e-4)
    alone = Search(replace(PLAIN, masks=1), toy.subject(others=1), 0)
    torch.testing.assert_close(alone.decoys[0], alone.subject.other_embeddings[0])


def test_the_pull_is_towards_decoys_and_away_from_the_person() -> None:
    subject = toy.subject(others=8)
    method = replace(PLAIN, masks=2, pull=5.0, steps=20, ssim=0.6)
    search = Search(method, subject, 0)
    start = [float((one.embed(subject.crops) @ decoys.T).mean()) for one, decoys in zip(subject.recognisers, search.decoys, strict=True)]  # fmt: skip
    while not search.over:
        search.advance()
    for place, one in enumerate(subject.recognisers):
        ends = [float((one.embed(subject.crops + mask) @ search.decoys[place][k]).mean()) for k, mask in enumerate(search.masks())]  # fmt: skip
        assert min(ends) > start[place] + 0.1


# -- the whole of it -----------------------------------------------------------------------------------


def test_published_settings_are_the_papers_codes() -> None:
    """../shared/specs/faces.md, section 1.2: read in the authors' code."""
    made = Chameleon.published(84)
    assert made.masks == 1
    assert made.steps == 50 * 21  # 50 epochs of 21 batches
    assert made.batch == 4
    assert made.step == made.last_step == 0.001 * 255
    assert made.budget == 16
    assert made.dssim == pytest.approx(0.030)
    assert (made.rule, made.momentum, made.scales, made.toward) == ("sign", 0.0, (112,), "own")
    assert (made.diversity, made.coarse, made.admix) == (0, 0, 0)
    assert (made.apart, made.cancel, made.pull) == (0, 0, 0)
    assert (made.shape, made.colour, made.weight, made.metric) == ("box", 1.0, "doubling", "ssim")
    assert Chameleon.published(6).steps == 100
    check(made, "published")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rule": "sign", "scales": (112, 28)}, "sign steps need scales"),
        ({"step": 0.1, "last_step": 0.2}, "last_step is longer"),
        ({"scales": ()}, "scales is empty"),
        ({"budget": 65.0}, "outside"),
        ({"ssim": 1.01}, "outside"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check(replace(PLAIN, **knobs), "chameleon")
    assert caught.value.hint


def angles(subject: Subject, mask: Tensor) -> float:
    """Mean angle of protected from clean photos in degrees, each from its own."""
    found = [
        np.degrees(np.arccos((one.embed(subject.crops + mask) * clean).sum(1).clamp(-1, 1).numpy())).mean()
        for one, clean in zip(subject.recognisers, subject.embeddings, strict=True)
    ]
    return float(np.mean(found))


@pytest.mark.parametrize("method", [replace(PLAIN, steps=25, step=2.0), replace(SIGNS, steps=25, weight="doubling")])
def test_a_mask_pushes_the_person_away_and_noise_does_not(method: Chameleon) -> None:
    subject = toy.subject()
    mask = method.learn(subject, 0)
    assert mask.shape == (1, 3, 112, 112)
    assert float(ssim(subject.crops, (subject.crops + mask).clamp(0, 255)).mean()) >= 0.94 - 1e-5
    order = torch.randperm(112 * 112, generator=toy.generator())
    noise = mask.flatten(2)[..., order].view_as(mask)
    assert angles(subject, mask) > 3 * angles(subject, noise)


def test_of_several_starts_the_strongest_stays() -> None:
    subject = toy.subject()
    method = replace(PLAIN, steps=3, starts=3)
    told: list[tuple[int, int]] = []
    kept = method.learn(subject, 0, lambda done, total, angle, state: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]
    singles = [learn(replace(method, starts=1), subject, 7919 * start, lambda *_: None, None) for start in range(3)]
    powers = [strength(one, subject, 0) for one in singles]
    assert len(set(powers)) == 3
    assert torch.equal(kept, singles[powers.index(max(powers))])


def test_strength_is_the_mean_angle_under_transforms() -> None:
    subject = toy.subject()
    one = strength(torch.zeros(1, 3, 112, 112), subject, 4)
    assert (
        one
        == strength(torch.zeros(2, 3, 112, 112)[:1], subject, 4)
        != strength(torch.zeros(1, 3, 112, 112), subject, 5)
    )
    assert 0 < one < 60
    assert strength(toy.signs(1, 0, 40), subject, 4) > one


def test_a_search_that_no_longer_gains_is_over() -> None:
    search = Search(replace(PLAIN, patience=2, steps=50), toy.subject(), 0)
    search.best, search.done = (7, 30.0), 8
    assert not search.over
    search.done = 9
    assert search.over
    search.done, search.best = 8, (7, 30.0)
    search.angle = 31.0
    assert not replace(search.method, patience=0).patience
    still = Search(replace(PLAIN, patience=0, steps=50), toy.subject(), 0)
    still.done = 49
    assert not still.over
    still.done = 50
    assert still.over


def test_progress_of_half_a_degree_counts() -> None:
    search = Search(replace(PLAIN, steps=50), toy.subject(), 0)
    search.best = (0, -1.0)
    search.advance()
    assert search.best == (1, search.angle)
    for ahead, counts in ((-0.4, False), (-0.6, True)):
        again = Search(replace(PLAIN, steps=50), toy.subject(), 0)
        again.best = (0, search.angle + ahead)
        again.advance()
        assert again.best == ((1, search.angle) if counts else (0, search.angle + ahead))
