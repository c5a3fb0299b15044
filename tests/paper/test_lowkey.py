"""LowKey (arXiv:2101.07922): the blur against scipy, one step of equation 1 by hand, and the way a cloak goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from faces import toy
from holdfast.faces.methods.fawkes import each_fitted
from holdfast.faces.methods.lowkey import LowKey, blurred
from holdfast.faces.ssim import ssim
from holdfast.faces.window import window

METHOD = LowKey(ssim=0.94, budget=16.0, steps=12, step=1.0, weight=5.0, blur=2.0, shape="oval")


@pytest.mark.parametrize("deviation", [0.5, 2.0, 3.0])
def test_the_blur_is_scipys_of_seven_taps(deviation: float) -> None:
    crops = toy.crops(2)
    expected = ndimage.gaussian_filter(
        crops.double().numpy(), (0, 0, deviation, deviation), radius=(0, 0, 3, 3), mode="nearest"
    )
    np.testing.assert_allclose(blurred(crops, deviation).numpy(), expected, atol=1e-3)


def objective(
    crops: torch.Tensor, shown: torch.Tensor, method: LowKey, recognisers: tuple[toy.Recogniser, ...]
) -> torch.Tensor:
    """Equation 1: unit vectors, so that the norm below is one; the visible part above the limit in LPIPS' place."""
    total = torch.zeros(())
    kernel = torch.zeros(7, 7)
    for y in range(7):
        for x in range(7):
            kernel[y, x] = float(np.exp(-((y - 3) ** 2 + (x - 3) ** 2) / (2 * method.blur**2)))
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(shown, (3, 3, 3, 3), mode="replicate")
    soft = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)
    for one in recognisers:
        clean = one.embed(crops).detach()
        for seen in (shown, soft):
            total = total + (clean - one.embed(seen)).square().sum() / (2 * len(recognisers))
    over = (1 - ssim(crops, shown)) / 2 - method.dssim
    return total - method.weight * over.clamp(min=0).sum()


@pytest.mark.parametrize("least", [0.9, 0.998])
def test_one_step_goes_up_equation_1(least: float) -> None:
    """Below the limit of visibility, and above it, where both terms decide."""
    subject = toy.subject()
    method = replace(METHOD, steps=1, step=3.0, ssim=least, weight=1.0)
    start = (torch.rand(subject.crops.shape, generator=toy.generator(5)) * 2 - 1) * 3.0
    leaf = start.clone().requires_grad_(True)
    objective(
        subject.crops, (subject.crops + leaf * window("oval")).clamp(0, 255), method, subject.recognisers
    ).backward()
    assert leaf.grad is not None
    free = start.clone().requires_grad_(True)
    shown = (subject.crops + free * window("oval")).clamp(0, 255)
    objective(subject.crops, shown, replace(method, weight=0.0), subject.recognisers).backward()
    assert free.grad is not None
    held = float((leaf.grad.sign() != free.grad.sign()).float().mean())  # where visibility has the last word
    assert 0.05 < held < 0.6 if least > 0.95 else held == 0
    moved = (start + 3.0 * leaf.grad.sign()).clamp(-16, 16)
    expected = each_fitted(moved * window("oval"), subject.crops, method.dssim, 16.0)
    found = method.cloak(subject.crops, subject, 5)
    assert float((found - expected).abs().ge(1).float().mean()) < 0.02
    assert float(found.abs().max()) >= 1


def test_photos_go_away_from_themselves_blurred_ones_too() -> None:
    subject = toy.subject()
    change = METHOD.cloak(subject.crops, subject, 0)
    order = torch.randperm(112 * 112, generator=toy.generator())
    noise = change.flatten(2)[..., order].view_as(change)
    for one, clean in zip(subject.recognisers, subject.embeddings, strict=True):

        def away(added: torch.Tensor, soft: bool, one: toy.Recogniser = one, clean: torch.Tensor = clean) -> float:
            shown = subject.crops + added
            return float((one.embed(blurred(shown, 2.0) if soft else shown) - clean).norm(dim=1).mean())

        assert away(change, False) > 3 * away(noise, False)
        assert away(change, True) > 1.5 * away(torch.zeros_like(change), True)


def test_the_blurred_half_counts() -> None:
    """A cloak that was made for a blur works better through it than one that was made for hardly any."""
    subject = toy.subject()

    def through(method: LowKey) -> float:
        shown = blurred(subject.crops + method.cloak(subject.crops, subject, 0), 3.0)
        return float(np.mean([float((one.embed(shown) - clean).norm(dim=1).mean()) for one, clean in zip(subject.recognisers, subject.embeddings, strict=True)]))  # fmt: skip

    assert through(replace(METHOD, blur=3.0)) > through(replace(METHOD, blur=0.1))


def test_visibility_above_the_limit_is_paid_for() -> None:
    subject = toy.subject()
    limit = replace(METHOD, ssim=0.999, steps=1, step=2.0, weight=1e6)
    start = (torch.rand(subject.crops.shape, generator=toy.generator(0)) * 2 - 1) * 2
    leaf = start.clone().requires_grad_(True)
    ssim(subject.crops, subject.crops + leaf * window("oval")).sum().backward()
    assert leaf.grad is not None
    expected = each_fitted((start + 2 * leaf.grad.sign()) * window("oval"), subject.crops, limit.dssim, 16.0)
    found = limit.cloak(subject.crops, subject, 0)
    assert float((found != expected).float().mean()) < 0.02
    assert float(found.abs().max()) > 0
