"""Whole photos: only the owner's face changes, the key takes the mask off again, and nobody else's does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faces import toy
from holdfast.core.errors import DataError, ModelError
from holdfast.core.events import Event, Progressed, Warned
from holdfast.data import drawn
from holdfast.faces.align import Alignment
from holdfast.faces.mask import Key, applied
from holdfast.faces.method import Subject
from holdfast.faces.methods.chameleon import Chameleon
from holdfast.faces.people import faces_in
from holdfast.faces.protect import (
    STRENGTHS,
    Owner,
    Protecting,
    changed_pixels,
    each,
    own_faces,
    protect_photo,
    reveal_photo,
    unmasked,
)
from holdfast.faces.recogniser import load_recogniser
from holdfast.faces.ssim import psnr, ssim

ME, FRIEND, OTHER = 3, 4, 5
METHOD = Chameleon(
    masks=2, ssim=0.9, budget=24.0, steps=22, batch=4, step=2.0, last_step=0.5, rule="adam", momentum=0.9,
    scales=(112, 28), toward="all", diversity=0.5, coarse=0.0, admix=0.0, apart=0.0, cancel=0.0, pull=0.0, shape="oval",
    colour=1.0, weight="dual", metric="ssim", starts=1, patience=0,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _faces_are_found_once() -> Iterator[None]:
    with toy.remembering():
        yield


@cache
def key_of(person: int) -> Key:
    """A key that was learned from four drawn photos."""
    crops = toy.drawn_crops(person, 4)
    team = tuple(load_recogniser(name) for name in toy.DRAWN)
    subject = Subject(crops, team)
    masks = METHOD.learn(subject, 0)
    return Key(masks, {one.name: known for one, known in zip(team, subject.embeddings, strict=True)}, {"budget": 24})


@cache
def owner_of(person: int) -> Owner:
    return Owner.of(key_of(person))


def likeness_in(path: Path, person: int = ME) -> float:
    """Of the only face of a photo."""
    (face,) = faces_in(toy.read(path).astype(np.uint8))
    return float(owner_of(person).likeness(face.crop[None])[0])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return toy.save(toy.photo(ME, 20), tmp_path / "in" / "me.png")


# -- protecting ----------------------------------------------------------------------------------------


def test_a_photo_is_protected_inside_the_face_and_nowhere_else(photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    made = protect_photo(photo, tmp_path / "out.png", owner_of(ME))
    assert (made.status, made.faces, made.changed) == ("protected", 1, 1)
    assert (made.source, made.target) == (str(photo), str(tmp_path / "out.png"))
    assert photo.read_bytes() == before
    change = toy.read(tmp_path / "out.png") - toy.read(photo)
    (face,) = faces_in(toy.photo(ME, 20))
    left, top, right, bottom = face.alignment.window(480, 480)
    inside = np.zeros((480, 480), bool)
    inside[top:bottom, left:right] = True
    assert np.abs(change[~inside]).max() == 0
    assert 8 < np.abs(change[inside]).max() <= 24
    # It is the mask of that number, as spread over the face.
    assert made.mask == owner_of(ME).mask_of(toy.photo(ME, 20))
    expected = changed_pixels(toy.photo(ME, 20), [face.alignment], key_of(ME).mask(made.mask), 24)
    assert np.array_equal(toy.read(tmp_path / "out.png"), expected)
    # What is told of its visibility is what a crop of it shows.
    after = applied(face.crop[None], key_of(ME).mask(made.mask)[None])
    assert made.ssim == pytest.approx(float(ssim(face.crop[None], after)))
    assert made.psnr == pytest.approx(float(psnr(face.crop[None], after)))
    assert 0.85 < made.ssim < 0.95


def test_recognisers_lose_the_owner_and_the_key_gives_them_back(photo: Path, tmp_path: Path) -> None:
    assert likeness_in(photo) > 0
    protect_photo(photo, tmp_path / "out.png", owner_of(ME))
    assert likeness_in(tmp_path / "out.png") < 0
    made = reveal_photo(tmp_path / "out.png", tmp_path / "back.png", owner_of(ME))
    assert (made.status, made.changed) == ("revealed", 1)
    assert made.mask == owner_of(ME).mask_of(toy.photo(ME, 20))
    assert likeness_in(tmp_path / "back.png") > 0
    assert likeness_in(tmp_path / "back.png") == pytest.approx(likeness_in(photo), abs=0.1)
    off = np.abs(toy.read(tmp_path / "back.png") - toy.read(photo))
    assert off.mean() < 0.6 * np.abs(toy.read(tmp_path / "out.png") - toy.read(photo)).mean()


@pytest.mark.parametrize("seed", [20, 21])
def test_the_key_works_through_jpeg_75(tmp_path: Path, seed: int) -> None:
    clean = toy.save(toy.photo(ME, seed), tmp_path / "clean.png")
    protect_photo(clean, tmp_path / "out.png", owner_of(ME))
    toy.save(toy.read(tmp_path / "out.png").astype(np.uint8), tmp_path / "posted.jpg", quality=75)
    assert likeness_in(tmp_path / "posted.jpg") < 0
    made = reveal_photo(tmp_path / "posted.jpg", tmp_path / "back.png", owner_of(ME))
    assert made.status == "revealed"
    assert likeness_in(tmp_path / "back.png") > 0


def test_another_persons_key_reveals_nothing(photo: Path, tmp_path: Path) -> None:
    protect_photo(photo, tmp_path / "out.png", owner_of(ME))
    made = reveal_photo(tmp_path / "out.png", tmp_path / "back.png", owner_of(FRIEND))
    assert (made.status, made.target, made.changed) == ("untouched", "", 0)
    assert "no face becomes the owner's" in made.message
    assert not (tmp_path / "back.png").exists()


def test_a_key_with_other_masks_reveals_nothing(photo: Path, tmp_path: Path) -> None:
    """The right person, the wrong masks: knowing the face is not knowing the key."""
    protect_photo(photo, tmp_path / "out.png", owner_of(ME))
    forged = Owner.of(replace(key_of(ME), masks=toy.signs(2, 0, 12)))
    assert reveal_photo(tmp_path / "out.png", tmp_path / "back.png", forged).status == "untouched"


def test_a_photo_that_was_never_protected_is_not_revealed(photo: Path, tmp_path: Path) -> None:
    made = reveal_photo(photo, tmp_path / "back.png", owner_of(ME))
    assert made.status == "untouched"
    blank = toy.save(np.full((200, 200, 3), 90, np.uint8), tmp_path / "blank.png")
    assert reveal_photo(blank, tmp_path / "b.png", owner_of(ME)).message == "no face was found"


def test_a_weakened_mask_is_found_at_its_strength() -> None:
    (face,) = faces_in(toy.photo(ME, 20))
    assert STRENGTHS == (1.0, 0.75, 0.5)
    for strength in (1.0, 0.5):
        made = changed_pixels(toy.photo(ME, 20), [face.alignment], key_of(ME).mask(1), 24, sign=strength)
        hits = unmasked(faces_in(made), owner_of(ME))
        if hits:
            (hit,) = hits
            assert (hit.place, hit.number) == (0, 1)
            assert hit.strength == (1.0 if strength == 1 else pytest.approx(0.6, abs=0.16))
            assert hit.likeness > hit.before + 0.05
        assert hits or strength < 1
    assert unmasked([], owner_of(ME)) == []
    assert unmasked([face], owner_of(ME)) == []


def test_protecting_twice_says_already(photo: Path, tmp_path: Path) -> None:
    protect_photo(photo, tmp_path / "out.png", owner_of(ME))
    made = protect_photo(tmp_path / "out.png", tmp_path / "twice.png", owner_of(ME))
    assert (made.status, made.changed, made.mask, made.ssim) == ("already", 0, None, None)
    assert "already" in made.message
    assert np.array_equal(toy.read(tmp_path / "twice.png"), toy.read(tmp_path / "out.png"))


def test_a_grey_photo_stays_grey_and_its_second_time_is_seen(tmp_path: Path) -> None:
    grey = np.asarray(Image.fromarray(toy.photo(ME, 20)).convert("L"))
    source = tmp_path / "grey.png"
    Image.fromarray(grey).save(source)
    made = protect_photo(source, tmp_path / "out.png", owner_of(ME))
    assert made.status == "protected"
    with Image.open(tmp_path / "out.png") as stored:
        assert stored.mode == "L"
    pixels = toy.read(tmp_path / "out.png")
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert np.abs(pixels[..., 0] - grey.astype(int)).max() > 3
    # A colour file without colours, too.
    coloured = toy.save(np.repeat(grey[..., None], 3, 2), tmp_path / "rgb.png")
    protect_photo(coloured, tmp_path / "rgb-out.png", owner_of(ME))
    assert np.array_equal(toy.read(tmp_path / "rgb-out.png"), pixels)
    assert likeness_in(source) > 0 > likeness_in(tmp_path / "out.png")
    assert protect_photo(tmp_path / "out.png", tmp_path / "twice.png", owner_of(ME)).status == "already"
    assert reveal_photo(tmp_path / "out.png", tmp_path / "back.png", owner_of(ME)).status == "revealed"
    assert likeness_in(tmp_path / "back.png") > 0
    with Image.open(tmp_path / "back.png") as stored:
        assert stored.mode == "L"


def test_each_photo_gets_one_mask_of_the_bank_by_its_content() -> None:
    owner = Owner.of(toy.key(ME, toy.signs(4, 0)))
    photos = [toy.photo(ME, seed) for seed in range(20, 24)]
    numbers = [owner.mask_of(pixels) for pixels in photos]
    assert numbers == [owner.mask_of(pixels.copy()) for pixels in photos]
    rng = np.random.default_rng(0)
    drawn_numbers = [owner.mask_of(rng.integers(0, 256, (4, 4, 3), np.uint8)) for _ in range(400)]
    counts = np.bincount(drawn_numbers, minlength=4)
    assert len(counts) == 4
    assert counts.min() > 60
    other = Owner.of(toy.key(ME, toy.signs(4, 1)))  # without the key nobody can tell
    assert [other.mask_of(p) for p in photos] != numbers or drawn_numbers[:50] != [
        other.mask_of(rng.integers(0, 256, (4, 4, 3), np.uint8)) for _ in range(50)
    ]


# -- groups --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group() -> drawn.Drawn:
    return drawn.group([drawn.person(seed) for seed in (FRIEND, ME, OTHER)], 1)


def test_in_a_group_only_the_owner_changes(group: drawn.Drawn, tmp_path: Path) -> None:
    source = toy.save(group.pixels, tmp_path / "group.png")
    made = protect_photo(source, tmp_path / "out.png", owner_of(ME))
    assert (made.status, made.faces, made.changed) == ("protected", 3, 1)
    change = np.abs(toy.read(tmp_path / "out.png") - group.pixels.astype(int)).max(2)
    found = faces_in(group.pixels)
    true = [
        int(np.argmin([np.linalg.norm(one.face.landmarks - points) for points in group.landmarks])) for one in found
    ]
    mine = found[true.index(1)]
    assert own_faces(found, owner_of(ME)) == [true.index(1)]
    left, top, right, bottom = mine.alignment.window(*change.shape)
    assert change[top:bottom, left:right].max() > 5
    change[top:bottom, left:right] = 0
    assert change.max() == 0  # bit by bit
    # Each of the three is found by their own key.
    for person, place in ((FRIEND, 0), (OTHER, 2)):
        owner = Owner.of(toy.key(person, toy.signs(1, 0)))
        assert own_faces(found, owner) == [true.index(place)]


def test_everybody_changes_when_told_so(group: drawn.Drawn, tmp_path: Path) -> None:
    source = toy.save(group.pixels, tmp_path / "group.png")
    made = protect_photo(source, tmp_path / "out.png", owner_of(ME), Protecting(every_face=True))
    assert (made.status, made.faces, made.changed) == ("protected", 3, 3)
    change = np.abs(toy.read(tmp_path / "out.png") - group.pixels.astype(int)).max(2)
    for one in faces_in(group.pixels):
        left, top, right, bottom = one.alignment.window(*change.shape)
        assert change[top:bottom, left:right].max() > 5


def test_a_photo_of_others_goes_through_as_it_is(tmp_path: Path) -> None:
    for name, pixels, faces, why in (
        ("friend", toy.photo(FRIEND, 0), 1, "its face is not the owner's"),
        (
            "pair",
            drawn.group([drawn.person(FRIEND), drawn.person(OTHER)], 0).pixels,
            2,
            "none of its 2 faces is the owner's",
        ),
        ("wall", np.full((90, 90, 3), 7, np.uint8), 0, "no face was found"),
    ):
        source = toy.save(pixels, tmp_path / f"{name}.png")
        made = protect_photo(source, tmp_path / f"{name}-out.png", owner_of(ME))
        assert (made.status, made.faces, made.changed, made.ssim) == ("untouched", faces, 0, None)
        assert made.message == why
        assert np.array_equal(toy.read(tmp_path / f"{name}-out.png"), pixels)


# -- settings ------------------------------------------------------------------------------------------


def test_a_mask_is_weakened_until_the_face_keeps_its_likeness(photo: Path, tmp_path: Path) -> None:
    made = protect_photo(photo, tmp_path / "out.png", owner_of(ME), Protecting(min_ssim=0.97))
    assert made.ssim is not None
    assert 0.97 <= made.ssim < 0.98
    share = re.search(r"the mask was weakened to (\d+)%", made.message)
    assert share is not None
    assert 0 < int(share[1]) < 100
    change = toy.read(tmp_path / "out.png") - toy.read(photo)
    full = changed_pixels(
        toy.photo(ME, 20), [faces_in(toy.photo(ME, 20))[0].alignment], key_of(ME).mask(made.mask or 0), 24
    )
    whole_change = full.astype(int) - toy.read(photo)
    assert (change * whole_change).sum() / (whole_change**2).sum() == pytest.approx(int(share[1]) / 100, abs=0.03)
    assert "SSIM 0.97" in made.message
    whole = protect_photo(photo, tmp_path / "whole.png", owner_of(ME), Protecting(min_ssim=0.5))
    plain = protect_photo(photo, tmp_path / "plain.png", owner_of(ME))
    assert whole.ssim == plain.ssim
    assert whole.message == ""
    nothing = protect_photo(photo, tmp_path / "nothing.png", owner_of(ME), Protecting(min_ssim=1.1))
    assert nothing.ssim == pytest.approx(1, abs=1e-3)  # a crop is compared with whole numbers
    assert np.array_equal(toy.read(tmp_path / "nothing.png"), toy.read(photo))


def test_a_file_that_is_there_stays_unless_told_otherwise(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"mine")
    results = each([(photo, tmp_path / "out.png")], owner_of(ME), Protecting())
    assert results[0].status == "failed"
    assert (tmp_path / "out.png").read_bytes() == b"mine"
    results = each([(photo, tmp_path / "out.png")], owner_of(ME), Protecting(overwrite=True))
    assert results[0].status == "protected"


def test_quality_reaches_the_file(tmp_path: Path) -> None:
    source = toy.save(toy.photo(ME, 20), tmp_path / "a.jpg", quality=95)
    sizes = {}
    for quality in (None, 30):
        target = tmp_path / f"{quality}.jpg"
        protect_photo(source, target, owner_of(ME), Protecting(quality=quality))
        sizes[quality] = target.stat().st_size
    assert sizes[30] < sizes[None] / 2


def test_pixels_are_added_and_taken_off_by_hand() -> None:
    pixels = np.full((112, 112, 3), 100, np.uint8)
    pixels[0, 0], pixels[0, 1] = 250, 3
    same = Alignment(1.0, 0.0, (0.0, 0.0))
    mask = torch.full((3, 112, 112), 10.0)
    mask[1] = -10
    plus = changed_pixels(pixels, [same], mask, 16)
    assert plus[50, 50].tolist() == [110, 90, 110]
    assert plus[0, 0].tolist() == [255, 240, 255]
    assert plus[0, 1].tolist() == [13, 0, 13]
    minus = changed_pixels(pixels, [same], mask, 16, sign=-1)
    assert minus[50, 50].tolist() == [90, 110, 90]
    assert changed_pixels(pixels, [same], mask, 4)[50, 50].tolist() == [104, 96, 104]
    assert changed_pixels(pixels, [same], mask, 4, sign=0.5)[50, 50].tolist() == [102, 98, 102]
    assert changed_pixels(pixels, [same, same], mask, 16)[50, 50].tolist() == [120, 80, 120]
    assert np.array_equal(changed_pixels(pixels, [], mask, 16), pixels)
    assert pixels[50, 50].tolist() == [100, 100, 100]


# -- owners --------------------------------------------------------------------------------------------


def test_an_owner_is_known_by_the_recognisers_that_are_at_hand() -> None:
    key = key_of(ME)
    lost = replace(key, person={**key.person, "gone": torch.eye(4)})
    assert [one.name for one in Owner.of(lost).recognisers] == list(toy.DRAWN)
    renamed = replace(key, person={"mine": key.person["drawn-mobile"]}, card={"recognisers": {"mine": "drawn-mobile"}})
    owner = Owner.of(renamed)
    assert [one.name for one in owner.recognisers] == ["mine"]
    assert float(owner.likeness(toy.drawn_crops(ME, 1, 30))[0]) > 0
    for person, names in (({"gone": torch.eye(4)}, "gone"), ({}, "none")):
        with pytest.raises(ModelError, match=rf"recognisers of this key \({names}\) are not here") as caught:
            Owner.of(replace(key, person=person))
        assert "learn a new mask" in caught.value.hint


def test_vectors_of_half_precision_are_made_unit_again() -> None:
    key = key_of(ME)
    stored = replace(key, person={name: value * 1.01 for name, value in key.person.items()})
    for vectors in Owner.of(stored).person:
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


# -- many ----------------------------------------------------------------------------------------------


def test_one_bad_photo_stops_no_other(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "in" / "broken.png"
    broken.write_bytes(photo.read_bytes()[:500])
    (tmp_path / "file").write_text("")
    events: list[Event] = []
    out = tmp_path / "deep" / "er"
    pairs = [(broken, out / "broken.png"), (photo, tmp_path / "file" / "me.png"), (photo, out / "me.png")]
    results = each(pairs, owner_of(ME), Protecting(), events.append)
    assert [one.status for one in results] == ["failed", "failed", "protected"]
    assert "damaged" in results[0].message
    assert "file" in results[1].message
    assert sorted(path.name for path in out.iterdir()) == ["me.png"]
    assert [event.message for event in events if isinstance(event, Warned)] == [one.message for one in results[:2]]
    assert [event.done for event in events if isinstance(event, Progressed)] == [1, 2, 3]
    back = each([(out / "me.png", out / "back.png")], owner_of(ME), Protecting(), reveal=True)
    assert [one.status for one in back] == ["revealed"]
    with pytest.raises(DataError, match="no photos to work on"):
        each([], owner_of(ME), Protecting())
