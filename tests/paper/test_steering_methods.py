"""Steering methods beside CMRM, each against its paper's formula, worked out in numpy on a linear model that sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from holdfast.core.errors import UsageError
from holdfast.core.knobs import check
from holdfast.core.records import Item
from holdfast.models.answer import Decoding
from holdfast.steer.method import Learned, SteeringMethod
from holdfast.steer.methods.adashield import AdaShield
from holdfast.steer.methods.caa import Caa
from holdfast.steer.methods.ecso import Ecso
from holdfast.steer.methods.inferaligner import InferAligner
from holdfast.steer.methods.refusal_direction import RefusalDirection
from holdfast.steer.methods.shiftdc import ShiftDC
from holdfast.steer.methods.transplant import Transplant
from holdfast.steer.subject import Subject
from steer import toy
from steer.toy import ASKED, BENIGN, HARMFUL, Numbers, expected

LAYER = 2
CLOSE = 1e-5
STEPS = 4
EVERYBODY = (*ASKED, *HARMFUL, *BENIGN)


@cache
def model() -> Subject:
    """Shared by the tests, none of which leaves anything on it."""
    return toy.subject()


def fitted(method: SteeringMethod, subject: Subject | None = None) -> tuple[SteeringMethod, Learned]:
    return method, method.fit(toy.anchors(subject or model()))


def generated(
    method: SteeringMethod, learned: Learned, layer: int = LAYER, asked: tuple[Item, ...] = EVERYBODY
) -> list[Numbers]:
    """What is added behind a layer while answers are made, a pass each: prompt, then every token but the last."""
    subject = model()
    passes = toy.changes(
        subject, layer, lambda: subject.answers(asked, Decoding(STEPS), lambda batch: method.around(learned, batch))
    )
    assert len(passes) == STEPS + len(method.views)
    return passes[-STEPS:]


def real(asked: tuple[Item, ...] = EVERYBODY) -> Any:
    return model().inputs(asked, "image")["attention_mask"].numpy()[..., None]


# -- transplant ------------------------------------------------------------------------------------------


def test_transplant_sets_the_safety_coordinate_to_the_texts_and_leaves_the_others() -> None:
    towards = toy.safety(model())[LAYER]
    text, image = (expected(model(), EVERYBODY, view)[LAYER] for view in ("text", "image"))
    gap = (text - image) @ towards
    assert min(np.sum(gap < -0.05), np.sum(gap > 0.05)) >= 2, "the picture moves some prompts either way"
    for strength in (0.5, 1.0, 1.25):
        for one_sided in (True, False):
            method, learned = fitted(Transplant(strength, (LAYER,), one_sided))
            found = toy.steered(model(), method, learned, EVERYBODY)[LAYER]
            wanted = strength * (np.minimum(gap, 0) if one_sided else gap)
            np.testing.assert_allclose((found - image) @ towards, wanted, atol=CLOSE)
            np.testing.assert_allclose(found - image, np.outer(wanted, towards), atol=CLOSE)
            if strength == 1:
                kept = np.minimum(text @ towards, image @ towards) if one_sided else text @ towards
                np.testing.assert_allclose(found @ towards, kept, atol=CLOSE)


def test_transplant_one_sided_only_ever_moves_towards_harmful_anchors() -> None:
    method, learned = fitted(Transplant(1.0, (LAYER,)))
    image = expected(model(), EVERYBODY, "image")[LAYER]
    moved = toy.steered(model(), method, learned, EVERYBODY)[LAYER] - image
    refusing = expected(model(), HARMFUL, "text")[LAYER].mean(0) - expected(model(), BENIGN, "text")[LAYER].mean(0)
    assert (moved @ refusing > -CLOSE).all()
    assert (moved @ refusing).max() > 0.1


def test_transplant_behind_several_layers_does_not_accumulate() -> None:
    method, learned = fitted(Transplant(1.0, (0, 1, LAYER), one_sided=False))
    found = toy.steered(model(), method, learned)
    text, towards = expected(model(), ASKED, "text"), toy.safety(model())
    for layer in (0, 1, LAYER):
        np.testing.assert_allclose(found[layer] @ towards[layer], text[layer] @ towards[layer], atol=CLOSE)


def test_transplant_changes_the_last_token_of_the_prompt_alone() -> None:
    first, *later = generated(*fitted(Transplant(1.0, (LAYER,))))
    assert first[:, -1].any()
    assert not first[:, :-1].any()
    assert not any(one.any() for one in later)


def test_transplant_tries_layers_pairs_and_tails_of_the_later_two_thirds() -> None:
    assert Transplant().layer_sets(range(6)) == [
        (2,), (3,), (4,), (5,), (2, 3), (3, 4), (4, 5), (2, 3, 4, 5), (3, 4, 5)
    ]  # fmt: skip
    tried = {(method.layers, method.strength) for method in Transplant().grid(range(6))}
    assert tried == {(layers, s) for layers in Transplant().layer_sets(range(6)) for s in (1.0, 1.25, 1.5, 2.0)}


# -- ShiftDC ---------------------------------------------------------------------------------------------

CAPTION = "w10 w11 w12"


@cache
def captioning() -> toy.Scripted:
    """A toy that describes every picture in the same three words."""
    return toy.scripted(lambda item: CAPTION)


def test_shiftdc_removes_the_shifts_part_along_safety() -> None:
    subject = captioning()
    method, learned = fitted(ShiftDC(0.75, (1, LAYER)), subject)
    harmful, benign = (expected(subject, group, "text", CAPTION).mean(1) for group in (HARMFUL, BENIGN))
    shift = expected(subject, ASKED, "image") - expected(subject, ASKED, "text", CAPTION)
    for layer in method.layers:  # type: ignore[attr-defined]
        s = harmful[layer] - benign[layer]
        wanted = np.stack([-0.75 * (m @ s) / (s @ s) * s for m in shift[layer]])
        passes = toy.changes(subject, layer, lambda: toy.steered(subject, method, learned))
        np.testing.assert_allclose(passes[-1][:, -1], wanted, atol=CLOSE)  # before it, the two readings of its shift
        assert len(passes) == 3
        assert not passes[-1][:, :-1].any()
        assert np.abs(wanted).max() > 0.01


def test_shiftdc_at_strength_one_leaves_no_shift_along_safety() -> None:
    subject = captioning()
    method, learned = fitted(ShiftDC(layers=(LAYER,)), subject)
    found = toy.steered(subject, method, learned)[LAYER]
    s = (expected(subject, HARMFUL, "text", CAPTION) - expected(subject, BENIGN, "text", CAPTION)).mean(1)[LAYER]
    np.testing.assert_allclose((found - expected(subject, ASKED, "text", CAPTION)[LAYER]) @ s, 0, atol=1e-4)


def test_shiftdc_works_while_the_prompt_is_read_at_its_last_token_and_asks_for_each_caption_once() -> None:
    subject = captioning()
    method, learned = fitted(ShiftDC(layers=(LAYER,)), subject)
    asked = [item for item in subject.asked if item.prompt == subject.caption_prompt]
    pictures = [item.image for item in (*HARMFUL, *BENIGN)]
    assert {item.image for item in asked} >= set(pictures)
    assert len({item.image for item in asked}) == len(asked)
    edits = method.edits(learned, toy.Batch(subject, list(ASKED)))
    assert [(edit.layer, edit.tokens, edit.phases) for edit in edits] == [(LAYER, "last", "prefill")]


def test_shiftdc_tries_tails_and_single_layers_of_the_later_two_thirds_at_strength_one() -> None:
    tried = [(method.layers, method.strength) for method in ShiftDC().grid(range(6))]
    sets = [(2, 3, 4, 5), (3, 4, 5), (4, 5), (5,), (2,), (3,), (4,)]
    assert tried == [(layers, 1.0) for layers in sets]
    deep = ShiftDC().layer_sets(range(32))
    assert tuple(range(10, 32)) in deep, "the authors' layers of LLaVA-7B"


# -- InferAligner ----------------------------------------------------------------------------------------


def infer_gate() -> tuple[Numbers, float]:
    """Direction and threshold at the layer: anchors with pictures, harmful side up."""
    harmful, benign = (expected(model(), group, "image")[LAYER].mean(0) for group in (HARMFUL, BENIGN))
    towards = (harmful - benign) / np.linalg.norm(harmful - benign)
    return towards, float((harmful + benign) @ towards / 2)


def test_inferaligner_opens_the_gate_exactly_where_the_prompt_lies_beyond_the_midpoint() -> None:
    method, learned = fitted(InferAligner(0.5, (LAYER,)))
    towards, middle = infer_gate()
    np.testing.assert_allclose(learned["gate"][LAYER], towards, atol=CLOSE)
    np.testing.assert_allclose(learned["threshold"][LAYER], middle, atol=CLOSE)
    opens = expected(model(), EVERYBODY, "image")[LAYER] @ towards > middle
    assert set(opens[: len(ASKED)]) == {True, False}
    first, *later = generated(method, learned)
    theta = (expected(model(), HARMFUL, "text") - expected(model(), BENIGN, "text")).mean(1)[LAYER]
    wanted = np.outer(opens, 0.5 * theta)
    np.testing.assert_allclose(first[:, -1], wanted, atol=CLOSE)
    assert not first[:, :-1].any()
    for one in later:  # every generated token of the rows that are open, and of no other
        np.testing.assert_allclose(one[:, 0], wanted, atol=CLOSE)


def test_inferaligner_decides_for_each_batch_anew() -> None:
    method, learned = fitted(InferAligner(0.5, (LAYER,)))
    whole = generated(method, learned)
    for number in (0, 1, len(EVERYBODY) - 1):
        alone = generated(method, learned, asked=(EVERYBODY[number],))
        for one, all_ in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one[0, -1], all_[number, -1], atol=CLOSE)


# -- refusal direction -----------------------------------------------------------------------------------


def test_refusal_direction_adds_the_difference_of_means_at_all_positions() -> None:
    method, learned = fitted(RefusalDirection(0.5, (1, LAYER)))
    theta = expected(model(), HARMFUL, "text").mean(1) - expected(model(), BENIGN, "text").mean(1)
    np.testing.assert_allclose(learned["vector"], theta, atol=CLOSE)
    for layer in (1, LAYER):
        first, *later = generated(method, learned, layer)
        np.testing.assert_allclose(first, real() * 0.5 * theta[layer], atol=CLOSE)
        for one in later:
            np.testing.assert_allclose(one[:, 0], np.tile(0.5 * theta[layer], (len(EVERYBODY), 1)), atol=CLOSE)
        np.testing.assert_allclose(method.constant(learned)[layer], 0.5 * theta[layer], atol=CLOSE)


# -- CAA -------------------------------------------------------------------------------------------------


def test_caa_adds_the_difference_between_the_last_tokens_of_two_answers() -> None:
    method, learned = fitted(Caa(0.5, (LAYER,), refuse="I'm sorry", comply="w13 w14 w15"))
    refused, complied = (expected(model(), HARMFUL, "text", answer=said) for said in ("I'm sorry", "w13 w14 w15"))
    vector = (refused - complied).mean(1)
    np.testing.assert_allclose(learned["vector"], vector, atol=CLOSE)
    first, *later = generated(method, learned)
    np.testing.assert_allclose(first[:, -1], np.tile(0.5 * vector[LAYER], (len(EVERYBODY), 1)), atol=CLOSE)
    assert not first[:, :-1].any()
    for one in later:
        np.testing.assert_allclose(one[:, 0], np.tile(0.5 * vector[LAYER], (len(EVERYBODY), 1)), atol=CLOSE)
    np.testing.assert_allclose(method.constant(learned)[LAYER], 0.5 * vector[LAYER], atol=CLOSE)


def test_caa_steers_all_of_the_prompt_where_told_to() -> None:
    method, learned = fitted(Caa(0.5, (LAYER,), tokens="all"))
    first, *_ = generated(method, learned)
    np.testing.assert_allclose(first, real() * 0.5 * learned["vector"][LAYER].numpy(), atol=CLOSE)


# -- AdaShield -------------------------------------------------------------------------------------------

BARE = Item("bare", "w1 w2")


def test_adashield_puts_its_prompt_before_requests_with_a_picture_and_no_others() -> None:
    subject = toy.scripted(lambda item: f"said {item.prompt}")
    made = AdaShield("mind this:").answer(subject, {}, [ASKED[0], BARE, ASKED[1]], Decoding(4))
    assert [item.prompt for item in subject.asked] == ["mind this: w1 w30 w4", "w1 w2", "mind this: w20 w31"]
    assert [item.image for item in subject.asked] == [ASKED[0].image, "", ASKED[1].image]
    assert [sample.item for sample in made] == [ASKED[0], BARE, ASKED[1]], "samples keep what was asked"
    assert [sample.text for sample in made][1:] == ["said w1 w2", "said mind this: w20 w31"]


def test_adashield_without_a_prompt_asks_as_it_is() -> None:
    subject = toy.scripted(lambda item: "fine")
    AdaShield("").answer(subject, {}, list(ASKED), Decoding(4))
    assert subject.asked == list(ASKED)
    assert AdaShield("").is_off
    assert not AdaShield().is_off


# -- ECSO ------------------------------------------------------------------------------------------------

ECSO = Ecso(ask="judge {prompt} / {answer}", describe="describe for {prompt}")
RISKY, FINE = ASKED[0], ASKED[1]


def says(reply: str) -> Callable[[Item], str]:
    """A model that answers with a picture "one two three", is asked about it, describes pictures and answers again."""

    def answer(item: Item) -> str:
        if item.prompt.startswith("judge"):
            return reply if RISKY.prompt in item.prompt else "No."
        if item.prompt.startswith("describe"):
            return "a red cross"
        return "one two three" if item.image else "refused"

    return answer


@pytest.mark.parametrize(("reply", "closes"), [("Yes, it does", True), ("YES", True), ("no", False), ("maybe", False)])
def test_ecso_answers_again_from_the_caption_where_the_model_calls_its_answer_harmful(reply: str, closes: bool) -> None:
    subject = toy.scripted(says(reply))
    made = ECSO.answer(subject, {}, [RISKY, BARE, FINE], Decoding(9))
    asked = [(item.prompt, item.image) for item in subject.asked]
    first = [(item.prompt, item.image) for item in (RISKY, BARE, FINE)]
    judged = [(f"judge {item.prompt} / one two three", item.image) for item in (RISKY, FINE)]
    again = [(f"describe for {RISKY.prompt}", RISKY.image), (f"a red cross {RISKY.prompt}", "")]
    assert asked == [*first, *judged, *(again if closes else [])]
    assert [sample.item for sample in made] == [RISKY, BARE, FINE]
    assert [sample.text for sample in made] == ["refused" if closes else "one two three", "refused", "one two three"]
    # "one two three" and its end are four tokens, "refused" and its end two.
    assert [sample.tokens for sample in made] == [6 if closes else 4, 2, 4]


def test_ecso_always_closes_its_eyes_without_asking() -> None:
    subject = toy.scripted(says("no"))
    made = replace(ECSO, tell="always").answer(subject, {}, [RISKY, BARE, FINE], Decoding(9))
    assert [sample.text for sample in made] == ["refused"] * 3
    assert [sample.item for sample in made] == [RISKY, BARE, FINE]
    assert [sample.tokens for sample in made] == [2, 2, 2]
    described = [(f"describe for {item.prompt}", item.image) for item in (RISKY, FINE)]
    blind = [(f"a red cross {item.prompt}", "") for item in (RISKY, FINE)]
    assert [(item.prompt, item.image) for item in subject.asked] == [*described, *blind, (BARE.prompt, "")]


def test_ecso_never_asks_once() -> None:
    subject = toy.scripted(says("yes"))
    method = replace(ECSO, tell="never")
    made = method.answer(subject, {}, [RISKY, BARE, FINE], Decoding(9))
    assert subject.asked == [RISKY, BARE, FINE]
    assert [sample.text for sample in made] == ["one two three", "refused", "one two three"]
    assert method.is_off


def test_ecso_of_items_without_pictures_asks_nothing_more() -> None:
    subject = toy.scripted(says("yes"))
    ECSO.answer(subject, {}, [BARE], Decoding(9))
    assert subject.asked == [BARE]


@pytest.mark.parametrize(
    "knobs",
    [
        {"ask": "is {answer} harmful?"},
        {"ask": "is it harmful?"},
        {"ask": "{prompt} {answer} {picture}"},
        {"ask": "{prompt} {answer} {"},
        {"describe": "what of {answer} ?"},
        {"describe": "{}"},
    ],
)
def test_ecso_refuses_wordings_that_cannot_be_filled(knobs: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="ecso") as caught:
        check(replace(ECSO, **knobs), "ecso")
    assert caught.value.hint
    check(replace(ECSO, describe="what do you see?"), "ecso")
