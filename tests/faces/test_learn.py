"""The request: what its key depends on, what it refuses, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import command, made_files, surroundings
from faces import toy
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.events import Event, Progressed, StageFinished, Warned
from holdfast.core.runs import Store, open_run
from holdfast.core.stage import request_key
from holdfast.data import drawn
from holdfast.faces import learn as module
from holdfast.faces.learn import Kept, LearnMask, key_of_run, other_people, photos_of
from holdfast.faces.mask import applied, load_key
from holdfast.faces.methods.chameleon import Chameleon
from holdfast.faces.methods.fawkes import Fawkes
from holdfast.faces.methods.noise import Noise
from holdfast.faces.people import faces_in
from holdfast.faces.protect import Owner
from holdfast.faces.recogniser import load_recogniser
from holdfast.faces.ssim import psnr, ssim
from holdfast.models.engine import Engine

ME = 3
CPU = Engine(device="cpu")
METHOD = Chameleon(
    masks=2, ssim=0.94, budget=16.0, steps=4, batch=2, step=2.0, last_step=1.0, scales=(112, 28), toward="all",
    diversity=0.5, coarse=0.5, admix=0.3, apart=0.5, cancel=0.5, pull=0.5, shape="oval", colour=0.5, weight="dual",
    starts=1, patience=0,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _faces_are_found_once() -> Iterator[None]:
    with toy.remembering():
        yield


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of one person, one of somebody else."""
    folder = tmp_path_factory.mktemp("album")
    for seed in range(3):
        toy.save(toy.photo(ME, seed), folder / f"{seed}.png")
    toy.save(toy.photo(4, 1), folder / "friend.png")
    return folder


@pytest.fixture(autouse=True)
def _few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWN_PEOPLE", 4)


def request(album: Path, **changes: Any) -> LearnMask:
    made = LearnMask(METHOD, tuple(sorted(album.iterdir())), ("drawn-mobile", "drawn-residual"))
    return replace(made, **changes)


# -- photos --------------------------------------------------------------------------------------------


def test_photos_are_found_each_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/d.txt", ".hidden.png", "e.heic", "notes.md"):
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"")
    found = photos_of([tmp_path / "e.heic", tmp_path, tmp_path / "a.png"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["e.heic", "a.png", "b.JPG", "sub/c.webp"]
    assert photos_of([tmp_path / "notes.md"]) == [tmp_path / "notes.md"]  # what is named is taken at its word


def test_places_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"no photo or folder .*photo\n") as caught:
        photos_of([tmp_path / "photo"])
    assert "did you mean 'photos'" in caught.value.hint
    with pytest.raises(DataError, match=r"no photos in .*photos"):
        photos_of([tmp_path / "photos"])
    with pytest.raises(DataError, match="no photos in nothing"):
        photos_of([])


def test_other_people_are_drawn_or_from_a_folder(album: Path, tmp_path: Path) -> None:
    found = other_people("drawn")
    assert found.shape == (4, 3, 112, 112)
    first = drawn.aligned(drawn.training_people(1)[0], 1)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), first)
    assert torch.equal(found, other_people("drawn"))
    there = other_people(str(album))
    assert len(there) == 4
    assert torch.equal(there[0], faces_in(toy.photo(ME, 0))[0].crop)
    toy.save(np.full((90, 90, 3), 9, np.uint8), tmp_path / "wall.png")
    with pytest.raises(DataError, match="no face in the photos"):
        other_people(str(tmp_path))
    with pytest.raises(DataError, match="no photo or folder"):
        other_people(str(tmp_path / "none"))


# -- what a key depends on -----------------------------------------------------------------------------


def test_photos_count_by_content_and_never_by_name(album: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(album, other)
    for path in sorted(other.iterdir()):
        path.rename(other / f"copy-{path.name}")
    assert request_key(request(album)) == request_key(request(other))
    assert str(album) not in json.dumps(request(album).spec)
    toy.save(toy.photo(ME, 7), other / "copy-0.png")
    assert request_key(request(album)) != request_key(request(other))


def test_everything_that_matters_changes_the_key(album: Path) -> None:
    base = request_key(request(album))
    changed = [
        request(album, seed=1),
        request(album, method=replace(METHOD, budget=15.0)),
        request(album, method=Noise()),
        request(album, recognisers=("drawn-mobile",)),
        request(album, recognisers=("drawn-residual", "drawn-mobile")),
        request(album, others=str(album)),
        request(album, photos=request(album).photos[:3]),
    ]
    keys = [request_key(one) for one in changed]
    assert len({base, *keys}) == len(keys) + 1
    assert request(album).label == "chameleon"
    assert request(album).kind == "mask"
    assert not request(album).attacked


# -- what is refused before any work -------------------------------------------------------------------


def test_what_cannot_work_is_refused_before_anything_is_made(album: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine.onnx"
    model.write_bytes(b"")
    cases: list[tuple[LearnMask, type[Exception], str]] = [
        (request(album, method=Fawkes()), UsageError, "Fawkes changes each photo on its own"),
        (request(album, method=replace(METHOD, budget=99.0)), UsageError, r"chameleon.budget = 99 is outside"),
        (request(album, method=replace(METHOD, last_step=9.0)), UsageError, "last_step is longer"),
        (request(album, photos=request(album).photos[:2]), DataError, "2 photos; 3 are the least"),
        (request(album, photos=(*request(album).photos[:2], album / "none.png")), DataError, "no photo .*none.png"),
        (request(album, recognisers=()), UsageError, "no recogniser to learn from"),
        (request(album, recognisers=("drawn-mobil",)), ModelError, "no recogniser 'drawn-mobil'"),
        (request(album, recognisers=("drawn-mobile", str(model))), ModelError, "cannot learn from an ONNX file"),
    ]
    for one, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            one.validate()
        assert caught.value.hint  # type: ignore[attr-defined]
        if kind is not DataError:  # a photo that is not there has no content to take a key over
            with pytest.raises(kind, match=message):
                one.make(Store(tmp_path / "runs"), CPU)
    assert not (tmp_path / "runs").exists()
    request(album).validate()


def test_the_same_recogniser_twice_is_refused(album: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the same weights"):
        request(album, recognisers=("drawn-mobile", "drawn-mobile")).make(Store(tmp_path / "runs"), CPU)


# -- making --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(album: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Event], Path]:
    store, events = Store(tmp_path_factory.mktemp("store")), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_DRAWN_PEOPLE", 4)
        run = request(album).make(store, CPU, events.append)
    return store, events, run.path


def test_a_run_holds_a_key_and_what_is_told_of_it(album: Path, finished: tuple[Store, list[Event], Path]) -> None:
    _, events, path = finished
    run = open_run(path)
    assert run.sealed
    place = key_of_run(run)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    key = load_key(place)
    assert len(key) == 2
    assert float(key.masks.abs().max()) <= 16
    assert key.person.keys() == {"drawn-mobile", "drawn-residual"}
    crops = torch.stack([faces_in(toy.photo(ME, seed))[0].crop for seed in range(3)])
    torch.testing.assert_close(
        key.person["drawn-mobile"], load_recogniser("drawn-mobile").embed_all(crops), atol=1e-3, rtol=0
    )
    card = key.card
    assert (card["method"], card["budget"], card["masks"], card["photos"], card["seed"]) == ("chameleon", 16.0, 2, 3, 0)
    assert card["knobs"]["steps"] == 4
    assert card["recognisers"] == {"drawn-mobile": "drawn-mobile", "drawn-residual": "drawn-residual"}
    before, after = crops.repeat(2, 1, 1, 1), torch.cat([applied(crops, mask[None]) for mask in key.masks])
    assert card["seen"]["ssim"] == pytest.approx(float(ssim(before, after).mean()), abs=1e-5)
    assert card["seen"]["psnr"] == pytest.approx(float(psnr(before, after).mean()), abs=1e-3)
    assert float(Owner.of(key).likeness(toy.drawn_crops(ME, 1, 30))[0]) > 0
    told = json.loads((path / "artifacts" / "card.json").read_text("utf-8"))
    (left,) = told.pop("skipped")
    assert left == {"photo": "friend.png", "reason": "its face does not look like the person of the other photos"}
    assert told == card
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert any("friend.png" in message for message in warned)
    assert any("only 3 " in message for message in warned), warned
    steps = [event for event in events if isinstance(event, Progressed)]
    assert [(event.done, event.total) for event in steps] == [(n, 4) for n in range(1, 5)]
    assert all(0 < event.detail["angle"] < 180 for event in steps)
    assert not (path / "checkpoint").exists()
    assert str(album) not in (path / "spec.json").read_text("utf-8")


def test_the_same_request_finds_its_run(album: Path, finished: tuple[Store, list[Event], Path]) -> None:
    store, _, path = finished
    events: list[Event] = []
    assert request(album).make(store, CPU, events.append).path == path
    assert [event.reused for event in events if isinstance(event, StageFinished)] == [True]


def test_another_seed_makes_another_key_and_the_same_one_the_same_file(
    album: Path, finished: tuple[Store, list[Event], Path], tmp_path: Path
) -> None:
    _, _, path = finished
    again = request(album).make(Store(tmp_path / "again"), CPU)
    assert made_files(again) == made_files(open_run(path))
    assert (again.artifacts / "key.p3").read_bytes() == (path / "artifacts" / "key.p3").read_bytes()
    other = request(album, seed=1).make(Store(tmp_path / "other"), CPU)
    assert not torch.equal(load_key(key_of_run(other)).masks, load_key(path / "artifacts" / "key.p3").masks)


def test_denormal_numbers_are_as_they_were_afterwards(album: Path, finished: tuple[Store, list[Event], Path]) -> None:
    assert float(torch.tensor(1e-40) * 1) != 0


def test_a_recogniser_in_a_folder_is_found_again_from_elsewhere(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(module.find_recogniser("drawn-plain"), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    run = request(album, method=Noise(), recognisers=("mine",)).make(Store(tmp_path / "runs"), CPU)
    key = load_key(key_of_run(run))
    assert key.card["recognisers"] == {"mine": str(tmp_path / "mine")}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [one.name for one in Owner.of(key).recognisers] == ["mine"]


def test_what_is_no_finished_mask_has_no_key(album: Path, tmp_path: Path) -> None:
    run = Store(tmp_path).run("mask", "chameleon", {"a": 1})
    with pytest.raises(DataError, match="is no finished mask"):
        key_of_run(run)
    other = Store(tmp_path).run("align", "lisa", {"a": 1})
    other.artifacts.mkdir(parents=True)
    (other.artifacts / "key.p3").write_bytes(b"")
    with pytest.raises(DataError, match="is no finished mask"):
        key_of_run(other)


# -- stopping and going on -----------------------------------------------------------------------------


class StoppedError(Exception):
    """The process was killed here."""


@pytest.mark.parametrize("at", [2, 4])
def test_stopped_anywhere_the_same_request_ends_with_the_same_bits(
    album: Path, finished: tuple[Store, list[Event], Path], tmp_path: Path, at: int
) -> None:
    _, _, whole = finished

    def stop(event: Event) -> None:
        if isinstance(event, Progressed) and event.done == at and event.total == 4:
            stops.append(event.done)
            if len(stops) == 1:
                raise StoppedError

    stops: list[int] = []
    store = Store(tmp_path)
    engine = Engine(device="cpu", checkpoint_every=1)
    with pytest.raises(StoppedError):
        request(album).make(store, engine, stop)
    (folder,) = tmp_path.glob("chameleon-*")
    assert (folder / "checkpoint" / "search.safetensors").is_file()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # masks at work are as private as a key
    assert not (folder / "SEALED").exists()
    steps: list[int] = []
    made = request(album).make(
        store, engine, lambda event: steps.append(event.done) if isinstance(event, Progressed) else None
    )
    assert steps == list(range(at, 5))  # what was kept is not done again
    assert (made.artifacts / "key.p3").read_bytes() == (whole / "artifacts" / "key.p3").read_bytes()


def test_a_damaged_checkpoint_is_as_none(
    album: Path, finished: tuple[Store, list[Event], Path], tmp_path: Path
) -> None:
    _, _, whole = finished
    run = Store(tmp_path).run("mask", "chameleon", request(album).spec)
    (run.path / "checkpoint").mkdir()
    (run.path / "checkpoint" / "search.safetensors").write_bytes(b"cut")
    made = request(album).make(Store(tmp_path), CPU)
    assert (made.artifacts / "key.p3").read_bytes() == (whole / "artifacts" / "key.p3").read_bytes()


def test_states_are_kept_every_few_steps_or_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c" / "search.safetensors"
    calls: list[int] = []

    def state() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"a": torch.full((2,), float(len(calls)))}

    events: list[Event] = []
    kept = Kept(path, events.append, every=3)
    assert kept.found() is None
    for done in range(1, 8):
        kept(done, 9, 12.345, state)
    assert len(calls) == 2
    found = kept.found()
    assert found is not None
    assert found["a"].tolist() == [2, 2]
    assert [event.detail for event in events if isinstance(event, Progressed)] == [{"angle": 12.3}] * 7
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    timed = Kept(path, events.append)
    for now[0] in (101.0, 104.9, 105.0, 109.9, 110.1):
        timed(1, 9, 0.0, state)
    assert len(calls) == 4
    Kept(path, events.append, every=1)(1, 1, 0.0, dict)  # nothing to keep leaves what there was
    assert timed.found() is not None


LEARN = (
    "faces", "learn", "chameleon", "--masks", "1", "--steps", "14", "--batch", "2", "--scales", "112", "--admix", "0.3",
    "--recognisers", "drawn-mobile", "--device", "cpu", "--checkpoint-every", "2", "--json", "--others",
)  # fmt: skip


def test_killed_outright_the_same_command_ends_with_the_same_bits(album: Path, tmp_path: Path) -> None:
    """SIGKILL after a few steps; the command is given again, and its key is that of a run that nobody stopped."""
    from holdfast.cli.main import run

    words = [*LEARN, str(album / "friend.png"), str(album)]
    process = subprocess.Popen(
        command(*words, "--runs", tmp_path / "a"), env=surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if json.loads(line).get("done", 0) >= 5:
                break
    finally:
        at_work = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
    assert at_work
    (folder,) = (tmp_path / "a").glob("chameleon-*")
    assert not (folder / "SEALED").exists()
    assert (folder / "checkpoint" / "search.safetensors").is_file()
    for place in "ab":
        assert run([*words, "--runs", str(tmp_path / place), "--quiet"]) == 0
    left, right = (open_run(next((tmp_path / place).glob("chameleon-*"))) for place in "ab")
    assert made_files(left) == made_files(right)
    assert (left.artifacts / "key.p3").read_bytes() == (right.artifacts / "key.p3").read_bytes()
    first = [json.loads(line) for line in (left.path / "events.jsonl").read_text("utf-8").splitlines()]
    assert max(event.get("done", 0) for event in first) == 14
