"""The optimisation behind :mod:`holdfast.faces.methods.chameleon`: one search over all photos of a person.

See that module for the objective, the paper and what differs from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.faces.align import SIDE
from holdfast.faces.mask import fitted
from holdfast.faces.method import Keep, State, Subject
from holdfast.faces.ssim import Reference
from holdfast.faces.transforms import coarsened, mixed, moved
from holdfast.faces.window import calmed, flatness, window

if TYPE_CHECKING:
    from holdfast.faces.methods.chameleon import Chameleon

BOUND = 1 - 1e-6
_SMOOTH = 0.9  # of the running means of angle and of each mask's protected faces


def learn(method: Chameleon, subject: Subject, seed: int, keep: Keep, state: State | None) -> Tensor:
    """Masks of a person, from one or several random starts, shape (k, 3, 112, 112)."""
    if not method.budget or method.ssim >= 1:
        return torch.zeros(method.masks, 3, SIDE, SIDE)
    names = [f"finished.{n}" for n in range(method.starts)]
    finished = [state[name].to(subject.crops.device) for name in names if name in state] if state else []
    running = state
    total = method.steps * method.starts
    for start in range(len(finished), method.starts):
        search = Search(method, subject, seed + 7919 * start)
        if running is not None:
            search.load(running)
            running = None

        def now(search: Search = search) -> State:
            return search.state() | {f"finished.{n}": masks for n, masks in enumerate(finished)}

        while not search.over:
            search.advance()
            keep(start * method.steps + search.done, total, search.angle, now)
        finished.append(fitted(search.masks(), subject.reference, method.dssim, method.budget))
    return max(finished, key=lambda masks: strength(masks, subject, seed))


def strength(masks: Tensor, subject: Subject, seed: int) -> float:
    """Mean angle in degrees between protected and clean photos, under transforms that were not learned from."""
    generator = torch.Generator().manual_seed(seed + 104_729)
    angles = []
    with torch.no_grad():
        for mask in masks:
            crops = moved((subject.crops + mask).clamp(0, 255), generator)
            for one, clean in zip(subject.recognisers, subject.embeddings, strict=True):
                angles.append(torch.acos((one.embed(crops) @ clean.T).clamp(-BOUND, BOUND)).mean())
    return math.degrees(float(torch.stack(angles).mean()))


@dataclass
class Search:
    """One optimisation from one random start; it can be put down and taken up again.

    Attributes:
        method, subject, seed: what is learned from what.
        done: steps taken.
        angle: running mean of the angle to the clean photos, in degrees.
    """

    method: Chameleon
    subject: Subject
    seed: int
    done: int = 0
    angle: float = 0.0
    best: tuple[int, float] = (0, 0.0)
    weight: float = field(init=False)

    def __post_init__(self) -> None:
        method = self.method
        self.generator = torch.Generator().manual_seed(self.seed)
        self.weight = 1.0 if method.weight == "doubling" else 200.0
        first = method.step if method.rule == "sign" else 0.5
        device = self.subject.crops.device
        draws = [torch.rand(method.masks, 3, side, side, generator=self.generator) for side in method.scales]
        self.patterns = [((draw * 2 - 1) * first).to(device).requires_grad_(True) for draw in draws]
        self.rates = torch.optim.Adam(self.patterns, lr=method.step, betas=(method.momentum, 0.98))
        self.speed = torch.zeros(method.masks, 3, SIDE, SIDE, device=device)
        self.inside = window(method.shape).to(device)
        flat = flatness(self.subject.crops)
        self.colours = 1 - (1 - method.colour) * flat
        own = self.subject.embeddings
        others = self.subject.other_embeddings
        # Faces of one kind (all of them drawn, say) share a direction that tells nobody apart: what is left does.
        ways = [functional.normalize(each - each.mean(0), dim=1) if len(each) > 1 else each for each in others]
        decoys = chosen_decoys(own, ways, method.masks)
        self.decoys = [each[decoys] for each in ways]
        # Where each mask's protected faces are by now, by recogniser; zero until it was seen.
        self.centres = [torch.zeros(method.masks, own.shape[1], device=device) for own in self.subject.embeddings]

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        waited = self.done - self.best[0]
        return self.done >= self.method.steps or bool(self.method.patience and waited >= self.method.patience)

    def masks(self) -> Tensor:
        """The masks as they stand, not yet scaled to their visibility, shape (k, 3, 112, 112)."""
        with torch.no_grad():
            return self._composed()

    def _composed(self) -> Tensor:
        whole = torch.zeros_like(self.speed)
        for pattern in self.patterns:
            same = pattern.shape[-1] == SIDE
            whole = whole + (
                pattern if same else functional.interpolate(pattern, (SIDE, SIDE), mode="bicubic", align_corners=False)
            )
        whole = calmed(whole, self.colours) if self.method.colour < 1 else whole
        return (whole * self.inside).clamp(-self.method.budget, self.method.budget)

    def advance(self) -> None:
        """One step."""
        method, subject = self.method, self.subject
        share = self.done / max(1, method.steps - 1)
        length = method.step + (method.last_step - method.step) * share
        photos, numbers = self._drawn()
        reference = subject.reference[photos]
        masks = self._composed()
        protected = (reference.clean + masks[numbers]).clamp(0, 255)
        seen = visibility(reference, protected, method.metric)
        shown = mixed(protected, subject.others, method.admix, self.generator)
        shown = moved(shown, self.generator, method.diversity) if method.diversity else shown
        shown = coarsened(shown, self.generator, method.coarse)
        gain, angle = self._gain(shown, photos, numbers)
        loss = self.weight * functional.relu(seen - self._limit) - gain
        if method.masks > 1 and method.cancel:
            loss = loss + method.cancel * (masks.mean(0) ** 2).mean() / (masks**2).mean()
        self.rates.zero_grad()
        loss.backward()
        self._move(length)
        self._adapt(float(seen.detach()))
        self.done += 1
        self.angle = angle if self.done == 1 else _SMOOTH * self.angle + (1 - _SMOOTH) * angle
        if self.angle > self.best[1] + 0.5:
            self.best = (self.done, self.angle)

    @property
    def _limit(self) -> float:
        return self.method.dssim

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Which photos get which masks at this step."""
        n = len(self.subject.crops)
        size = self.method.batch if self.method.masks > 1 else min(self.method.batch, n)
        order = torch.cat([torch.randperm(n, generator=self.generator) for _ in range(math.ceil(size / n))])
        numbers = (torch.arange(size) + self.done * size) % self.method.masks
        return order[:size].to(self.speed.device), numbers.to(self.speed.device)

    def _gain(self, shown: Tensor, photos: Tensor, numbers: Tensor) -> tuple[Tensor, float]:
        """What is maximised, and the mean angle in degrees."""
        method = self.method
        gain = torch.zeros((), device=shown.device)
        angles = []
        for place, (one, clean) in enumerate(zip(self.subject.recognisers, self.subject.embeddings, strict=True)):
            found = one.embed(shown)
            cosines = found @ clean.T if method.toward == "all" else (found * clean[photos]).sum(1)
            angle = torch.acos(cosines.clamp(-BOUND, BOUND)).mean()
            angles.append(float(angle.detach()))
            gain = gain + angle
            if method.masks > 1 and method.apart:
                centres = self.centres[place].clone()  # what the gradient was taken at stays as it was
                others = (torch.arange(method.masks, device=shown.device)[None] != numbers[:, None]).float()
                gain = gain - method.apart * ((found @ centres.T) * others).sum(1).mean() / (method.masks - 1)
                self._follow(self.centres[place], found.detach(), numbers)
            if method.masks > 1 and method.pull and len(self.decoys[place]):
                gain = gain + method.pull * (found * self.decoys[place][numbers]).sum(1).mean()
        return gain, math.degrees(sum(angles) / len(angles))

    def _follow(self, centres: Tensor, found: Tensor, numbers: Tensor) -> None:
        for number in numbers.unique():
            mean = found[numbers == number].mean(0)
            old = centres[number]
            centres[number] = functional.normalize(_SMOOTH * old + mean if old.any() else mean, dim=0)

    def _move(self, length: float) -> None:
        if self.method.rule == "adam":
            for group in self.rates.param_groups:
                group["lr"] = length
            self.rates.step()
            return
        pattern = self.patterns[0]
        slope = pattern.grad
        assert slope is not None
        with torch.no_grad():
            size = slope.abs().flatten(1).mean(1).clamp(min=1e-12)
            self.speed = self.method.momentum * self.speed + slope / size.view(-1, 1, 1, 1)
            pattern.sub_(length * self.speed.sign()).clamp_(-self.method.budget, self.method.budget)

    def _adapt(self, seen: float) -> None:
        """The weight of visibility: doubled and halved outside a tenth around the limit (paper), or raised smoothly."""
        limit = self._limit
        if self.method.weight == "dual":
            self.weight = max(5.0, self.weight * (1 + 60 * (seen - limit)))
        elif seen <= 0.9 * limit and self.weight >= 1 / 129:
            self.weight /= 2
        elif seen >= 1.1 * limit and self.weight <= 129:
            self.weight *= 2
        elif 0.9 * limit < seen < 1.1 * limit:
            self.weight = 1.0

    def state(self) -> State:
        """What :meth:`load` needs to go on as if nothing had happened, all of it tensors."""
        kept: State = {"generator": self.generator.get_state(), "speed": self.speed.clone()}
        kept["numbers"] = torch.tensor([self.done, self.angle, self.weight, *self.best], dtype=torch.float64)
        for place, pattern in enumerate(self.patterns):
            kept[f"pattern.{place}"] = pattern.detach().clone()
            for name, value in self.rates.state.get(pattern, {}).items():
                kept[f"rates.{place}.{name}"] = value.clone()
        return kept | {f"centre.{place}": centre.clone() for place, centre in enumerate(self.centres)}

    def load(self, state: State) -> None:
        """Take up where :meth:`state` was taken."""
        device = self.speed.device
        for place, pattern in enumerate(self.patterns):
            with torch.no_grad():
                pattern.copy_(state[f"pattern.{place}"])
            prefix = f"rates.{place}."
            self.rates.state[pattern] = {
                name.removeprefix(prefix): value.clone() if name.endswith(".step") else value.to(device, copy=True)
                for name, value in state.items()
                if name.startswith(prefix)
            }
        self.centres = [state[f"centre.{place}"].to(device, copy=True) for place in range(len(self.centres))]
        self.speed = state["speed"].to(device, copy=True)
        self.generator.set_state(state["generator"].cpu())
        done, self.angle, self.weight, first, second = state["numbers"].tolist()
        self.done, self.best = int(done), (int(first), second)


def visibility(reference: Reference, protected: Tensor, metric: Literal["ssim", "ms-ssim"]) -> Tensor:
    """Mean DSSIM of a batch; ``ms-ssim`` takes the mean over full, half and quarter size, where blotches show."""
    if metric == "ssim":
        return reference.dssim(protected).mean()
    parts = [reference.dssim(protected).mean()]
    for factor in (2, 4):
        small = Reference(functional.avg_pool2d(reference.clean, factor))
        parts.append(small.dssim(functional.avg_pool2d(protected, factor)).mean())
    return torch.stack(parts).mean()


def chosen_decoys(own: Sequence[Tensor], others: Sequence[Tensor], count: int) -> list[int]:
    """Other people far from the person and from one another in every recogniser's eyes (farthest-point choice).

    Args:
        own: by recogniser, unit vectors of the person, shape (n, dimension).
        others: by recogniser, unit vectors of other people, shape (m, dimension), in one order.
        count: decoys wanted; fewer than that many others give none.

    Returns:
        their places among the others.
    """
    if len(others[0]) < count:
        return []
    alike = torch.stack([each @ each.T for each in others]).mean(0)
    nearest = torch.stack([b @ functional.normalize(a.mean(0), dim=0) for a, b in zip(own, others, strict=True)]).mean(
        0
    )
    chosen: list[int] = []
    for _ in range(count):
        place = int(nearest.argmin())
        chosen.append(place)
        nearest = torch.maximum(nearest, alike[place])
        nearest[place] = 2.0
    return chosen
