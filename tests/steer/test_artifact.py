"""Steering artifacts: saved and loaded, refused for other models, and clear about damage."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from holdfast.core.errors import HoldfastError, ModelError, RunError, UsageError
from holdfast.core.knobs import resolved
from holdfast.core.runs import Store
from holdfast.data.images import open_image
from holdfast.steer.artifact import FOLDER, Steering, artifact_folder, load_steering, shape_of
from holdfast.steer.methods.cmrm import Cmrm
from steer import toy

IDENTITY = {"digest": "1234"}
METHOD = Cmrm(strength=0.75, layers=(1, 2), twin="natural")


def steering() -> Steering:
    subject = toy.subject()
    card = {
        "format": 1,
        "made_with": "0",
        "method": {
            "name": "cmrm", "title": "CMRM", "paper": "Liu et al.", "version": 1, "knobs": resolved(METHOD),
        },
        "model": {"reference": "toy", "identity": IDENTITY, "shape": shape_of(subject.vision.model)},
        "anchors": {"harmful": 5, "benign": 5},
        "predictors": {"text": ["layer 1: fine"]},
    }  # fmt: skip
    return Steering(
        METHOD, METHOD.fit(toy.anchors(subject)), card, (*subject.pool, open_image("scene:red-cross-left-1"))
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    steering().save(tmp_path / "steering")
    return tmp_path / "steering"


def test_saved_and_loaded_it_is_the_same(saved: Path) -> None:
    found, made = load_steering(saved), steering()
    assert found.method == METHOD
    assert found.card == made.card
    assert found.learned.keys() == made.learned.keys()
    assert all(torch.equal(found.learned[name], made.learned[name]) for name in made.learned)
    assert [np.asarray(one).tobytes() for one in found.pool] == [np.asarray(one).tobytes() for one in made.pool]
    assert {picture.mode for picture in found.pool} == {"RGB"}


def test_the_tensors_say_what_they_are_and_the_readme_for_people(saved: Path) -> None:
    with safe_open(saved / "steering.safetensors", "pt") as file:
        about = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    # One key, so that equal fits give equal bytes.
    assert list(about) == ["holdfast"]
    told = json.loads(about["holdfast"])
    assert (told["format"], told["method"]) == (1, "cmrm")
    assert "subtracted" in told["sign"]
    text = (saved / "README.md").read_text()
    for told in ("# CMRM for toy", "| strength | `0.75` |", "5 harmful and 5 harmless", "layer 1: fine", "inherited"):
        assert told in text


def test_in_half_precision_it_is_stored_in_fp32(tmp_path: Path) -> None:
    made = steering()
    half = {name: value.bfloat16() for name, value in made.learned.items()}
    replace(made, learned=half).save(tmp_path)
    assert all(torch.equal(value, half[name].float()) for name, value in load_steering(tmp_path).learned.items())


def test_saving_again_replaces_it(saved: Path) -> None:
    made = steering()
    replace(made, learned={name: value + 1 for name, value in made.learned.items()}).save(saved)
    assert torch.equal(load_steering(saved).learned["shift"], made.learned["shift"] + 1)


def test_saving_again_with_fewer_pictures_leaves_none_of_the_others(saved: Path) -> None:
    replace(steering(), pool=steering().pool[:1]).save(saved)
    assert len(load_steering(saved).pool) == 1


# -- other models ------------------------------------------------------------------------------------------


def test_the_model_it_was_fitted_on_is_taken(saved: Path) -> None:
    load_steering(saved).check_model(toy.Toy(), IDENTITY)


def test_another_model_is_refused_unless_said(saved: Path) -> None:
    found = load_steering(saved)
    with pytest.raises(ModelError, match=r"fitted on another model \(toy\)") as caught:
        found.check_model(toy.Toy(), {"digest": "other"})
    assert "--other-model" in caught.value.hint
    found.check_model(toy.Toy(), {"digest": "other"}, other=True)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (toy.Toy(layers=5), "for a model with 4 decoder layers; this one has 5"),
        (toy.Toy(width=7), "for a model with 5 numbers in a hidden state; this one has 7"),
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_a_model_of_another_shape_is_always_refused(saved: Path, model: toy.Toy, said: str, other: bool) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_steering(saved).check_model(model, IDENTITY, other=other)
    assert "holdfast steer fit" in caught.value.hint


# -- damage ------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(change(card)))


def without(*keys: str) -> Callable[[Any], Any]:
    def change(card: Any) -> Any:
        here = card
        for key in keys[:-1]:
            here = here[key]
        del here[keys[-1]]
        return card

    return change


def put(value: Any, *keys: str) -> Callable[[Any], Any]:
    def change(card: Any) -> Any:
        here = card
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = value
        return card

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: [], "damaged"),
        (lambda card: None, "damaged"),
        (put("one", "format"), "damaged"),
        (put(2, "format"), "newer Holdfast"),
        (without("method"), "lacks 'method'"),
        (without("method", "knobs"), "lacks 'knobs'"),
        (without("model", "shape"), "lacks 'shape'"),
        (put([], "model"), "damaged"),
        (put("cmrm", "method"), "damaged"),
        (put([1], "method", "knobs"), "damaged"),
        (put("nonsense", "method", "name"), "unknown steering method 'nonsense'"),
        (put(1, "method", "knobs", "nonsense"), "unknown key 'nonsense'"),
        (put("high", "method", "knobs", "strength"), "strength = 'high' is not a float"),
        (put(5, "model", "shape", "layers"), "has 4 layers, the card says 5"),
        (put(7, "model", "shape", "width"), "is 5 wide, the card says 7"),
    ],
)
def test_a_damaged_card_is_refused(saved: Path, change: Callable[[Any], Any], said: str) -> None:
    edit(saved, change)
    with pytest.raises((RunError, UsageError), match=said) as caught:
        load_steering(saved)
    assert caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "no json", "\xff"])
def test_a_card_that_is_no_json_is_refused(saved: Path, content: str) -> None:
    (saved / "card.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"card\.json is damaged") as caught:
        load_steering(saved)
    assert caught.value.hint


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"shift": [1.0]}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [pickled, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_tensors_that_are_pickled_cut_or_absent_are_refused(saved: Path, damage: Callable[[Path], Any]) -> None:
    damage(saved / "steering.safetensors")
    with pytest.raises(RunError, match="holds no steering vectors") as caught:
        load_steering(saved)
    assert "holdfast steer fit" in caught.value.hint


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(3, 5), torch.zeros(4, 6)])
def test_tensors_of_another_shape_than_the_card_says_are_refused(saved: Path, value: torch.Tensor) -> None:
    save_file({**steering().learned, "shift": value}, saved / "steering.safetensors")
    with pytest.raises(RunError, match="'shift'") as caught:
        load_steering(saved)
    assert caught.value.hint == "fit again"


def test_a_damaged_picture_is_refused(saved: Path) -> None:
    (saved / "pictures" / "00.png").write_bytes(b"no picture")
    with pytest.raises(HoldfastError, match=r"00\.png") as caught:
        load_steering(saved)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_without_vectors_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="holds no steering vectors") as caught:
        load_steering(tmp_path / name)
    assert "holdfast steer fit" in caught.value.hint


# -- in a run ----------------------------------------------------------------------------------------------


def made_run(store: Store, kind: str) -> Path:
    run = store.run(kind, kind, {})
    steering().save(run.artifacts / FOLDER)
    run.seal(0.0)
    return run.path


def test_a_run_is_opened_where_it_keeps_its_artifact(tmp_path: Path) -> None:
    path = made_run(Store(tmp_path), "steer")
    assert artifact_folder(path) == path / "artifacts" / FOLDER
    assert load_steering(path).method == METHOD


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a ask run") as caught:
        load_steering(made_run(Store(tmp_path), "ask"))
    assert "holdfast steer fit" in caught.value.hint


def test_a_run_whose_files_changed_is_refused(tmp_path: Path) -> None:
    path = made_run(Store(tmp_path), "steer")
    (path / "artifacts" / FOLDER / "card.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be used") as caught:
        load_steering(path)
    assert "make" in caught.value.hint or "again" in caught.value.hint


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    run = Store(tmp_path).run("steer", "steer", {})
    steering().save(run.artifacts / FOLDER)
    with pytest.raises(RunError, match="it is not sealed"):
        load_steering(run.path)
