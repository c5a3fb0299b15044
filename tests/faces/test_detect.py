"""The detector: against its authors' ONNX file, decoding by hand, and faces found in drawn and real photos."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from faces import toy
from holdfast.core.errors import ModelError
from holdfast.data import drawn
from holdfast.faces import detect
from holdfast.faces.detect import Face, biggest, detector, find_faces, from_published

Floats = NDArray[np.float64]


def off(found: Floats, true: Floats) -> float:
    """Mean distance of landmarks in shares of the distance between the eyes."""
    return float(np.linalg.norm(found - true, axis=1).mean() / np.linalg.norm(true[1] - true[0]))


def matched(faces: list[Face], landmarks: Floats) -> list[float]:
    """How far off the nearest found face is from each true one."""
    return [min(off(face.landmarks, true) for face in faces) for true in landmarks]


# -- drawn photos --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_of_drawn_people_are_where_they_were_drawn(seed: int) -> None:
    made = drawn.photo(drawn.person(seed), seed)
    (face,) = find_faces(made.pixels)
    assert off(face.landmarks, made.landmarks[0]) < 0.2
    left, top, right, bottom = face.box
    inside = (face.landmarks > [left, top]) & (face.landmarks < [right, bottom])
    assert inside.all()
    assert face.score >= detect.SCORE
    assert face.size == max(right - left, bottom - top)
    eyes, mouth = face.landmarks[:2], face.landmarks[3:]
    assert eyes[0, 0] < eyes[1, 0]
    assert mouth[0, 0] < mouth[1, 0]
    assert eyes[:, 1].max() < face.landmarks[2, 1] < mouth[:, 1].min()


def test_everybody_of_a_group_is_found_the_largest_first() -> None:
    made = drawn.group([drawn.person(seed) for seed in (3, 4, 5)], 0)
    faces = find_faces(made.pixels)
    assert len(faces) == 3
    assert max(matched(faces, made.landmarks)) < 0.2
    assert [face.size for face in faces] == sorted((face.size for face in faces), reverse=True)
    assert biggest(faces[::-1]) is faces[0]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_photo_that_lies_on_its_side_is_turned_and_its_landmarks_turned_back(turns: int) -> None:
    made = drawn.photo(drawn.person(3), 0, (440, 520))
    lying = np.ascontiguousarray(np.rot90(made.pixels, -turns))
    height, width = made.pixels.shape[:2]
    x, y = made.landmarks[0].T
    # np.rot90(-1) turns clockwise: what was at the left lies at the top.
    places = {1: (height - 1 - y, x), 2: (width - 1 - x, height - 1 - y), 3: (y, width - 1 - x)}[turns]
    (face,) = find_faces(lying)
    assert off(face.landmarks, np.stack(places, 1)) < 0.12
    left, top, right, bottom = face.box
    assert left < right
    assert top < bottom
    assert ((face.landmarks > [left, top]) & (face.landmarks < [right, bottom])).all()


@pytest.mark.parametrize(
    ("upright", "turned", "wins"),
    # A face of .93 is taken as it stands; below that, a turned one must be surer by more than .01.
    [(0.93, 0.99, False), (0.92, 0.935, True), (0.92, 0.925, False), (0.92, 0.915, False), (0.0, 0.65, True)],
)
def test_the_surest_of_the_quarter_turns_counts(
    upright: float, turned: float, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(pixels: Any, side: int, border: float, score: float) -> list[Face]:
        best = turned if pixels.shape[:2] == (60, 40) and pixels[0, -1, 0] == 9 else upright * (pixels[0, 0, 0] == 9)
        return [Face((1, 2, 3, 4), np.ones((5, 2)), best)] if best else []

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[0, 0] = 9  # after a quarter turn clockwise it is at the top right
    monkeypatch.setattr(detect, "_look", look)
    (face,) = find_faces(pixels)
    assert face.score == (turned if wins else upright)


@pytest.mark.parametrize("shape", [(480, 480), (301, 517)])
def test_a_point_turned_back_is_the_pixel_that_it_was(shape: tuple[int, int]) -> None:
    height, width = shape
    for turns in (1, 2, 3):
        marks = np.zeros(shape)
        marks[17, 40] = 1
        y, x = np.argwhere(np.rot90(marks, turns))[0]
        points = np.tile(np.array([[float(x), float(y)]]), (5, 1))
        back = detect._turned_back(Face((x - 1.0, y - 2.0, x + 1.0, y + 2.0), points, 0.5), turns, height, width)
        np.testing.assert_array_equal(back.landmarks, np.tile([[40.0, 17.0]], (5, 1)))
        half = (2.0, 1.0) if turns in (1, 3) else (1.0, 2.0)
        assert back.box == (40 - half[0], 17 - half[1], 40 + half[0], 17 + half[1])
        assert back.score == 0.5


def test_a_face_that_fills_the_photo_is_found_with_a_border() -> None:
    made = drawn.photo(drawn.person(3), 0)
    (x0, y0), (x1, y1) = made.landmarks[0].min(0) - 70, made.landmarks[0].max(0) + 65
    close = np.ascontiguousarray(made.pixels[int(y0) : int(y1), int(x0) : int(x1)])
    (face,) = find_faces(close)
    assert off(face.landmarks, made.landmarks[0] - [int(x0), int(y0)]) < 0.15


def test_a_small_face_of_a_large_photo_is_found_at_a_finer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn.photo(drawn.person(3), 0, (160, 160))
    large = np.full((1500, 1700, 3), 128, np.uint8)
    large[1100:1260, 300:460] = made.pixels
    assert not detect._look(large, 320, 0.0, detect.SCORE)
    monkeypatch.setattr(detect, "LOOK", 320)
    (face,) = find_faces(large)
    assert off(face.landmarks, made.landmarks[0] + [300, 1100]) < 0.25


def test_a_small_photo_is_enlarged() -> None:
    made = drawn.photo(drawn.person(3), 0, (90, 90))
    (face,) = find_faces(made.pixels)
    assert off(face.landmarks, made.landmarks[0]) < 0.2


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (200, 200), (33, 64)])
def test_where_nobody_is_nobody_is_found(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    assert find_faces(rng.integers(0, 256, (*shape, 3), np.uint8)) == []
    assert find_faces(np.full((*shape, 3), 90, np.uint8)) == []


def test_the_least_score_decides() -> None:
    pixels = toy.photo(3, 0)
    (face,) = find_faces(pixels)
    assert detect._look(pixels, detect.LOOK, 0.0, face.score - 0.001)
    assert not detect._look(pixels, detect.LOOK, 0.0, face.score + 0.001)


# -- decoding ------------------------------------------------------------------------------------------


def test_one_place_is_decoded_by_hand() -> None:
    """The place at column 3, row 1 of the level of stride 16, in a canvas of 64 by 96 pixels."""
    places = 8 * 12 + 4 * 6 + 2 * 3
    raw = {name: torch.zeros(places, size) for name, size in (("cls", 1), ("bbox", 4), ("obj", 1), ("kps", 10))}
    raw["cls"][:], raw["obj"][:] = -9.0, -9.0
    here = 8 * 12 + 1 * 6 + 3
    raw["cls"][here], raw["obj"][here] = 2.0, 0.5
    raw["bbox"][here] = torch.tensor([0.5, -0.25, math.log(2), math.log(3)])
    raw["kps"][here] = torch.arange(10.0) / 10
    boxes, points, scores = detect._decode(raw, 64, 96, 0.6)
    assert scores.tolist() == pytest.approx([math.sqrt(1 / (1 + math.exp(-2)) / (1 + math.exp(-0.5)))])
    x, y = 48 + 8, 16 - 4
    np.testing.assert_allclose(boxes, [[x - 16, y - 24, x + 16, y + 24]], rtol=1e-6)
    np.testing.assert_allclose(points[0], 16 * np.arange(10).reshape(5, 2) / 10 + [48, 16], rtol=1e-6)


def test_of_boxes_that_overlap_the_best_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9.0], [20, 0, 30, 10], [0, 0, 10, 4.4], [0, 0, 10, 4.6]], float)
    # Overlaps with the best, the second: 10/11 with the first... by area: 0.9, 0, 4.4 / 9 = .49, 4.6 / 9 = .51.
    assert detect._distinct(boxes, np.array([0.8, 0.9, 0.7, 0.6, 0.65])) == [1, 2]
    # 4.4 of 10 is below 0.45, 4.6 above.
    assert detect._distinct(boxes[[0, 3]], np.array([0.9, 0.8])) == [0, 1]
    assert detect._distinct(boxes[[0, 4]], np.array([0.8, 0.9])) == [1]
    assert detect._distinct(boxes[:0], np.array([])) == []


def test_the_photo_is_brought_to_size_by_area() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    same = detect._resized(pixels, 6, 8)
    assert torch.equal(same[0].permute(1, 2, 0), torch.tensor(pixels).float())
    half = detect._resized(pixels, 3, 4)
    expected = pixels.reshape(3, 2, 4, 2, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(half[0].permute(1, 2, 0).numpy(), expected, atol=0.51)


# -- weights -------------------------------------------------------------------------------------------


def test_missing_or_damaged_weights_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in (("none", None), ("damaged", b"not a tensor")):
        place = tmp_path / f"{name}.safetensors"
        if content:
            place.write_bytes(content)
        monkeypatch.setattr(detect, "WEIGHTS", place)
        detector.cache_clear()
        with pytest.raises(ModelError, match="weights do not load") as caught:
            detector()
        assert "reinstall" in caught.value.hint
    monkeypatch.undo()
    detector.cache_clear()


def test_normalisation_is_folded_as_the_authors_network_computes_it() -> None:
    """A random state under the authors' names, against convolution and batch normalisation one after the other."""
    draws = toy.generator(0)
    ours = detector().state_dict()
    state: dict[str, torch.Tensor] = {}

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draws) + 0.5

    units = {"backbone.model0.conv2": "start"}
    units |= {f"backbone.model{n + 1}.conv{p + 1}": f"body.{n}.{p}" for n in range(5) for p in (0, 1)}
    for n in range(3):
        units |= {f"neck.lateral_convs.{n}": f"neck.{n}", f"bbox_head.multi_level_share_convs.{n}.0": f"share.{n}"}
        units |= {f"bbox_head.multi_level_{head}.{n}": f"heads.{head}.{n}" for head in ("cls", "bbox", "obj", "kps")}
    convolutions = {"backbone.model0.conv1": ("first", "backbone.model0.bn1")}
    for theirs, mine in units.items():
        for part in ("weight", "bias"):
            state[f"{theirs}.conv1.{part}"] = rand(*ours[f"{mine}.point.{part}"].shape)
        convolutions[f"{theirs}.conv2"] = (f"{mine}.depth", "" if "heads" in mine else f"{theirs}.bn")
    for theirs, (mine, norm) in convolutions.items():
        for part in ("weight", "bias"):
            state[f"{theirs}.{part}"] = rand(*ours[f"{mine}.{part}"].shape)
        if norm:
            size = len(state[f"{theirs}.bias"])
            state |= {f"{norm}.{part}": rand(size) for part in ("weight", "bias", "running_mean", "running_var")}
    made = from_published(state)
    assert made.keys() == ours.keys()
    for theirs, (mine, norm) in convolutions.items():
        weight = state[f"{theirs}.weight"]
        x = torch.rand(1, weight.shape[1] * (1 if mine == "first" else len(weight)), 6, 6, generator=draws)
        groups = 1 if mine == "first" else len(weight)
        expected = torch.nn.functional.conv2d(x, weight, state[f"{theirs}.bias"], padding=1, groups=groups)
        if norm:
            mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            expected = torch.nn.functional.batch_norm(
                expected, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5
            )
        found = torch.nn.functional.conv2d(x, made[f"{mine}.weight"], made[f"{mine}.bias"], padding=1, groups=groups)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# -- real photos and the authors' file -----------------------------------------------------------------


def test_outputs_are_those_of_the_authors_onnx_file(shared: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = shared / "faces" / "detector_yunet" / "yunet_n_320.onnx"
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.asarray(Image.fromarray(toy.photo(3, 0)).resize((320, 320)))
    canvas = torch.tensor(pixels).permute(2, 0, 1)[None].float().flip(1).contiguous()
    theirs = dict(zip((o.name for o in session.get_outputs()), session.run(None, {session.get_inputs()[0].name: canvas.numpy()}), strict=True))  # fmt: skip
    with torch.inference_mode():
        ours = detector()(canvas)
    for name, values in ours.items():
        levels = torch.cat([torch.from_numpy(theirs[f"{name}_{stride}"]) for stride in (8, 16, 32)], 1)
        found = values.sigmoid() if name in ("cls", "obj") else values
        torch.testing.assert_close(found, levels.view(found.shape), atol=2e-3, rtol=2e-3)


def test_a_face_is_found_in_every_photo_of_a_real_sample(shared: Path) -> None:
    people = toy.lfw_faces(shared / "faces" / "faces_lfw10x10")
    counts = [len(faces) for photos in people.values() for faces in photos]
    assert len(counts) == 100
    assert sum(count > 0 for count in counts) == 100
    assert sum(count == 1 for count in counts) >= 80
    # LFW photos are centred on the person's face.
    middles = [faces[0].face.landmarks.mean(0) for photos in people.values() for faces in photos]
    assert float(np.median(np.linalg.norm(np.array(middles) - 125, axis=1))) < 15
