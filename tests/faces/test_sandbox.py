"""Shipped recognisers: their loss and figures by hand, their rebuild, and whether they do what their cards say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import UsageError
from holdfast.core.events import Progressed
from holdfast.data import drawn
from holdfast.faces import sandbox
from holdfast.faces.recogniser import CARD, WEIGHTS, load_recogniser

TINY = sandbox.Recipe(
    "plain", {"embedding": 4, "channels": [4, 8], "size": 32}, people=4, photos=3, epochs=1, batch=6, seed=5
)
FRESH, PHOTOS = 24, 4


@pytest.fixture(scope="module")
def fresh() -> torch.Tensor:
    """Crops of people who are neither in training, nor in the demo, nor behind any figure on a card."""
    crops = [[drawn.aligned(someone, photo) for photo in range(PHOTOS)] for someone in drawn.demo_people(FRESH, 800)]
    return torch.from_numpy(np.array(crops)).flatten(0, 1).permute(0, 3, 1, 2).float()


def test_cosface_is_the_papers_formula() -> None:
    cosines = torch.tensor([[0.9, 0.1, -0.4], [0.2, 0.3, 0.5]])
    labels, margin, scale = [0, 1], 0.35, 8.0
    expected = 0.0
    for row, label in zip(cosines.tolist(), labels, strict=True):
        right = math.exp(scale * (row[label] - margin))
        others = sum(math.exp(scale * value) for place, value in enumerate(row) if place != label)
        expected -= math.log(right / (right + others)) / 2
    assert sandbox.cosface(cosines, torch.tensor(labels), margin, scale).item() == pytest.approx(expected, rel=1e-5)


def test_figures_by_hand() -> None:
    angle = torch.tensor([[0.0, 10.0], [60.0, 90.0], [180.0, 120.0]]) * math.pi / 180
    vectors = torch.stack([angle.cos(), angle.sin()], -1)
    found = sandbox.figures(vectors, threshold=math.cos(math.radians(31)))
    # Second photos: 10 degrees is nearest to its own (0); 90 to 60, its own; 120 is as near to 60 as to 180: the first wins.
    assert found["rank_1"] == pytest.approx(2 / 3)
    # Genuine pairs lie 10, 30 and 60 degrees apart; of twelve impostor pairs one (90 and 120) is within 31.
    assert found["tar"] == pytest.approx(2 / 3)
    assert found["far"] == pytest.approx(1 / 12)
    genuine = np.cos(np.radians([10, 30, 60]))
    gaps = [60, 90, 50, 80, 180, 120, 170, 110, 120, 60, 90, 30]
    impostor = np.cos(np.radians(gaps))
    spread = math.sqrt((genuine.var(ddof=1) + impostor.var(ddof=1)) / 2)
    assert found["d_prime"] == pytest.approx((genuine.mean() - impostor.mean()) / spread, rel=1e-4)
    assert (found["genuine_pairs"], found["impostor_pairs"]) == (3, 12)
    # Without a threshold, the least at which no more than a thousandth of the impostors (here none) pass.
    assert sandbox.figures(vectors)["threshold"] == pytest.approx(math.cos(math.radians(30)), abs=1e-5)


def test_compression_rounds_a_cosine_transform() -> None:
    rng = np.random.default_rng(0)
    crops = torch.from_numpy(rng.uniform(0, 255, (2, 3, 16, 16))).float()
    steps = torch.tensor([1e-3, 60.0]).reshape(2, 1, 1, 1)
    fine, coarse = sandbox._compressed(crops, steps)
    assert torch.allclose(fine, crops[0], atol=0.05)
    assert (coarse - crops[1]).abs().mean() > 5
    from scipy.fft import dctn, idctn

    table = 60.0 * (0.3 + 0.1 * np.add.outer(np.arange(8), np.arange(8)))
    block = crops[1, 2, 8:, :8].numpy().astype(float)
    expected = idctn(np.round(dctn(block, norm="ortho") / table) * table, norm="ortho")
    assert np.allclose(coarse[2, 8:, :8].numpy(), expected, atol=1e-2)


def test_changes_keep_crops_in_range_and_follow_the_generator() -> None:
    crops = torch.from_numpy(drawn.aligned(drawn.person(0), 0)).permute(2, 0, 1).float().repeat(12, 1, 1, 1)
    changed = [sandbox._changed(crops.clone(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])
    assert changed[0].min() >= 0
    assert changed[0].max() <= 255
    assert (changed[0] - crops).abs().mean() < 40


def test_rebuilding_is_the_same_to_the_byte_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    state, threads, seen = torch.random.get_rng_state(), torch.get_num_threads(), []
    for name in ("one", "two"):
        sandbox.build(TINY, tmp_path / name, progress=seen.append, cache=tmp_path, measure=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert (tmp_path / "crops-0-4-3.npy").is_file()
    assert [type(event) for event in seen] == [Progressed, Progressed]
    assert (seen[0].done, seen[0].total) == (2, 2)
    sandbox.build(replace(TINY, seed=6), tmp_path / "other", cache=tmp_path, measure=False)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights[0]
    loaded = load_recogniser(str(tmp_path / "one"))
    assert loaded.embed(torch.rand(2, 3, 112, 112) * 255).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_photographed_crops_need_no_detector_to_be_right() -> None:
    people = drawn.demo_people(2, 810)
    seen = sandbox.photographed(people, 1, detected=True).astype(float)
    true = sandbox.photographed(people, 1, detected=False).astype(float)
    assert seen.shape == true.shape == (2, 1, 112, 112, 3)
    assert seen.max((1, 2, 3, 4)).min() > 0  # both were found
    assert 0 < np.abs(seen - true).mean() < 30


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'drawn-mobile'"):
        sandbox.build("drawn-mobil", Path("nowhere"))


def test_the_shipped_differ_in_family_seed_or_people_and_are_small() -> None:
    recipes = list(sandbox.RECIPES.values())
    assert len({recipe.architecture for recipe in recipes}) >= 3
    assert len({recipe.seed for recipe in recipes}) == len(recipes)
    assert len({recipe.group for recipe in recipes}) >= 2
    sizes = sorted((WEIGHTS / name / "model.safetensors").stat().st_size for name in sandbox.SHIPPED)
    assert sizes[-1] <= 1_000_000
    assert all(size <= 420_000 for size in sizes[:-1])


@pytest.mark.parametrize("name", sandbox.SHIPPED)
def test_a_shipped_recogniser_does_on_fresh_people_what_its_card_says(name: str, fresh: torch.Tensor) -> None:
    recogniser = load_recogniser(name)
    card = json.loads((WEIGHTS / name / CARD).read_text("utf-8"))
    told = card["measured"]["detected"]
    assert card["recipe"]["seed"] == sandbox.RECIPES[name].seed
    assert card["options"] == sandbox.RECIPES[name].options
    assert card["same_person"] == told["threshold"]
    assert card["dimension"] == card["options"]["embedding"]
    found = sandbox.figures(recogniser.embed_all(fresh).reshape(FRESH, PHOTOS, -1), card["same_person"])
    # 144 genuine and 4416 impostor pairs: what is told, less three standard errors or so of dependent pairs.
    assert found["rank_1"] >= told["rank_1"] - 0.08
    assert found["tar"] >= told["tar"] - 0.15
    assert found["far"] <= 0.01
    assert told["rank_1"] >= 0.95


@pytest.mark.parametrize("name", sandbox.SHIPPED)
def test_a_mask_can_learn_from_a_shipped_recogniser(name: str, fresh: torch.Tensor) -> None:
    """Gradients reach the pixels, in the memory layout that recognisers are run in."""
    recogniser = load_recogniser(name)
    crops = fresh[:4].clone().requires_grad_()
    before = recogniser.embed(fresh[:4])
    # Towards the next one: the gradient of a photo's likeness to itself is nothing, since it cannot grow.
    (recogniser.embed(crops) * before.roll(1, 0)).sum().backward()
    with torch.no_grad():
        moved = recogniser.embed(fresh[:4] + 2 * crops.grad.sign())
    assert ((moved * before).sum(1) < 0.99).all()
    # Noise of the same size does much less.
    sign = torch.randint(0, 2, crops.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        shaken = recogniser.embed(fresh[:4] + 2 * sign)
    assert ((shaken * before).sum(1) > (moved * before).sum(1)).all()
