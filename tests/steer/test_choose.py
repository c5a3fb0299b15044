"""Choosing open knobs: the loss, its budgets, two rounds, what is given up early, and what is never looked at."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.core.errors import DataError
from holdfast.core.events import Event, Progressed
from holdfast.core.knobs import resolved
from holdfast.core.records import Item, Rating
from holdfast.models.answer import Decoding
from holdfast.raters.base import judge_from
from holdfast.steer.choose import (
    UNSAFE,
    Choice,
    Examiner,
    Trial,
    beside,
    choose,
    fit_key,
    gentleness,
    loss,
    rates_of,
)
from holdfast.steer.exam import Exam
from holdfast.steer.method import STEERING, SteeringMethod
from holdfast.steer.methods.adashield import AdaShield
from holdfast.steer.methods.cmrm import Cmrm
from holdfast.steer.methods.refusal_direction import RefusalDirection
from holdfast.steer.methods.transplant import Transplant
from steer import toy

LAYERS = range(6)
MEASURE = {"harmful": UNSAFE, "benign": "over_refusal", "visual": "visual_correct"}
REFERENCE = {"harmful": 0.9, "benign": 0.0, "visual": 0.8}
Rates = Mapping[str, float]


def exams(n: int = 40, groups: Sequence[str] = ("harmful", "benign", "visual")) -> dict[str, Exam]:
    return {
        group: Exam(group, tuple(Item(f"{group}/{i}", f"ask {i}", group=group) for i in range(n)), (), Decoding())
        for group in groups
    }


def ratings(exam: Exam, share: float) -> dict[str, list[Rating]]:
    """Ones for a share of the items."""
    ones = round(share * len(exam.items))
    return {MEASURE[exam.group]: [Rating(item.id, float(i < ones)) for i, item in enumerate(exam.items)]}


class Asked:
    """A model whose rates are given by a rule; what it was asked is kept."""

    def __init__(self, rule: Callable[[Any, str, int], float]) -> None:
        self.rule = rule
        self.log: list[tuple[SteeringMethod | None, str, tuple[str, ...]]] = []

    def ask(self, method: SteeringMethod, exam: Exam) -> dict[str, list[Rating]]:
        self.log.append((method, exam.group, tuple(item.id for item in exam.items)))
        return ratings(exam, self.rule(method, exam.group, len(exam.items)))

    def base(self, exam: Exam) -> dict[str, list[Rating]]:
        self.log.append((None, exam.group, tuple(item.id for item in exam.items)))
        return ratings(exam, REFERENCE[exam.group])

    def chosen(self, method: SteeringMethod, given: Mapping[str, Exam], how: Choice | None = None, **more: Any) -> Any:
        return choose(method, LAYERS, given, self.ask, how or Choice(), base=self.base, **more)


# -- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "how", "expected"),
    [
        # Over-refusal rises by 6 points and benign accuracy falls by 5: 4 and 3 beyond the budget of 2 each.
        ({"over_refusal": 7, "benign_accuracy": 90, "visual_correct": 80}, Choice(), 10 + 10 * (4 + 3)),
        ({"over_refusal": 7, "benign_accuracy": 90, "visual_correct": 80}, Choice(budget=5), 10 + 10 * 1),
        ({"over_refusal": 7, "benign_accuracy": 90, "visual_correct": 80}, Choice(price=1), 10 + 7),
        ({"over_refusal": 3, "benign_accuracy": 93, "visual_correct": 79}, Choice(), 10),  # all within budgets
        ({"over_refusal": 3, "benign_accuracy": 93, "visual_correct": 79}, Choice(budget=0), 10 + 10 * (2 + 2 + 2)),
        ({"over_refusal": 0, "benign_accuracy": 100, "visual_correct": 99}, Choice(), 10),  # gains are no reward
        ({"over_refusal": 0, "benign_accuracy": 100, "visual_correct": 71}, Choice(), 10 + 10 * 8),  # nor a set-off
        ({"visual_correct": 71}, Choice(), 10 + 10 * 8),  # what was not measured does not count
        ({}, Choice(), 10),
    ],
)
def test_loss_by_hand(rates: Rates, how: Choice, expected: float) -> None:
    reference = {UNSAFE: 95.0, "over_refusal": 1.0, "benign_accuracy": 95.0, "visual_correct": 81.0}
    assert loss({UNSAFE: 10.0, **rates}, reference, how) == pytest.approx(expected)


def test_within_the_budgets_beats_safety_bought_with_more_than_a_tenth_of_its_price_in_use() -> None:
    reference = {UNSAFE: 100.0, "over_refusal": 0.0}
    inside = loss({UNSAFE: 30.0, "over_refusal": 2.0}, reference, Choice())
    assert inside < loss({UNSAFE: 0.0, "over_refusal": 5.1}, reference, Choice())
    assert inside > loss({UNSAFE: 0.0, "over_refusal": 4.9}, reference, Choice())


def test_declined_ratings_count_against_the_setting() -> None:
    def said(*values: float | None) -> list[Rating]:
        return [Rating(str(i), value, "" if value is not None else "no idea") for i, value in enumerate(values)]

    found = rates_of(
        [
            {UNSAFE: said(0, 1, None, None), "harmful_other": said(None, 0)},
            {"over_refusal": said(0, 0, 0, None), "benign_accuracy": said(1, 1, 1, None)},
            {"visual_correct": said(1, None)},
        ]
    )
    assert found == {
        UNSAFE: 75.0, "harmful_other": 50.0, "over_refusal": 25.0, "benign_accuracy": 75.0, "visual_correct": 50.0
    }  # fmt: skip


# -- which setting wins ------------------------------------------------------------------------------------


def test_settled_knobs_are_taken_as_they_are_and_nothing_is_asked() -> None:
    asked = Asked(lambda *_: 0.0)
    method = RefusalDirection(1.0, (3,))
    assert asked.chosen(method, {}) == (method, [])
    assert asked.log == []


def test_without_harmful_items_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(DataError, match="no harmful validation items") as caught:
        Asked(lambda *_: 0.0).chosen(RefusalDirection(), exams(groups=("benign",)))
    assert caught.value.hint


def test_the_least_unsafe_setting_within_the_budgets_wins() -> None:
    def rule(method: RefusalDirection, group: str, _n: int) -> float:
        if group == "harmful":
            return 0.9 - 0.5 * (method.strength or 0)
        if group == "benign":
            return 0.5 if (method.strength or 0) > 1 else 0.0
        return 0.0 if method.layers != (4,) else 0.8

    best, trials = Asked(rule).chosen(RefusalDirection(), exams())
    assert (best.layers, best.strength) == ((4,), 1.0)
    assert trials[0].method == best
    assert trials[0].rates == {UNSAFE: pytest.approx(40), "over_refusal": 0, "visual_correct": 80}
    assert trials[0].loss == pytest.approx(40)


def test_among_equals_the_gentler_setting_wins() -> None:
    best, _ = Asked(lambda _m, group, _n: REFERENCE[group]).chosen(Transplant(), exams())
    assert (best.strength, best.layers) == (1.0, (5,))  # less strength, then fewer layers, then later ones
    ordered = [
        Transplant(0.5, (2, 3)), Transplant(1.0, (4,)), Transplant(1.0, (2,)), Transplant(1.0, (3, 4)),
        Transplant(1.25, (5,)),
    ]  # fmt: skip
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=gentleness) == ordered


def test_among_equals_a_setting_between_good_ones_beats_one_on_an_edge() -> None:
    harm = {0.5: 0.5, 0.75: 0.0, 1.0: 0.0, 1.25: 0.0, 1.5: 0.5}
    asked = Asked(lambda m, group, _n: harm[m.strength] if group == "harmful" else REFERENCE[group])
    best, trials = asked.chosen(RefusalDirection(layers=(3,)), exams(8), Choice(kept=1))
    assert [trial.method.strength for trial in trials[:3]] == [1.0, 0.75, 1.25]
    by_strength = {trial.method.strength: beside(trial, trials) for trial in trials}
    assert best.strength == 1.0
    assert by_strength == {0.5: 0.0, 0.75: 25.0, 1.0: 0.0, 1.25: 25.0, 1.5: 0.0}


def test_neighbours_are_of_the_same_layers_and_those_of_the_first_round() -> None:
    def made(strength: float, layer: int, found: float) -> Trial:
        return Trial(RefusalDirection(strength, (layer,)), {}, found, 8)

    trials = [made(0.5, 2, 10), made(1.0, 2, 20), made(1.5, 2, 40), made(0.5, 3, 70)]
    assert [beside(trial, trials) for trial in trials] == [20, 25, 20, 70]
    again = made(1.0, 2, 99)
    assert beside(again, trials) == 25
    assert beside(Trial(AdaShield(), {}, 7.0, 8), []) == 7.0


def test_the_winner_of_one_round_has_the_least_loss_of_all() -> None:
    """Giving up early must never lose the best."""
    for seed in range(30):
        rng = random.Random(seed)
        settings = list(RefusalDirection().grid(LAYERS))
        table = {(s, group): rng.randrange(0, 9) / 8 for s in settings for group in MEASURE}
        asked = Asked(lambda method, group, _n, table=table: table[method, group])
        best, trials = asked.chosen(RefusalDirection(), exams(8))
        reference = {MEASURE[group]: 100 * share for group, share in REFERENCE.items()}
        reference["visual_correct"] = 100 * round(0.8 * 8) / 8
        exact = {s: loss({MEASURE[g]: 100 * table[s, g] for g in MEASURE}, reference, Choice()) for s in settings}
        assert exact[best] == min(exact.values())
        for trial in trials:
            assert trial.loss == pytest.approx(exact[trial.method]) or (trial.cut and trial.loss <= exact[trial.method])


# -- rounds ------------------------------------------------------------------------------------------------


def test_two_rounds_all_settings_on_a_part_and_the_best_quarter_on_all() -> None:
    def rule(method: RefusalDirection, group: str, n: int) -> float:
        if group != "harmful":
            return REFERENCE[group]
        # In the first round layer 2 looks best, on all items layer 3 is.
        first = {2: 0.0, 3: 0.25}.get(method.layers[0], 0.75)
        return first if n == 8 else {2: 0.5, 3: 0.25}.get(method.layers[0], 0.0)

    asked = Asked(rule)
    events: list[Event] = []
    best, trials = asked.chosen(RefusalDirection(), exams(), Choice(first=8, kept=0.5), sink=events.append)
    assert best.layers == (3,), "layer 4 would be best on all items, and did not get there"
    assert best.strength == 0.5
    settings = list(RefusalDirection().grid(LAYERS))
    first = {method for method, group, ids in asked.log if method and group == "harmful" and len(ids) == 8}
    second = {method for method, group, ids in asked.log if method and group == "harmful" and len(ids) == 40}
    assert first == set(settings)
    assert second == {s for s in settings if s.layers in ((2,), (3,))}
    assert len(trials) == 20 + 10
    assert [len(ids) for method, group, ids in asked.log if method is None and group == "benign"] == [8, 40]
    assert all(trial.n in (120, 40) for trial in trials[:10]), "the second round stands first"
    done = [event for event in events if isinstance(event, Progressed)]
    assert [event.done for event in done] == list(range(1, 31))
    assert {event.total for event in done} == {30}


def test_one_round_where_there_are_few_items() -> None:
    asked = Asked(lambda _m, group, _n: REFERENCE[group])
    _, trials = asked.chosen(RefusalDirection(), exams(8), Choice(first=8))
    assert len(trials) == 20
    assert {len(ids) for _, _, ids in asked.log} == {8}


def test_a_part_is_spread_evenly_over_the_items() -> None:
    exam = exams(40)["harmful"]
    assert [item.id for item in exam.part(8).items] == [f"harmful/{i}" for i in range(0, 40, 5)]
    assert exam.part(40) is exam


def test_what_cannot_win_any_more_is_not_asked_about_its_use() -> None:
    def rule(method: RefusalDirection, group: str, _n: int) -> float:
        harm = {2: 0.25, 3: 0.5, 4: 0.25, 5: 0.125}[method.layers[0]]
        return harm if group == "harmful" else REFERENCE[group]

    asked = Asked(rule)
    best, trials = asked.chosen(RefusalDirection(1.0), exams(8))
    cut = [trial for trial in trials if trial.cut]
    assert [trial.method.layers for trial in cut] == [(3,)], "worse than layer 2 before it; as bad as it is asked on"
    assert (cut[0].loss, cut[0].n) == (50.0, 8), "a bound: what harm alone costs"
    assert not [group for method, group, _ in asked.log if method == cut[0].method and group != "harmful"]
    assert best.layers == (5,)
    assert cut[0].as_json() == {
        "knobs": resolved(cut[0].method), "rates": {UNSAFE: 50.0}, "loss": 50.0, "n": 8, "cut": True
    }  # fmt: skip


def test_a_setting_that_is_given_up_does_not_go_on() -> None:
    def rule(method: RefusalDirection, group: str, n: int) -> float:
        return method.layers[0] / 8 if group == "harmful" else REFERENCE[group]

    asked = Asked(rule)
    _, trials = asked.chosen(RefusalDirection(), exams(), Choice(first=8))
    gone_on = [trial for trial in trials if trial.n == 120 or (trial.cut and trial.n == 40)]
    assert len(gone_on) == 5
    assert {trial.method.layers for trial in gone_on} == {(2,)}
    assert not any(trial.cut for trial in gone_on)


def test_in_the_first_round_only_what_cannot_go_on_is_given_up() -> None:
    harm = {2: 0.0, 3: 0.75, 4: 0.25, 5: 0.875}
    asked = Asked(lambda m, group, _n: harm[m.layers[0]] if group == "harmful" else REFERENCE[group])
    _, trials = asked.chosen(RefusalDirection(), exams(), Choice(first=8, kept=0.5))
    first = trials[10:]
    assert {trial.method.layers for trial in first if trial.cut} == {(5,)}
    assert {trial.method.layers for trial in trials[:10]} == {(2,), (4,)}


def test_only_validation_items_are_asked() -> None:
    asked = Asked(lambda _m, group, _n: REFERENCE[group])
    given = exams()
    asked.chosen(Cmrm(), given, Choice(first=8))
    seen = {name for _, _, ids in asked.log for name in ids}
    assert seen <= {item.id for exam in given.values() for item in exam.items}
    assert {group for _, group, _ in asked.log} == set(given)


# -- asking ------------------------------------------------------------------------------------------------


def test_an_examiner_asks_steered_and_plain_and_repeats_itself() -> None:
    subject = toy.subject()
    anchors = toy.anchors(subject)
    methods = [Transplant(1.0, (2,)), Transplant(1.25, (1, 2)), replace(Cmrm(twin="blank"), strength=1.0, layers=(1,))]
    learned = {fit_key(method): method.fit(anchors) for method in methods}
    examiner = Examiner(subject, learned)
    exam = Exam("harmful", toy.ASKED, (judge_from("not-refused", "test"),), Decoding(3))
    assert [rating.item_id for rating in examiner.base(exam)[UNSAFE]] == [item.id for item in toy.ASKED]
    for method in methods:
        assert examiner.ask(method, exam) == examiner.ask(method, exam)
    assert subject.remembers
    assert {view for _, view, _ in subject.kept} == {"text"}, "read once, for all settings"
    assert len(subject.kept) == 1


@pytest.mark.parametrize("name", list(STEERING))
def test_settings_share_a_fit_exactly_where_what_is_learned_is_the_same(name: str) -> None:
    cls = STEERING.load(name)
    plain = cls(**({"twin": "blank"} if name == "cmrm" else {}))
    names = set(resolved(plain))
    shared: dict[str, Any] = {
        "layers": (1, 2), "strength": 0.3, "tokens": "all", "phases": "decode", "gate": "text", "project": "safety",
        "one_sided": False,
    }  # fmt: skip
    other = replace(plain, **{key: value for key, value in shared.items() if key in names})
    assert fit_key(other) == fit_key(plain)
    subject = toy.scripted(lambda item: "w1 w2")
    one, two = (method.fit(toy.anchors(subject)) for method in (plain, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    apart = {"cmrm": {"twin": "noise"}, "caa": {"refuse": "w3"}}.get(name)
    if apart is not None:
        changed = replace(plain, **apart)
        assert fit_key(changed) != fit_key(plain)
        found = changed.fit(toy.anchors(subject))
        assert not all(torch.equal(found[key], one[key]) for key in one)


def test_a_trial_rounds_for_its_card() -> None:
    made = Trial(Transplant(1.0, (2,)), {UNSAFE: 100 / 3}, 100 / 3, 3).as_json()
    assert (made["rates"], made["loss"]) == ({UNSAFE: 33.333}, 33.333)
