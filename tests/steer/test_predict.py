"""Predictors of success against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.steer.method import Anchors
from holdfast.steer.methods.adashield import AdaShield
from holdfast.steer.methods.caa import Caa
from holdfast.steer.methods.cmrm import Cmrm
from holdfast.steer.methods.transplant import Transplant
from holdfast.steer.predict import layer_predictors, predictors, separability, warnings
from steer import toy
from steer.toy import BENIGN, HARMFUL, LAYERS


def column(values: Sequence[float]) -> Tensor:
    """States of width 2; the second number says nothing."""
    return torch.tensor([[value, 7.0] for value in values])


@pytest.mark.parametrize(
    ("harmful", "benign", "area"),
    [
        ([4, 5, 6, 7, 8, 9], [1, 0, -1, -2, -3, 2], 1.0),
        ([1, 0, -1, -2, -3, 2], [4, 5, 6, 7, 8, 9], 1.0),  # the line may lie either way
        ([3, 3, 3], [3, 3, 3], 0.5),  # no line at all: every pair is a tie
        ([1, -1], [-1, 1], 0.0),  # what one half teaches, the other contradicts
        # Scores 8, -4, 3.5 and 4, -8, -3.5: of nine pairs, six are the right way round.
        ([2, 0, 4], [1, -1, -3], 6 / 9),
        ([5], [1, 2, 3], 0.5),  # one prompt cannot be held out
        ([5, 6], [1], 0.5),
    ],
)
def test_separability(harmful: list[float], benign: list[float], area: float) -> None:
    assert separability(column(harmful), column(benign)) == pytest.approx(area)


def test_separability_of_noise_is_near_chance() -> None:
    drawn = torch.Generator().manual_seed(0)
    found = [separability(*(torch.randn(60, 64, generator=drawn) for _ in range(2))) for _ in range(20)]
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.05), "held out: no credit for fitting"


def made(**means: Sequence[float]) -> Anchors:
    """Anchors with hand-made states, the same behind every layer: two prompts of each class around a mean."""
    anchors = Anchors(toy.subject(), HARMFUL, BENIGN)
    for name, mean in means.items():
        group, view = name.split("_")
        pair = torch.tensor([mean, mean]) + torch.tensor([[0.0, 0.25], [0.0, -0.25]])
        anchors._read[group, view, "last"] = pair.expand(LAYERS, -1, -1)
    return anchors


def test_cosine_along_and_sunk_by_hand() -> None:
    """Safety is (1, 0), 2 apart; the image moves harmful prompts by (1, 1) and harmless ones by (0, 2)."""
    found = layer_predictors(
        made(harmful_text=(5.0, 3.0), benign_text=(7.0, 3.0), harmful_image=(6.0, 4.0), benign_image=(7.0, 5.0))
    )
    assert [row["layer"] for row in found] == list(range(LAYERS))
    for row in found:
        assert row["cosine"] == pytest.approx(1 / sqrt(2), abs=1e-4)
        assert row["along"] == pytest.approx(1 / sqrt(2), abs=1e-4)
        assert row["sunk"] == pytest.approx(0.5)
        assert row["separable"] == row["separable_text"] == 1.0


@pytest.mark.parametrize(
    ("harmful", "cosine", "along", "sunk"),
    [
        ((3.0, 0.0), 0.0, 1.0, 1.5),  # beyond the harmless side
        ((-1.0, 0.0), 0.0, 1.0, -0.5),  # away from it
        ((0.0, 4.0), 1.0, 0.0, 0.0),
        ((0.0, -4.0), -1.0, 0.0, 0.0),
        ((-3.0, 4.0), 0.8, 0.6, -1.5),
    ],
)
def test_shifts_of_every_direction(harmful: tuple[float, float], cosine: float, along: float, sunk: float) -> None:
    row, *_ = layer_predictors(
        made(harmful_text=(0.0, 0.0), benign_text=(2.0, 0.0), harmful_image=harmful, benign_image=(2.0, 2.0))
    )
    assert (row["cosine"], row["along"], row["sunk"]) == pytest.approx((cosine, along, sunk), abs=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        {"harmful_image": (0.0, 0.0), "benign_image": (0.0, 0.0)},
        {"harmful_image": (1.0, 0.0), "benign_image": (1.0, 0.0)},
    ],
)
def test_classes_that_do_not_differ_give_numbers(image: dict[str, Any]) -> None:
    for row in layer_predictors(made(harmful_text=(0.0, 0.0), benign_text=(0.0, 0.0), **image)):
        assert all(math.isfinite(value) and abs(value) < 1e6 for value in row.values())


def test_only_layers_that_a_method_steers_are_put_in_words() -> None:
    anchors = made(harmful_text=(0.0, 0.0), benign_text=(2.0, 0.0), harmful_image=(1.0, 1.0), benign_image=(2.0, 2.0))
    found = predictors(anchors, Transplant(1.0, (1, 3)))
    assert len(found["layers"]) == LAYERS
    assert [line.split(":")[0] for line in found["text"]] == ["layer 1", "layer 3"]
    assert "cosine 0.71" in found["text"][0]
    assert "the image takes back 50%" in found["text"][0]
    assert found["warnings"] == []
    assert predictors(anchors, AdaShield()) == {}


def row(cosine: float = 0.9, separable: float = 0.9) -> dict[str, Any]:
    return {"layer": 2, "cosine": cosine, "separable": separable}


@pytest.mark.parametrize(
    ("method", "here", "depth", "said"),
    [
        (Cmrm(), [row()], 6, []),
        (Cmrm(), [row(cosine=0.2)], 6, ["differently at layer 2"]),
        (Cmrm(gate="text"), [row(cosine=0.2)], 6, []),
        (Cmrm(level="sample"), [row(0.2, 0.5)], 6, []),
        (Transplant(), [row(0.2, 0.5)], 6, []),
        (Caa(), [row(0.2, 0.5)], 6, ["differently at layer 2", "hardly apart at layer 2"]),
        (Cmrm(), [row(separable=0.6)], 6, ["hardly apart at layer 2"]),
        (Cmrm(strength=0.5), [row()] * 4, 6, ["accumulates"]),
        (Cmrm(strength=0.2), [row()] * 4, 6, []),
        (Cmrm(strength=0.5), [row()] * 3, 6, []),
    ],
)
def test_warnings(method: Any, here: list[dict[str, Any]], depth: int, said: list[str]) -> None:
    found = warnings(method, here, depth)
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
