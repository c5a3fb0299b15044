"""The subject: a prompt in each of its views, and answers, whatever the batch."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast.core.errors import DataError
from holdfast.core.records import Item
from holdfast.models.answer import Decoding
from holdfast.steer.subject import VIEWS, Batch, View
from steer import toy
from steer.toy import ASKED, HARMFUL, PATCHES, expected

SEEN: tuple[View, ...] = ("image", "blank", "noise", "blur", "natural")
BARE = Item("bare", "w1 w2 w3")
CAPTION = "w10 w11"


@pytest.mark.parametrize("view", ["text", *SEEN])
def test_states_in_a_view_are_those_of_the_closed_form(view: View) -> None:
    subject = toy.subject()
    np.testing.assert_allclose(subject.states(ASKED, view), expected(subject, ASKED, view), atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_states_do_not_depend_on_the_batch(view: View) -> None:
    whole, single = (replace(toy.scripted(lambda item: CAPTION), batch=n).script(lambda i: CAPTION) for n in (64, 1))
    mixed = replace(whole, batch=4).script(lambda i: CAPTION)
    found = whole.states(ASKED, view)
    for other in (single, mixed):
        torch.testing.assert_close(other.states(ASKED, view), found, atol=1e-6, rtol=0)
    backwards = mixed.states(ASKED[::-1], view)
    torch.testing.assert_close(backwards.flip(1), found, atol=1e-6, rtol=0)
    assert found.shape == (toy.LAYERS, len(ASKED), toy.WIDTH)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("view", SEEN)
def test_pictures_take_their_place_and_the_text_view_has_none(view: View) -> None:
    subject = toy.subject()
    inputs = subject.inputs(ASKED, view)
    assert (inputs["input_ids"] == toy.IMAGE).sum(1).tolist() == [PATCHES] * len(ASKED)
    assert inputs["pixel_values"].shape == (len(ASKED), 2, 3)
    bare = subject.inputs(ASKED, "text")
    assert "pixel_values" not in bare
    assert not (bare["input_ids"] == toy.IMAGE).any()


def test_the_natural_twin_is_drawn_by_the_items_id_from_the_pool() -> None:
    subject = toy.subject()
    whole = subject.inputs(ASKED, "natural")["pixel_values"]
    pool = [toy.seen(picture) for picture in subject.pool]
    assert all(any(np.allclose(one, picture, atol=1e-6) for picture in pool) for one in whole.numpy())
    assert len({tuple(one.flatten().tolist()) for one in whole}) > 1, "not all the same"
    for number in (0, 3, 5):
        assert torch.equal(subject.inputs([ASKED[number]], "natural")["pixel_values"][0], whole[number])
    other = [replace(item, image="plain:white") for item in ASKED]
    assert torch.equal(subject.inputs(other, "natural")["pixel_values"], whole), "whatever picture the item has"
    torch.random.manual_seed(1)
    random.seed(1)
    assert torch.equal(subject.inputs(ASKED, "natural")["pixel_values"], whole)


def test_noise_is_each_items_own_and_the_same_every_time() -> None:
    subject = toy.subject()
    same = [replace(item, image="scene:red-circle-left-1") for item in ASKED]
    once, again = (subject.inputs(same, "noise")["pixel_values"] for _ in range(2))
    assert torch.equal(once, again)
    assert len({tuple(one.flatten().tolist()) for one in once}) == len(ASKED)


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "text"])
def test_an_item_without_a_picture_is_named(view: View) -> None:
    with pytest.raises(DataError, match="item 'bare' has no picture") as caught:
        toy.subject().states([ASKED[0], BARE], view)
    assert "--images FOLDER" in caught.value.hint


def test_without_a_pool_there_is_no_natural_view() -> None:
    with pytest.raises(DataError, match="no pool of unrelated pictures") as caught:
        toy.subject(pool=()).states(ASKED, "natural")
    assert caught.value.hint


def test_the_text_view_takes_items_without_pictures() -> None:
    subject = toy.subject()
    np.testing.assert_allclose(
        subject.states([BARE], "text")[:, 0], toy.state(subject.vision.model, BARE.prompt), atol=1e-5
    )  # type: ignore[arg-type]


# -- captions ----------------------------------------------------------------------------------------------


def test_captions_are_asked_once_a_picture_and_stand_before_the_prompt() -> None:
    subject = toy.scripted(lambda item: f"w{10 + len(item.image)} w11")
    shared = [replace(item, image="plain:white") for item in ASKED[:3]]
    asked = [*ASKED[:2], *shared]
    found = subject.captioned(asked)
    assert [item.image for item in subject.asked] == [ASKED[0].image, ASKED[1].image, "plain:white"]
    assert {item.prompt for item in subject.asked} == {subject.caption_prompt}
    assert [item.image for item in found] == [""] * 5
    assert [item.id for item in found] == [item.id for item in asked]
    assert found[2].prompt == f"w21 w11 {ASKED[0].prompt}"
    subject.captioned(asked)
    subject.states(asked, "caption")
    assert len(subject.asked) == 3
    subject.forget()
    subject.captioned(shared)
    assert len(subject.asked) == 4


def test_states_with_captions() -> None:
    subject = toy.scripted(lambda item: CAPTION)
    np.testing.assert_allclose(subject.states(ASKED, "caption"), expected(subject, ASKED, "text", CAPTION), atol=1e-5)


def test_a_caption_is_as_long_as_said() -> None:
    subject = toy.subject(caption_tokens=3)
    found = subject.captioned([HARMFUL[0]])
    words = found[0].prompt.removesuffix(HARMFUL[0].prompt).split()
    assert 1 <= len(words) <= 3


# -- asking ------------------------------------------------------------------------------------------------


def test_answers_come_in_the_items_order_with_and_without_pictures() -> None:
    subject = toy.subject(batch=2)
    bare = [replace(item, id=f"bare {item.id}", image="") for item in HARMFUL]
    mixed = [item for pair in zip(HARMFUL, bare, strict=True) for item in pair]
    found = subject.answers(mixed, Decoding(4))
    alone = [subject.answers([item], Decoding(4))[0] for item in mixed]
    assert found == alone
    samples = subject.samples(mixed, Decoding(4))
    assert [(sample.item, (sample.text, sample.tokens, sample.finish)) for sample in samples] == list(
        zip(mixed, found, strict=True)
    )
    assert subject.answers([], Decoding(4)) == []


def test_each_batch_has_a_context_of_its_own() -> None:
    subject = toy.subject(batch=2)
    batches: list[list[str]] = []

    def around(batch: Batch) -> torch.no_grad:
        batches.append([item.id for item in batch.items])
        assert batch.subject is subject
        return torch.no_grad()

    subject.answers([*HARMFUL, BARE], Decoding(2), around)
    names = [item.id for item in HARMFUL]
    assert batches == [names[:2], names[2:4], names[4:], ["bare"]]


def test_states_behind_an_answer() -> None:
    subject = toy.subject(batch=2)
    found = subject.answered_states(HARMFUL, "I'm sorry")
    np.testing.assert_allclose(found, expected(subject, HARMFUL, "text", answer="I'm sorry"), atol=1e-5)


# -- what a batch remembers --------------------------------------------------------------------------------


def test_a_batch_reads_each_view_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = toy.subject()
    batch = Batch(subject, list(ASKED))
    found = batch.states("text")
    monkeypatch.setattr(toy.Toy, "forward", None)
    assert batch.states("text") is found


def test_a_subject_that_remembers_keeps_states_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = toy.subject(remembers=True)
    found = Batch(subject, list(ASKED)).states("text")
    assert Batch(subject, list(ASKED)).states("text") is found
    assert Batch(subject, list(HARMFUL)).states("text") is not found
    subject.forget()
    assert Batch(subject, list(ASKED)).states("text") is not found
    plain = toy.subject()
    assert Batch(plain, list(ASKED)).states("text") is not Batch(plain, list(ASKED)).states("text")
    assert plain.kept == {}
