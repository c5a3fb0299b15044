"""OPOM (arXiv:2205.11981): the nearest point of the hull against a general solver, and the way the mask goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from faces import toy
from holdfast.faces.mask import fitted
from holdfast.faces.methods.opom import Opom, nearest_of_hull
from holdfast.faces.ssim import ssim
from holdfast.faces.window import window


def by_scipy(point: np.ndarray, corners: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Projection onto the convex hull: weights of at least zero by an active set, held to a sum of one by a heavy row."""
    heavy = 1e4
    rows = np.vstack([corners.T, np.full(len(corners), heavy)])
    weights, _ = optimize.nnls(rows, np.append(point, heavy))
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    return weights @ corners  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(4))
def test_frank_wolfe_finds_the_point_that_a_solver_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(6, 5))
    points = np.vstack([rng.normal(size=(8, 5)), corners.mean(0), corners[2], 3 * corners[1]])
    found = nearest_of_hull(torch.from_numpy(points), torch.from_numpy(corners), 3000).numpy()
    for point, near in zip(points, found, strict=True):
        best = by_scipy(point, corners)
        assert np.linalg.norm(point - near) == pytest.approx(np.linalg.norm(point - best), abs=2e-3)
        np.testing.assert_allclose(near, best, atol=0.05)


def test_the_error_falls_as_one_over_the_steps() -> None:
    rng = np.random.default_rng(0)
    corners, points = torch.from_numpy(rng.normal(size=(5, 8))), torch.from_numpy(rng.normal(size=(20, 8)) * 2)
    best = np.array([((p - by_scipy(p, corners.numpy())) ** 2).sum() for p in points.numpy()])
    width = float(torch.cdist(corners, corners).max() ** 2)
    for steps in (1, 4, 20, 100):
        found = nearest_of_hull(points, corners, steps)
        gap = ((points - found) ** 2).sum(1).numpy() - best
        assert gap.max() <= 2 * width / (steps + 2)  # Jaggi 2013, theorem 1
        assert gap.min() > -1e-9


def test_a_hull_of_one_is_that_one() -> None:
    corner = torch.tensor([[1.0, 2.0]])
    assert torch.equal(nearest_of_hull(torch.tensor([[5.0, 5.0], [1.0, 2.0]]), corner, 3), corner.expand(2, 2))


@pytest.mark.parametrize("least", [0.9, 0.998])
def test_a_step_is_a_sign_step_up_the_distance_to_the_hull_less_what_is_seen(least: float) -> None:
    """Below the limit of visibility, and above it, where both terms decide."""
    subject = toy.subject()
    method = Opom(steps=1, batch=4, step=2.0, budget=16.0, ssim=least, weight=0.5)
    draws = toy.generator(7)
    start = (torch.rand(1, 3, 112, 112, generator=draws) * 2 - 1) * 2.0
    leaf = start.clone().requires_grad_(True)
    order = torch.randperm(4, generator=draws)
    shown = (subject.crops[order] + leaf * window("oval")).clamp(0, 255)
    total = torch.zeros(())
    for one, clean in zip(subject.recognisers, subject.embeddings, strict=True):
        found = one.embed(shown)
        near = torch.stack(
            [torch.from_numpy(by_scipy(f.detach().double().numpy(), clean.double().numpy())) for f in found]
        )
        total = total + ((found - near.float()) ** 2).sum(1).mean()
    over = (1 - ssim(subject.crops[order], shown).mean()) / 2 - (1 - least) / 2
    assert (float(over.detach()) > 0) == (least > 0.95)
    (pushed,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (total - 0.5 * over.clamp(min=0)).backward()
    assert leaf.grad is not None
    held = float((leaf.grad.sign() != pushed.sign()).float().mean())  # where visibility has the last word
    assert 0.05 < held < 0.6 if least > 0.95 else held == 0
    moved = start + 2 * leaf.grad.sign()
    expected = fitted(moved * window("oval"), subject.reference, (1 - least) / 2, 16)
    found_mask = method.learn(subject, 7)
    # Where the slope is next to nothing a rounding decides its sign.
    assert float((found_mask - expected).abs().ge(1).float().mean()) < 0.02
    assert float(found_mask.abs().max()) >= 1


def test_photos_leave_the_hull() -> None:
    subject = toy.subject()
    told: list[float] = []
    Opom(steps=20, batch=4, step=1.0, budget=16.0).learn(subject, 0, lambda done, total, far, state: told.append(far))
    assert told[-1] > 3 * told[0]
    assert len(told) == 20
    steps: list[tuple[int, int]] = []
    Opom(steps=3, batch=4).learn(subject, 0, lambda done, total, far, state: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_mask_stays_within_its_budget_while_it_is_learned() -> None:
    found = Opom(steps=12, batch=2, step=3.0, budget=5.0, ssim=0.5).learn(toy.subject(), 0)
    assert float(found.abs().max()) == 5
