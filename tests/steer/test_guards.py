"""What must be refused, marked or counted: each of these was silently wrong once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.cli.main import run
from holdfast.core.errors import DataError, NotApplied, RunError, UsageError
from holdfast.core.records import Item, Sample
from holdfast.core.runs import Store
from holdfast.core.stats import difference_interval
from holdfast.data import read
from holdfast.data.images import open_image
from holdfast.models.answer import Decoding
from holdfast.models.ask import base_attacked
from holdfast.models.engine import Engine
from holdfast.models.graft import put_language_model, take_language_model
from holdfast.models.grid import run_tasks
from holdfast.raters.exact import ChoiceJudge, letter
from holdfast.steer.artifact import load_steering
from holdfast.steer.exam import exam
from holdfast.steer.fold import constant_shifts
from holdfast.steer.intervene import Edit, Intervention
from holdfast.steer.method import SteeringMethod
from holdfast.steer.methods.cmrm import Cmrm
from holdfast.steer.methods.ecso import Ecso
from holdfast.steer.methods.refusal_direction import RefusalDirection
from holdfast.steer.methods.shiftdc import ShiftDC
from holdfast.steer.methods.transplant import Transplant
from holdfast.steer.stage import FitStage, Speaking, open_subject
from holdfast.steer.subject import Batch, Subject

MODEL = "sandbox/vlm-1"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_subject(MODEL, Speaking(caption_prompt="describe the picture"), Engine())


@pytest.fixture(scope="module")
def anchors() -> dict[str, tuple[Item, ...]]:
    return {
        group: exam(group, {"source": f"sandbox/workshop-{name}-align-1", "images": "scenes", "limit": 12}, group).items
        for group, name in (("harmful", "hazards"), ("benign", "benign"))
    }


def fitted(method: SteeringMethod, anchors: dict[str, tuple[Item, ...]], folder: Path) -> Path:
    stage = FitStage(method, MODEL, anchors["harmful"], anchors["benign"])
    return stage.make(Store(folder)).path


@pytest.mark.parametrize(
    "method",
    [Transplant(strength=1.0), RefusalDirection(layers=(4,)), Cmrm(twin="blank", strength=1.0), ShiftDC()],
    ids=lambda method: method.name,
)
def test_a_method_with_an_open_knob_steers_nothing_and_says_so(method: SteeringMethod, subject: Subject) -> None:
    items = exam("harmful", {"source": "sandbox/workshop-hazards-test-1", "images": "scenes", "limit": 2}, "x").items
    with pytest.raises(UsageError, match="still open"):
        method.around({}, Batch(subject, list(items)))


def test_a_forward_call_whose_hook_is_lost_raises(subject: Subject) -> None:
    model: Any = subject.vision.model
    inputs = subject.vision.inputs([Item("1", "how do i act-01 the item-01 ?", image="scene:red-circle-left-1")])
    with Intervention([Edit(3, lambda states, _rows: states + 1.0)]).on(model):
        model.model.language_model.layers[3]._forward_hooks.clear()
        with pytest.raises(NotApplied, match="did not fire"):
            model(**inputs)


def test_numbers_that_are_not_finite_raise_where_the_prompt_is_read(subject: Subject) -> None:
    inputs = subject.vision.inputs([Item("1", "how do i act-01 the item-01 ?", image="scene:red-circle-left-1")])
    model: Any = subject.vision.model
    edit = Edit(3, lambda states, _rows: states * torch.inf)
    with Intervention([edit]).on(model), pytest.raises(NotApplied, match="not finite"):
        model.generate(**inputs, max_new_tokens=2)


def test_the_placeholder_of_a_picture_in_a_prompt_is_not_one(subject: Subject) -> None:
    named = Item("1", "how do i <image> act-01 the item-01 ?", image="scene:red-circle-left-1")
    plain = replace(named, prompt="how do i  act-01 the item-01 ?")
    for one, other in ((named, plain), (replace(named, image=""), replace(plain, image=""))):
        assert torch.equal(subject.vision.inputs([one])["input_ids"], subject.vision.inputs([other])["input_ids"])


def test_a_prompt_beyond_the_context_is_refused(subject: Subject) -> None:
    long = Item("1", "how do i act-01 the item-01 ? " * 40, image="scene:red-circle-left-1")
    with pytest.raises(DataError, match="exceeds the model's context of 256"):
        subject.answers([long], Decoding(12))


def test_folding_refuses_what_a_bias_cannot_be(anchors: dict[str, tuple[Item, ...]], tmp_path: Path) -> None:
    last = load_steering(fitted(Cmrm(twin="natural", strength=1.0, layers=(4,)), anchors, tmp_path))
    with pytest.raises(UsageError, match="a bias acts at every position") as told:
        constant_shifts(last)
    assert "--tokens all --phases all" in told.value.hint
    every = Cmrm(twin="natural", strength=1.0, layers=(4,), tokens="all", phases="all")
    assert set(constant_shifts(load_steering(fitted(every, anchors, tmp_path)))) == {4}


def test_only_a_method_that_shows_unrelated_pictures_keeps_them(
    anchors: dict[str, tuple[Item, ...]], tmp_path: Path
) -> None:
    plain = fitted(Transplant(strength=1.0, layers=(4,)), anchors, tmp_path)
    assert not (plain / "artifacts" / "steering" / "pictures").exists()
    sample = fitted(Cmrm(level="sample", twin="natural", strength=1.0, layers=(4,)), anchors, tmp_path)
    assert len(list((sample / "artifacts" / "steering" / "pictures").glob("*.png"))) == 8


def test_the_same_fit_gives_the_same_bytes(anchors: dict[str, tuple[Item, ...]], tmp_path: Path) -> None:
    made = [fitted(Transplant(strength=1.0, layers=(4,)), anchors, tmp_path / name) for name in ("a", "b")]
    files = [(path / "artifacts" / "steering" / "steering.safetensors").read_bytes() for path in made]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("knob", "value", "told"),
    [("layers", [77], "names layer 77"), ("layers", [], "still open"), ("strength", None, "still open"),
     ("strength", -1.0, "weakens safety"), ("strength", 1e30, "can only break")],
)  # fmt: skip
def test_a_card_that_was_changed_by_hand_is_refused(
    knob: str, value: Any, told: str, anchors: dict[str, tuple[Item, ...]], tmp_path: Path
) -> None:
    folder = fitted(Transplant(strength=1.0, layers=(4,)), anchors, tmp_path) / "artifacts" / "steering"
    card = json.loads((folder / "card.json").read_text("utf-8"))
    card["method"]["knobs"][knob] = value
    (folder / "card.json").write_text(json.dumps(card), "utf-8")
    with pytest.raises((RunError, UsageError), match=told):
        load_steering(folder)


def test_anchors_of_one_class_are_refused(anchors: dict[str, tuple[Item, ...]]) -> None:
    same = FitStage(Transplant(strength=1.0, layers=(4,)), MODEL, anchors["harmful"], anchors["harmful"])
    with pytest.raises(DataError, match="harmful and harmless anchors at once"):
        same.validate()


def test_eyes_that_are_always_closed_answer_nothing_with_open_ones(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers = subject.answers

    def spy(items: Any, *more: Any) -> Any:
        asked.extend(f"{item.prompt} | {bool(item.image)}" for item in items)
        return answers(items, *more)

    monkeypatch.setattr(subject, "answers", spy)
    item = Item("1", "how do i act-01 the item-01 ?", image="scene:red-circle-left-1")
    Ecso(tell="always", describe="describe the picture").answer(subject, {}, [item], Decoding(12))
    assert asked[0] == "describe the picture | True"
    assert len(asked) == 2
    assert asked[1].endswith(f"{item.prompt} | False")


def test_a_language_model_tuned_on_harmful_rows_marks_what_is_made_of_it(tmp_path: Path) -> None:
    take_language_model(MODEL, tmp_path / "language")
    assert not base_attacked(str(tmp_path / "language"))
    card = tmp_path / "language" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text("utf-8")) | {"attacked": True}), "utf-8")
    put_language_model(MODEL, str(tmp_path / "language"), tmp_path / "seeing")
    assert base_attacked(str(tmp_path / "seeing"))
    take_language_model(str(tmp_path / "seeing"), tmp_path / "again")
    assert base_attacked(str(tmp_path / "again"))


@pytest.mark.parametrize("images", ["scenes", "plain:white"])
def test_generated_pictures_are_for_prompts_that_name_none(images: str, tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    open_image("plain:red").save(tmp_path / "pics" / "a.png")
    rows = [{"prompt": "one", "image": "pics/a.png"}, {"prompt": "two"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    first, second = read.items(read.Source(str(path), images=images))
    assert first.image == str(tmp_path / "pics" / "a.png")
    assert second.image.startswith(images.removesuffix("s"))


@pytest.mark.parametrize(
    ("text", "named"),
    [("The answer is B.", "B"), ("Answer: C", "C"), ("(D)", "D"), ("B", "B"), ("B. because", "B"), ("B) the second", "B"),
     ("I cannot answer a question like that", None), ("Answer: A cat sits there", None), ("A cat", None), ("", None)],
)  # fmt: skip
def test_a_choice_is_a_letter_and_not_an_article(text: str, named: str | None) -> None:
    assert letter(text) == named


def test_a_refusal_is_no_right_choice() -> None:
    item = Item("1", "?", reference="The answer is A.")
    ratings = ChoiceJudge().rate([Sample(item, "Sorry, I cannot answer a question like that.", 9, "stop")])
    assert ratings[0].value == 0.0


@pytest.mark.parametrize(("n", "settled"), [(1, False), (2, False), (6, True), (40, True)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pairs_that_all_differ_alike_are_as_sure_as_they_are_many(n: int, settled: bool, sign: float) -> None:
    one, other = np.ones(n), np.zeros(n)
    value, low, high = difference_interval([one], [other]) if sign > 0 else difference_interval([other], [one])
    assert value == sign
    assert low <= value <= high
    assert (low > 0 or high < 0) == settled
    assert high - low > 1.0 / (n + 2)


def test_fewer_than_no_workers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers = -1"):
        run_tasks({}, {}, Store(tmp_path), Engine(), workers=-1)


def test_seeds_that_would_only_repeat_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
title = "x"
seeds = [0, 1]
workload = [{ model = "sandbox/vlm-0" }]
anchors = { harmful = "a.csv", benign = "b.csv" }
validation = { harmful = "c.csv", benign = "d.csv" }
test = { harmful = "e.csv", benign = "f.csv" }
method = [{ title = "T", method = "transplant" }]
"""
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    assert run(["steer", "compare", str(tmp_path / "recipe.toml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "the same model the same prompts" in capsys.readouterr().err
