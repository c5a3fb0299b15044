"""OPOM: one universal mask for a person, without diversity.

Zhong, Deng. "OPOM: Customized Invisible Cloak Towards Face Privacy Protection", IEEE TPAMI 2022 (arXiv:2205.11981). The
features of a person's photos span a subspace; a universal mask pushes each protected photo away from the nearest point
of that subspace (equation 6, with the convex hull of the photos, equation 10):

    maximise  sum_x  min_{a >= 0, sum a = 1}  || f(x + u) - sum_j a_j f(x_j) ||^2,     |u| <= budget

by sign steps over all photos at once. The authors attack one recogniser at budget 8 and bound nothing else; here the
team's distances are summed, and DSSIM above the limit of the comparison is held against the mask as in its peers:
bounded by the budget alone and scaled to SSIM .94 afterwards, it protected nobody (cosine .62 on five
people of LFW, clean .68). The nearest point of the hull is found by Frank-Wolfe steps with exact line search instead of
their quadratic solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.faces.align import SIDE
from holdfast.faces.method import Keep, MaskMethod, State, Subject, WindowKind, keep_nothing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Opom(MaskMethod):
    """Push every photo away from the hull of the person's faces."""

    ssim: float = knob(0.94, "least mean SSIM of the photos learned from", low=0.5, high=1)
    budget: float = knob(16.0, "most grey levels at any pixel", low=0, high=64, source="paper 8")
    steps: int = knob(60, "sign steps", low=1, source="paper 16 of length 1")
    batch: int = knob(4, "photos a step", low=1)
    step: float = knob(1.0, "length of a step in grey levels", low=0, source="paper 1")
    weight: float = knob(200.0, "weight of visibility above the limit", low=0, source="not in the paper")
    hull: int = knob(20, "Frank-Wolfe steps to the nearest point of the hull", low=1)
    shape: WindowKind = knob("oval", "where the mask may be")

    name = "opom"
    title = "OPOM"
    paper = "Zhong and Deng, TPAMI 2022, arXiv:2205.11981"

    def learn(self, subject: Subject, seed: int, keep: Keep = keep_nothing, state: State | None = None) -> Tensor:
        """See :class:`MaskMethod`."""
        import torch
        from torch.nn import functional

        from holdfast.faces.mask import fitted
        from holdfast.faces.window import window

        generator = torch.Generator().manual_seed(seed)
        device = subject.crops.device
        inside = window(self.shape).to(device)
        mask = ((torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1) * self.step).to(device)
        if not self.budget:
            return torch.zeros_like(mask)
        for done in range(self.steps):
            photos = torch.randperm(len(subject.crops), generator=generator)[: self.batch]
            leaf = mask.clone().requires_grad_(True)
            shown = (subject.crops[photos] + leaf * inside).clamp(0, 255)
            distance = torch.zeros((), device=device)
            for one, clean in zip(subject.recognisers, subject.embeddings, strict=True):
                found = one.embed(shown)
                distance = distance + ((found - nearest_of_hull(found.detach(), clean, self.hull)) ** 2).sum(1).mean()
            seen = functional.relu(subject.reference[photos].dssim(shown).mean() - self.dssim)
            (slope,) = torch.autograd.grad(distance - self.weight * seen, leaf)
            mask = (mask + self.step * slope.sign()).clamp(-self.budget, self.budget)
            keep(done + 1, self.steps, float(distance.detach()), dict)
        return fitted(mask * inside, subject.reference, self.dssim, self.budget)


def nearest_of_hull(points: Tensor, corners: Tensor, steps: int) -> Tensor:
    """The nearest points of a convex hull, by Frank-Wolfe with exact line search.

    Args:
        points: shape (n, dimension).
        corners: of the hull, shape (k, dimension).
        steps: taken; the error falls at least as 1 / steps.

    Returns:
        shape (n, dimension).
    """
    place = corners.mean(0).expand_as(points).clone()
    for _ in range(steps):
        toward = corners[((points - place) @ corners.T).argmax(1)] - place
        length = ((points - place) * toward).sum(1) / (toward**2).sum(1).clamp(min=1e-12)
        place = place + length.clamp(0, 1)[:, None] * toward
    return place
