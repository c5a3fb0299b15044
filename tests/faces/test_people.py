"""Whose photos these are: the person that most agree on, in groups too, and who is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faces import toy
from holdfast.core.errors import DataError
from holdfast.core.events import Event, Progressed, Warned
from holdfast.data import drawn
from holdfast.faces.align import Alignment
from holdfast.faces.detect import Face
from holdfast.faces.people import SMALLEST, Seen, faces_in, gather, likeness, one_person
from holdfast.faces.recogniser import Input, Recogniser, load_recogniser

RECOGNISERS = [load_recogniser(name) for name in toy.DRAWN]
ME, FRIEND, OTHER = 3, 4, 5


@pytest.fixture(autouse=True, scope="module")
def _faces_are_found_once() -> Iterator[None]:
    with toy.remembering():
        yield


def off(found: np.ndarray, true: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(np.linalg.norm(found - true, axis=1).mean() / np.linalg.norm(true[1] - true[0]))


def pointed(*degrees: float, threshold: float = 0.5) -> tuple[list[Seen], Recogniser]:
    """Faces whose embedding is a direction: the crop's first pixel says which, in degrees."""
    seen = []
    for angle in degrees:
        crop = torch.zeros(3, 112, 112)
        crop[0, 0, 0] = angle
        seen.append(Seen(Face((0, 0, 50, 50), np.zeros((5, 2)), 1.0), Alignment(1, 0, (0, 0)), crop))

    def network(pixels: torch.Tensor) -> torch.Tensor:
        angle = torch.deg2rad(pixels[:, 0, 0, 0])
        return torch.stack([angle.cos(), angle.sin()], 1)

    return seen, Recogniser("compass", network, Input(112, "RGB", 0.0, 1.0), {"same_person": threshold})


# -- faces of a photo ----------------------------------------------------------------------------------


def test_faces_of_a_photo_are_aligned_and_small_ones_left_out() -> None:
    made = drawn.group([drawn.person(seed) for seed in (ME, FRIEND, OTHER)], 0)
    found = faces_in(made.pixels)
    assert len(found) == 3
    for one in found:
        assert one.crop.shape == (3, 112, 112)
        placed = one.alignment.to_crop(one.face.landmarks)
        assert np.abs(placed - [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]).mean() < 4
    tiny = np.full((480, 480, 3), 90, np.uint8)
    tiny[200:230, 200:230] = drawn.photo(drawn.person(ME), 0, (30, 30)).pixels
    assert all(one.face.size >= SMALLEST for one in faces_in(tiny))
    assert SMALLEST == 24


def test_a_face_below_the_smallest_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.array([(0.0, 0.0), (10.0, 0.0), (5.0, 5.0), (1.0, 10.0), (9.0, 10.0)])
    sizes = [24.0, 23.9, 30.0]
    found = [Face((0, 0, size, 5), points, 0.9) for size in sizes]
    monkeypatch.setattr("holdfast.faces.people.find_faces", lambda pixels: found)
    assert [one.face.size for one in faces_in(toy.photo(ME, 0))] == [24.0, 30.0]


# -- likeness ------------------------------------------------------------------------------------------


def test_likeness_is_the_mean_excess_over_the_nearer_half_by_hand() -> None:
    (face,), one = pointed(0.0, threshold=0.4)
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])  # cosines 1, 0, .8, -1
    assert float(likeness(face.crop[None], [known], [one])) == pytest.approx((1 + 0.8) / 2 - 0.4)
    assert float(likeness(face.crop[None], [known[:3]], [one])) == pytest.approx(1 - 0.4)
    assert float(likeness(face.crop[None], [known[1:2]], [one])) == pytest.approx(0 - 0.4)
    strict = replace(one, card={"same_person": 0.9})
    both = likeness(face.crop[None], [known, known], [one, strict])
    assert float(both) == pytest.approx(0.9 - (0.4 + 0.9) / 2)


def test_drawn_people_are_known_from_their_photos() -> None:
    person = [one.embed_all(toy.drawn_crops(ME, 4)) for one in RECOGNISERS]
    assert bool((likeness(toy.drawn_crops(ME, 3, 20), person, RECOGNISERS) > 0).all())
    for stranger in (FRIEND, OTHER):
        assert bool((likeness(toy.drawn_crops(stranger, 2), person, RECOGNISERS) < 0).all())


# -- the majority --------------------------------------------------------------------------------------


def test_the_person_of_most_photos_is_chosen_with_their_face_in_each() -> None:
    """Two people: one at 0 to 20 degrees in four photos, the other at 180 in three; a third at 90 once, alone."""
    seen, one = pointed(0, 180, 180, 10, 20, 180, 15, 90)
    photos = [("a", seen[:2]), ("b", seen[2:4]), ("c", [seen[4]]), ("d", seen[5:7]), ("e", [seen[7]])]
    found = one_person(photos, [one])
    assert found.paths == ("a", "b", "c", "d")
    assert found.crops[:, 0, 0, 0].tolist() == [0, 10, 20, 15]
    (left,) = found.skipped
    assert left.path == "e"
    assert left.reason == "its face does not look like the person of the other photos"
    # The other way round with the other person in the majority.
    seen, one = pointed(0, 180, 180, 180, 10)
    found = one_person([("a", seen[:2]), ("b", [seen[2]]), ("c", seen[3:])], [one])
    assert found.crops[:, 0, 0, 0].tolist() == [180, 180, 180]
    assert not found.skipped


def test_somebody_who_is_always_in_company_is_found() -> None:
    """Three groups with different strangers, against two photos of another person alone."""
    seen, one = pointed(0, 60, 5, 110, 10, 250, 180, 182, threshold=0.9)
    groups = [("a", seen[0:2]), ("b", seen[2:4]), ("c", seen[4:6])]
    found = one_person([*groups, ("d", [seen[6]]), ("e", [seen[7]])], [one])
    assert found.crops[:, 0, 0, 0].tolist() == [0, 5, 10]


def test_of_equal_counts_the_closer_ones_win() -> None:
    seen, one = pointed(0, 40, 180, 185)
    found = one_person([(name, [face]) for name, face in zip("abcd", seen, strict=True)], [one])
    assert found.paths == ("c", "d")
    assert [left.path for left in found.skipped] == ["a", "b"]


def test_a_photo_of_strangers_says_how_many_were_looked_at() -> None:
    seen, one = pointed(0, 5, 10, 120, 240)
    found = one_person([("a", seen[:1]), ("b", seen[1:2]), ("c", seen[2:3]), ("d", seen[3:])], [one])
    assert found.skipped[0].reason == "none of its 2 faces looks like the person of the other photos"
    assert len(found.crops) == 3


def test_two_faces_of_one_photo_do_not_vote_for_each_other() -> None:
    """A mirror, or twins: three like faces in one photo are no majority over two photos that agree."""
    seen, one = pointed(0, 1, 2, 180, 183)
    found = one_person([("twins", seen[:3]), ("b", [seen[3]]), ("c", [seen[4]])], [one])
    assert found.paths == ("b", "c")


def test_all_recognisers_decide_together() -> None:
    seen, one = pointed(0, 10, 20)
    blind = Recogniser(
        "blind", lambda x: torch.eye(3)[: len(x)].flip(0), Input(112, "RGB", 0.0, 1.0), {"same_person": 0.9}
    )
    assert len(one_person([(name, [face]) for name, face in zip("abc", seen, strict=True)], [one]).crops) == 3
    assert len(one_person([(name, [face]) for name, face in zip("abc", seen, strict=True)], [one, blind]).crops) < 3


def test_nobody_gives_nothing() -> None:
    found = one_person([], RECOGNISERS)
    assert found.crops.shape == (0, 3, 112, 112)
    assert found.paths == ()


# -- from files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of me, of which one is a group; one of a friend; a wall; a cut file."""
    folder = tmp_path_factory.mktemp("album")
    for seed in range(3):
        toy.save(toy.photo(ME, seed), folder / f"{seed}.png")
    group = drawn.group([drawn.person(seed) for seed in (FRIEND, ME, OTHER)], 0)
    toy.save(group.pixels, folder / "group.png")
    toy.save(toy.photo(FRIEND, 1), folder / "friend.png")
    toy.save(np.full((120, 120, 3), 200, np.uint8), folder / "wall.png")
    (folder / "zcut.png").write_bytes((folder / "0.png").read_bytes()[:900])
    return folder


def test_one_persons_faces_are_gathered_and_the_rest_told(album: Path) -> None:
    events: list[Event] = []
    paths = sorted(album.iterdir())
    found = gather(paths, RECOGNISERS, events.append)
    assert [Path(path).name for path in found.paths] == ["0.png", "1.png", "2.png", "group.png"]
    reasons = {Path(one.path).name: one.reason for one in found.skipped}
    assert reasons.keys() == {"friend.png", "wall.png", "zcut.png"}
    assert "does not look like" in reasons["friend.png"]
    assert reasons["wall.png"] == "no face of at least 24 pixels was found"
    assert "damaged" in reasons["zcut.png"]
    told = [event.message for event in events if isinstance(event, Warned)]
    assert len(told) == 4
    assert sum("left out" in message for message in told) == 3
    assert "only 4 " in told[-1]
    assert [(event.done, event.total) for event in events if isinstance(event, Progressed)] == [
        (n, 7) for n in range(1, 8)
    ]
    # In the group it is my face: where the photo was drawn with it.
    made = drawn.group([drawn.person(seed) for seed in (FRIEND, ME, OTHER)], 0)
    places = [off(one.face.landmarks, made.landmarks[1]) for one in faces_in(made.pixels)]
    mine = faces_in(made.pixels)[int(np.argmin(places))]
    assert min(places) < 0.2
    assert torch.equal(found.crops[3], mine.crop)


def test_too_few_of_one_person_are_refused_with_the_reasons(album: Path) -> None:
    paths = [album / name for name in ("0.png", "1.png", "friend.png", "wall.png")]
    with pytest.raises(DataError, match="2 of 4 photos show one and the same person, and 3 are the least") as caught:
        gather(paths, RECOGNISERS)
    assert "wall.png: no face" in caught.value.message
    assert "5 to 20 photos" in caught.value.hint
    with pytest.raises(DataError, match="0 of 2 photos"):
        gather([album / "wall.png", album / "zcut.png"], RECOGNISERS)


def test_three_photos_will_do_with_a_warning_and_five_without(album: Path) -> None:
    events: list[Event] = []
    three = [album / f"{seed}.png" for seed in range(3)]
    assert len(gather(three, RECOGNISERS, events.append).crops) == 3
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert "only 3 " in warned
    events.clear()
    gather([*three, *three[:2]], RECOGNISERS, events.append)
    assert not [event for event in events if isinstance(event, Warned)]
