"""Fawkes (arXiv:2002.08327): the target, the objective, and the way a cloak goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from faces import toy
from holdfast.core.errors import DataError
from holdfast.faces.method import Subject
from holdfast.faces.methods.fawkes import Fawkes, each_fitted
from holdfast.faces.ssim import ssim
from holdfast.faces.window import window

METHOD = Fawkes(ssim=0.9, budget=16.0, steps=15, step=1.0, weight=200.0, shape="oval")


def target_of(subject: Subject) -> int:
    """The other person who is least like the photos, over recognisers, by loops."""
    means = []
    for other in range(len(subject.others)):
        cosines = [
            float(own @ others[other])
            for clean, others in zip(subject.embeddings, subject.other_embeddings, strict=True)
            for own in clean
        ]
        means.append(np.mean(cosines))
    return int(np.argmin(means))


def distances(subject: Subject, crops: torch.Tensor, other: int) -> list[float]:
    return [
        float((one.embed(crops) - others[other]).norm(dim=1).mean())
        for one, others in zip(subject.recognisers, subject.other_embeddings, strict=True)
    ]


def test_each_photo_comes_nearer_to_the_person_least_like_it() -> None:
    subject = toy.subject(others=8)
    target = target_of(subject)
    change = METHOD.cloak(subject.crops, subject, 0)
    before, after = distances(subject, subject.crops, target), distances(subject, subject.crops + change, target)
    for one, two in zip(before, after, strict=True):
        assert two < one - 0.05
    gains = []
    for other in range(8):
        pairs = zip(
            distances(subject, subject.crops, other), distances(subject, subject.crops + change, other), strict=True
        )
        gains.append(sum(one - two for one, two in pairs))
    assert int(np.argmax(gains)) == target


def test_the_first_step_goes_down_the_distance() -> None:
    """Adam's first step has the length of a step and the sign of the slope, which is taken here by hand."""
    subject = toy.subject(others=8)
    target = target_of(subject)
    leaf = subject.crops.clone().requires_grad_(True)
    total = torch.zeros(())
    for one, others in zip(subject.recognisers, subject.other_embeddings, strict=True):
        total = total + (one.embed(leaf) - others[target]).norm(dim=1).sum()
    total.backward()
    assert leaf.grad is not None
    expected = -leaf.grad.sign() * window("oval")
    change = replace(METHOD, steps=1, ssim=0.94).cloak(subject.crops, subject, 0)
    big = (expected.abs() > 0.5) & (leaf.grad.abs() > leaf.grad.abs().median())
    assert float((change.sign() == expected.sign())[big].float().mean()) > 0.99


def test_visibility_above_the_limit_is_paid_for() -> None:
    subject = toy.subject(others=8)
    crops = subject.crops
    free = replace(METHOD, weight=0.0, ssim=0.99, steps=30)
    paid = replace(free, weight=5e3)
    raw: dict[str, float] = {}
    original = torch.optim.Adam.step
    for name, method in (("free", free), ("paid", paid)):
        kept = []

        def noted(self: torch.optim.Adam, *args: object, kept: list[torch.Tensor] = kept) -> object:
            found = original(self, *args)  # type: ignore[arg-type]
            kept.append(self.param_groups[0]["params"][0].detach().clone())
            return found

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.optim.Adam, "step", noted)
            method.cloak(crops, subject, 0)
        assert len(kept) == 30
        raw[name] = float(ssim(crops, (crops + kept[-1] * window("oval")).clamp(0, 255)).mean())
    assert raw["paid"] > 0.97 > raw["free"]


def test_each_photo_is_scaled_to_the_limit_on_its_own() -> None:
    crops = toy.crops(3)
    changes = toy.signs(3, 0, 8) * torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1, 1)
    found = each_fitted(changes, crops, 0.03, 30.0)
    each = ssim(crops, (crops + found).clamp(0, 255))
    assert bool((each >= 0.94 - 1e-5).all())
    assert bool((each < 0.96).all())
    for change, one in zip(changes, found, strict=True):
        assert float((one * change).sum() / (one.norm() * change.norm())) > 0.95


def test_it_needs_somebody_to_look_like() -> None:
    subject = toy.subject(others=0)
    with pytest.raises(DataError, match="faces of other people") as caught:
        METHOD.cloak(subject.crops, subject, 0)
    assert "others" in caught.value.hint
