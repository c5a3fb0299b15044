"""Which recognisers a mask is to learn from: a small team whose members fail on different photos.

A mask that fools recognisers which all look at the same things fools only their like. Chameleon picks its team by focal
diversity (the group's measure, :mod:`holdfast.core.diversity`): of all teams of a size, the one whose members' mistakes
fall on different photos. The paper does not say what a mistake of a recogniser is; here it is a photo of somebody else,
clean or mildly damaged, whose nearest other photo shows another person, or whose own person lies below the threshold.
Other people's photos suffice, so the choice needs nothing of the person to be protected.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from holdfast.core.diversity import co_failures, focal_diversity
from holdfast.core.errors import DataError, UsageError
from holdfast.faces.recogniser import Recogniser
from holdfast.faces.transforms import moved

MOST_TEAMS = 20_000


@dataclass(frozen=True)
class Team:
    """One team.

    Attributes:
        members: names.
        diversity: focal diversity of its members' mistakes, 0 to 1; None where nobody errs.
        accuracy: mean share of photos that its members get right.
    """

    members: tuple[str, ...]
    diversity: float | None
    accuracy: float

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"members": list(self.members), "diversity": self.diversity, "accuracy": self.accuracy}


def damaged(crops: Tensor, seed: int) -> dict[str, Tensor]:
    """The photos as they are and mildly damaged: coarse, blurred by moving, dark, noisy."""
    generator = torch.Generator().manual_seed(seed)
    small = functional.interpolate(crops, scale_factor=0.3, mode="bilinear", align_corners=False, antialias=True)
    return {
        "clean": crops,
        "moved": moved(crops, generator),
        "coarse": functional.interpolate(small, list(crops.shape[-2:]), mode="bilinear", align_corners=False),
        "dark": crops * 0.35,
        "noisy": (crops + 24 * torch.randn(crops.shape, generator=generator)).clamp(0, 255),
    }


def mistakes(one: Recogniser, people: Mapping[str, Tensor], seed: int) -> NDArray[np.bool_]:
    """Whether a recogniser errs on each photo in each state, shape (5 n,).

    Args:
        one: the recogniser.
        people: aligned photos (k, 3, 112, 112) by person, at least two of each.
        seed: of the damage.
    """
    owner = np.repeat(np.arange(len(people)), [len(crops) for crops in people.values()])
    crops = torch.cat(list(people.values()))
    known = one.embed_all(crops)
    wrong = []
    for state in damaged(crops, seed).values():
        alike = (one.embed_all(state) @ known.T).numpy()
        np.fill_diagonal(alike, -2.0)
        same = owner[:, None] == owner[None]
        own, other = np.where(same, alike, -2.0).max(1), np.where(same, -2.0, alike).max(1)
        wrong.append((own <= other) | (own < one.same_person))
    return np.concatenate(wrong)


def pick_team(recognisers: Sequence[Recogniser], people: Mapping[str, Tensor], size: int, seed: int) -> list[Team]:
    """All teams of a size, the most diverse first; between equals, the more accurate.

    Args:
        recognisers: the pool.
        people: photos of other people by person, at least two of each.
        size: members of a team.
        seed: of the damage to photos.

    Raises:
        UsageError: the pool is smaller than a team, or has too many teams.
        DataError: fewer than two people with two photos each.
    """
    if not 1 <= size <= len(recognisers):
        raise UsageError(
            f"a team of {size} from {len(recognisers)} recognisers", hint=f"give a size from 1 to {len(recognisers)}"
        )
    usable = {name: crops for name, crops in people.items() if len(crops) >= 2}
    if len(usable) < 2:
        raise DataError(
            "choosing a team needs photos of at least two other people, two of each",
            hint="give a folder that holds one folder of photos for each person",
        )
    teams = list(itertools.islice(itertools.combinations(range(len(recognisers)), size), MOST_TEAMS + 1))
    if len(teams) > MOST_TEAMS:
        raise UsageError(f"more than {MOST_TEAMS:,} teams of {size}", hint="name fewer recognisers")
    failed = np.stack([mistakes(one, usable, seed) for one in recognisers], 1)
    counts, right = co_failures(failed), 1 - failed.mean(0)
    made = []
    for team in teams:
        erring = size > 1 and bool(failed[:, team].any())
        diversity = focal_diversity(counts, team) if erring else None
        made.append(Team(tuple(recognisers[i].name for i in team), diversity, float(right[list(team)].mean())))
    return sorted(made, key=lambda one: (-(one.diversity if one.diversity is not None else -1.0), -one.accuracy))
