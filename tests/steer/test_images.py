"""Pictures: opening them, naming them, their meaningless twins, and pairing them with prompts."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holdfast.core.errors import DataError
from holdfast.core.records import Item
from holdfast.data import images, read
from holdfast.data.images import TWINS, check_images, identity, open_image, paired, pictures_in, twin, without
from holdfast.data.read import Source
from holdfast.models.ask import items_identity

PROMPTS = [Item(str(i), f"prompt {i}") for i in range(12)]


def saved(path: Path, colour: str = "red", size: tuple[int, int] = (6, 4)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return str(path)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_usual_formats_and_modes_open_in_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    if (suffix, mode) in {("jpg", "RGBA"), ("jpg", "P")}:
        mode = "CMYK"
    path = tmp_path / f"cat.{suffix}"
    Image.new("RGB", (6, 4), "white").convert(mode).save(path)
    found = open_image(str(path))
    assert (found.mode, found.size) == ("RGB", (6, 4))
    assert pixels(found).min() > 250


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8, 0] = 255  # red on the left
    picture = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: what was left comes to the top
    picture.save(tmp_path / "turned.png", exif=exif)
    found = open_image(str(tmp_path / "turned.png"))
    assert found.size == (8, 16)
    top, bottom = pixels(found)[:8], pixels(found)[8:]
    assert (top[..., 0] == 255).all()
    assert not bottom.any()
    assert open_image(saved(tmp_path / "plain.png", size=(16, 8))).size == (16, 8)


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "cat.png")
    assert open_image("~/cat.png").size == (6, 4)
    assert identity("~/cat.png") == identity(str(tmp_path / "cat.png"))


def test_a_jpeg_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg does not open as a picture: .*truncated") as caught:
        open_image(str(tmp_path / "cut.jpg"))
    assert "whole file" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.png").write_bytes(content)
    with pytest.raises(DataError, match=r"text\.png does not open as a picture") as caught:
        open_image(str(tmp_path / "text.png"))
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_a_missing_picture_is_named_with_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path / "kitten.png")
    with pytest.raises(DataError, match=r"no picture .*kiten\.png") as caught:
        open_image(str(tmp_path / "kiten.png"))
    assert "did you mean 'kitten.png'?" in caught.value.hint
    for name in ("nowhere/cat.png", str(tmp_path), ""):
        with pytest.raises(DataError, match="no picture"):
            open_image(name)


def test_a_picture_that_is_implausibly_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved(tmp_path / "bomb.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses what has more than twice as many
    with pytest.raises(DataError, match=r"bomb\.png does not open .*2500 pixels"):
        open_image(name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
    assert open_image(name).size == (50, 50)


def test_a_picture_that_is_only_large_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved(tmp_path / "large.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # from here to twice as many, Pillow warns
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(name).size == (50, 50)


# -- generated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "colour"),
    [("plain:white", (255, 255, 255)), ("plain:#204060", (32, 64, 96)), ("plain:#ff000080", (255, 0, 0))],
)
def test_plain_pictures_have_one_colour(name: str, colour: tuple[int, int, int]) -> None:
    found = open_image(name)
    assert found.size == (336, 336)
    assert found.getcolors() == [(336 * 336, colour)]


def test_noise_is_uniform_and_of_its_seed() -> None:
    once, again, other = (pixels(open_image(name)) for name in ("noise:7", "noise:7", "noise:8"))
    assert (once == again).all()
    assert (once == other).mean() < 0.01
    assert once.shape == (336, 336, 3)
    counts = np.bincount(once.ravel(), minlength=256) / once.size
    assert abs(counts - 1 / 256).max() < 0.001


def test_scenes_open_by_name() -> None:
    found = open_image("scene:red-circle-left-17")
    assert found.size == (32, 32)
    assert pixels(found)[:, :16, 0].mean() > 2 * pixels(found)[:, 16:, 0].mean()


@pytest.mark.parametrize(
    "name",
    ["plain:nocolour", "plain:", "noise:", "noise:x", "noise:-1", "noise:1.5", "scene:", "scene:red-circle-left",
     "scene:pink-circle-left-1", "scene:red-star-left-1", "scene:red-circle-top-1", "scene:red-circle-left-1x"],
)  # fmt: skip
def test_names_that_generate_nothing_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=name) as caught:
        open_image(name)
    assert caught.value.hint


# -- twins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_has_the_pictures_size_and_leaves_it_alone(kind: images.TwinKind) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    before = pixels(picture).copy()
    found = twin(picture, kind)
    assert (found.mode, found.size) == ("RGB", (30, 20))
    assert (pixels(picture) == before).all()


def test_what_twins_show() -> None:
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, 20:] = 200
    picture = Image.fromarray(halves)
    assert (pixels(twin(picture, "blank")) == 255).all()
    one, two, other = (pixels(twin(picture, "noise", seed)) for seed in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()
    blurred = pixels(twin(picture, "blur")).astype(float)
    assert blurred.mean() == pytest.approx(halves.mean(), abs=3)
    assert abs(np.diff(blurred, axis=1)).max() < 25, "the edge of 200 is gone"


# -- identity ----------------------------------------------------------------------------------------------


def test_a_picture_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    one, same, other = saved(tmp_path / "a.png"), saved(tmp_path / "b" / "c.png"), saved(tmp_path / "d.png", "blue")
    assert identity(one) == identity(same) != identity(other)
    asked = [[Item("1", "what?", image=name)] for name in (one, same, other)]
    first, second, third = (items_identity(items) for items in asked)
    assert first == second != third
    assert identity("plain:white") == "plain:white"
    with pytest.raises(DataError, match="no picture"):
        identity(str(tmp_path / "gone.png"))


def test_a_picture_that_changed_has_another_identity(tmp_path: Path) -> None:
    name = saved(tmp_path / "a.png")
    before = identity(name)
    saved(tmp_path / "a.png", "blue")
    os.utime(name, ns=(1, 1))
    assert identity(name) != before


# -- checking ----------------------------------------------------------------------------------------------


def test_checking_names_the_item_of_a_broken_picture(tmp_path: Path) -> None:
    fine = Item("fine", "x", image=saved(tmp_path / "a.png"))
    check_images([fine, Item("bare", "x"), Item("scene", "x", image="scene:red-circle-left-1")])
    for name in ("gone.png", "scene:red-circle-up-1", "plain:nocolour"):
        with pytest.raises(DataError, match="item 'broken': ") as caught:
            check_images([fine, Item("broken", "x", image=name)])
        assert caught.value.hint


# -- pairing -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for number in range(5):
        saved(tmp_path / "pictures" / ("deeper" if number % 2 else "") / f"{number}.{'JPG' if number else 'png'}")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return str(tmp_path / "pictures")


def test_pictures_of_a_folder(folder: str, tmp_path: Path) -> None:
    found = pictures_in(folder)
    assert sorted(Path(name).name for name in found) == ["0.png", "1.JPG", "2.JPG", "3.JPG", "4.JPG"]
    with pytest.raises(DataError, match="no folder of pictures"):
        pictures_in(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        pictures_in(str(tmp_path / "empty"))


def test_pairing_draws_without_replacement_as_long_as_there_are_enough(folder: str) -> None:
    made = paired(PROMPTS, folder, 0)
    assert [item.prompt for item in made] == [item.prompt for item in PROMPTS]
    assert len({item.image for item in made[:5]}) == len({item.image for item in made[5:10]}) == 5
    assert set(Counter(item.image for item in made).values()) == {2, 3}
    assert made == paired(PROMPTS, folder, 0)
    assert made != paired(PROMPTS, folder, 1)
    assert paired(PROMPTS[:5], folder, 0) == made[:5], "fewer prompts are a part of more"


def test_pairing_leaves_pictures_that_are_there(folder: str) -> None:
    own = Item("own", "x", image="plain:white")
    made = paired([PROMPTS[0], own, PROMPTS[1]], folder, 0)
    assert made[1] == own
    assert all(item.image for item in made)
    assert [item.image for item in without(made)] == ["", "", ""]


def test_pairing_with_generated_pictures() -> None:
    made = paired(PROMPTS, "scenes", 3)
    assert len({item.image for item in made}) == len(PROMPTS)
    assert made == paired(PROMPTS, "sandbox/scenes", 3) != paired(PROMPTS, "scenes", 4)
    check_images(made)
    assert {item.image for item in paired(PROMPTS, "plain:white", 0)} == {"plain:white"}
    with pytest.raises(DataError, match="names no colour"):
        paired(PROMPTS, "plain:nocolour", 0)


# -- pictures in data files --------------------------------------------------------------------------------


def data_file(folder: Path, *rows: dict[str, str], name: str = "asked.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_an_image_column_is_relative_to_the_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "data" / "pictures" / "cat.png")
    path = data_file(
        tmp_path / "data", {"prompt": "what is it?", "image": "pictures/cat.png"}, {"prompt": "and?"},
        {"prompt": "this?", "image": "scene:red-circle-left-1"},
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in (path, "data/asked.jsonl"):
        found = read.items(Source(name))
        assert [Path(found[0].image).resolve(), *(item.image for item in found[1:])] == [
            tmp_path / "data" / "pictures" / "cat.png", "", "scene:red-circle-left-1",
        ]  # fmt: skip
        check_images(found)
    absolute = data_file(tmp_path / "other", {"prompt": "x", "image": str(tmp_path / "data" / "pictures" / "cat.png")})
    check_images(read.items(Source(absolute)))


def test_a_folder_of_pictures_is_what_the_column_is_relative_to_and_what_the_others_draw_from(
    tmp_path: Path, folder: str
) -> None:
    path = data_file(tmp_path / "data", {"prompt": "one", "image": "0.png"}, {"prompt": "two"}, {"prompt": "three"})
    found = read.items(Source(path, images=folder))
    assert found[0].image == str(Path(folder) / "0.png")
    assert all(Path(item.image).is_file() for item in found)
    assert found == read.items(Source(path, images=folder))
    draws = {tuple(item.image for item in read.items(Source(path, images=folder, seed=seed))) for seed in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize("given", ["scenes", "plain:white", "noise:3"])
def test_generated_pictures_for_some_leave_the_column_relative_to_the_data_file(tmp_path: Path, given: str) -> None:
    saved(tmp_path / "data" / "cat.png")
    path = data_file(tmp_path / "data", {"prompt": "one", "image": "cat.png"}, {"prompt": "two"})
    found = read.items(Source(path, images=given))
    assert Path(found[0].image) == tmp_path / "data" / "cat.png"
    assert images.is_generated(found[1].image)


def test_a_column_from_a_csv_file(tmp_path: Path) -> None:
    saved(tmp_path / "cat.png")
    (tmp_path / "asked.csv").write_text("prompt,answer,image\nwhat?,a cat,cat.png\nno picture?,none,\n")
    found = read.items(Source(str(tmp_path / "asked.csv"), columns={"response": "answer"}))
    assert [(item.reference, Path(item.image).name) for item in found] == [("a cat", "cat.png"), ("none", "")]


def test_a_picture_that_is_not_there_is_named_with_its_item(tmp_path: Path, folder: str) -> None:
    path = data_file(tmp_path / "data", {"id": "first", "prompt": "x", "image": "gone.png"})
    for given, place in (("", tmp_path / "data"), (folder, Path(folder))):
        with pytest.raises(DataError, match=rf"item 'first' names the picture gone\.png, which is not in {place}") as e:
            read.items(Source(path, images=given))
        assert "--images FOLDER" in e.value.hint
