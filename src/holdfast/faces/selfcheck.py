"""One person's own check: would recognisers still find the owner of a key in photos that it has not seen?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.events import Sink, StageFinished, StageStarted, Warned, ignore
from holdfast.core.files import write_json
from holdfast.core.keys import digest
from holdfast.core.runs import Run, Store
from holdfast.data import drawn
from holdfast.faces.check import Faces, assess, read_album
from holdfast.faces.check import drawn as generator_for
from holdfast.faces.compare import about, as_png
from holdfast.faces.learn import DRAWN, photos_of
from holdfast.faces.mask import applied, removed
from holdfast.faces.people import Gathered, Skipped, gather
from holdfast.faces.protect import Owner
from holdfast.faces.recipe import Checking
from holdfast.faces.recogniser import Recogniser, load_recognisers

KIND = "faces-check"
FORMAT = 1
FEWEST = 4
_STRANGERS, _PHOTOS = 60, 2
_SAME_PHOTO = 0.998  # cosine of two looks at one photo, the key's being stored in 16 bits
_OWNER = "the owner"


def strangers(place: str, recognisers: Sequence[Recogniser], sink: Sink = ignore) -> dict[str, Tensor]:
    """Other people in the gallery, aligned photos by person: ``drawn``, or a folder with one folder each.

    Raises:
        DataError: the folder is not there, or shows nobody.
    """
    if place == DRAWN:
        return {
            f"drawn-{number}": torch.stack(
                [torch.from_numpy(drawn.aligned(one, shot)).permute(2, 0, 1).float() for shot in range(_PHOTOS)]
            )
            for number, one in enumerate(drawn.demo_people(_STRANGERS, first=100))
        }
    return {name: one.crops for name, one in read_album(Path(place), recognisers, sink).people.items()}


def unseen(gathered: Gathered, owner: Owner, sink: Sink = ignore) -> Gathered:
    """What is left without photos that the mask was learned from: a check on them would flatter it."""
    one, known = owner.recognisers[0], owner.person[0]
    fresh = ((one.embed_all(gathered.crops) @ known.T).max(1).values < _SAME_PHOTO).tolist()
    old = [
        Skipped(path, "the mask was learned from it")
        for path, new in zip(gathered.paths, fresh, strict=True)
        if not new
    ]
    for each in old:
        sink(Warned(message=f"left out {each.path}: {each.reason}"))
    paths = tuple(path for path, new in zip(gathered.paths, fresh, strict=True) if new)
    return Gathered(gathered.crops[torch.tensor(fresh)], paths, (*gathered.skipped, *old))


def run_check(
    owner: Owner,
    photos: Sequence[Path],
    store: Store,
    checking: Checking,
    *,
    command: str = "",
    sink: Sink = ignore,
) -> tuple[Run, dict[str, Any]]:
    """Check a key on photos of its owner that it was not learned from.

    Half of the photos are known to the recognisers by name (the gallery, beside other people), half are recognised.

    Raises:
        DataError: fewer than four usable photos.
        ModelError: a recogniser that is not there.
        UsageError: an attack that is not known.
    """
    began = time.perf_counter()
    judges = load_recognisers(checking.recognisers)
    gathered = unseen(gather(photos_of(photos), owner.recognisers, sink), owner, sink)
    if len(gathered.paths) < FEWEST:
        raise DataError(
            f"{len(gathered.paths)} usable photos of the owner; a check needs {FEWEST}",
            hint="half of them are what recognisers know, half what they must recognise: give more photos",
        )
    order = torch.randperm(len(gathered.paths), generator=generator_for(checking.seed, "selfcheck"))
    half = len(order) // 2
    gallery = {_OWNER: gathered.crops[order[:half]], **strangers(checking.others, judges, sink)}
    faces = Faces(gallery, {_OWNER: gathered.crops[order[half:]]}, {}, gathered.skipped)
    learned_from = [one.name for one in owner.recognisers]
    spec = _spec(owner, faces, judges, checking)
    run = store.run(KIND, KIND, spec)
    # Originals beside protected faces give the mask away, as the key does.
    run.path.chmod(0o700)
    with run.working(sink) as log:
        log(StageStarted(run=run.name, stage="check", label="check"))
        checked = assess(faces, {_OWNER: owner.key.masks}, judges, learned_from, checking.attacks, checking.seed, log)
        result = {
            "format": FORMAT, "title": "Would recognisers still find me?", "command": command,
            "person": {"photos": len(gathered.paths), "gallery": half, "probes": len(order) - half},
            "others": checking.others, "checked": checked, "learned_from": learned_from,
            "attacks": list(checking.attacks),
            "recognisers": [about(one) for one in judges], "card": dict(owner.key.card),
            "pictures": _pictures(owner, faces.probes[_OWNER][:3]),
        }  # fmt: skip
        write_json(run.path / "metrics.json", result)
        from holdfast.faces.page import write_check

        write_check(result, run.path / "report.html")
        seconds = time.perf_counter() - began
        run.seal(seconds)
        log(StageFinished(run=run.name, stage="check", seconds=seconds))
    return run, result


def _spec(owner: Owner, faces: Faces, judges: Sequence[Recogniser], checking: Checking) -> dict[str, Any]:
    def content(crops: Mapping[str, Tensor]) -> dict[str, str]:
        return {name: digest(value.numpy().tobytes().hex()) for name, value in crops.items()}

    return {
        "format": FORMAT, "masks": digest(owner.key.masks.to(torch.int8).numpy().tobytes().hex()),
        "gallery": content(faces.gallery), "probes": content(faces.probes),
        "attacks": list(checking.attacks), "seed": checking.seed,
        "recognisers": [{"name": one.name, "digest": one.digest} for one in judges],
    }  # fmt: skip


def _pictures(owner: Owner, crops: Tensor) -> list[dict[str, Any]]:
    """Some photos as they are, protected, and with the key applied."""
    made = []
    for number, clean in enumerate(crops):
        mask = owner.key.masks[number % len(owner.key)][None]
        worn = applied(clean[None], mask)
        views = [
            {"title": "original", "image": as_png(clean)},
            {"title": "protected", "image": as_png(worn[0])},
            {"title": "key applied", "image": as_png(removed(worn, mask)[0])},
        ]
        made.append({"person": f"photo {number + 1}", "views": views})
    return made
