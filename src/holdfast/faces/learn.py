"""The request of the part: a person's key, learned from photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError, ModelError, UsageError, nearest
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.core.files import write_bytes, write_json
from holdfast.core.keys import file_digest
from holdfast.core.knobs import check, resolved
from holdfast.core.runs import Run, Store
from holdfast.core.stage import find_or_make
from holdfast.data import drawn
from holdfast.faces.mask import Key, applied, save_key
from holdfast.faces.method import MaskMethod, State, Subject
from holdfast.faces.people import FEWEST, faces_in, gather
from holdfast.faces.photo import SUFFIXES, open_photo
from holdfast.faces.recogniser import find_recogniser, identity_of, load_recognisers
from holdfast.faces.ssim import psnr, ssim
from holdfast.models.engine import Engine, device_of

KIND = "mask"
KEY_FILE = "key.p3"
DRAWN = "drawn"
_DRAWN_PEOPLE = 60
_KEEP_SECONDS = 5.0
VERSION = 1


def photos_of(places: Sequence[Path]) -> list[Path]:
    """The photos among files and folders, each once, in a settled order.

    Raises:
        DataError: a place is not there, or there is no photo in all of them.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
            found |= dict.fromkeys(p for p in inside if not p.name.startswith("."))
        elif place.is_file():
            found[place] = None
        else:
            siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise DataError(f"no photo or folder {place}", hint=f"{nearest(place.name, siblings)}check the path")
    if not found:
        raise DataError(
            f"no photos in {', '.join(map(str, places)) or 'nothing'}", hint="give photos, or folders that hold some"
        )
    return list(found)


def other_people(place: str) -> Tensor:
    """Faces of other people, shape (m, 3, 112, 112): ``drawn`` ones, or those in a folder's photos.

    Raises:
        DataError: the folder is not there, or shows no face.
    """
    if place == DRAWN:
        return torch.stack([_tensor(drawn.aligned(one, 1)) for one in drawn.training_people(_DRAWN_PEOPLE)])
    crops = [one.crop for path in photos_of([Path(place)]) for one in faces_in(open_photo(path).pixels)]
    if not crops:
        raise DataError(f"no face in the photos of {place}", hint="--others needs photos of other people")
    return torch.stack(crops)


def _tensor(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


@dataclass(frozen=True)
class LearnMask:
    """Learn the key of the person whom photos show.

    Attributes:
        method: with its knobs; it must learn masks, not work photo by photo.
        photos: files.
        recognisers: references of those that the mask learns from.
        others: other people's faces: ``drawn``, or a folder of photos.
        seed: of every draw.
    """

    method: MaskMethod
    photos: tuple[Path, ...]
    recognisers: tuple[str, ...]
    others: str = DRAWN
    seed: int = 0

    kind = KIND
    attacked = False

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        return self.method.name

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on; photos by content, never by name."""
        others = [self.others] if self.others == DRAWN else sorted(map(file_digest, photos_of([Path(self.others)])))
        return {
            "version": VERSION,
            "method": {"name": self.method.name, "version": self.method.version, "knobs": resolved(self.method)},
            "photos": [file_digest(path) for path in self.photos],
            "recognisers": [identity_of(reference) for reference in self.recognisers],
            "others": others,
            "seed": self.seed,
        }

    def validate(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            UsageError, DataError, ModelError: a knob, too few photos, a recogniser that is not there or cannot teach.
        """
        check(self.method, self.method.name)
        if self.method.per_photo:
            raise UsageError(
                f"{self.method.title} changes each photo on its own and learns no mask",
                hint="compare it with 'holdfast faces compare'; learn with chameleon",
            )
        if len(self.photos) < FEWEST:
            raise DataError(
                f"{len(self.photos)} photos; {FEWEST} are the least", hint="give 5 to 20 photos of one person"
            )
        missing = next((path for path in self.photos if not path.is_file()), None)
        if missing is not None:
            raise DataError(f"no photo {missing}", hint="check the path")
        if not self.recognisers:
            raise UsageError("no recogniser to learn from", hint="--recognisers mobileface-v2,openvino-0095")
        for reference in self.recognisers:
            if find_recogniser(reference).suffix == ".onnx":
                raise ModelError(
                    f"{reference}: a mask cannot learn from an ONNX file, which has no gradients",
                    hint="it can judge: 'holdfast faces check --recognisers'; learn from a folder of safetensors",
                )

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run, with the key in its artifacts."""
        return find_or_make(self, store, sink, lambda run, log: self._work(run, engine or Engine(), log))

    def _work(self, run: Run, engine: Engine, sink: Sink) -> dict[str, Any]:
        run.path.chmod(0o700)  # before the first checkpoint: it holds the masks as they stand
        device = device_of(engine)
        torch.set_num_threads(engine.threads or 1)
        team = load_recognisers(self.recognisers)
        gathered = gather(self.photos, team, lambda event: sink(event) if isinstance(event, Warned) else None)
        subject = Subject(
            gathered.crops.to(device), tuple(one.to(device) for one in team), other_people(self.others).to(device)
        )
        kept = Kept(run.path / "checkpoint" / "search.safetensors", sink, engine.checkpoint_every)
        torch.set_flush_denormal(True)  # gradients through ReLU6 networks are full of them: twice the time
        try:
            masks = self.method.learn(subject, self.seed, kept, kept.found()).cpu()
        finally:
            torch.set_flush_denormal(False)
        key = self._key(masks, subject, gathered.paths)
        run.artifacts.mkdir(parents=True, exist_ok=True)
        save_key(key, run.artifacts / KEY_FILE)
        skipped = [{"photo": Path(one.path).name, "reason": one.reason} for one in gathered.skipped]
        write_json(run.artifacts / "card.json", {**key.card, "skipped": skipped})
        return {"photos": len(gathered.paths), "skipped": len(skipped), **key.card["seen"]}

    def _key(self, masks: Tensor, subject: Subject, paths: Sequence[str]) -> Key:
        crops = subject.crops.cpu()
        after = torch.cat([applied(crops, mask[None]) for mask in masks])
        before = crops.repeat(len(masks), 1, 1, 1)
        seen = {
            "ssim": round(float(ssim(before, after).mean()), 5),
            "psnr": round(float(psnr(before, after).clamp(max=99).mean()), 3),
        }
        names = [one.name for one in subject.recognisers]
        card = {
            "method": self.method.name, "knobs": resolved(self.method), "budget": self.method.budget,
            "masks": len(masks), "photos": len(paths), "seed": self.seed, "seen": seen,
            "recognisers": {name: _durable(ref) for name, ref in zip(names, self.recognisers, strict=True)},
        }  # fmt: skip
        person = {name: value.cpu() for name, value in zip(names, subject.embeddings, strict=True)}
        return Key(masks, person, card)


def _durable(reference: str) -> str:
    """A reference that still finds the recogniser from another folder."""
    place = Path(reference).expanduser()
    return str(place.resolve()) if place.exists() and (place / "recogniser.json").is_file() else reference


class Kept:
    """Tells progress, and keeps the state of a search every few seconds.

    Args:
        path: of the state.
        sink: where progress goes.
        every: steps between states; 0: about every five seconds.
    """

    def __init__(self, path: Path, sink: Sink, every: int = 0) -> None:
        self.path, self.sink, self.every = path, sink, every
        self.last = time.perf_counter()

    def __call__(self, done: int, total: int, angle: float, state: Any) -> None:
        """After a step."""
        self.sink(Progressed(done=done, total=total, detail={"angle": round(angle, 1)}))
        now = time.perf_counter()
        if done % self.every == 0 if self.every else now - self.last >= _KEEP_SECONDS:
            from safetensors.torch import save

            tensors = state()
            if tensors:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self.path, save({name: value.cpu().contiguous() for name, value in tensors.items()}))
            self.last = now

    def found(self) -> State | None:
        """What an interrupted search kept; None if nothing that is whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if not self.path.is_file():
            return None
        try:
            return load(self.path.read_bytes())
        except (SafetensorError, OSError):
            return None


def key_of_run(run: Run) -> Path:
    """Where a run's key is.

    Raises:
        DataError: the run is no finished mask.
    """
    place = run.artifacts / KEY_FILE
    if run.kind != KIND or not place.is_file():
        raise DataError(
            f"{run.name} is no finished mask", hint="give the run of a 'holdfast faces learn', or its .p3 file"
        )
    return place
