"""Requests of the part: what their keys depend on, what they refuse, and models that are put around your own calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.records import Item
from holdfast.core.runs import Run, Store
from holdfast.core.stage import request_key
from holdfast.data import workshop
from holdfast.data.images import open_image, paired
from holdfast.models.answer import Decoding
from holdfast.models.ask import samples_of
from holdfast.models.engine import Engine
from holdfast.steer.artifact import load_steering
from holdfast.steer.choose import Choice
from holdfast.steer.exam import Exam, exam
from holdfast.steer.method import SteeringMethod
from holdfast.steer.methods.adashield import AdaShield
from holdfast.steer.methods.caa import Caa
from holdfast.steer.methods.cmrm import Cmrm
from holdfast.steer.methods.refusal_direction import RefusalDirection
from holdfast.steer.methods.transplant import Transplant
from holdfast.steer.model import SteeredModel
from holdfast.steer.stage import AskSteered, FitStage, Speaking

MODEL = "sandbox/vlm-0"
CPU = Engine(device="cpu")


def requests(kind: workshop.Kind, split: workshop.Split, n: int, start: int = 0) -> tuple[Item, ...]:
    found = workshop.workshop(0).items(kind, split)[start : start + n]
    return tuple(paired([replace(item, id=f"{kind}/{i}") for i, item in enumerate(found)], "scenes", start))


HARMFUL, BENIGN = requests("hazard", "align", 6), requests("benign", "align", 6)
ASKED = (*requests("hazard", "test", 3), *requests("benign", "test", 3))
SETTLED = Transplant(1.0, (3, 4))


def validation(group: str = "harmful", judges: tuple[str, ...] = ("not-refused",)) -> Exam:
    table = {"source": "sandbox/workshop-hazards-validation-0", "images": "scenes", "judges": judges, "limit": 6}
    return exam(group, table, "test")


def fit(method: SteeringMethod = SETTLED, **more: Any) -> FitStage:
    return FitStage(method, MODEL, HARMFUL, BENIGN, **more)


# -- fitting -----------------------------------------------------------------------------------------------


def test_the_pool_is_spread_over_the_pictures_of_harmless_anchors() -> None:
    def shown(stage: FitStage) -> list[int]:
        """Numbers of the anchors whose pictures are in the pool."""
        known = [np.asarray(open_image(item.image)).tobytes() for item in stage.benign]
        return [known.index(np.asarray(picture).tobytes()) for picture in stage._pool()]

    twelve = requests("benign", "align", 12)
    assert shown(FitStage(SETTLED, MODEL, HARMFUL, twelve, pictures=4)) == [0, 3, 6, 9]
    assert shown(fit()) == [0, 1, 2, 3, 4, 5], "all of them, where there are fewer than 8"
    same = tuple(replace(item, image="plain:white") for item in BENIGN)
    assert len(FitStage(SETTLED, MODEL, HARMFUL, same)._pool()) == 1


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (Cmrm(level="sample", strength=1.0, layers=(3,), twin="natural"), 6),
        (Cmrm(strength=1.0, layers=(3,), twin="natural"), 0),
        (SETTLED, 0),
    ],
)
def test_only_a_method_that_shows_unrelated_pictures_keeps_them(
    method: SteeringMethod, count: int, tmp_path: Path
) -> None:
    assert len(load_steering(fit(method).make(Store(tmp_path), CPU).path).pool) == count


def test_what_a_fit_depends_on() -> None:
    key = request_key(fit())
    assert request_key(fit()) == key
    others = [
        fit(Transplant(1.25, (3, 4))), fit(Transplant(1.0, (3,))), replace(fit(), harmful=HARMFUL[:5]),
        replace(fit(), benign=tuple(replace(item, image="plain:white") for item in BENIGN)),
        replace(fit(), base="sandbox/vlm-1"), fit(speaking=Speaking(precision="bf16")), fit(pictures=4),
    ]  # fmt: skip
    assert len({key, *map(request_key, others)}) == len(others) + 1
    assert request_key(fit(validation={"harmful": validation()}, choice=Choice(budget=1))) == key, "nothing is chosen"
    open_ = fit(Transplant(), validation={"harmful": validation()})
    changed = [
        replace(open_, choice=Choice(budget=1)), replace(open_, validation={"harmful": validation().part(5)}),
        replace(open_, validation={"harmful": validation(judges=("not-refused", "refusal"))}),
    ]  # fmt: skip
    assert len({request_key(open_), *map(request_key, changed)}) == 4


@pytest.mark.parametrize(
    ("stage", "error", "said"),
    [
        (fit(RefusalDirection(1.0, (6,))), UsageError, "the model has no such layer"),
        (fit(Transplant()), DataError, "no validation items to choose by"),
        (
            fit(Transplant(), validation={"benign": validation("benign", ("refusal",))}),
            DataError,
            "no validation items",
        ),
        (
            fit(Transplant(), validation={"harmful": validation(judges=("refusal",))}),
            UsageError,
            "whether they are harmful",
        ),
        (fit(Transplant(), validation={"harmful": replace(validation(), items=HARMFUL)}), DataError, "are anchors too"),
        (fit(choice=Choice(budget=-1)), UsageError, "outside"),
        (replace(fit(), harmful=HARMFUL[:1]), DataError, "have 1 harmful prompts"),
        (replace(fit(), benign=()), DataError, "have 0 benign prompts"),
        (replace(fit(), benign=(*BENIGN, Item("bare", "x"))), DataError, "anchor 'bare' has no picture"),
        (replace(fit(), benign=(*BENIGN, Item("gone", "x", image="gone.png"))), DataError, "item 'gone'"),
        (replace(fit(), base="sandbox/micro-0"), ModelError, "text-only"),
    ],
)
def test_a_fit_that_cannot_work_is_refused_before_a_model_is_loaded(
    stage: FitStage, error: type[Exception], said: str, tmp_path: Path
) -> None:
    for work in (stage.validate, lambda: stage.make(Store(tmp_path), CPU)):
        with pytest.raises(error, match=said) as caught:
            work()
        assert getattr(caught.value, "hint", "")
    assert not list(tmp_path.iterdir())


def test_anchors_are_compared_with_validation_items_by_what_is_asked() -> None:
    shouted = replace(validation(), items=(Item("other", f"  {HARMFUL[0].prompt.upper()}", image="plain:white"),))
    with pytest.raises(DataError, match="1 harmful validation prompts are anchors too"):
        fit(Transplant(), validation={"harmful": shouted}).validate()


# -- asking ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(store: Store) -> dict[str, Run]:
    methods = {
        "transplant": SETTLED, "constant": Cmrm(strength=1.0, layers=(4,), twin="blank", shift="image-text"),
        "caa": Caa(1.0, (3,), refuse="sorry ,", comply="take the"), "adashield": AdaShield("sorry ,"),
    }  # fmt: skip
    return {name: fit(method).make(store, CPU) for name, method in methods.items()}


def asked(steering: Path | FitStage, items: tuple[Item, ...] = ASKED, **more: Any) -> AskSteered:
    return AskSteered(steering, MODEL, items, {group: Decoding(12) for group in ("harmful", "benign")}, **more)


def test_answers_of_a_fit_and_of_its_run_are_one_run(store: Store, runs: dict[str, Run]) -> None:
    path = runs["transplant"].path
    by_run, by_request = asked(path), asked(fit())
    assert request_key(by_run) == request_key(by_request)
    made = by_request.make(store, CPU)
    assert by_run.make(store, CPU).path == made.path
    assert [sample.item for sample in samples_of(made)] == list(ASKED)


def test_an_interrupted_run_of_answers_goes_on_with_the_same_answers(
    store: Store, runs: dict[str, Run], tmp_path: Path
) -> None:
    whole = asked(runs["transplant"].path).make(store, CPU)
    half = Store(tmp_path).run(whole.kind, whole.label, whole.spec)
    lines = (whole.path / "samples.jsonl").read_text().splitlines(keepends=True)
    (half.path / "samples.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    again = asked(runs["transplant"].path).make(Store(tmp_path), CPU)
    assert again.path == half.path
    assert samples_of(again) == samples_of(whole)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ((), "nothing to ask"),
        ((ASKED[0], ASKED[0]), "two items have the id"),
        ((replace(ASKED[0], image="gone.png"),), "no picture gone.png"),
    ],
)
def test_items_that_cannot_be_asked_are_refused(runs: dict[str, Run], items: tuple[Item, ...], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        asked(runs["transplant"].path, items).validate()
    assert caught.value.hint


# -- around your own calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transplant", "constant", "caa", "adashield"])
def test_a_steered_model_answers_as_its_run_does(store: Store, runs: dict[str, Run], name: str) -> None:
    path = runs[name].path
    model = SteeredModel.open(path, engine=CPU)
    found = {s.item.id: s.text for s in samples_of(asked(path).make(store, CPU))}
    assert {s.item.id: s.text for s in model.answer(ASKED, Decoding(12))} == found


@pytest.mark.parametrize("name", ["constant", "caa"])
def test_a_constant_can_be_put_around_generate(runs: dict[str, Run], name: str) -> None:
    model = SteeredModel.open(runs[name].path, engine=CPU)
    vision = model.subject.vision
    net: Any = vision.model
    inputs = vision.inputs(ASKED)
    wanted = [sample.text for sample in model.answer(ASKED, Decoding(12))]
    with model.on() as tally:
        out = net.generate(**inputs, max_new_tokens=12, do_sample=False)
        chunked = net.generate(**inputs, max_new_tokens=12, do_sample=False, prefill_chunk_size=100)
    answers = vision.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in answers] == wanted
    assert torch.equal(chunked, out)
    assert tally.fired[4 if name == "constant" else 3] == tally.passes > 12
    plain = model.subject.samples(ASKED, Decoding(12))
    assert [sample.text for sample in plain] != wanted, "and it is off afterwards"


@pytest.mark.parametrize("name", ["transplant", "adashield"])
def test_methods_that_look_at_each_request_cannot_be_put_around_generate(runs: dict[str, Run], name: str) -> None:
    model = SteeredModel.open(runs[name].path, engine=CPU)
    with pytest.raises(UsageError, match="looks at each request") as caught, model.on():
        pass
    assert "answer(items)" in caught.value.hint


def test_another_model_is_refused_unless_told(runs: dict[str, Run]) -> None:
    path = runs["transplant"].path
    with pytest.raises(ModelError, match="fitted on another model"):
        SteeredModel.open(path, "sandbox/vlm-1", engine=CPU)
    other = SteeredModel.open(path, "sandbox/vlm-1", engine=CPU, other=True)
    assert other.steering.method == load_steering(path).method
    assert len(other.answer(ASKED[:1], Decoding(4))) == 1
