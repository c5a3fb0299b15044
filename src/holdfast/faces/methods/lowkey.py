"""LowKey: each photo pushed away from itself, also when it is blurred.

Cherepanova, Goldblum, Foley, Duan, Dickerson, Taylor, Goldstein. "LowKey: Leveraging Adversarial Attacks to Protect
Social Media Users from Facial Recognition", ICLR 2021 (arXiv:2101.07922). For each photo x (equation 1)

    maximise  1 / 2n  sum_m ( ||f_m(x) - f_m(x')||^2 + ||f_m(x) - f_m(G(x'))||^2 ) / ||f_m(x)||^2  -  w LPIPS(x, x')

by sign steps, with G a Gaussian blur. LPIPS is a network of its own whose weights are not ours to ship; DSSIM above the
limit of the comparison stands in for it, and each change is scaled to that limit. The authors' recognisers are four
ResNets trained on MS-Celeb-1M; here the team that every method gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.knobs import knob
from holdfast.faces.method import MaskMethod, Subject, WindowKind

if TYPE_CHECKING:
    from torch import Tensor

_TAPS = 7


@dataclass(frozen=True)
class LowKey(MaskMethod):
    """Push each photo, and its blurred copy, away from where it was."""

    ssim: float = knob(0.94, "SSIM that each photo keeps", low=0.5, high=1)
    budget: float = knob(16.0, "most grey levels at any pixel", low=0, high=64)
    steps: int = knob(50, "sign steps a photo", low=1, source="code 50")
    step: float = knob(0.64, "length of a step in grey levels", low=0, source="code 0.0025 of the range")
    weight: float = knob(5.0, "weight of visibility above the limit", low=0, source="code 0.05 of LPIPS")
    blur: float = knob(2.0, "standard deviation of the blur in pixels", low=0.1, high=10, source="code 3 at 7 taps")
    shape: WindowKind = knob("oval", "where the change may be")

    name = "lowkey"
    title = "LowKey"
    paper = "Cherepanova et al., ICLR 2021, arXiv:2101.07922"
    per_photo = True

    def cloak(self, crops: Tensor, subject: Subject, seed: int) -> Tensor:
        """See :class:`MaskMethod`."""
        import torch
        from torch.nn import functional

        from holdfast.faces.methods.fawkes import each_fitted
        from holdfast.faces.ssim import Reference
        from holdfast.faces.window import window

        generator = torch.Generator().manual_seed(seed)
        own = [one.embed_all(crops) for one in subject.recognisers]
        reference, inside = Reference(crops), window(self.shape).to(crops.device)
        # Where a photo stands still the distance has no slope, so the search starts beside it.
        change = ((torch.rand(crops.shape, generator=generator) * 2 - 1) * min(self.step, self.budget)).to(crops.device)
        for _ in range(self.steps if self.budget else 0):
            leaf = change.clone().requires_grad_(True)
            shown = (crops + leaf * inside).clamp(0, 255)
            gain = -self.weight * functional.relu(reference.dssim(shown) - self.dssim).sum()
            for one, clean in zip(subject.recognisers, own, strict=True):
                for seen in (shown, blurred(shown, self.blur)):
                    gain = gain + ((one.embed(seen) - clean) ** 2).sum() / (2 * len(own))
            (slope,) = torch.autograd.grad(gain, leaf)
            change = (change + self.step * slope.sign()).clamp(-self.budget, self.budget)
        return each_fitted(change * inside, crops, self.dssim, self.budget)


def blurred(crops: Tensor, deviation: float) -> Tensor:
    """Crops after a Gaussian blur of seven taps, the edge repeated."""
    import torch
    from torch.nn import functional

    place = torch.arange(_TAPS).float() - _TAPS // 2
    weight = torch.exp(-(place**2) / (2 * deviation**2))
    weight = (weight / weight.sum()).to(crops)
    n, channels, height, width = crops.shape
    flat = functional.pad(crops.reshape(n * channels, 1, height, width), (_TAPS // 2,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))
    return flat.reshape(crops.shape)
