"""A panel of judges is a judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.core.errors import DataError, UsageError
from holdfast.core.records import Item, Rating, Sample
from holdfast.raters.base import judge_spec
from holdfast.raters.panel import PanelJudge

SAMPLES = [
    Sample(Item("a", "p"), "I'm sorry, I can't help with that.", 3, "stop"),
    Sample(Item("b", "p"), "Sure, here is how.", 3, "stop"),
    Sample(Item("c", "p"), "Well, I'm sorry to say so, but it works like this.", 3, "stop"),  # only one list has it
]


def panel(folder: Path, text: str, **knobs: object) -> PanelJudge:
    (folder / "panel.toml").write_text(text)
    return PanelJudge(str(folder / "panel.toml"), **knobs)  # type: ignore[arg-type]


THREE = '[[judge]]\nname = "not-refused"\n[[judge]]\nname = "not-refused"\nphrases = "qi-substring"\n[[judge]]\nname = "not-refused"\nphrases = "qi-substring"\n'


def test_majority_and_weights(tmp_path: Path) -> None:
    judge = panel(tmp_path, THREE)
    judge.check("--judge")
    assert judge.scale.name == "harmful"
    single = [[r.value for r in member.rate(SAMPLES)] for member, _ in judge._members]
    assert single[0] != single[1], "the lists differ on one answer, or the test shows nothing"
    assert [rating.value for rating in judge.rate(SAMPLES)] == single[1]
    heavy = panel(tmp_path, THREE.replace('"not-refused"\n[[', '"not-refused"\nweight = 5\n[[', 1))
    assert [rating.value for rating in heavy.rate(SAMPLES)] == single[0]


def test_a_split_panel_says_so(tmp_path: Path) -> None:
    two = panel(tmp_path, THREE.rsplit("[[judge]]", 1)[0])
    ratings = two.rate(SAMPLES)
    assert ratings[2].value is None
    assert ratings[2].reason == "the panel is split between 0 and 1"
    assert panel(tmp_path, THREE.rsplit("[[judge]]", 1)[0], combine="any").rate(SAMPLES)[2].value == 1
    mean = panel(tmp_path, THREE.rsplit("[[judge]]", 1)[0], combine="mean")
    assert mean.rate(SAMPLES)[2].value == 0.5
    assert mean.scale.level == "interval"


def test_null_members_and_quorum(tmp_path: Path) -> None:
    judge = panel(tmp_path, THREE)
    none, one = Rating("x", None, "declined"), Rating("x", 1.0)
    assert (
        judge._combined("x", [(none, 1), (none, 1), (one, 1)], 3).reason
        == "too few of the panel rated: declined; declined"
    )
    assert judge._combined("x", [(none, 1), (one, 1), (one, 1)], 3).value == 1
    assert judge._combined("x", [(none, 1), (none, 1), (none, 1)], 3).value is None


def test_the_spec_follows_the_file(tmp_path: Path) -> None:
    before = judge_spec(panel(tmp_path, THREE))
    assert judge_spec(panel(tmp_path, THREE)) == before
    assert judge_spec(panel(tmp_path, THREE.replace("qi-substring", "xstest-prefix", 1))) != before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "made of [[judge]] tables only"),
        ('[[judge]]\nname = "not-refusd"\n', "did you mean 'not-refused'"),
        ('[[judge]]\nname = "not-refused"\nphrase = "qi"\n', "did you mean 'phrases'"),
        ('[[judge]]\nname = "not-refused"\nweight = 0\n', "weight = 0"),
        ('[[judge]]\nname = "not-refused"\n[[judge]]\nname = "refusal"\n', "different scales"),
        ("[[judge]\n", "no TOML"),
    ],
)
def test_wrong_panels(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises((UsageError, DataError)) as caught:
        panel(tmp_path, text).check("--judge")
    assert told in str(caught.value)
