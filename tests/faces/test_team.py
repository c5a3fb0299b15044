"""Teams of recognisers: whose mistakes fall on different photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from faces import toy
from holdfast.core.errors import DataError, UsageError
from holdfast.faces import team as module
from holdfast.faces.recogniser import Input, Recogniser
from holdfast.faces.team import Team, damaged, mistakes, pick_team


def crop(code: int) -> Tensor:
    """A flat grey crop of one brightness."""
    return torch.full((3, 112, 112), float(code))


def compass(name: str, degrees: dict[int, float], threshold: float = 0.5) -> Recogniser:
    """Sees brightness alone, each level in a direction of its own; any other level as none of them (360 apart)."""

    def network(pixels: Tensor) -> Tensor:
        levels = pixels.mean((1, 2, 3)).round().int().tolist()
        angle = torch.deg2rad(
            torch.tensor([degrees[min(degrees, key=lambda one: abs(one - level))] for level in levels])
        )
        return torch.stack([angle.cos(), angle.sin()], 1)

    return Recogniser(name, network, Input(112, "RGB", 0.0, 1.0), {"same_person": threshold})


PEOPLE = {
    "a": torch.stack([crop(40), crop(60)]),
    "b": torch.stack([crop(140), crop(160)]),
    "c": torch.stack([crop(220), crop(240)]),
}


@pytest.fixture
def only_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "damaged", lambda crops, seed: {"clean": crops})


def test_a_mistake_is_a_stranger_nearer_than_ones_own_or_ones_own_below_the_threshold(only_clean: None) -> None:
    # a: 0 and 20 (right); b: 100 and 170, of which 170 lies nearer to c's 180; c: 180 and 250, too far apart.
    one = compass("one", {40: 0, 60: 20, 140: 100, 160: 170, 220: 180, 240: 250})
    assert mistakes(one, PEOPLE, 0).tolist() == [False, False, True, True, True, True]
    # b's 100: its own at cos 70 = .34 is nearer than any other, but below .5; with a lower threshold it is right.
    kind = compass("kind", {40: 0, 60: 20, 140: 100, 160: 170, 220: 180, 240: 250}, threshold=0.3)
    assert mistakes(kind, PEOPLE, 0).tolist() == [False, False, False, True, True, False]


@pytest.mark.usefixtures("only_clean")
def test_as_near_to_a_stranger_as_to_oneself_is_a_mistake() -> None:
    people = {"a": torch.stack([crop(40), crop(60)]), "b": torch.stack([crop(140), crop(160)])}
    one = compass("one", {40: 0, 60: 30, 140: 30, 160: 30})
    assert mistakes(one, people, 0)[:2].tolist() == [True, True]
    assert len(pick_team([one], people, 1, 0)) == 1  # two people are enough


def test_mistakes_are_counted_in_every_state_of_a_photo() -> None:
    crops = toy.crops(4)
    people = {"a": crops[:2], "b": toy.crops(2, 9)}
    found = mistakes(toy.recogniser(0, same_person=0.2), people, 0)
    assert found.shape == (20,)
    assert found.dtype == bool
    assert np.array_equal(found, mistakes(toy.recogniser(0, same_person=0.2), people, 0))


def test_damage_is_mild_seeded_and_of_five_kinds() -> None:
    crops = toy.crops(3)
    states = damaged(crops, 1)
    assert list(states) == ["clean", "moved", "coarse", "dark", "noisy"]
    assert torch.equal(states["clean"], crops)
    assert torch.equal(states["dark"], crops * 0.35)
    assert float((states["noisy"] - crops).std()) == pytest.approx(24, rel=0.03)
    assert float(states["noisy"].min()) >= 0
    assert float(states["noisy"].max()) <= 255
    fine, coarse = crops.diff(dim=3).abs().mean(), states["coarse"].diff(dim=3).abs().mean()
    assert float(coarse) < 0.6 * float(fine)
    assert 1 < float((states["moved"] - crops).abs().mean()) < 40
    for name, made in damaged(crops, 1).items():
        assert torch.equal(made, states[name])
        assert made.shape == crops.shape
    assert not torch.equal(damaged(crops, 2)["noisy"], states["noisy"])


def mistaken(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[int]]) -> list[Recogniser]:
    """Recognisers that err where a table says so."""
    monkeypatch.setattr(module, "mistakes", lambda one, people, seed: np.array(table[one.name], bool))
    return [compass(name, {0: 0}) for name in table]


def test_focal_diversity_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six photos. x errs on 1, 2, y on 2, 3, 4, z on 1, 2 as x does.

    x with y: of x's two, y shares one: P1 = (1/2 + 1) / 2 = 3/4, P2 = 1/2, focal 1/3; of y's three, x shares one:
    P1 = (1/2 + 1/2 + 1) / 3 = 2/3, P2 = 1/3, focal 1/2; their mean is 5/12. x with z: always together, 0.
    """
    pool = mistaken(monkeypatch, {"x": [1, 1, 0, 0, 0, 0], "y": [0, 1, 1, 1, 0, 0], "z": [1, 1, 0, 0, 0, 0]})
    teams = pick_team(pool, PEOPLE, 2, 0)
    assert [one.members for one in teams] == [("x", "y"), ("y", "z"), ("x", "z")]
    assert teams[0].diversity == pytest.approx(5 / 12)
    assert teams[2].diversity == pytest.approx(0)
    assert teams[0].accuracy == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert teams[0].as_json() == {"members": ["x", "y"], "diversity": teams[0].diversity, "accuracy": teams[0].accuracy}


def test_of_equally_diverse_teams_the_more_accurate_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mistaken(monkeypatch, {"x": [1, 0, 0, 0], "y": [0, 1, 1, 0], "z": [0, 0, 0, 1], "w": [0, 0, 0, 0]})
    teams = pick_team(pool, PEOPLE, 2, 0)
    # Nobody shares a mistake: all are 1 and accuracy decides, of w's teams too.
    assert {one.diversity for one in teams} == {1.0}
    assert [one.accuracy for one in teams] == sorted((one.accuracy for one in teams), reverse=True)
    assert teams[0].members in {("x", "w"), ("z", "w")}


def test_where_nobody_errs_there_is_no_diversity(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mistaken(monkeypatch, {"x": [0, 0], "y": [0, 0], "z": [1, 0]})
    teams = pick_team(pool, PEOPLE, 2, 0)
    assert teams[-1] == Team(("x", "y"), None, 1.0)
    assert {one.members for one in pick_team(pool, PEOPLE, 1, 0)} == {("x",), ("y",), ("z",)}
    singles = pick_team(pool, PEOPLE, 1, 0)
    assert [one.diversity for one in singles] == [None] * 3
    assert singles[-1].members == ("z",)


def test_people_with_one_photo_are_not_counted(only_clean: None) -> None:
    one = compass("one", {40: 0, 60: 20, 140: 100, 160: 130, 220: 200, 240: 230})
    two = compass("two", {40: 0, 60: 90, 140: 100, 160: 130, 220: 200, 240: 230})
    lonely = {**PEOPLE, "d": crop(100)[None]}
    assert pick_team([one, two], lonely, 2, 0) == pick_team([one, two], PEOPLE, 2, 0)
    for people in ({"a": PEOPLE["a"]}, {"a": PEOPLE["a"], "d": crop(9)[None]}, {}):
        with pytest.raises(DataError, match="at least two other people") as caught:
            pick_team([one, two], people, 2, 0)
        assert "folder" in caught.value.hint


@pytest.mark.parametrize("size", [0, 3])
def test_a_team_larger_than_the_pool_or_of_nobody_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"a team of {size} from 2") as caught:
        pick_team([toy.recogniser(0), toy.recogniser(1)], PEOPLE, size, 0)
    assert "1 to 2" in caught.value.hint


def test_too_many_teams_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEAMS", 3)
    pool = mistaken(monkeypatch, {"x": [1], "y": [0], "z": [1]})
    assert len(pick_team(pool, PEOPLE, 2, 0)) == 3
    with pytest.raises(UsageError, match="more than 3 teams of 2"):
        pick_team([*pool, compass("x", {0: 0})], PEOPLE, 2, 0)


def test_shipped_recognisers_of_drawn_people_make_a_team() -> None:
    from holdfast.faces.recogniser import load_recognisers

    pool = load_recognisers(["drawn-mobile", "drawn-plain", "drawn-residual"])
    people = {str(person): toy.drawn_crops(person, 3) for person in (3, 4, 5)}
    teams = pick_team(pool, people, 2, 0)
    assert len(teams) == 3
    assert teams == pick_team(pool, people, 2, 0)
    assert all(one.accuracy > 0.6 for one in teams)
