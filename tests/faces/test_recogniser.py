"""Recognisers: what comes with the package, what a folder must hold, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from faces import toy
from holdfast.core.errors import MissingExtra, ModelError
from holdfast.core.keys import file_digest
from holdfast.faces import recogniser as module
from holdfast.faces.recogniser import (
    CARD,
    WEIGHTS,
    Input,
    Recogniser,
    find_recogniser,
    identity_of,
    load_recogniser,
    load_recognisers,
    shipped,
)

REAL = ("openvino-0095", "mobileface-v2", "mobileface-v3")
every_shipped = pytest.mark.parametrize("name", shipped())


def copied(name: str, place: Path) -> Path:
    """A shipped recogniser of one's own, to be changed."""
    shutil.copytree(WEIGHTS / name, place)
    return place


def edited(place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    card = json.loads((place / CARD).read_text("utf-8"))
    change(card)
    (place / CARD).write_text(json.dumps(card), "utf-8")
    return place


# -- what is shipped -----------------------------------------------------------------------------------


def test_drawn_and_real_ones_are_shipped_and_the_detector_is_no_recogniser() -> None:
    assert set(shipped()) >= {*REAL, *toy.DRAWN}
    assert "yunet" not in shipped()


@every_shipped
def test_cards_say_what_it_is_and_whose(name: str) -> None:
    card = json.loads((WEIGHTS / name / CARD).read_text("utf-8"))
    for field in ("title", "licence", "source", "training"):
        assert isinstance(card.get(field), str), f"{name}: no {field}"
        assert len(card[field]) >= 3
    assert card["licence"] in ("Apache-2.0", "MIT")
    assert 0.1 < card["same_person"] < 0.9
    assert card["format"] == 1


@every_shipped
def test_it_gives_unit_vectors_of_the_cards_dimension(name: str) -> None:
    one = load_recogniser(name)
    found = one.embed(toy.crops(2))
    assert found.shape == (2, one.card["dimension"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert not torch.allclose(found[0], found[1])
    assert one.name == name
    assert one.differentiable
    assert one.same_person == one.card["same_person"] if "same_person" in one.card else 0.35


@every_shipped
def test_a_face_alone_is_the_face_in_a_batch(name: str) -> None:
    one, crops = load_recogniser(name), toy.crops(5)
    whole = one.embed_all(crops, batch=2)
    torch.testing.assert_close(whole, torch.cat([one.embed(crop[None]) for crop in crops]), atol=1e-5, rtol=0)
    assert not whole.requires_grad
    assert one.embed_all(crops[:0]).shape == (0, one.card["dimension"])


@every_shipped
def test_slopes_reach_the_photo_and_never_the_weights(name: str) -> None:
    one = load_recogniser(name)
    leaf = toy.crops(2).requires_grad_(True)
    one.embed(leaf)[:, 0].sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0
    assert isinstance(one.network, nn.Module)
    assert not any(weight.requires_grad for weight in one.network.parameters())
    assert not one.network.training


def rank_1(vectors: Tensor, owner: list[str]) -> float:
    """Share of photos whose most similar other photo shows the same person."""
    alike = (vectors @ vectors.T).fill_diagonal_(-2)
    return float(np.mean([owner[int(alike[i].argmax())] == owner[i] for i in range(len(owner))]))


def spread(vectors: Tensor, owner: list[str]) -> tuple[float, float]:
    """Mean cosine of one person's photos, and of two people's."""
    names = np.array(owner)
    same = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    alike = (vectors @ vectors.T).numpy()
    return float(alike[same].mean()), float(alike[names[:, None] != names].mean())


@pytest.mark.parametrize("name", toy.DRAWN)
def test_drawn_people_are_told_apart(name: str) -> None:
    owner = [str(person) for person in (3, 4, 5) for _ in range(3)]
    vectors = load_recogniser(name).embed_all(torch.cat([toy.drawn_crops(person, 3) for person in (3, 4, 5)]))
    assert rank_1(vectors, owner) == 1
    genuine, impostor = spread(vectors, owner)
    assert genuine > load_recogniser(name).same_person > impostor


# Of ../shared/specs/faces.md, section 4.1: genuine and impostor cosine, rank-1, on the same hundred photos.
MEASURED = {"openvino-0095": (0.691, 0.023, 1.0), "mobileface-v2": (0.625, 0.025, 1.0), "mobileface-v3": (0.392, 0.062, 0.95)}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_people_are_told_apart_as_the_research_notes_say(shared: Path, name: str) -> None:
    people = toy.lfw_faces(shared / "faces" / "faces_lfw10x10")
    owner = [person for person, photos in people.items() for _ in photos]
    crops = torch.stack([faces[0].crop for photos in people.values() for faces in photos])
    one = load_recogniser(name)
    vectors = one.embed_all(crops)
    genuine, impostor, rank = MEASURED[name]
    found = spread(vectors, owner)
    assert found[0] == pytest.approx(genuine, abs=0.025)
    assert found[1] == pytest.approx(impostor, abs=0.025)
    assert rank_1(vectors, owner) >= rank - 0.015
    # The order of colours is the one that it was trained with: the other one separates worse.
    swapped = replace(one, input=replace(one.input, order="RGB" if one.input.order == "BGR" else "BGR"))
    other = spread(swapped.embed_all(crops), owner)
    assert other[0] - other[1] < found[0] - found[1]


# -- what a network is fed -----------------------------------------------------------------------------


def test_pixels_are_prepared_as_the_card_says() -> None:
    crops = toy.crops(2)
    plain = Input(112, "RGB", 100.0, 0.02).prepared(crops)
    torch.testing.assert_close(plain, (crops - 100) * 0.02)
    turned = Input(112, "BGR", 100.0, 0.02).prepared(crops)
    torch.testing.assert_close(turned, plain[:, [2, 1, 0]])
    torch.testing.assert_close(Input().prepared(crops), (crops - 127.5) / 128)
    # Half the size averages; without antialiasing every other pixel of a chessboard would be lost.
    board = ((torch.arange(112)[:, None] + torch.arange(112)) % 2 * 255.0).expand(1, 3, 112, 112)
    small = Input(56, "RGB", 0.0, 1.0).prepared(board)
    torch.testing.assert_close(small[..., 2:-2, 2:-2], torch.full((1, 3, 52, 52), 127.5), atol=1e-3, rtol=0)
    large = Input(128, "RGB", 0.0, 1.0).prepared(crops)
    torch.testing.assert_close(large, functional.interpolate(crops, (128, 128), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("wrong", [{"order": "GBR"}, {"order": "rgb"}, {"size": 15}, {"size": 1025}])
def test_an_input_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="input of a recogniser") as caught:
        Input(**wrong)
    assert "RGB or BGR" in caught.value.hint
    assert Input(16).size == 16
    assert Input(1024).size == 1024


def test_vectors_are_normalised_outside_the_network() -> None:
    one = Recogniser("sums", lambda x: x.mean((2, 3)), Input(112, "RGB", 0.0, 1.0))
    crops = torch.stack([torch.full((3, 112, 112), 1.0), torch.full((3, 112, 112), 9.0)])
    crops[:, 0] *= 2
    torch.testing.assert_close(one.embed(crops), torch.tensor([[2, 1, 1], [2, 1, 1]]) / 6**0.5)
    assert one.same_person == 0.35
    assert one.to("cpu") is one


# -- folders -------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_is_read_and_read_anew_when_it_changes(tmp_path: Path) -> None:
    place = copied("drawn-plain", tmp_path / "mine")
    first = load_recogniser(str(place))
    assert first.name == "mine"
    torch.testing.assert_close(first.embed(toy.crops(1)), load_recogniser("drawn-plain").embed(toy.crops(1)))
    assert load_recogniser(str(place)) is first
    weights = {name: value * 1.5 for name, value in load_file(place / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors")
    os.utime(place / "model.safetensors", ns=(1, 1))
    second = load_recogniser(str(place))
    assert second.digest != first.digest
    assert not torch.allclose(second.embed(toy.crops(1)), first.embed(toy.crops(1)))


def test_its_identity_is_its_weights_and_its_card(tmp_path: Path) -> None:
    place = copied("drawn-plain", tmp_path / "mine")
    first = identity_of(str(place))
    assert first["name"] == "mine"
    assert first["digest"] == load_recogniser(str(place)).digest == identity_of("drawn-plain")["digest"]
    edited(place, lambda card: card["input"].update(mean=100.0))
    assert identity_of(str(place))["digest"] != first["digest"]
    other = tmp_path / "model.onnx"
    other.write_bytes(b"anything")
    assert identity_of(str(other)) == {"name": "model", "digest": file_digest(other)}


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    place = copied("drawn-plain", tmp_path / "mine")
    weights = load_file(place / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, place / "model.safetensors")
    network = load_recogniser(str(place)).network
    assert isinstance(network, nn.Module)
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format=2), "has format 2"),
        (lambda card: card.pop("format"), "is no card of a recogniser: 'format'"),
        (lambda card: card.pop("input"), "is no card of a recogniser: 'input'"),
        (lambda card: card.pop("architecture"), "is no card of a recogniser: 'architecture'"),
        (lambda card: card["input"].update(bias=3), "is no card of a recogniser: .*bias"),
        (lambda card: card["input"].update(order="HSV"), "order 'HSV'"),
        (lambda card: card["options"].update(embedding=32), "do not fit plain: .*size mismatch"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    place = edited(copied("drawn-plain", tmp_path / "mine"), change)
    with pytest.raises(ModelError, match=message) as caught:
        load_recogniser(str(place))
    assert caught.value.hint


@pytest.mark.parametrize("content", ["{", "[1]", "\ufffe", "3"])
def test_a_card_that_is_no_card_is_refused_and_nobody_is_told_to_delete_it(tmp_path: Path, content: str) -> None:
    place = copied("drawn-plain", tmp_path / "mine")
    (place / CARD).write_text(content, "utf-16" if content == "\ufffe" else "utf-8")
    with pytest.raises(ModelError) as caught:
        load_recogniser(str(place))
    assert CARD in str(caught.value)
    assert "delete" not in caught.value.hint


class Boom:
    """What a pickle could do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("boom",))


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = copied("drawn-plain", tmp_path / "mine")
    (place / "model.safetensors").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ModelError, match="weights do not load") as caught:
        load_recogniser(str(place))
    assert "damaged" in caught.value.hint
    (place / "model.safetensors").rename(place / "model.pth")
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_recogniser(str(place))
    with pytest.raises(ModelError, match="no recogniser"):
        load_recogniser(str(place / "model.pth"))
    (place / CARD).unlink()
    with pytest.raises(ModelError, match=f"a folder without {CARD}"):
        load_recogniser(str(place))
    assert not (tmp_path / "boom").exists()


def test_cut_weights_are_damaged(tmp_path: Path) -> None:
    place = copied("drawn-plain", tmp_path / "mine")
    content = (place / "model.safetensors").read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 1):
        (place / "model.safetensors").write_bytes(content[:size])
        os.utime(place / "model.safetensors", ns=(size, size))
        with pytest.raises(ModelError, match="weights do not load"):
            load_recogniser(str(place))


def test_a_name_that_is_not_there_gets_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no recogniser 'mobileface-v4'") as caught:
        find_recogniser("mobileface-v4")
    assert "did you mean 'mobileface-v" in caught.value.hint
    assert "drawn-mobile" in caught.value.hint
    for outside in ("../weights/drawn-mobile", "yunet", "", "missing.onnx"):
        with pytest.raises(ModelError):
            find_recogniser(outside)


def test_each_recogniser_of_a_team_is_named_once(tmp_path: Path) -> None:
    place = copied("drawn-plain", tmp_path / "twin")
    with pytest.raises(ModelError, match="twin and drawn-plain have the same weights"):
        load_recognisers(["drawn-plain", "drawn-mobile", str(place)])
    assert [one.name for one in load_recognisers(["drawn-plain", "drawn-mobile"])] == ["drawn-plain", "drawn-mobile"]


# -- ONNX ----------------------------------------------------------------------------------------------


def test_onnx_without_its_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(MissingExtra, match="onnxruntime"):
        load_recogniser(str(path))


def onnx_bytes(batch: bytes = b"\x12\x01n", channels: int = 3) -> bytes:
    """A model that averages over places, written by hand in ONNX's wire format (protocol buffers)."""

    def field(number: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return bytes([number << 3]) + bytes([content])
        return bytes([number << 3 | 2, len(content)]) + content

    def tensor(name: bytes, dims: list[bytes]) -> bytes:
        shape = b"".join(field(1, dim) for dim in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    def size(value: int) -> bytes:
        return b"\x08" + bytes([value])

    node = field(1, b"x") + field(2, b"y") + field(4, b"GlobalAveragePool")
    source = tensor(b"x", [batch, size(channels), size(48), size(48)])
    result = tensor(b"y", [batch, size(channels), size(1), size(1)])
    graph = field(1, node) + field(2, b"g") + field(11, source) + field(12, result)
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


@pytest.mark.parametrize("batch", [b"\x12\x01n", b"\x08\x01"], ids=["any batch", "one at a time"])
def test_an_onnx_file_judges_through_its_runtime(tmp_path: Path, batch: bytes) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "mine.onnx"
    path.write_bytes(onnx_bytes(batch))
    one = load_recogniser(str(path))
    assert (one.name, one.input.size, one.differentiable) == ("mine", 48, False)
    crops = toy.crops(3)
    prepared = (functional.interpolate(crops, (48, 48), mode="bilinear", antialias=True) - 127.5) / 128
    torch.testing.assert_close(one.embed_all(crops), functional.normalize(prepared.mean((2, 3)), dim=1))
    path.with_suffix(".json").write_text(json.dumps({"input": {"size": 48, "order": "BGR", "mean": 0, "scale": 1}, "same_person": 0.5}))  # fmt: skip
    fed = load_recogniser(str(path))
    raw = functional.interpolate(crops, (48, 48), mode="bilinear", antialias=True).flip(1)
    torch.testing.assert_close(fed.embed_all(crops), functional.normalize(raw.mean((2, 3)), dim=1))
    assert fed.same_person == 0.5


def test_an_onnx_file_that_is_none_or_takes_something_else_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="does not open as an ONNX model"):
        load_recogniser(str(path))
    path.write_bytes(onnx_bytes(channels=1))
    with pytest.raises(ModelError, match="not one batch of RGB crops"):
        load_recogniser(str(path))
    path.write_bytes(onnx_bytes())
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ModelError, match="is damaged") as caught:
        load_recogniser(str(path))
    assert "delete" not in caught.value.hint


def test_the_batch_of_a_run_does_not_change_vectors() -> None:
    assert module.BATCH > 1
    one = toy.recogniser(3)
    crops = toy.crops(3)
    torch.testing.assert_close(one.embed_all(crops, batch=1), one.embed(crops), atol=1e-6, rtol=0)
