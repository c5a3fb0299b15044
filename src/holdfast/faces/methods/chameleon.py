"""Chameleon: one P3-Mask for all photos of a person, or a bank of them.

Chow, Hu, Huang, Ilhan, Wei, Liu. "Personalized Privacy Protection Mask Against Unauthorized Facial Recognition", ECCV
2024 (arXiv:2407.13975). One mask u is learned over a person's photos x at once (cross-image optimisation):

    minimise  - sum_m mean_x angle(f_m(T(x + u)), f_m(.))  +  weight * max(DSSIM(x, x + u) - limit, 0),   |u| <= budget

where f_m are the recognisers of a team, angle is the arc cosine between unit vectors, and the weight adapts so that the
mask ends at the limit of visibility (perceptibility optimisation).

The values of the paper's code stand beside each knob and in :meth:`Chameleon.published`. The defaults differ where
measurements said so (docs/methods/chameleon.md has them, one change at a time, on a recogniser that was left out):

- the photos are pushed from every clean photo of the person, not each from itself: a matcher compares with others;
- transforms and Admix stand before the recognisers, without which a mask fits the two networks it saw;
- the mask is a sum of patterns at several scales moved by Adam, instead of sign steps at every pixel;
- the window is soft instead of square, colour is reduced on flat skin, and the mask is scaled to the limit at the end;
- a bank of masks can be learned together, each pulled towards a decoy of its own, because photos under one mask match
  each other. It needs other people who look like people of the kind that will be matched (``--others``): generated
  faces are no decoys for recognisers of real ones (docs/log.md).

The authors' arc cosine has an infinite slope at equal vectors; here cosines are held below 1 - 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob
from holdfast.faces.align import SIDE
from holdfast.faces.method import Keep, MaskMethod, State, Subject, WindowKind, keep_nothing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chameleon(MaskMethod):
    """Learn one mask, or several that belong together, over all photos of a person."""

    masks: int = knob(1, "masks in the bank; each photo gets one", low=1, high=16, source="paper 1")
    ssim: float = knob(0.94, "least mean SSIM of the photos learned from", low=0.5, high=1, source="paper's code 0.94")
    budget: float = knob(16.0, "most grey levels at any pixel", low=0, high=64, source="paper's code 16")
    steps: int = knob(100, "steps of the optimisation, for all masks together", low=1, source="paper's code 50 epochs")
    batch: int = knob(6, "photos a step", low=1, source="paper's code 4")
    step: float = knob(1.0, "length of the first steps in grey levels", low=0, source="paper's code 0.255")
    last_step: float = knob(0.2, "length of the last steps", low=0, source="paper's code 0.255")
    rule: Literal["adam", "sign"] = knob("adam", "how a gradient becomes a step", source="paper's code sign")
    momentum: float = knob(0.9, "share of earlier gradients", low=0, high=0.999, source="paper's code 0")
    scales: tuple[int, ...] = knob((112, 56, 28, 14), "sides of the patterns that add up to a mask", low=2, high=SIDE)
    toward: Literal["all", "own"] = knob(
        "all", "push from all clean photos or each from its own", source="paper's code own"
    )
    diversity: float = knob(0.9, "chance that a photo is moved", low=0, high=1, source="paper's code 0")
    coarse: float = knob(0.4, "chance of a lower resolution", low=0, high=1, source="paper's code 0")
    admix: float = knob(0.4, "share of another face over the photo", low=0, high=2, source="paper's code 0")
    apart: float = knob(0.0, "weight of keeping the masks' faces apart", low=0, source="Protego's aim, another form")
    cancel: float = knob(0.0, "weight of making the masks' mean vanish, which averaging photos would reveal", low=0)
    pull: float = knob(1.0, "with several masks: weight of pulling each one's faces to a decoy among the others", low=0)
    shape: WindowKind = knob("oval", "where the mask may be", source="paper's code box")
    colour: float = knob(0.4, "share of colour that stays on flat skin", low=0, high=1, source="paper's code 1")
    weight: Literal["dual", "doubling"] = knob(
        "dual", "how the weight of visibility adapts", source="paper's code doubling"
    )
    metric: Literal["ssim", "ms-ssim"] = knob("ssim", "what is bounded: SSIM, or also at half and quarter size")
    starts: int = knob(1, "random starts, of which the strongest is kept", low=1, high=16)
    patience: int = knob(0, "stop after so many steps without half a degree of progress; 0: never", low=0)

    name = "chameleon"
    title = "Chameleon"
    paper = "Chow et al., ECCV 2024, arXiv:2407.13975"

    def check(self, where: str) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UsageError: sign steps on several scales, or a last step longer than the first.
        """
        if self.rule == "sign" and self.scales != (SIDE,):
            raise UsageError(
                f"{where}: sign steps need scales = [{SIDE}]", hint=f"set scales to {SIDE} or rule to adam"
            )
        if self.last_step > self.step:
            raise UsageError(f"{where}: last_step is longer than step", hint="steps get shorter: lower last_step")
        if not self.scales:
            raise UsageError(f"{where}: scales is empty", hint=f"for example scales = [{SIDE}]")

    @classmethod
    def published(cls, photos: int) -> Chameleon:
        """The settings of the authors' code for a number of photos: 50 epochs of batches of four."""
        return cls(
            masks=1, steps=50 * math.ceil(photos / 4), batch=4, step=0.255, last_step=0.255, rule="sign", momentum=0.0,
            scales=(SIDE,), toward="own", diversity=0.0, coarse=0.0, admix=0.0, apart=0.0, cancel=0.0, pull=0.0,
            shape="box", colour=1.0, weight="doubling",
        )  # fmt: skip

    def learn(self, subject: Subject, seed: int, keep: Keep = keep_nothing, state: State | None = None) -> Tensor:
        """See :class:`MaskMethod`."""
        from holdfast.faces.search import learn

        return learn(self, subject, seed, keep, state)
