"""How well masks protect: who finds a person, under which photos, attacks and recognisers.

The measures:

    protection rate  PSR@k: the share of probes whose k nearest gallery photos (cosine) show none of the probe's person.
                     A gallery photo of the person that ties with others counts as nearer, against the protection.
    verification     share of genuine pairs (probe, clean gallery photo) that are rejected at the threshold that
                     lets a given share of impostor pairs of clean gallery photos pass
    scenes           who wears a mask: probe_gallery, each "clean" or "protected"; "mixed" is a gallery half of whose
                     photos of the person are protected (Protego's scenes and one more)

In each scene one person at a time wears the mask; everybody else in the gallery stays clean. The adversary is given
aligned crops: that a detector must find the face again in a photo is not measured here.

Intervals. People are sampled, and photos of one person are alike, so a rate is the mean over people of each one's rate
over photos, its variance that of people's rates over their number, and its interval Wilson's with Student's quantile
at people - 1 degrees of freedom (``core.stats.score_interval``); where all people have the same rate, each counts as
one case, because their photos did not show how people differ. ``core.stats.mean_interval`` with a group for each person
counts photos there. In 600 simulated checks of 95% intervals (people's rates follow a beta distribution; coverage and
mean width in points):

    people  photos each  mean   sd of people   this        mean_interval, a group a person
       3         3        90         0        .992  69         .992  50
       6         8        90        25        .982  46         .705  37
       6         8        50        35        .963  60         .952  59
      13         3        90        25        .970  32         .843  30
      13         8        90        15        .945  21         .918  20
      13         1        99         2        .860  25         .993  28
      40         3        90        15        .962  13         .962  13

With one or two people the interval covers their photos only, and says so (``detail.over``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from holdfast.core.errors import DataError, HoldfastError, ModelError
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.core.keys import file_digest
from holdfast.core.records import Direction, Metric
from holdfast.core.stats import difference_interval, score_interval, student
from holdfast.faces.attacks import ESTIMATES, LEARNERS, TRANSFORMS, Learner, checked, transformed
from holdfast.faces.mask import applied, fitted, removed
from holdfast.faces.people import Gathered, Seen, Skipped, faces_in, likeness, one_person
from holdfast.faces.photo import open_photo
from holdfast.faces.recogniser import Recogniser
from holdfast.faces.ssim import Reference, psnr, ssim

KS = (1, 5)
"""Nearest gallery photos among which the person is looked for."""
FALSE_ACCEPTS = (1e-2, 1e-3)
"""Rates at which verification's thresholds are set."""
FEWEST_ACCEPTS = 5
"""False accepts from which a threshold is worth setting: of one pair in a thousand among 5,000 impostor pairs."""
SCENES = (
    "clean_clean", "protected_clean", "clean_protected", "protected_protected", "clean_mixed", "protected_mixed",
)  # fmt: skip
WILSON = "Wilson, Student's quantile, variance between people"
PHOTOS = "Wilson, variance within people: photos of these people only"

ByPerson = Mapping[str, Tensor]
Groups = Mapping[str, Sequence[float]]
Ranks = Mapping[str, Sequence[int]]
Json = dict[str, Any]


# -- photos -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Album:
    """Photos of people, aligned.

    Attributes:
        people: each one's faces and the photos that they are from.
        skipped: photos that were left out, and why.
    """

    people: Mapping[str, Gathered]
    skipped: tuple[Skipped, ...] = ()


def read_album(folder: Path, recognisers: Sequence[Recogniser], sink: Sink = ignore) -> Album:
    """Faces of a folder that holds one folder of photos for each person.

    A photo with several faces gives that of whoever most photos of the folder agree on; a file that is there twice
    counts once.

    Args:
        folder: of person/photo.jpg.
        recognisers: who decide which face is the person's; at least one.
        sink: told of every photo, and of those left out.

    Raises:
        DataError: there is no such folder, or nobody in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint="give a folder that holds one folder of photos for each person")
    rooms = [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    files = {one.name: [path for path in sorted(one.iterdir()) if _is_photo(path)] for one in rooms}
    total, done, known = sum(map(len, files.values())), 0, dict[str, Path]()
    people: dict[str, Gathered] = {}
    skipped: list[Skipped] = []
    for name, paths in files.items():
        seen: list[tuple[str, list[Seen]]] = []
        for path in paths:
            found = _seen(path, known)
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                seen.append((str(path), found))
            done += 1
            sink(Progressed(done=done, total=total))
        gathered = one_person(seen, recognisers)
        skipped += gathered.skipped
        if gathered.paths:
            people[name] = gathered
    for one in skipped:
        sink(Warned(message=f"left out {one.path}: {one.reason}"))
    if not people:
        raise DataError(
            f"no faces in {folder}", hint="it must hold one folder for each person, with photos of that person"
        )
    return Album(people, tuple(skipped))


def _is_photo(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in {".txt", ".json", ".csv"}


def _seen(path: Path, known: dict[str, Path]) -> list[Seen] | Skipped:
    """Faces of a photo, or why it has none; ``known`` collects files by content."""
    try:
        twin = known.setdefault(file_digest(path), path)
        if twin != path:
            return Skipped(str(path), f"it is the same file as {twin}")
        found = faces_in(open_photo(path).pixels)
    except HoldfastError as error:
        return Skipped(str(path), error.message)
    except OSError as error:
        return Skipped(str(path), error.strerror or "it cannot be read")
    return found or Skipped(str(path), "no face of at least 24 pixels was found")


@dataclass(frozen=True)
class Faces:
    """Aligned faces by person, each tensor of shape (n, 3, 112, 112).

    Embeddings of clean photos are computed once for each recogniser and kept here, so that several methods are assessed
    on the same Faces at the price of one.

    Attributes:
        gallery: photos with names that probes are compared with: protected people and others.
        probes: photos to be recognised; none of them is in the gallery.
        training: photos that masks were learned from. An adversary has seen them with their masks on.
        skipped: photos that were left out.
    """

    gallery: ByPerson
    probes: ByPerson
    training: ByPerson = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    _kept: dict[tuple[str, str, str], tuple[object, dict[str, Tensor]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def embedded(self, part: str, recogniser: Recogniser) -> dict[str, Tensor]:
        """Unit vectors of the clean ``gallery``, ``probes`` or ``training`` photos by person."""
        key = (part, recogniser.name, recogniser.digest)
        network, found = self._kept.get(key, (None, {}))
        if network is not recogniser.network:
            found = embed_each(recogniser, getattr(self, part))
            self._kept[key] = (recogniser.network, found)
        return found


def divided(album: Album, seed: int, *, protect: Sequence[str] = (), learn: int = 6, probes: float = 0.5) -> Faces:
    """Each protected person's photos into those to learn from, gallery and probes; everybody else is gallery.

    Args:
        album: photos.
        seed: of who goes where; a person's photos are drawn by their own name, so others do not move them.
        protect: people with masks; none: everybody with enough photos.
        learn: photos to learn from. What is left must be two photos or more.
        probes: share of what is left that is recognised; the gallery gets the rest, at least one photo.

    Raises:
        DataError: a person that is to be protected is not there or has too few photos, or nobody has enough.
    """
    enough = [name for name, one in album.people.items() if len(one.paths) >= learn + 2]
    for name in protect:
        if name not in enough:
            have = len(album.people[name].paths) if name in album.people else 0
            raise DataError(
                f"{name} has {have} usable photos, and {learn + 2} are needed",
                hint=f"{learn} to learn from, one for the gallery, one to be recognised: add photos or lower 'learn'",
            )
    chosen = list(protect) or enough
    if not chosen:
        raise DataError(f"nobody has {learn + 2} usable photos", hint="add photos, or learn from fewer")
    gallery, asked, training = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for name, one in album.people.items():
        if name not in chosen:
            gallery[name] = one.crops
            continue
        order = torch.randperm(len(one.crops), generator=drawn(seed, "divided", name))
        left = len(order) - learn
        cut = learn + min(max(1, round(left * probes)), left - 1)
        training[name], asked[name], gallery[name] = (
            one.crops[places] for places in (order[:learn], order[learn:cut], order[cut:])
        )
    return Faces(gallery, asked, training, album.skipped)


def drawn(seed: int, *names: str) -> torch.Generator:
    """A generator of its own for each purpose, so that one more person or attack changes nothing else."""
    text = "\0".join([str(seed), *names]).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))


def embed_each(recogniser: Recogniser, crops: ByPerson) -> dict[str, Tensor]:
    """Unit vectors by person, computed in batches across people."""
    if not crops:
        return {}
    whole = recogniser.embed_all(torch.cat(list(crops.values())))
    parts = whole.split([len(one) for one in crops.values()])
    return dict(zip(crops, parts, strict=True))


# -- who wears what -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cloak:
    """Changes that a per-photo method made, in place of a bank of masks.

    Attributes:
        probes, gallery: what is added to each of the person's photos, shapes of the photos.
        training: the same of the photos learned from; empty where there is none.
    """

    probes: Tensor
    gallery: Tensor
    training: Tensor = field(default_factory=lambda: torch.zeros(0, 3, 112, 112))


@dataclass(frozen=True)
class _Worn:
    """A protected person's photos with masks on.

    Attributes:
        probes, gallery, training: protected photos.
        numbers: of the masks on the probes.
        masks: the bank; None of a method without a key.
        half: which gallery photos are protected where half of them are; None of one that has a single photo.
    """

    probes: Tensor
    gallery: Tensor
    training: Tensor
    numbers: Tensor
    masks: Tensor | None
    half: Tensor | None


def _worn(faces: Faces, name: str, masks: Tensor | Cloak, seed: int) -> _Worn:
    clean = {
        part: getattr(faces, part).get(name, torch.zeros(0, 3, 112, 112)) for part in ("probes", "gallery", "training")
    }
    half = None
    if len(clean["gallery"]) > 1:
        half = torch.zeros(len(clean["gallery"]), dtype=torch.bool)
        half[torch.randperm(len(half), generator=drawn(seed, "half", name))[: len(half) // 2]] = True
    if isinstance(masks, Cloak):
        changed = {part: getattr(masks, part) for part in clean}
        short = {part: clean[part][: len(changed[part])] for part in clean}
        made = {part: applied(short[part], changed[part]) for part in clean}
        return _Worn(**made, numbers=torch.zeros(0, dtype=torch.long), masks=None, half=half)
    numbers = {
        part: torch.randint(len(masks), (len(crops),), generator=drawn(seed, "mask", part, name))
        for part, crops in clean.items()
    }
    made = {part: applied(crops, masks[numbers[part]]) for part, crops in clean.items()}
    return _Worn(**made, numbers=numbers["probes"], masks=masks, half=half)


# -- numbers ------------------------------------------------------------------------------------------


def rate(name: str, groups: Groups, better: Direction, reason: str = "nothing to measure it on") -> Json:
    """A share in per cent with its interval over people (see the module).

    Args:
        name: of the metric.
        groups: by person, values in [0, 1] of their photos; who has none does not count.
        better: which direction is.
        reason: why it is null where nobody has any.
    """
    items = [np.asarray(values, dtype=np.float64) for values in groups.values() if len(values)]
    n = sum(map(len, items))
    if not n:
        return Metric(name, None, None, None, 0, "%", better, reason=reason).as_json()
    means = np.array([one.mean() for one in items])
    value = float(means.mean())
    if len(items) < 3:
        variance = float(sum(one.var(ddof=1) / len(one) if len(one) > 1 else 0.25 for one in items)) / len(items) ** 2
        low, high = score_interval(value, variance, math.inf, n)
    elif np.ptp(means) < 1e-12:
        low, high = score_interval(value, 0.0, math.inf, len(items))
    else:
        low, high = score_interval(value, float(means.var(ddof=1)) / len(items), len(items) - 1, n)
    over = "people" if len(items) >= 3 else "photos"
    detail = {"people": len(items), "over": over, "sum": float(sum(one.sum() for one in items))}
    method = WILSON if over == "people" else PHOTOS
    return Metric(name, 100 * value, 100 * low, 100 * high, n, "%", better, method=method, detail=detail).as_json()


def average(name: str, groups: Groups, unit: str, better: Direction) -> Json:
    """A mean over people of the mean over their photos, with Student's interval.

    Args:
        name: of the metric.
        groups: by person, values of their photos.
        unit: of the values; empty for none.
        better: which direction is.
    """
    items = [np.asarray(values, dtype=np.float64) for values in groups.values() if len(values)]
    n = sum(map(len, items))
    if not n:
        return Metric(name, None, None, None, 0, unit, better, reason="nothing to measure it on").as_json()
    means = np.array([one.mean() for one in items])
    value, over = float(means.mean()), "people" if len(items) >= 3 else "photos"
    sample = means if over == "people" else np.concatenate(items)
    detail = {"people": len(items), "over": over}
    if len(sample) < 2:
        return Metric(
            name, value, None, None, n, unit, better, method="one photo: no interval", detail=detail
        ).as_json()
    half = student(0.95, len(sample) - 1) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    method = "Student, variance between people" if over == "people" else "Student: photos of these people only"
    return Metric(name, value, value - half, value + half, n, unit, better, method=method, detail=detail).as_json()


def difference(name: str, left: Groups, right: Groups, better: Direction) -> Json:
    """Paired difference (left minus right) in points, of two methods on the same photos of the same people.

    People are the groups of ``difference_interval``. Where they do not differ from one another, or have one photo each,
    each person counts as one pair.

    Args:
        name: of the metric.
        left: by person, values in [0, 1] of their photos.
        right: by person, values in [0, 1] of the same photos in the same order.
        better: which direction is.
    """
    if {name: len(values) for name, values in left.items()} != {name: len(values) for name, values in right.items()}:
        return Metric(
            name, None, None, None, 0, "points", better, reason="the two were not measured on the same photos"
        ).as_json()
    one = [np.asarray(values, dtype=np.float64) for values in left.values() if len(values)]
    two = [np.asarray(right[name], dtype=np.float64) for name, values in left.items() if len(values)]
    n = sum(map(len, one))
    if not n:
        return Metric(name, None, None, None, 0, "points", better, reason="nothing to measure it on").as_json()
    detail = {"people": len(one), "over": "people" if len(one) > 1 else "photos"}
    means = np.array([a.mean() - b.mean() for a, b in zip(one, two, strict=True)])
    if len(one) > 1 and (np.ptp(means) < 1e-12 or max(map(len, one)) == 1):
        one, two = [np.array([a.mean() for a in one])], [np.array([b.mean() for b in two])]
    value, low, high = (100 * x for x in difference_interval(one, two))
    method = (
        "paired, Student, people as clusters" if detail["over"] == "people" else "paired: photos of this person only"
    )
    return Metric(name, value, low, high, n, "points", better, method=method, detail=detail).as_json()


# -- one recogniser -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """A recogniser's view of the clean gallery.

    Attributes:
        recogniser: whose.
        gallery: unit vectors by person.
        clean: unit vectors of the clean probes by person.
    """

    recogniser: Recogniser
    gallery: Mapping[str, Tensor]
    clean: Mapping[str, Tensor]

    @classmethod
    def of(cls, recogniser: Recogniser, faces: Faces) -> _Judge:
        return cls(recogniser, faces.embedded("gallery", recogniser), faces.embedded("probes", recogniser))

    def others(self, name: str) -> Tensor:
        """Gallery photos of everybody else."""
        return torch.cat([one for person, one in self.gallery.items() if person != name])

    def ranks(self, probes: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> dict[str, list[int]]:
        """Place of the person's nearest photo among all gallery photos, from 1, for each probe.

        Args:
            probes: unit vectors by person.
            own: gallery photos of each probe's person, where they are not the clean ones.
        """
        mine = self.gallery if own is None else own
        return {name: rank(vectors, mine[name], self.others(name)) for name, vectors in probes.items() if name in mine}

    def embed(self, crops: ByPerson) -> dict[str, Tensor]:
        return embed_each(self.recogniser, crops)


def rank(probes: Tensor, own: Tensor, others: Tensor) -> list[int]:
    """1 + the number of others' photos that are strictly nearer than the nearest of the person's own."""
    best = (probes @ own.T).max(1, keepdim=True).values
    found: list[int] = (1 + (probes @ others.T > best).sum(1)).tolist()
    return found


def recognised(ranks: Ranks, reason: str = "nothing to measure it on", better: Direction = "none") -> Json:
    """The share of probes whose nearest gallery photo shows the true person."""
    return rate("recognised", {name: [float(r == 1) for r in found] for name, found in ranks.items()}, better, reason)


def protection(ranks: Ranks, clean: Ranks, others: int, reason: str = "nothing to measure it on") -> Json:
    """PSR@k over all probes, and over those that are found when clean.

    Args:
        ranks: of the probes.
        clean: ranks of the same probes before any mask or attack, among the clean gallery.
        others: fewest gallery photos of other people that a probe is compared with.
        reason: why it is null where there are no ranks.
    """
    made: Json = {"psr": {}, "psr_of_recognised": {}, "ranks": {name: list(found) for name, found in ranks.items()}}
    for k in KS:
        every = outcomes(ranks, k)
        found = {
            name: [hit for hit, before in zip(hits, clean[name], strict=True) if before <= k]
            for name, hits in every.items()
        }
        why = reason
        if others < k:
            every, found = {}, {}
            why = f"the gallery holds {others} photos of others: the person is always among the nearest {k}"
        made["psr"][str(k)] = rate(f"psr@{k}", every, "higher", why)
        unseen = why if not any(every.values()) else "no probe was recognised when clean"
        made["psr_of_recognised"][str(k)] = rate(f"psr@{k} of recognised", found, "higher", unseen)
    return made


def outcomes(ranks: Ranks, k: int) -> dict[str, list[float]]:
    """By person, 1 for each probe whose k nearest gallery photos do not show them."""
    return {name: [float(r > k) for r in found] for name, found in ranks.items()}


def threshold(gallery: Mapping[str, Tensor], accepts: float) -> tuple[float, int]:
    """The cosine above which the wanted share of impostor pairs lies, and the number of such pairs.

    Pairs strictly above it are accepted: at most floor(accepts x pairs) of the impostors are.

    Raises:
        ValueError: too few pairs.
    """
    vectors = torch.cat(list(gallery.values()))
    owner = torch.tensor([number for number, one in enumerate(gallery.values()) for _ in range(len(one))])
    cosines = (vectors @ vectors.T)[owner[:, None] < owner[None, :]]
    allowed = math.floor(accepts * len(cosines) + 1e-9)
    if allowed < FEWEST_ACCEPTS:
        raise ValueError(
            f"{len(cosines)} impostor pairs are too few for a false accept rate of {accepts:g}: "
            f"{math.ceil(FEWEST_ACCEPTS / accepts - 1e-9)} are needed"
        )
    return float(cosines.topk(allowed + 1).values[-1]), len(cosines)


def verification(judge: _Judge, worn: Mapping[str, Tensor]) -> Json:
    """Rejected genuine pairs before and after, at each false accept rate; null with a reason where pairs are few."""
    made: Json = {}
    for accepts in FALSE_ACCEPTS:
        try:
            limit, pairs = threshold(judge.gallery, accepts)
        except ValueError as error:
            made[f"{accepts:g}"] = {"threshold": None, "reason": str(error)}
            continue
        shares = {
            kind: {
                name: (vectors @ judge.gallery[name].T <= limit).double().mean(1).tolist()
                for name, vectors in probes.items()
            }
            for kind, probes in (("before", judge.clean), ("after", worn))
        }
        before = {name: shares["before"][name] for name in worn}
        made[f"{accepts:g}"] = {
            "threshold": limit,
            "impostor_pairs": pairs,
            "genuine_pairs": sum(len(vectors) * len(judge.gallery[name]) for name, vectors in worn.items()),
            "rejected_before": rate("rejected when clean", before, "lower"),
            "rejected": rate("rejected", shares["after"], "higher"),
        }
    return made


def _cosines(judge: _Judge, probes: Mapping[str, Tensor], name: str, better: Direction) -> Json:
    found = {person: (one @ judge.gallery[person].T).mean(1).tolist() for person, one in probes.items()}
    return average(name, found, "", better)


# -- everything ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """What all parts of an assessment share."""

    faces: Faces
    worn: Mapping[str, _Worn]
    judges: tuple[_Judge, ...]
    learned_from: tuple[str, ...]
    seed: int
    tell: Callable[[], None]

    def crops(self, part: str) -> dict[str, Tensor]:
        """Protected photos by person."""
        return {name: getattr(one, part) for name, one in self.worn.items()}

    def first(self, judge: _Judge) -> dict[str, list[int]]:
        """Ranks of clean probes among the clean gallery."""
        return judge.ranks({name: judge.clean[name] for name in self.worn})

    def fewest(self) -> int:
        """Fewest gallery photos of others that somebody's probe is compared with."""
        total = sum(len(one) for one in self.faces.gallery.values())
        return min(total - len(self.faces.gallery[name]) for name in self.worn)

    def protection(self, judge: _Judge, ranks: Ranks, reason: str = "nothing to measure it on") -> Json:
        return protection(ranks, self.first(judge), self.fewest(), reason)


def assess(
    faces: Faces,
    masks_by_person: Mapping[str, Tensor | Cloak],
    recognisers: Sequence[Recogniser],
    learned_from: Sequence[str] = (),
    attacks: Sequence[str] = (),
    seed: int = 0,
    sink: Sink = ignore,
) -> Json:
    """Everything that is to be known about masks, as plain JSON values.

    Every rate is a ``Metric`` with n photos, ``detail.people`` and an interval over people; what cannot be measured is
    null with a reason.

    Args:
        faces: gallery and probes; probes of people without masks are left out.
        masks_by_person: banks (k, 3, 112, 112), or the changes of a per-photo method.
        recognisers: who judge, each with a name of its own.
        learned_from: names of those that the masks were learned from (they need not judge); the others are held out.
        attacks: names of ``holdfast.faces.attacks``.
        seed: of every draw.
        sink: told of progress.

    Returns:
        ``counts``, ``visibility`` (ssim, psnr), and ``recognisers`` by name: ``clean`` (recognised), ``scenes``,
        ``verification`` by false accept rate, ``cosine`` (before, after), ``keys``, ``attacks``. Scenes and attacks
        have ``psr`` and ``psr_of_recognised`` by k, and ``ranks`` by person: the place of the person's nearest gallery
        photo for each probe, from which :func:`compare` pairs two methods. ``summary`` has means over recognisers, held
        out and learned from.

    Raises:
        DataError: a person with masks has no probes or no gallery photos, or nobody else is in the gallery.
        UsageError: an attack is not known.
    """
    names = checked(tuple(attacks))
    _validate(faces, masks_by_person, recognisers)
    total, done = len(recognisers) * (len(names) + 3), 0

    def tell() -> None:
        nonlocal done
        done += 1
        sink(Progressed(done=done, total=total))

    worn = {name: _worn(faces, name, masks, seed) for name, masks in masks_by_person.items()}
    judges = []
    for one in recognisers:
        judges.append(_Judge.of(one, faces))
        tell()
    check = _Check(faces, worn, tuple(judges), tuple(learned_from), seed, tell)
    parts = {judge.recogniser.name: _basics(check, judge) for judge in judges}
    for name, keys in _keys(check).items():
        parts[name]["keys"] = keys
    for attack in names:
        for name, found in _attacked(check, attack).items():
            parts[name]["attacks"][attack] = found
    return {
        "seed": seed,
        "counts": {
            "people": len(faces.gallery),
            "gallery": sum(len(one) for one in faces.gallery.values()),
            "protected_people": len(worn),
            "probes": sum(len(one.probes) for one in worn.values()),
            "masks": {name: None if one.masks is None else len(one.masks) for name, one in worn.items()},
            "skipped": [{"path": one.path, "reason": one.reason} for one in faces.skipped],
        },
        "visibility": visibility({name: faces.probes[name] for name in worn}, check.crops("probes")),
        "recognisers": parts,
        "summary": {
            "held_out": _summary(parts, [name for name in parts if name not in learned_from], names),
            "learned_from": _summary(parts, [name for name in parts if name in learned_from], names),
        },
    }


def _validate(faces: Faces, masks: Mapping[str, Tensor | Cloak], recognisers: Sequence[Recogniser]) -> None:
    names = [one.name for one in recognisers]
    if not names or len(set(names)) < len(names):
        raise DataError(f"recognisers {names}: each must be there once", hint="name one or more, none of them twice")
    if not masks:
        raise DataError("nobody has a mask", hint="learn one first")
    for name, mask in masks.items():
        for part in ("gallery", "probes"):
            crops = getattr(faces, part).get(name)
            if crops is None or not len(crops):
                raise DataError(
                    f"{name} has a mask but no photos among the {part}", hint="add some that it did not see"
                )
            if isinstance(mask, Cloak) and getattr(mask, part).shape != crops.shape:
                raise DataError(f"changes of {name}'s {part} do not fit the photos", hint="make one for each photo")
        if isinstance(mask, Tensor) and (mask.ndim != 4 or not len(mask)):
            raise DataError(f"masks of {name} have shape {tuple(mask.shape)}", hint="give (k, 3, 112, 112), k from 1")
    if len([one for one in faces.gallery.values() if len(one)]) < 2:
        raise DataError("the gallery shows one person only", hint="add photos of others, whom they can be mistaken for")


def visibility(clean: ByPerson, worn: ByPerson) -> Json:
    """SSIM and PSNR of the probes' crops, mean over people of the mean over photos."""
    likenesses = {name: ssim(clean[name].round(), one).tolist() for name, one in worn.items()}
    ratios = {name: psnr(clean[name].round(), one).clamp(max=99).tolist() for name, one in worn.items()}
    return {
        "ssim": average("ssim", likenesses, "", "higher"),
        "psnr": average("psnr", ratios, "dB", "higher"),
    }


def _basics(check: _Check, judge: _Judge) -> Json:
    """Scenes, verification and cosines of one recogniser."""
    probes = {
        "clean": {name: judge.clean[name] for name in check.worn},
        "protected": judge.embed(check.crops("probes")),
    }
    shown = judge.embed(check.crops("gallery"))
    galleries: dict[str, dict[str, Tensor]] = {
        "clean": {name: judge.gallery[name] for name in check.worn},
        "protected": shown,
        "mixed": {
            name: torch.where(one.half[:, None], shown[name], judge.gallery[name])
            for name, one in check.worn.items()
            if one.half is not None
        },
    }
    scenes = {}
    for scene in SCENES:
        probe, gallery = scene.split("_")
        ranks = judge.ranks(probes[probe], galleries[gallery])
        reason = "nobody has two gallery photos, one of which could be protected"
        scenes[scene] = check.protection(judge, ranks, reason) | {"recognised": recognised(ranks, reason)}
    check.tell()
    return {
        "learned_from": judge.recogniser.name in check.learned_from,
        "digest": judge.recogniser.digest,
        "clean": {"recognised": recognised(check.first(judge), better="higher")},
        "scenes": scenes,
        "verification": verification(judge, probes["protected"]),
        "cosine": {
            "before": _cosines(judge, probes["clean"], "genuine cosine when clean", "higher"),
            "after": _cosines(judge, probes["protected"], "genuine cosine", "lower"),
        },
        "attacks": {},
    }


# -- attacks ------------------------------------------------------------------------------------------


def _attacked(check: _Check, attack: str) -> dict[str, Json]:
    """What each recogniser makes of probes after an attack."""
    if attack in TRANSFORMS:
        return _after_transform(check, attack)
    if attack in ESTIMATES:
        return _after_estimate(check, attack)
    made = {}
    for judge in check.judges:
        made[judge.recogniser.name] = _after_learning(check, judge, LEARNERS[attack], attack)
        check.tell()
    return made


def _after_transform(check: _Check, attack: str) -> dict[str, Json]:
    """Protected probes, and clean ones beside them: an attack that blurs faces away protects by itself."""
    both = {
        kind: {name: transformed(attack, one, drawn(check.seed, attack, name)) for name, one in crops.items()}
        for kind, crops in (
            ("clean", {name: check.faces.probes[name] for name in check.worn}),
            ("protected", check.crops("probes")),
        )
    }
    made = {}
    for judge in check.judges:
        found = check.protection(judge, judge.ranks(judge.embed(both["protected"])))
        clean = recognised(judge.ranks(judge.embed(both["clean"])), better="higher")
        made[judge.recogniser.name] = {
            "title": TRANSFORMS[attack].title, "kind": "transform", **found, "clean_recognised": clean
        }  # fmt: skip
        check.tell()
    return made


def _collected(check: _Check, name: str, probe: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Photos that an adversary has of a person, with and without masks; never the probe. Fewer where there are fewer.

    Those learned from and the gallery's come first, in random order, then other probes.
    """
    one = check.worn[name]
    protected = [one.training, one.gallery]
    clean = [check.faces.training.get(name, one.training)[: len(one.training)], check.faces.gallery[name]]
    order = torch.randperm(sum(map(len, protected)), generator=generator)
    rest = [place for place in torch.randperm(len(one.probes), generator=generator).tolist() if place != probe]
    worn = torch.cat([torch.cat(protected)[order], one.probes[rest]])
    bare = torch.cat([torch.cat(clean)[order], check.faces.probes[name][rest]])
    return worn[:count], bare[:count].round()


def _after_estimate(check: _Check, attack: str) -> dict[str, Json]:
    """Probes with guesses of their mask taken off."""
    estimate = ESTIMATES[attack]
    tries: dict[str, list[Tensor]] = {}
    fewest = []
    for name, one in check.worn.items():
        others = torch.cat([crops for person, crops in check.faces.gallery.items() if person != name])
        candidates = []
        for place, probe in enumerate(one.probes):
            # The same draw for each probe: what the adversary has does not depend on what it is asked.
            worn, bare = _collected(check, name, place, estimate.photos, drawn(check.seed, attack, name))
            fewest.append(len(worn))
            if len(worn) == estimate.photos:
                guesses = estimate.guess(worn, others if estimate.beside == "others" else bare)
                candidates.append(removed(probe[None], guesses))
        if len(candidates) == len(one.probes):
            tries[name] = candidates
    reason = f"it takes {estimate.photos} other protected photos of a person, and there are {min(fewest)}"
    made = {}
    for judge in check.judges:
        chosen = {name: _nearest(judge, crops) for name, crops in tries.items()}
        found = check.protection(judge, judge.ranks(chosen), reason)
        made[judge.recogniser.name] = {
            "title": estimate.title, "kind": "estimate", "photos": estimate.photos, **found
        }  # fmt: skip
        check.tell()
    return made


def _nearest(judge: _Judge, tries: Sequence[Tensor]) -> Tensor:
    """Of each probe's candidates the one nearest to anybody's gallery photo: the adversary knows no truth."""
    vectors = judge.recogniser.embed_all(torch.cat(list(tries)))
    if all(len(one) == 1 for one in tries):
        return vectors
    nearest = (vectors @ torch.cat(list(judge.gallery.values())).T).max(1).values
    parts = zip(vectors.split([len(one) for one in tries]), nearest.split([len(one) for one in tries]), strict=True)
    return torch.stack([part[int(score.argmax())] for part, score in parts])


def _after_learning(check: _Check, judge: _Judge, learner: Learner, attack: str) -> Json:
    """Protected probes before a recogniser that was trained on protected photos with names.

    It learns from everybody's gallery at once: others as they are, protected people by their protected photos (those
    learned from and the gallery's), and by their clean gallery too where the learner has it. A probe is then compared
    with what the adversary has of its person and with the clean photos of everybody else.
    """
    about = {"title": learner.title, "kind": "learner"}
    own = {name: torch.cat([one.training, one.gallery]) for name, one in check.worn.items()}
    try:
        gallery, mine, probes = _learned(check, judge, learner, own, drawn(check.seed, attack, judge.recogniser.name))
    except ModelError as error:
        return about | check.protection(judge, {}, error.message)
    if learner.clean:
        mine = {name: torch.cat([mine[name], gallery[name]]) for name in mine}
    if learner.classes:
        gallery = {name: _centre(one) for name, one in gallery.items()}
        mine = {name: _centre(one) for name, one in mine.items()}
    seen = _Judge(judge.recogniser, gallery, judge.clean)
    found = seen.ranks(probes, mine)
    others = len(gallery) - 1 if learner.classes else check.fewest()
    return (
        about
        | {"compared_with": "people" if learner.classes else "photos"}
        | protection(found, check.first(judge), others)
    )


def _centre(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.mean(0, keepdim=True), dim=1)


def _learned(
    check: _Check, judge: _Judge, learner: Learner, own: ByPerson, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What the trained recogniser makes of the clean gallery, the adversary's protected photos, and the probes."""
    people = list(check.faces.gallery)

    def named(clean: Mapping[str, Tensor], protected: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        parts = [
            torch.cat([protected[name], clean[name]] if learner.clean else [protected[name]])
            if name in protected
            else clean[name]
            for name in people
        ]
        labels = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
        return torch.cat(parts), labels

    if learner.net is not None:
        crops, labels = named(check.faces.gallery, own)
        made = learner.net(judge.recogniser, crops, labels, generator)
        gallery, mine = embed_each(made, check.faces.gallery), embed_each(made, own)
        return gallery, mine, embed_each(made, check.crops("probes"))
    mine, probes = judge.embed(own), judge.embed(check.crops("probes"))
    head = learner.head
    if head is None:
        raise ModelError(f"{learner.title} trains nothing", hint="give it a head or a net")
    vectors, labels = named(judge.gallery, mine)
    matrix = head(vectors, labels)

    def changed(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: functional.normalize(one @ matrix, dim=1) for name, one in parts.items()}

    return changed(judge.gallery), changed(mine), changed(probes)


# -- keys ---------------------------------------------------------------------------------------------


def _keys(check: _Check) -> dict[str, Json]:
    """The owner's key, somebody else's, and random noise: rank-1 of the true person after each."""
    banks = {name: one.masks for name, one in check.worn.items() if one.masks is not None}
    no_key = "this method changes each photo by itself: there is no key"
    probes = {name: check.worn[name].probes for name in banks}
    squeezed = {name: transformed("jpeg75", one, drawn(check.seed, "key", name)) for name, one in probes.items()}
    people = list(banks)
    # Everybody tries the key of the next one, who is never themselves.
    foreign = dict(zip(people, people[1:] + people[:1], strict=True))
    no_other = no_key if not banks else "a second protected person is needed, whose key can be tried"
    strange = {name: banks[other] for name, other in foreign.items() if other != name}
    right, numbers = _unmasked(check, probes, banks)
    after, _ = _unmasked(check, squeezed, banks)
    wrong, _ = _unmasked(check, {name: probes[name] for name in strange}, strange)
    clean = {name: check.faces.probes[name] for name in check.worn}
    misplaced = {
        name: applied(clean[name], bank[torch.arange(len(clean[name])) % len(bank)]) for name, bank in strange.items()
    }
    noisy = {
        name: applied(one, _noise(one, check.worn[name].probes, drawn(check.seed, "noise", name)))
        for name, one in clean.items()
    }
    matched = {name: (found == check.worn[name].numbers).double().tolist() for name, found in numbers.items()}
    made = {}
    for judge in check.judges:

        def after_all(crops: ByPerson, better: Direction, reason: str, judge: _Judge = judge) -> Json:
            return recognised(judge.ranks(judge.embed(crops)), reason, better)

        made[judge.recogniser.name] = {
            "right": after_all(right, "higher", no_key),
            "right_jpeg75": after_all(after, "higher", no_key),
            "right_mask_chosen": rate("right mask chosen", matched, "higher", no_key),
            "wrong": after_all(wrong, "lower", no_other),
            "other_mask_on_clean": after_all(misplaced, "higher", no_other),
            "noise_on_clean": after_all(noisy, "higher", "nothing to measure it on"),
        }
        check.tell()
    return made


def _unmasked(check: _Check, probes: ByPerson, banks: ByPerson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Probes without the mask of a bank whose removal makes them most like their person, and the masks' numbers.

    Who decides is the recognisers that the masks have learned from, where they are among the judges: the owner has
    them. The person is known by the photos learned from, or else by their clean gallery.
    """
    deciding = [judge for judge in check.judges if judge.recogniser.name in check.learned_from] or list(check.judges)
    recognisers = [judge.recogniser for judge in deciding]
    made, numbers = {}, {}
    for name, crops in probes.items():
        part = "training" if len(check.faces.training.get(name, ())) else "gallery"
        person = [check.faces.embedded(part, one)[name] for one in recognisers]
        tries = torch.stack([removed(crops, mask[None]) for mask in banks[name]])
        best = torch.zeros(len(crops), dtype=torch.long)
        if len(tries) > 1:
            best = likeness(tries.flatten(0, 1), person, recognisers).view(len(tries), -1).argmax(0)
        made[name] = tries[best, torch.arange(len(crops))]
        numbers[name] = best
    return made, numbers


def _noise(clean: Tensor, worn: Tensor, generator: torch.Generator) -> Tensor:
    """A pattern of random signs that is as visible on a person's photos as their masks are, shape (1, 3, 112, 112)."""
    reference = Reference(clean.round())
    wanted = float(reference.dssim(worn).mean())
    signs = torch.randint(2, (1, *clean.shape[1:]), generator=generator).float() * 2 - 1
    # Levels of their own for each place: one size for all would move in whole grey levels, and so would its visibility.
    levels = 4 + 8 * torch.rand(signs.shape, generator=generator)
    return fitted(signs * levels, reference, wanted, 127)


# -- over recognisers, and between methods ------------------------------------------------------------


def _shared(parts: Sequence[Ranks], k: int) -> dict[str, list[float]]:
    """By person, for each probe the share of recognisers that do not find them."""
    people = [name for name in parts[0] if all(name in one for one in parts)] if parts else []
    return {name: np.mean([outcomes(one, k)[name] for one in parts], axis=0).tolist() for name in people}


def _rates(parts: Sequence[Json]) -> Json:
    made = {}
    for k in map(str, KS):
        reasons = [one["psr"][k]["reason"] for one in parts if one["psr"][k]["value"] is None]
        groups = {} if reasons else _shared([one["ranks"] for one in parts], int(k))
        made[k] = rate(f"psr@{k}", groups, "higher", reasons[0] if reasons else "no such recogniser was asked")
    return made


def _summary(parts: Mapping[str, Json], names: Sequence[str], attacks: Sequence[str]) -> Json:
    """Means over recognisers; each probe counts with the share of them that do not find its person."""
    return {
        "recognisers": list(names),
        "scenes": {scene: _rates([parts[name]["scenes"][scene] for name in names]) for scene in SCENES},
        "attacks": {attack: _rates([parts[name]["attacks"][attack] for name in names]) for attack in attacks},
    }


def compare(left: Json, right: Json) -> Json:
    """Paired differences of protection rates between two assessments of the same Faces with the same recognisers.

    Args:
        left: what :func:`assess` gave.
        right: the same of another method; differences are left minus right, in points.

    Returns:
        by recogniser, ``scenes`` and ``attacks`` that both hold -> k -> metric; and over those held out by both.
    """
    shared = [name for name in left["recognisers"] if name in right["recognisers"]]
    made: Json = {}
    for name in shared:
        one, two = left["recognisers"][name], right["recognisers"][name]
        made[name] = {
            kind: {what: _differences([one[kind][what]], [two[kind][what]]) for what in one[kind] if what in two[kind]}
            for kind in ("scenes", "attacks")
        }
    held = [
        name for name in shared
        if not left["recognisers"][name]["learned_from"] and not right["recognisers"][name]["learned_from"]
    ]  # fmt: skip
    pairs = [(left["recognisers"][name], right["recognisers"][name]) for name in held]
    together = {
        kind: {
            what: _differences([one[kind][what] for one, _ in pairs], [two[kind][what] for _, two in pairs])
            for what in (pairs[0][0][kind] if pairs else ())
            if what in pairs[0][1][kind]
        }
        for kind in ("scenes", "attacks")
    }
    return {"recognisers": made, "held_out": {"recognisers": held, **together}}


def _differences(left: Sequence[Json], right: Sequence[Json]) -> Json:
    made = {}
    for k in map(str, KS):
        absent = [one["psr"][k]["reason"] for one in (*left, *right) if one["psr"][k]["value"] is None]
        if absent:
            made[k] = Metric(f"psr@{k}", None, None, None, 0, "points", "higher", reason=absent[0]).as_json()
        else:
            one, two = (_shared([part["ranks"] for part in side], int(k)) for side in (left, right))
            made[k] = difference(f"psr@{k}", one, two, "higher")
    return made
