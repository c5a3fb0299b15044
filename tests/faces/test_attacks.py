"""Attacks on protected faces: filters against other implementations, mask estimates against the mask, heads by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import ModelError, UsageError
from holdfast.faces import attacks
from holdfast.faces.graph import Graph
from holdfast.faces.mask import applied
from holdfast.faces.recogniser import Input, Recogniser

SIDE = 112


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def backgrounds(n: int, seed: int, fine: float = 2.0) -> Tensor:
    """Photos that differ: smooth shapes of all sizes, and some grain."""
    rng = np.random.default_rng(seed)
    made = np.full((n, 3, SIDE, SIDE), 128.0)
    for deviation, strength in ((20, 40), (8, 15), (4, 6)):
        field = ndimage.gaussian_filter(rng.normal(size=made.shape), (0, 0, deviation, deviation))
        made += strength * field / field.std()
    return torch.from_numpy(made + rng.normal(size=made.shape) * fine).float().clamp(20, 235).round()


def signs(n: int, seed: int, size: float = 8.0) -> Tensor:
    """Masks of random signs, four pixels wide."""
    small = torch.randint(2, (n, 3, 28, 28), generator=seeded(seed)).float() * 2 - 1
    return size * small.repeat_interleave(4, 2).repeat_interleave(4, 3)


def correlation(one: Tensor, two: Tensor) -> float:
    return float(np.corrcoef(one.flatten().numpy(), two.flatten().numpy())[0, 1])


# --- photo by photo ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", attacks.TRANSFORMS)
def test_transforms_give_stored_photos_and_repeat(name: str) -> None:
    crops = backgrounds(2, 1)
    before = crops.clone()
    made = attacks.transformed(name, crops, seeded(3))
    assert made.shape == crops.shape
    assert made.dtype == torch.float32
    assert torch.equal(made, made.round())
    assert 0 <= float(made.min()) <= float(made.max()) <= 255
    assert torch.equal(crops, before)
    assert torch.equal(made, attacks.transformed(name, crops, seeded(3)))
    # It is the same face afterwards: nothing is shifted, turned or brightened.
    assert abs(float((made - crops).mean())) < 1
    assert 0 < float((made - crops).abs().mean()) < 9
    if name in ("noise8", "purify"):
        assert not torch.equal(made, attacks.transformed(name, crops, seeded(4)))


def test_jpeg_is_pillows_at_the_crops_own_pixels() -> None:
    crops = backgrounds(2, 2)
    for quality in (90, 30):
        made = attacks.jpeg(crops, quality)
        for one, found in zip(crops, made, strict=True):
            stream = io.BytesIO()
            Image.fromarray(one.permute(1, 2, 0).numpy().astype(np.uint8)).save(stream, "JPEG", quality=quality)
            expected = np.array(Image.open(io.BytesIO(stream.getvalue())))
            assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert len(attacks.jpeg(crops[:0], 50)) == 0


def test_attacks_of_the_table_are_as_strong_as_their_names_say() -> None:
    crops = backgrounds(1, 2)
    for quality in (90, 75, 50, 30):
        assert torch.equal(attacks.transformed(f"jpeg{quality}", crops, seeded()), attacks.jpeg(crops, quality))
    for size in (1, 2):
        assert torch.equal(attacks.transformed(f"blur{size}", crops, seeded()), attacks.blurred(crops, size).round())
    both = attacks.blurred(attacks.jpeg(crops, 50), 1.0).round()
    assert torch.equal(attacks.transformed("jpeg50blur1", crops, seeded()), both)


@pytest.mark.parametrize("deviation", [1.0, 2.0, 3.0])
def test_blur_is_scipys(deviation: float) -> None:
    crops = backgrounds(2, 3)
    expected = ndimage.gaussian_filter(crops.numpy(), (0, 0, deviation, deviation), mode="mirror", truncate=3.0)
    assert np.allclose(attacks.blurred(crops, deviation).numpy(), expected, atol=1e-3)


def test_median_is_scipys() -> None:
    crops = backgrounds(2, 4)
    expected = ndimage.median_filter(crops.numpy(), (1, 1, 3, 3), mode="mirror")
    assert np.array_equal(attacks.median3(crops).numpy(), expected)


def test_noise_has_its_deviation() -> None:
    change = attacks.noisy(torch.full((2, 3, SIDE, SIDE), 100.0), 8.0, seeded()) - 100
    assert float(change.std()) == pytest.approx(8, rel=0.02)
    assert abs(float(change.mean())) < 0.1


def test_half_resolution_keeps_coarse_and_loses_fine() -> None:
    x = torch.arange(SIDE).float()
    fine = 128 + 50 * (-1) ** x.expand(1, 3, SIDE, SIDE)
    coarse = 128 + 50 * torch.sin(x / 20).expand(1, 3, SIDE, SIDE)
    assert float((attacks.resized(fine, 0.5) - 128)[..., 4:-4].abs().max()) < 1
    assert float((attacks.resized(coarse, 0.5) - coarse)[..., 4:-4].abs().max()) < 1


def test_half_resolution_is_pillows() -> None:
    crops = backgrounds(1, 8)
    small = np.array(Image.fromarray(crops[0, 0].numpy(), "F").resize((56, 56), Image.Resampling.BILINEAR))
    expected = functional.interpolate(
        torch.from_numpy(small)[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    assert torch.allclose(attacks.resized(crops, 0.5)[0, 0], expected[0, 0], atol=0.01)


def test_total_variation_moves_the_sides_of_a_step_by_strength_over_width() -> None:
    """In one dimension the minimum is known: a plateau of width w with one step beside it moves by strength / w."""
    step = torch.full((1, 3, 8, 24), 100.0)
    step[..., 16:] = 140
    made = attacks.flattened(step, 16.0, steps=4000)
    assert torch.allclose(made[..., :16], torch.tensor(100 + 16 / 16), atol=0.03)
    assert torch.allclose(made[..., 16:], torch.tensor(140 - 16 / 8), atol=0.03)
    assert torch.allclose(attacks.flattened(step.mT, 16.0, steps=200), attacks.flattened(step, 16.0, steps=200).mT)


def test_total_variation_lowers_its_objective_and_keeps_the_mean() -> None:
    crops = attacks.noisy(backgrounds(1, 5), 8.0, seeded())

    def objective(u: Tensor) -> float:
        down, right = u.diff(dim=2)[..., :-1], u.diff(dim=3)[..., :-1, :]
        return float(((u - crops) ** 2).sum() / 2 + 8 * (down**2 + right**2).sqrt().sum())

    made = attacks.flattened(crops, 8.0)
    blurred = [attacks.blurred(crops, size) for size in (0.5, 1.0, 2.0)]
    assert objective(made) < min(objective(one) for one in (crops, *blurred))
    assert torch.allclose(made.mean((2, 3)), crops.mean((2, 3)), atol=0.05)
    assert torch.allclose(attacks.flattened(torch.full_like(crops, 7.0), 8.0), torch.tensor(7.0), atol=1e-4)


def test_bilateral_filter_by_hand() -> None:
    crops = backgrounds(1, 6)[..., :20, :20]
    made = attacks.bilateral(crops)
    for y, x in ((10, 9), (5, 14)):
        total, weights = np.zeros(3), 0.0
        for down in range(-3, 4):
            for right in range(-3, 4):
                other, here = crops[0, :, y + down, x + right].numpy(), crops[0, :, y, x].numpy()
                weight = np.exp(-(down**2 + right**2) / 8 - ((other - here) ** 2).mean() / 800)
                total, weights = total + weight * other, weights + weight
        assert np.allclose(made[0, :, y, x].numpy(), total / weights, atol=1e-3)


def test_purifying_takes_out_noise_and_leaves_shapes() -> None:
    clean = backgrounds(2, 7, fine=0)
    rough = attacks.noisy(clean, 8.0, seeded())
    made = attacks.purified(rough, seeded(1))
    assert float((made - clean).std()) < 0.5 * float((rough - clean).std())


def test_an_unknown_attack_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown attack 'blur3'") as caught:
        attacks.checked(["jpeg90", "blur3"])
    assert "blur1" in caught.value.hint
    with pytest.raises(UsageError, match="unknown transform 'average8'"):
        attacks.transformed("average8", backgrounds(1, 0), seeded())
    assert attacks.checked(["tune", "jpeg90", "tune"]) == ["tune", "jpeg90"]
    assert attacks.titles().keys() == {*attacks.TRANSFORMS, *attacks.ESTIMATES, *attacks.LEARNERS}
    assert set(attacks.titles()) - set(attacks.usual()) == {"tune"}
    assert len(attacks.titles()) == len(attacks.TRANSFORMS) + len(attacks.ESTIMATES) + len(attacks.LEARNERS)


# --- estimates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["average4", "average8", "median8", "average8population"])
def test_photos_under_one_mask_give_it_away_and_a_bank_less(name: str) -> None:
    estimate = attacks.ESTIMATES[name]
    photos, others = backgrounds(estimate.photos, 10), backgrounds(20, 11)
    mask = signs(1, 12)
    one = estimate.guess(applied(photos, mask), others)
    assert one.shape == (1, 3, SIDE, SIDE)
    assert correlation(one, attacks.high_pass(mask)) > 0.9
    assert correlation(one, mask) > 0.85
    # With the sign, and the size, of the mask: taking it off leaves less than half of what was there.
    left = attacks.high_pass(mask) - one
    assert float(left.std()) < 0.5 * float(attacks.high_pass(mask).std())
    bank = signs(estimate.photos, 13)
    several = estimate.guess(applied(photos, bank), others)
    assert max(correlation(several, attacks.high_pass(other[None])) for other in bank) < 0.7


def test_the_median_of_photos_is_the_middle_of_an_even_number() -> None:
    photos = torch.zeros(4, 3, SIDE, SIDE)
    photos[0, :, 50, 50], photos[1, :, 50, 50] = 100, 200
    found = attacks.averaged(photos, photos[:0], middle=True)
    peaks = attacks.high_pass(photos)[:, 0, 50, 50].sort().values
    assert float(found[0, 0, 50, 50]) == pytest.approx(float(peaks[1] + peaks[2]) / 2, abs=1e-3)


def test_what_all_faces_share_is_no_mask() -> None:
    shared, mask = 4 * signs(1, 20), signs(1, 21)  # features: stronger than the mask
    others = applied(backgrounds(20, 22).clamp(60, 190), shared)
    protected = applied(backgrounds(8, 23).clamp(60, 190), shared + mask)
    plain = attacks.ESTIMATES["average8"].guess(protected, others)
    better = attacks.ESTIMATES["average8population"].guess(protected, others)
    assert correlation(plain, attacks.high_pass(mask)) < 0.4
    assert correlation(better, attacks.high_pass(mask)) > 0.9
    assert torch.equal(attacks.averaged(protected, others[:0], population=True), plain)


def test_leaked_pairs_give_each_mask_exactly() -> None:
    photos, bank = backgrounds(4, 30), signs(4, 31)
    assert torch.equal(attacks.ESTIMATES["pair4"].guess(applied(photos, bank), photos), bank)
    assert attacks.ESTIMATES["pair1"].photos == 1
    assert {one.beside for name, one in attacks.ESTIMATES.items() if name.startswith("pair")} == {"clean"}


# --- learners ----------------------------------------------------------------------------------------


def test_whitening_makes_the_shrunk_covariance_within_people_the_identity() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 3, 7], 6)
    vectors = rng.normal(size=(18, 5)) * [3, 1, 1, 0.5, 0.1] + rng.normal(size=(8, 5))[labels] * 4
    within = np.zeros((5, 5))
    for one in (0, 3, 7):
        around = vectors[labels == one] - vectors[labels == one].mean(0)
        within += around.T @ around
    within /= 18 - 3
    shrunk = 0.9 * within + 0.1 * np.trace(within) / 5 * np.eye(5)
    matrix = attacks.whitened(torch.from_numpy(vectors).float(), torch.from_numpy(labels)).double().numpy()
    assert np.allclose(matrix.T @ shrunk @ matrix, np.eye(5), atol=1e-4)
    assert np.allclose(matrix, matrix.T, atol=1e-5)


def test_whitening_finds_the_direction_of_a_mask() -> None:
    """Photos of each of 20 people with and without the same shift: a head that has both no longer sees the shift."""
    generator = seeded(1)
    people = torch.randn(20, 32, generator=generator)
    shift = torch.zeros(32)
    shift[0] = 6
    photos = people.repeat_interleave(4, 0) + 0.2 * torch.randn(80, 32, generator=generator)
    photos[1::2] += shift
    labels = torch.arange(80) // 4
    matrix = attacks.whitened(functional.normalize(photos, dim=1), labels)
    assert float((shift / 6 @ matrix).norm()) < 0.5 * float(matrix.norm(dim=1).median())
    assert torch.equal(attacks.whitened(photos[:3], torch.arange(3)), torch.eye(32))
    assert torch.equal(attacks.unchanged(photos, labels), torch.eye(32))


class Small(nn.Module):
    """Two layers on a 4 x 4 view of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(48, 12)
        self.norm = nn.LayerNorm(12)
        self.last = nn.Linear(12, 8)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
        found: Tensor = self.last(self.norm(self.first(seen)))
        return found


def small() -> Recogniser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recogniser("small", Small().eval(), Input(), {"dimension": 8}, "d1")


def test_tuning_separates_people_and_leaves_the_original() -> None:
    recogniser = small()
    crops = torch.cat([backgrounds(1, seed).expand(4, -1, -1, -1) for seed in range(3)])
    crops = attacks.noisy(crops, 8.0, seeded())
    crops = (crops + crops.flip(-1)) / 2  # mirrored or not is the same to it
    labels = torch.arange(12) // 4
    before = {name: value.clone() for name, value in recogniser.network.state_dict().items()}  # type: ignore[attr-defined]
    known = recogniser.embed_all(crops)
    with torch.no_grad():  # whatever surrounds it, it trains
        made = attacks.tuned(recogniser, crops, labels, seeded(2), steps=60, rate=1e-2)
    after = made.network.state_dict()  # type: ignore[attr-defined]
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["last.weight"]
    assert all(torch.equal(before[name], value) for name, value in recogniser.network.state_dict().items())  # type: ignore[attr-defined]
    assert torch.equal(known, recogniser.embed_all(crops))
    assert made.digest != recogniser.digest

    def gap(one: Recogniser) -> float:
        cosines = one.embed_all(crops) @ one.embed_all(crops).T
        same = labels[:, None] == labels
        return float(cosines[same].mean() - cosines[~same].mean())

    assert gap(made) > gap(recogniser) + 0.1
    # First steps go towards where the people already were, not away from it.
    centres = torch.stack([known[labels == number].mean(0) for number in range(3)])
    early = attacks.tuned(recogniser, crops, labels, seeded(2), steps=2, rate=3e-4).embed_all(crops)

    def loss(vectors: Tensor) -> float:
        return float(functional.cross_entropy(16 * vectors @ functional.normalize(centres, dim=1).T, labels))

    assert loss(early) < loss(known)
    again = attacks.tuned(recogniser, crops, labels, seeded(2), steps=60, rate=1e-2)
    assert torch.equal(again.embed_all(crops), made.embed_all(crops))
    assert not any(value.requires_grad for value in made.network.parameters())  # type: ignore[attr-defined]
    wider = attacks.tuned(recogniser, crops, labels, seeded(2), steps=1, last=1.0)
    state = wider.network.state_dict()  # type: ignore[attr-defined]
    assert [name for name in before if not torch.equal(before[name], state[name])] == ["first.weight", "last.weight"]


def test_tuning_reaches_the_constants_of_a_graph() -> None:
    ops = [
        {"op": "avgpool", "name": "p", "inp": ["x"], "k": 28, "stride": 28},
        {"op": "fc", "name": "a", "inp": ["p"]},
        {"op": "fc", "name": "b", "inp": ["a"]},
    ]
    tensors = {
        name: torch.randn(shape, generator=seeded(number))
        for number, (name, shape) in enumerate({"a.w": (6, 48), "a.b": (6,), "b.w": (5, 6), "b.b": (5,)}.items())
    }
    graph = Graph({"input": "x", "output": "b", "ops": ops}, tensors)
    recogniser = Recogniser("g", graph, Input(), {"dimension": 5})
    crops, labels = backgrounds(6, 1), torch.arange(6) // 3
    made = attacks.tuned(recogniser, crops, labels, seeded(), steps=2)
    assert not torch.equal(made.embed_all(crops), recogniser.embed_all(crops))
    assert torch.equal(graph.c_b__w, tensors["b.w"])


def test_what_gives_no_gradients_cannot_be_tuned() -> None:
    crops, labels = backgrounds(2, 1), torch.arange(2)
    foreign = Recogniser("onnx", lambda x: x.flatten(1)[:, :4], Input(), differentiable=False)
    with pytest.raises(ModelError, match="onnx gives no gradients"):
        attacks.tuned(foreign, crops, labels, seeded())
    with pytest.raises(ModelError, match="no layer that could be trained"):
        attacks.tuned(Recogniser("bare", nn.AdaptiveAvgPool2d(2), Input()), crops, labels, seeded())
