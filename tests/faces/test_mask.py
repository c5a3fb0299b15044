"""Keys: what is stored, who may read it, what is refused; and masks scaled to a limit of visibility."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from faces import toy
from holdfast.core.errors import DataError, RunError
from holdfast.faces.mask import Key, applied, fitted, load_key, readable_by_others, removed, save_key
from holdfast.faces.ssim import Reference, ssim


def some_key(**card: Any) -> Key:
    person = {"one": toy.recogniser(0).embed_all(toy.crops(3)), "a.b/c": torch.eye(4)[:2]}
    return Key(toy.signs(2, 0), person, {"budget": 16, "method": "chameleon", "knobs": {"scales": [112]}, **card})


# -- files ---------------------------------------------------------------------------------------------


def test_a_key_comes_back_as_it_was(tmp_path: Path) -> None:
    key, path = some_key(text="Müller, 日本"), tmp_path / "me.p3"
    save_key(key, path)
    found = load_key(path)
    assert torch.equal(found.masks, key.masks)
    assert found.masks.dtype == torch.float32
    assert found.card == key.card
    assert found.person.keys() == key.person.keys()
    for name, value in key.person.items():
        torch.testing.assert_close(found.person[name], value, atol=5e-4, rtol=1e-3)  # half precision
        assert found.person[name].dtype == torch.float32
    for _ in range(4):  # equal keys are equal files
        save_key(found, tmp_path / "again.p3")
        assert (tmp_path / "again.p3").read_bytes() == path.read_bytes()
    assert len(found) == 2
    assert found.budget == 16
    assert path.stat().st_size < 2 * 3 * 112 * 112 + 3000


def test_the_extremes_of_a_byte_come_back(tmp_path: Path) -> None:
    masks = torch.zeros(1, 3, 112, 112)
    masks[0, 0, 0, :2] = torch.tensor([127.0, -127.0])
    save_key(Key(masks), tmp_path / "k.p3")
    assert torch.equal(load_key(tmp_path / "k.p3").masks, masks)
    assert Key(masks).budget == 127


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_its_owner_can_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = tmp_path / "me.p3"
        save_key(some_key(), path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not readable_by_others(path)
        path.chmod(0o640)
        assert readable_by_others(path)
        save_key(some_key(), path)  # written again, it is private again
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o604)
        assert readable_by_others(path)
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["me.p3"]


@pytest.mark.parametrize("wrong", [0.5, 17.0, -17.0, float("nan"), float("inf")])
def test_masks_that_are_no_whole_numbers_within_the_budget_are_not_written(tmp_path: Path, wrong: float) -> None:
    key = some_key()
    key.masks[1, 2, 60, 60] = wrong
    with pytest.raises(DataError, match="whole numbers within their budget") as caught:
        save_key(key, tmp_path / "k.p3")
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        save_key(some_key(), tmp_path / "file" / "k.p3")


MASKS = {"masks": torch.zeros(1, 3, 112, 112, dtype=torch.int8)}


def content(tensors: dict[str, Tensor] = MASKS, text: str = "", name: str = "holdfast-p3-mask", **about: Any) -> bytes:
    return save(tensors, {name: text or json.dumps({"format": 1, "card": {}} | about)})


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "is no key, or is damaged"),
        (b"\x80\x04K\x01.", "is no key, or is damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no key, or is damaged"),
        (content()[:-1], "is no key, or is damaged"),
        (content()[: len(content()) // 2], "is no key, or is damaged"),
        (save(MASKS), "is no key of"),
        (content(name="other"), "is no key of"),
        (content(format=2), "has format 2"),
        (content({}, format=2), "has format 2"),
        (content(format=None), "has format None"),
        (content(text='{"card": {}}'), "has format None"),
        (content({"some": torch.zeros(1)}), "holds no masks"),
        (content({"masks": torch.zeros(1, 3, 56, 56)}), "holds no masks"),
        (content({"masks": torch.zeros(3, 112, 112)}), "holds no masks"),
        (content({"masks": torch.zeros(0, 3, 112, 112)}), "holds no masks"),
        (content(text="{"), "its card is unreadable"),
        (content(text="[1]"), "its card is unreadable"),
        (content(text="null"), "its card is unreadable"),
        (content(text='{"format": 1}'), "its card is unreadable"),
        (content(card=None), "its card is unreadable"),
        (content(card="text"), "its card is unreadable"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, stored: bytes, message: str) -> None:
    path = tmp_path / "k.p3"
    path.write_bytes(stored)
    with pytest.raises(DataError, match=message) as caught:
        load_key(path)
    assert caught.value.hint
    assert "k.p3" in caught.value.message


def test_a_key_of_no_masks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        save_key(Key(torch.zeros(0, 3, 112, 112)), tmp_path / "k.p3")


def test_a_key_that_is_not_there_says_what_makes_one(tmp_path: Path) -> None:
    for place in (tmp_path / "none.p3", tmp_path):
        with pytest.raises(DataError, match="no key") as caught:
            load_key(place)
        assert "holdfast faces learn" in caught.value.hint


def test_a_key_holds_no_photo_and_no_path(tmp_path: Path) -> None:
    path = tmp_path / "me.p3"
    save_key(some_key(), path)
    assert set(load(path.read_bytes())) == {"masks", "person.one", "person.a.b/c"}
    size = int.from_bytes(path.read_bytes()[:8], "little")
    about = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    assert set(about) == {"holdfast-p3-mask"}
    assert str(tmp_path) not in json.dumps(about)


# -- masks on crops ------------------------------------------------------------------------------------


def test_one_mask_of_a_bank_and_its_grey_form() -> None:
    key = some_key()
    assert torch.equal(key.mask(1), key.masks[1])
    grey = key.mask(1, grey=True)
    expected = (key.masks[1] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    for channel in grey:
        torch.testing.assert_close(channel, expected)


def test_on_and_off_again_is_the_photo_where_nothing_was_cut() -> None:
    crops = toy.crops(3).round()
    masks = toy.signs(3, 0)
    on = applied(crops, masks)
    assert torch.equal(on, crops + masks)
    assert torch.equal(removed(on, masks), crops)
    dark = torch.full((1, 3, 112, 112), 5.0)
    assert torch.equal(applied(dark, masks), (5 + masks).clamp(0, 255))
    assert torch.equal(applied(255 - dark, masks), (250 + masks).clamp(0, 255))
    assert torch.equal(removed(dark, masks[:1]), (5 - masks[:1]).clamp(0, 255))
    assert torch.equal(applied(dark + 0.4, torch.full_like(dark, 0.5)), torch.full_like(dark, 6.0).sub(0.5).round())
    half = removed(dark + 0.4, torch.full_like(dark, 0.1))
    assert torch.equal(half, torch.full_like(dark, 5.0))


def test_masks_are_scaled_until_they_meet_the_limit_or_the_budget() -> None:
    crops = toy.crops(4)
    reference = Reference(crops)
    rough = torch.randn(2, 3, 112, 112, generator=toy.generator())
    for size in (1.0, 40.0):  # scaled up, and down
        found = fitted(rough * size, reference, 0.03, 60.0)
        assert torch.equal(found, found.round())
        for mask, given in zip(found, rough, strict=True):
            seen = float((1 - ssim(crops, (crops + mask).clamp(0, 255)).mean()) / 2)
            assert seen <= 0.03
            assert seen == pytest.approx(0.03, rel=0.05) or size == 1.0
            assert float((mask * given).sum() / (mask.norm() * given.norm())) > 0.9
    tight = fitted(rough * 40, reference, 0.5, 5.9)
    assert float(tight.abs().max()) == 5  # whole numbers below the budget
    assert float((tight.abs() == 5).float().mean()) > 0.9
    assert float(fitted(rough * 40, reference, 0.0, 16.0).abs().max()) == 0
    assert float(fitted(rough * 40, reference, 0.03, 0.5).abs().max()) == 0
    # A weak pattern is strengthened fourfold at most.
    weak = fitted(rough.sign(), reference, 0.4, 60.0)
    assert float(weak.abs().max()) == 4


def test_the_limit_is_on_the_mean_over_the_photos() -> None:
    crops = torch.cat([torch.full((1, 3, 112, 112), 120.0), toy.crops(1) * 1.0])
    mask = toy.signs(1, 3, 20)
    found = fitted(mask, Reference(crops), 0.2, 60.0)
    seen = [(1 - float(one)) / 2 for one in ssim(crops, (crops + found).clamp(0, 255))]
    assert max(seen) > 0.2 > min(seen)
    assert math.fsum(seen) / 2 <= 0.2
    assert math.fsum(seen) / 2 > 0.17
