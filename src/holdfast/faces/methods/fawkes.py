"""Fawkes: each photo pulled towards somebody else.

Shan, Wenger, Zhang, Li, Zheng, Zhao. "Fawkes: Protecting Privacy against Unauthorized Deep Learning Models", USENIX
Security 2020. For each photo x, a change d is found (equation 2 of the paper) with

    minimise  sum_m || f_m(x + d) - f_m(target) ||  +  weight * max(DSSIM(x, x + d) - limit, 0)

where the target is a photo of the person among others who is furthest away. Fawkes was made against recognisers that
are trained on cloaked photos; as a shield against a recogniser that is trained already it is a peer for comparison, and
the authors say so. Differences from their code: Adam on pixels instead of Adadelta in tanh space, and the change is
scaled to the limit of visibility of the comparison instead of their modes' 0.004 to 0.017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.errors import DataError
from holdfast.core.knobs import knob
from holdfast.faces.method import MaskMethod, Subject, WindowKind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fawkes(MaskMethod):
    """Pull each photo towards the most different other person."""

    ssim: float = knob(0.94, "SSIM that each photo keeps", low=0.5, high=1, source="paper's modes .966 to .992")
    budget: float = knob(16.0, "most grey levels at any pixel", low=0, high=64)
    steps: int = knob(75, "steps a photo", low=1, source="code's mode mid 75")
    step: float = knob(1.0, "length of a step in grey levels", low=0)
    weight: float = knob(200.0, "weight of visibility above the limit", low=0)
    shape: WindowKind = knob("oval", "where the change may be")

    name = "fawkes"
    title = "Fawkes"
    paper = "Shan et al., USENIX Security 2020, arXiv:2002.08327"
    per_photo = True

    def cloak(self, crops: Tensor, subject: Subject, seed: int) -> Tensor:
        """See :class:`MaskMethod`.

        Raises:
            DataError: there are no other people to look like.
        """
        import torch
        from torch.nn import functional

        from holdfast.faces.ssim import Reference
        from holdfast.faces.window import window

        if not self.budget:
            return torch.zeros_like(crops)
        if not len(subject.others):
            raise DataError(
                "Fawkes needs faces of other people to pull towards", hint="name some with 'others' in the recipe"
            )
        near = [others @ own.mean(0) for own, others in zip(subject.embeddings, subject.other_embeddings, strict=True)]
        target = int(torch.stack(near).mean(0).argmin())
        goals = [others[target] for others in subject.other_embeddings]
        reference, inside = Reference(crops), window(self.shape).to(crops.device)
        change = torch.zeros_like(crops, requires_grad=True)
        rates = torch.optim.Adam([change], lr=self.step)
        for _ in range(self.steps):
            shown = (crops + (change * inside).clamp(-self.budget, self.budget)).clamp(0, 255)
            apart = [
                (one.embed(shown) - goal).norm(dim=1) for one, goal in zip(subject.recognisers, goals, strict=True)
            ]
            seen = functional.relu(reference.dssim(shown) - self.dssim)
            loss = (torch.stack(apart).sum(0) + self.weight * seen).sum()
            rates.zero_grad()
            loss.backward()
            rates.step()
        return each_fitted((change * inside).detach(), crops, self.dssim, self.budget)


def each_fitted(changes: Tensor, crops: Tensor, dssim: float, budget: float) -> Tensor:
    """Each photo's own change scaled to the limit of visibility, shape (n, 3, 112, 112)."""
    import torch

    from holdfast.faces.mask import fitted
    from holdfast.faces.ssim import Reference

    pairs = zip(changes.split(1), crops.split(1), strict=True)
    return torch.cat([fitted(change, Reference(crop), dssim, budget) for change, crop in pairs])
