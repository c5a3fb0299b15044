"""The check of masks, on recognisers that read a code which is known: every figure by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from holdfast.core.errors import DataError, UsageError
from holdfast.core.events import Event, Progressed, Warned
from holdfast.core.stats import difference_interval, mean_interval, score_interval, student
from holdfast.faces import attacks, check
from holdfast.faces.mask import applied
from holdfast.faces.people import Gathered
from holdfast.faces.recogniser import Input, Recogniser
from holdfast.faces.ssim import psnr, ssim

PEOPLE = ("ann", "ben", "cem", "dan", "eve", "fay", "gus")
BLOCK = 28
PERSON, PHOTO = 100.0, 40.0


def crop(values: Mapping[int, float]) -> Tensor:
    """A crop of 4 x 4 grey blocks, each numbered from 0."""
    made = torch.zeros(3, 4, 4)
    for block, value in values.items():
        made[:, block // 4, block % 4] = value
    return made.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)


def photo(person: int, number: int) -> Tensor:
    """The person shines in a block of their own; what is special about a photo in one of the last eight."""
    return crop({person: PERSON, 8 + number: PHOTO})


def reader(name: str = "reader", calls: list[int] | None = None) -> Recogniser:
    """Reads the blocks: the embedding of a photo is (100 e_person + 40 e_photo) / |.|."""

    def network(pixels: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(pixels))
        return functional.avg_pool2d(pixels[:, :1], BLOCK).flatten(1)

    return Recogniser(name, network, Input(mean=0.0, scale=1.0), {"dimension": 16}, f"digest of {name}")


def blind(name: str = "blind") -> Recogniser:
    """Sees everybody alike, whatever they wear."""
    return Recogniser(name, lambda x: torch.ones(len(x), 2), Input(), {"dimension": 2}, name)


def towards(person: int, *others: int) -> Tensor:
    """The mask that makes one person others, with nothing of themselves left."""
    return crop({person: -PERSON, **dict.fromkeys(others, PERSON)})[None]


def faces(gallery: int = 2, probes: int = 3, training: int = 0) -> check.Faces:
    """All in the gallery; Ann, Ben and Cem also as probes. Photos are special each in their own way."""
    enrolled = {
        name: torch.stack([photo(person, number) for number in range(gallery)]) for person, name in enumerate(PEOPLE)
    }
    asked = {
        name: torch.stack([photo(person, 3 + number) for number in range(probes)])
        for person, name in enumerate(PEOPLE[:3])
    }
    seen = {
        name: torch.stack([photo(person, 7 - number) for number in range(training)])
        for person, name in enumerate(PEOPLE[:3])
        if training
    }
    return check.Faces(enrolled, asked, seen)


def everybody_to_dan() -> dict[str, Tensor]:
    return {name: towards(person, 3) for person, name in enumerate(PEOPLE[:3])}


def numbers(found: Mapping[str, object]) -> tuple[float | None, int]:
    """Value and n of a metric."""
    value, n = found["value"], found["n"]
    assert value is None or isinstance(value, float)
    assert isinstance(n, int)
    return value, n


# --- rates and intervals -----------------------------------------------------------------------------


def test_rates_are_means_over_people_with_students_quantile() -> None:
    groups = {"a": [1.0, 1.0], "b": [1.0, 0.0, 0.0, 1.0], "c": [0.0], "nobody": []}
    made = check.rate("psr@1", groups, "higher")
    assert made["value"] == pytest.approx(50)
    assert made["n"] == 7
    assert made["detail"] == {"people": 3, "over": "people", "sum": 4.0}
    low, high = score_interval(0.5, np.var([1, 0.5, 0], ddof=1) / 3, 2, 7)
    assert (made["low"], made["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert made["unit"] == "%"
    assert made["better"] == "higher"


def test_where_people_agree_each_is_one_case() -> None:
    made = check.rate("psr@1", {name: [1.0] * 10 for name in "abcd"}, "higher")
    z = student(0.95, math.inf)
    assert made["value"] == 100
    assert made["low"] == pytest.approx(100 / (1 + z**2 / 4))
    assert made["high"] == 100


def test_one_or_two_people_give_an_interval_of_their_photos() -> None:
    one = check.rate("psr@1", {"a": [1.0, 1.0, 0.0, 1.0]}, "higher")
    assert [one[key] / 100 for key in ("value", "low", "high")] == pytest.approx(
        mean_interval([np.array([1.0, 1, 0, 1])])
    )
    assert one["detail"]["over"] == "photos"
    assert "these people only" in one["method"]
    two = check.rate("psr@1", {"a": [1.0, 1.0, 0.0, 1.0], "b": [0.0]}, "higher")
    low, high = score_interval(0.375, (0.25 / 4 + 0.25) / 4, math.inf, 5)
    assert [two[key] / 100 for key in ("value", "low", "high")] == pytest.approx([0.375, low, high])
    assert two["detail"]["over"] == "photos"
    assert check.rate("psr@1", {"a": [1.0], "b": [0.0], "c": [1.0]}, "higher")["detail"]["over"] == "people"


def test_rates_of_nothing_are_null_with_a_reason() -> None:
    for made in (
        check.rate("psr@1", {"a": []}, "higher", "no photo"),
        check.average("cosine", {}, "", "lower"),
        check.difference("psr@1", {"a": []}, {"a": []}, "higher"),
    ):
        assert made["value"] is made["low"] is made["high"] is None
        assert made["reason"]
    assert check.rate("psr@1", {}, "higher", "no photo")["reason"] == "no photo"


def test_averages_have_students_interval_over_people() -> None:
    made = check.average("ssim", {"a": [0.9, 0.7], "b": [0.6], "c": [0.4]}, "", "higher")
    half = student(0.95, 2) * 0.2 / math.sqrt(3)
    assert [made[key] for key in ("value", "low", "high")] == pytest.approx([0.6, 0.6 - half, 0.6 + half])
    photos = check.average("ssim", {"a": [0.9, 0.7]}, "", "higher")
    half = student(0.95, 1) * 0.02**0.5 / math.sqrt(2)
    assert [photos[key] for key in ("value", "low", "high")] == pytest.approx([0.8, 0.8 - half, 0.8 + half])
    assert photos["detail"] == {"people": 1, "over": "photos"}
    alone = check.average("ssim", {"a": [0.9]}, "", "higher")
    assert (alone["value"], alone["low"]) == (0.9, None)
    assert "no interval" in alone["method"]


def test_differences_are_paired_within_people() -> None:
    left = {"a": [1.0, 1.0, 0.0], "b": [1.0, 0.0, 0.0], "c": [1.0, 1.0, 1.0]}
    right = {"a": [1.0, 0.0, 0.0], "b": [1.0, 0.0, 0.0], "c": [0.0, 0.0, 1.0]}
    made = check.difference("psr@1", left, right, "higher")
    expected = difference_interval([np.array(one) for one in left.values()], [np.array(one) for one in right.values()])
    assert [made[key] / 100 for key in ("value", "low", "high")] == pytest.approx(expected)
    assert made["value"] == pytest.approx(100 / 3)
    assert (made["n"], made["unit"], made["detail"]) == (9, "points", {"people": 3, "over": "people"})
    same = check.difference("psr@1", left, left, "higher")
    assert (same["value"], same["high"]) == (0, pytest.approx(100 * (1 - 0.025 ** (1 / 3))))  # three people, not nine
    one = check.difference("psr@1", {"a": left["a"]}, {"a": right["a"]}, "higher")
    assert one["detail"]["over"] == "photos"
    assert "same photos" in check.difference("psr@1", left, {"a": [1.0]}, "higher")["reason"]


def test_interval_over_people_covers_where_a_group_a_person_does_not() -> None:
    """People's rates spread widely: .9 on average, some far below."""
    rng = np.random.default_rng(1)
    ours = theirs = 0
    for _ in range(200):
        groups = {str(i): (rng.random(8) < p).astype(float).tolist() for i, p in enumerate(rng.beta(0.4, 0.044, 6))}
        made = check.rate("x", groups, "higher")
        ours += made["low"] <= 100 * 0.4 / 0.444 <= made["high"]
        low, high = mean_interval([np.array(one) for one in groups.values()])[1:]
        theirs += low <= 0.4 / 0.444 <= high
    assert ours / 200 > 0.93 > theirs / 200


# --- ranks and protection ----------------------------------------------------------------------------


def test_rank_counts_what_is_strictly_nearer() -> None:
    own = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    others = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
    probes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-0.6, -0.8], [-1.0, 0.0]])
    assert check.rank(probes, own, others) == [1, 2, 2, 2, 3]
    assert check.rank(own[:1], own[:1], torch.cat([own[:1]] * 3)) == [1]  # a tie is found


def test_protection_at_k_and_of_those_found_when_clean() -> None:
    ranks = {"a": [1, 2, 6], "b": [5, 6, 9], "c": [2, 2, 1]}
    clean = {"a": [1, 1, 2], "b": [1, 7, 1], "c": [1, 3, 1]}
    made = check.protection(ranks, clean, others=20)
    assert numbers(made["psr"]["1"]) == (pytest.approx(100 * (2 / 3 + 1 + 2 / 3) / 3), 9)
    assert numbers(made["psr"]["5"]) == (pytest.approx(100 * (1 / 3 + 2 / 3) / 3), 9)
    assert numbers(made["psr_of_recognised"]["1"]) == (pytest.approx(100 * (1 / 2 + 1 + 1 / 2) / 3), 6)
    assert numbers(made["psr_of_recognised"]["5"]) == (pytest.approx(100 * (1 / 3 + 1 / 2) / 3), 8)
    assert made["ranks"] == ranks
    few = check.protection(ranks, clean, others=4)
    assert few["psr"]["1"]["n"] == 9
    assert few["psr"]["5"]["value"] is few["psr_of_recognised"]["5"]["value"] is None
    assert "4 photos of others" in few["psr"]["5"]["reason"]
    assert check.protection(ranks, clean, others=5)["psr"]["5"]["n"] == 9
    unseen = check.protection({"a": [9]}, {"a": [7]}, others=20)
    assert unseen["psr"]["5"]["value"] == 100
    assert unseen["psr_of_recognised"]["5"]["reason"] == "no probe was recognised when clean"


def test_recognised_is_rank_one_only() -> None:
    made = check.recognised({"a": [1, 2], "b": [1, 3]})
    assert numbers(made) == (50.0, 4)
    assert made["unit"] == "%"


def test_scenes_of_one_mask_for_all_photos() -> None:
    """Found where both or none wear it; Dan's two photos stand before the person's own elsewhere."""
    made = check.assess(faces(), everybody_to_dan(), [reader()])
    scenes = made["recognisers"]["reader"]["scenes"]
    assert list(scenes) == list(check.SCENES)
    expected = {
        "clean_clean": 1, "protected_clean": 3, "clean_protected": 1, "protected_protected": 1, "clean_mixed": 1,
        "protected_mixed": 1,
    }  # fmt: skip
    for scene, rank in expected.items():
        assert scenes[scene]["ranks"] == {name: [rank] * 3 for name in PEOPLE[:3]}, scene
        assert numbers(scenes[scene]["psr"]["1"]) == (100.0 * (rank > 1), 9)
        assert numbers(scenes[scene]["psr"]["5"]) == (0.0, 9)
        assert numbers(scenes[scene]["recognised"]) == (100.0 * (rank == 1), 9)
    # A clean probe shares nothing with its protected photos, and ties with all others at cosine 0.
    assert made["recognisers"]["reader"]["clean"]["recognised"]["value"] == 100


def test_a_mask_that_looks_like_everybody_hides_from_the_five_nearest() -> None:
    masks = {"ann": towards(0, 1, 2, 3, 4, 5, 6)}
    scene = check.assess(faces(), masks, [reader()])["recognisers"]["reader"]["scenes"]["protected_clean"]
    assert scene["ranks"] == {"ann": [13, 13, 13]}
    assert (scene["psr"]["1"]["value"], scene["psr"]["5"]["value"]) == (100, 100)
    assert scene["psr"]["1"]["detail"]["over"] == "photos"


def test_each_photo_draws_its_mask_from_the_bank() -> None:
    """One mask of the bank does nothing, so the protection rate is the share of probes that drew the other."""
    bank = {
        name: torch.cat([torch.zeros(1, 3, 112, 112), towards(person, 3)]) for person, name in enumerate(PEOPLE[:3])
    }
    known = faces(probes=4)
    made = check.assess(known, bank, [reader()], seed=5)
    draws = {name: torch.randint(2, (4,), generator=check.drawn(5, "mask", "probes", name)).tolist() for name in bank}
    assert {0, 1} == {one for found in draws.values() for one in found}
    scene = made["recognisers"]["reader"]["scenes"]["protected_clean"]
    assert scene["ranks"] == {name: [1 + 2 * one for one in found] for name, found in draws.items()}
    assert scene["psr"]["1"]["detail"]["sum"] == sum(sum(found) for found in draws.values())
    assert made["counts"]["masks"] == {"ann": 2, "ben": 2, "cem": 2}
    other = check.assess(known, bank, [reader()], seed=6)
    assert other["recognisers"]["reader"]["scenes"]["protected_clean"]["ranks"] != scene["ranks"]


def test_one_person_more_changes_nobody_elses_draws() -> None:
    bank = {name: torch.cat([torch.zeros(1, 3, 112, 112), towards(i, 3)]) for i, name in enumerate(PEOPLE[:3])}
    ranks = [
        check.assess(faces(), masks, [reader()])["recognisers"]["reader"]["scenes"]["protected_clean"]["ranks"]["ann"]
        for masks in (bank, {"ann": bank["ann"]})
    ]
    assert ranks[0] == ranks[1]


def test_half_of_a_mixed_gallery_is_protected() -> None:
    known = faces(gallery=3)
    worn = check._worn(known, "ann", everybody_to_dan()["ann"], 0)
    assert worn.half is not None
    assert int(worn.half.sum()) == 1
    assert torch.equal(worn.gallery, applied(known.gallery["ann"], everybody_to_dan()["ann"]))
    single = check.assess(faces(gallery=1), everybody_to_dan(), [reader()])
    scenes = single["recognisers"]["reader"]["scenes"]
    assert scenes["protected_mixed"]["psr"]["1"]["value"] is None
    assert "two gallery photos" in scenes["protected_mixed"]["psr"]["1"]["reason"]
    assert scenes["protected_clean"]["psr"]["1"]["n"] == 9


def test_a_mixed_gallery_shows_its_protected_half() -> None:
    """A recogniser that sees Ann's mask as her: protected probes are found where a protected photo is."""
    known = faces(gallery=2)
    made = check.assess(known, {"ann": towards(0, 3)}, [reader()])["recognisers"]["reader"]["scenes"]
    own = torch.stack([photo(3, 0), photo(0, 1)])  # as whichever half was drawn: one as Dan, one as Ann
    vectors = reader().embed_all(own)
    others = torch.cat([one for name, one in known.embedded("gallery", reader()).items() if name != "ann"])
    probe = reader().embed_all(photo(3, 3)[None])
    clean = reader().embed_all(photo(0, 3)[None])
    assert made["protected_mixed"]["ranks"]["ann"] == check.rank(probe, vectors, others) * 3
    assert made["clean_mixed"]["ranks"]["ann"] == check.rank(clean, vectors, others) * 3


# --- verification ------------------------------------------------------------------------------------


def test_threshold_lets_exactly_the_allowed_impostors_pass() -> None:
    vectors = functional.normalize(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    gallery = dict(zip("abcdefghijklmnopqrst", vectors.split(3), strict=True))
    owner = np.arange(60) // 3
    cosines = sorted(
        (float(vectors[i] @ vectors[j]) for i in range(60) for j in range(i) if owner[i] != owner[j]), reverse=True
    )
    limit, pairs = check.threshold(gallery, 1e-2)
    assert pairs == len(cosines) == 1710
    assert sum(one > limit + 1e-6 for one in cosines) == 17
    assert limit == pytest.approx(cosines[17], abs=1e-6)
    with pytest.raises(ValueError, match=r"1710 impostor pairs are too few .* 0\.001: 5000 are needed"):
        check.threshold(gallery, 1e-3)


def test_too_few_pairs_is_one_fewer_than_enough() -> None:
    def pairs(one: int, two: int) -> dict[str, Tensor]:
        return {"a": torch.ones(one, 1), "b": torch.ones(two, 1)}

    assert check.threshold(pairs(20, 25), 1e-2) == (1.0, 500)
    with pytest.raises(ValueError, match="499 impostor pairs"):
        check.threshold(pairs(1, 499), 1e-2)


def test_verification_rejects_pairs_at_or_below_the_threshold() -> None:
    """45 impostors at known angles; the person's two photos at 0 and 90 degrees."""

    def at(*degrees: float) -> Tensor:
        radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return torch.stack([radians.cos(), radians.sin()], 1).float()

    gallery = {"ann": at(0, 90), **{f"i{n}": at(180 + n) for n in range(45)}}
    clean, worn = {"ann": at(0, 45)}, {"ann": at(20, 200)}
    made = check.verification(check._Judge(reader(), gallery, clean), worn)
    limit, pairs = check.threshold(gallery, 1e-2)
    assert made["0.01"]["threshold"] == limit
    assert 0.9 < limit < 1  # impostors are a degree apart
    assert made["0.01"]["impostor_pairs"] == pairs == 45 * 44 // 2 + 90
    assert made["0.01"]["genuine_pairs"] == 4
    assert made["0.01"]["rejected_before"]["value"] == pytest.approx(75)  # only 0 against 0 passes
    assert made["0.01"]["rejected"]["value"] == pytest.approx(100)
    assert made["0.001"]["threshold"] is None
    assert "needed" in made["0.001"]["reason"]
    # At the threshold itself a pair is rejected: ties with an impostor that does not pass.
    edge = {"ann": torch.ones(1, 1), "b": torch.ones(1, 1), **{str(n): torch.ones(1, 1) for n in range(40)}}
    assert check.threshold(edge, 1e-2)[0] == 1.0
    tied = check.verification(check._Judge(reader(), edge, {"ann": torch.ones(1, 1)}), {"ann": torch.ones(1, 1)})
    assert tied["0.01"]["rejected"]["value"] == 100


def test_cosines_before_and_after() -> None:
    made = check.assess(faces(), everybody_to_dan(), [reader()])["recognisers"]["reader"]["cosine"]
    assert made["before"]["value"] == pytest.approx(PERSON**2 / (PERSON**2 + PHOTO**2), rel=1e-5)
    assert made["after"]["value"] == pytest.approx(0, abs=1e-6)
    assert (made["before"]["n"], made["after"]["detail"]["people"]) == (9, 3)


def test_visibility_is_of_probes_only() -> None:
    known, masks = faces(), everybody_to_dan()
    made = check.assess(known, masks, [reader()])["visibility"]
    pairs = [(known.probes[name], applied(known.probes[name], masks[name])) for name in masks]
    assert made["ssim"]["value"] == pytest.approx(np.mean([float(ssim(a, b).mean()) for a, b in pairs]))
    assert made["psnr"]["value"] == pytest.approx(np.mean([float(psnr(a, b).mean()) for a, b in pairs]))
    nothing = check.visibility(known.probes, known.probes)
    assert (nothing["ssim"]["value"], nothing["psnr"]["value"]) == (1, 99)


# --- attacks -----------------------------------------------------------------------------------------


def test_an_attack_that_sees_one_pair_breaks_one_mask_and_a_bank_by_luck_only() -> None:
    known = faces(gallery=2, probes=3)
    one = check.assess(known, everybody_to_dan(), [reader()], attacks=["pair1"])
    found = one["recognisers"]["reader"]["attacks"]["pair1"]
    assert found["kind"] == "estimate"
    assert found["ranks"] == {name: [1, 1, 1] for name in PEOPLE[:3]}
    assert numbers(found["psr"]["1"]) == (0.0, 9)
    bank = {name: torch.cat([towards(person, 3), towards(person, 4)]) for person, name in enumerate(PEOPLE[:3])}
    wide = {name: torch.cat([mask, mask.flip(0).roll(BLOCK, 3)]) for name, mask in bank.items()}
    several = check.assess(known, wide, [reader()], attacks=["pair1", "pair4"], seed=2)
    parts = several["recognisers"]["reader"]["attacks"]
    assert parts["pair1"]["psr"]["1"]["value"] > 0
    assert parts["pair4"]["psr"]["1"]["n"] == 9


def test_an_attack_without_enough_photos_is_null_with_a_reason() -> None:
    made = check.assess(faces(gallery=2, probes=3), everybody_to_dan(), [reader()], attacks=["average4", "average8"])
    parts = made["recognisers"]["reader"]["attacks"]
    # Two of the gallery and two other probes: four, not five. The probe itself never counts.
    assert parts["average4"]["psr"]["1"]["n"] == 9
    assert parts["average8"]["psr"]["1"]["value"] is None
    assert parts["average8"]["psr"]["1"]["reason"] == "it takes 8 other protected photos of a person, and there are 4"
    assert parts["average8"]["ranks"] == {}
    assert made["summary"]["held_out"]["attacks"]["average8"]["1"]["reason"] == parts["average8"]["psr"]["1"]["reason"]


def test_the_adversary_never_holds_the_probe_and_prefers_photos_learned_from() -> None:
    known = faces(gallery=2, probes=3, training=2)
    worn = {name: check._worn(known, name, mask, 0) for name, mask in everybody_to_dan().items()}
    state = check._Check(known, worn, (), (), 0, lambda: None)
    for probe in range(3):
        protected, clean = check._collected(state, "ann", probe, 99, check.drawn(0, "x", "ann"))
        assert len(protected) == len(clean) == 2 + 2 + 2
        assert not any(torch.equal(one, worn["ann"].probes[probe]) for one in protected)
        assert not any(torch.equal(one, known.probes["ann"][probe]) for one in clean)
        assert torch.equal(protected, applied(clean, everybody_to_dan()["ann"]))
        first, _ = check._collected(state, "ann", probe, 4, check.drawn(0, "x", "ann"))
        pool = torch.cat([worn["ann"].training, worn["ann"].gallery])
        assert all(any(torch.equal(one, other) for other in pool) for one in first)


def test_averaging_removes_one_mask_for_all_and_not_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are smooth here and masks fine, so the estimate is the mask: the code comes back."""
    monkeypatch.setattr(attacks, "HIGH_PASS", 1.0)
    y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
    patterns = torch.stack([(-1.0) ** (x * (n & 1) + y * (n >> 1)) for n in range(1, 4)])

    def network(pixels: Tensor) -> Tensor:
        fine = (pixels[:, :1] * patterns).mean((2, 3)).abs() * 30
        return torch.cat([functional.avg_pool2d(pixels[:, :1], BLOCK).flatten(1) - 60, 2 * fine], 1)

    shy = Recogniser("shy", network, Input(mean=0.0, scale=1.0), {"dimension": 19}, "shy")
    base = {name: one + 60 for name, one in faces(gallery=4, probes=3).gallery.items()}
    asked = {name: one + 60 for name, one in faces(gallery=4, probes=3).probes.items()}
    dan = torch.full((4, 3, 112, 112), 60.0) + 12 * patterns[0]  # Dan's photos are striped
    known = check.Faces({**base, "dan": dan.round()}, asked)
    stripes = (12 * patterns[0]).expand(1, 3, 112, 112)
    masks = dict.fromkeys(PEOPLE[:3], stripes)
    made = check.assess(known, masks, [shy], attacks=["average4"])["recognisers"]["shy"]
    assert made["clean"]["recognised"]["value"] == 100
    assert made["scenes"]["protected_clean"]["psr"]["1"]["value"] == 100
    assert made["attacks"]["average4"]["psr"]["1"]["value"] == 0
    # A bank of the stripes and their negative averages out, for who drew both alike; the recogniser sees no sign.
    bank = dict.fromkeys(PEOPLE[:3], torch.cat([stripes, -stripes]))
    several = check.assess(known, bank, [shy], attacks=["average4"])["recognisers"]["shy"]["attacks"]["average4"]
    assert several["psr"]["1"]["value"] > 50


def test_transforms_are_told_with_what_they_do_to_clean_photos() -> None:
    flat = Recogniser(
        "fine", lambda x: (x[:, :1] - attacks.blurred(x[:, :1], 1.0))[..., ::7, ::7].flatten(1), Input(), {}, "fine"
    )
    rng = torch.Generator().manual_seed(3)
    people = {name: (torch.rand(1, 3, 112, 112, generator=rng) * 255).round() for name in PEOPLE}
    known = check.Faces(people, {"ann": people["ann"] + 0})
    made = check.assess(known, {"ann": torch.zeros(1, 3, 112, 112)}, [flat], attacks=["jpeg90", "blur2"])
    found = made["recognisers"]["fine"]["attacks"]["jpeg90"]
    assert (found["kind"], found["title"]) == ("transform", attacks.TRANSFORMS["jpeg90"].title)
    assert (found["psr"]["1"]["value"], found["clean_recognised"]["value"]) == (0, 100)
    assert found["clean_recognised"]["n"] == 1


def test_a_person_without_enough_photos_is_left_out_of_an_estimate() -> None:
    known = faces(gallery=2, probes=3)
    short = check.Faces(known.gallery, {**known.probes, "ann": known.probes["ann"][:1]})
    found = check.assess(short, everybody_to_dan(), [reader()], attacks=["average4"])["recognisers"]["reader"]
    assert found["attacks"]["average4"]["ranks"].keys() == {"ben", "cem"}
    assert found["attacks"]["average4"]["psr"]["1"]["n"] == 6
    assert found["scenes"]["protected_clean"]["psr"]["1"]["n"] == 7


def test_the_population_is_everybody_else_and_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def spy(protected: Tensor, others: Tensor) -> Tensor:
        given.append(others)
        return torch.zeros(1, 3, 112, 112)

    monkeypatch.setitem(check.ESTIMATES, "pair1", attacks.Estimate("spy", 1, "others", spy))  # type: ignore[index]
    known = faces()
    check.assess(known, {"ann": towards(0, 3)}, [reader()], attacks=["pair1"])
    assert torch.equal(given[0], torch.cat([one for name, one in known.gallery.items() if name != "ann"]))


def test_nearest_keeps_the_candidate_that_looks_like_anybody() -> None:
    judge = check._Judge.of(reader(), faces())
    odd, good = crop({0: 50, 15: 50, 14: 90}), photo(0, 5)
    found = check._nearest(judge, [torch.stack([odd, good]), torch.stack([good, odd]), torch.stack([odd])])
    assert torch.allclose(found, reader().embed_all(torch.stack([good, good, odd])))


def test_a_mean_of_protected_and_clean_photos_finds_the_person() -> None:
    made = check.assess(faces(training=2), everybody_to_dan(), [reader()], attacks=["meanboth", "whiten"])
    found = made["recognisers"]["reader"]["attacks"]["meanboth"]
    # Ann's class: four photos as Dan and two as Ann. A protected probe is nearest to Dan's own class.
    mine = functional.normalize(
        reader()
        .embed_all(torch.stack([photo(3, 0), photo(3, 1), photo(3, 7), photo(3, 6), photo(0, 0), photo(0, 1)]))
        .mean(0, keepdim=True),
        dim=1,
    )
    others = torch.cat(
        [
            functional.normalize(one.mean(0, keepdim=True), dim=1)
            for name, one in faces().embedded("gallery", reader()).items()
            if name != "ann"
        ]
    )
    probes = reader().embed_all(torch.stack([photo(3, 3 + number) for number in range(3)]))
    assert found["ranks"]["ann"] == check.rank(probes, mine, others)
    assert found["compared_with"] == "people"
    assert found["psr"]["5"]["n"] == 9  # six other people
    assert made["recognisers"]["reader"]["attacks"]["whiten"]["compared_with"] == "photos"


def test_learners_are_trained_on_what_the_adversary_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Tensor, Tensor]] = []

    def spy(vectors: Tensor, labels: Tensor) -> Tensor:
        given.append((vectors, labels))
        return torch.eye(vectors.shape[1])

    for clean in (False, True):
        monkeypatch.setattr(attacks, "LEARNERS", {})
        monkeypatch.setitem(check.LEARNERS, "whiten", attacks.Learner("spy", clean=clean, head=spy))  # type: ignore[index]
        made = check.assess(faces(training=2), everybody_to_dan(), [reader()], attacks=["jpeg90"])
        state_ranks = made["recognisers"]["reader"]["scenes"]["protected_protected"]["ranks"]
        known = faces(training=2)
        worn = {name: check._worn(known, name, mask, 0) for name, mask in everybody_to_dan().items()}
        judge = check._Judge.of(reader(), known)
        state = check._Check(known, worn, (judge,), (), 0, lambda: None)
        found = check._after_learning(state, judge, check.LEARNERS["whiten"], "whiten")
        vectors, labels = given[-1]
        per_person = 4 + 2 * clean  # two learned from and two of the gallery, protected; the clean gallery beside them
        assert labels.bincount().tolist() == [per_person] * 3 + [2] * 4
        protected = reader().embed_all(torch.stack([photo(3, 7), photo(3, 6), photo(3, 0), photo(3, 1)]))
        assert torch.allclose(vectors[:4], protected)
        assert torch.allclose(vectors[-2:], judge.gallery["gus"])
        assert found["ranks"] == state_ranks  # nothing learned: found by their protected photos


def test_a_recogniser_without_gradients_has_no_tuning() -> None:
    made = check.assess(faces(), everybody_to_dan(), [reader()], attacks=["tune"])
    found = made["recognisers"]["reader"]["attacks"]["tune"]
    assert found["psr"]["1"]["value"] is None
    assert found["psr"]["1"]["reason"] == "reader gives no gradients"


# --- keys --------------------------------------------------------------------------------------------


def test_the_right_key_restores_and_others_do_not() -> None:
    bank = {
        name: torch.cat([towards(person, 3), towards(person, 4), towards(person, 5)])
        for person, name in enumerate(PEOPLE[:3])
    }
    made = check.assess(faces(training=2), bank, [reader(), reader("other")], learned_from=["other"])
    for name in ("reader", "other"):
        keys = made["recognisers"][name]["keys"]
        assert made["recognisers"][name]["scenes"]["protected_clean"]["psr"]["1"]["value"] == 100
        for key, value in {
            "right": 100, "right_jpeg75": 100, "right_mask_chosen": 100, "wrong": 0, "noise_on_clean": 100,
        }.items():  # fmt: skip
            assert numbers(keys[key]) == (value, 9), key
        # Another's mask takes nothing from Ann's block and adds Dan's, Eve's or Fay's: she ties with, or stays above.
        assert keys["other_mask_on_clean"]["value"] == 100


def test_compressed_photos_are_tried_as_they_are_after_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(name: str, crops: Tensor, generator: torch.Generator) -> Tensor:
        asked.append(name)
        return crop({6: 250}).expand_as(crops)  # everybody becomes Gus, beyond what a mask changes

    monkeypatch.setattr(check, "transformed", spy)
    keys = check.assess(faces(), everybody_to_dan(), [reader()])["recognisers"]["reader"]["keys"]
    assert asked == ["jpeg75"] * 3
    assert (keys["right"]["value"], keys["right_jpeg75"]["value"]) == (100, 0)


def test_keys_by_the_recognisers_that_the_owner_has() -> None:
    """The owner's recogniser sees nothing, so the first mask is taken whatever was drawn."""
    bank = {name: torch.cat([towards(person, 3), towards(person, 4)]) for person, name in enumerate(PEOPLE[:3])}
    made = check.assess(faces(), bank, [reader(), blind()], learned_from=["blind"])
    draws = {name: torch.randint(2, (3,), generator=check.drawn(0, "mask", "probes", name)) for name in bank}
    first = 100 * np.mean([float((one == 0).double().mean()) for one in draws.values()])
    keys = made["recognisers"]["reader"]["keys"]
    assert keys["right_mask_chosen"]["value"] == pytest.approx(first)
    assert 0 < first < 100


def test_noise_is_as_visible_as_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = (100 + 60 * torch.rand(3, 3, 112, 112, generator=generator)).round()
    mask = 9 * (torch.randint(2, (1, 3, 112, 112), generator=generator).float() * 2 - 1)
    worn = applied(clean, mask)
    noise = check._noise(clean, worn, check.drawn(0, "noise"))
    assert noise.shape == mask.shape
    assert float(ssim(clean, applied(clean, noise)).mean()) == pytest.approx(float(ssim(clean, worn).mean()), abs=0.002)
    assert abs(float((noise * mask).mean())) < 2
    assert not check._noise(clean, clean, check.drawn(0, "noise")).any()


def test_one_protected_person_has_nobody_elses_key() -> None:
    keys = check.assess(faces(), {"ann": towards(0, 3)}, [reader()])["recognisers"]["reader"]["keys"]
    for key in ("wrong", "other_mask_on_clean"):
        assert keys[key]["value"] is None
        assert "second protected person" in keys[key]["reason"]
    assert keys["right"]["value"] == 100


def test_methods_that_change_each_photo_have_no_key() -> None:
    known = faces()
    cloaks = {
        name: check.Cloak(mask.expand(3, -1, -1, -1), mask.expand(2, -1, -1, -1))
        for name, mask in everybody_to_dan().items()
    }
    made = check.assess(known, cloaks, [reader()], attacks=["pair1", "average4"])
    part = made["recognisers"]["reader"]
    one = check.assess(known, everybody_to_dan(), [reader()], attacks=["pair1", "average4"])["recognisers"]["reader"]
    assert part["scenes"] == one["scenes"]
    assert part["attacks"] == one["attacks"]
    assert made["counts"]["masks"] == dict.fromkeys(PEOPLE[:3])
    assert part["keys"]["right"]["value"] is part["keys"]["right_mask_chosen"]["value"] is None
    assert "no key" in part["keys"]["wrong"]["reason"]
    assert part["keys"]["noise_on_clean"]["n"] == 9


# --- the whole ---------------------------------------------------------------------------------------


def test_everything_is_plain_json_and_repeats() -> None:
    known = faces(gallery=3, probes=2, training=3)
    names = list(attacks.titles())
    told: list[Event] = []
    made = check.assess(known, everybody_to_dan(), [reader(), blind()], ["reader"], names, 1, told.append)
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text) == made
    drawing = ["noise8", "purify", "average4", "whiten"]
    again = check.assess(known, everybody_to_dan(), [reader()], ["reader"], drawing, 1)["recognisers"]["reader"]
    first = made["recognisers"]["reader"]
    assert again == first | {"attacks": {name: first["attacks"][name] for name in drawing}}
    assert list(made["recognisers"]["reader"]["attacks"]) == names
    assert made["counts"] | {"masks": 0} == {
        "people": 7, "gallery": 21, "protected_people": 3, "probes": 6, "masks": 0, "skipped": []
    }  # fmt: skip
    assert [one.done for one in told if isinstance(one, Progressed)] == list(range(1, 2 * (3 + len(names)) + 1))
    assert {one.total for one in told if isinstance(one, Progressed)} == {2 * (3 + len(names))}

    def leaves(value: object) -> None:
        if isinstance(value, dict):
            if "value" in value:
                assert (value["value"] is None) == bool(value["reason"])
                assert value["value"] is None or value["low"] is None or value["low"] <= value["value"] <= value["high"]
            for one in value.values():
                leaves(one)

    leaves(made)


def test_clean_photos_are_embedded_once() -> None:
    calls: list[int] = []
    known, recogniser = faces(), reader(calls=calls)
    check.assess(known, everybody_to_dan(), [recogniser])
    first = sum(calls)
    check.assess(known, everybody_to_dan(), [recogniser])
    assert sum(calls) - first == first - 14 - 9  # all but gallery and probes
    same_name = reader()
    assert known.embedded("gallery", same_name)["ann"].shape == (2, 16)
    other = Recogniser("reader", lambda x: torch.ones(len(x), 3), Input(), {}, "digest of reader")
    assert known.embedded("gallery", other)["ann"].shape == (2, 3)  # another network under the same name


def test_summaries_are_over_recognisers_probe_by_probe() -> None:
    made = check.assess(faces(), everybody_to_dan(), [reader(), blind(), reader("third")], ["third"], ["pair1"])
    assert made["summary"]["held_out"]["recognisers"] == ["reader", "blind"]
    found = made["summary"]["held_out"]["scenes"]["protected_clean"]["1"]
    assert numbers(found) == (50.0, 9)  # the reader finds nobody, the blind one ties and so finds everybody
    assert made["summary"]["learned_from"]["scenes"]["protected_clean"]["1"]["value"] == 100
    assert made["summary"]["held_out"]["attacks"]["pair1"]["1"]["value"] == 0
    assert [made["recognisers"][name]["learned_from"] for name in ("reader", "blind", "third")] == [False, False, True]
    none = check.assess(faces(), everybody_to_dan(), [reader()], ["reader"])["summary"]["held_out"]
    assert none["scenes"]["protected_clean"]["1"]["reason"] == "no such recogniser was asked"


def test_compare_pairs_two_methods() -> None:
    known = faces()
    strong = check.assess(known, everybody_to_dan(), [reader(), blind()], ["blind"], ["jpeg90", "pair1"])
    nothing = {name: torch.zeros(1, 3, 112, 112) for name in PEOPLE[:3]}
    weak = check.assess(known, nothing, [reader(), blind()], ["blind"], ["pair1"])
    made = check.compare(strong, weak)
    found = made["recognisers"]["reader"]["scenes"]["protected_clean"]["1"]
    assert numbers(found) == (100.0, 9)
    assert check.compare(weak, strong)["held_out"]["scenes"]["protected_clean"]["1"]["value"] == -100
    assert made["held_out"]["recognisers"] == ["reader"]
    assert list(made["recognisers"]["reader"]["attacks"]) == ["pair1"]
    assert made["recognisers"]["blind"]["scenes"]["protected_clean"]["1"]["value"] == 0
    single = check.assess(faces(gallery=1), everybody_to_dan(), [reader()])
    gone = check.compare(single, single)["recognisers"]["reader"]["scenes"]["protected_mixed"]["1"]
    assert gone["value"] is None
    assert "two gallery photos" in gone["reason"]
    json.dumps(made, allow_nan=False)


def test_what_cannot_be_assessed_is_said() -> None:
    masks = everybody_to_dan()
    with pytest.raises(UsageError, match="unknown attack"):
        check.assess(faces(), masks, [reader()], attacks=["jpeg"])
    with pytest.raises(DataError, match="nobody has a mask"):
        check.assess(faces(), {}, [reader()])
    with pytest.raises(DataError, match="each must be there once"):
        check.assess(faces(), masks, [reader(), reader()])
    with pytest.raises(DataError, match="dan has a mask but no photos among the probes"):
        check.assess(faces(), {"dan": masks["ann"]}, [reader()])
    with pytest.raises(DataError, match="one person only"):
        check.assess(check.Faces({"ann": faces().gallery["ann"]}, faces().probes), {"ann": masks["ann"]}, [reader()])
    with pytest.raises(DataError, match="do not fit"):
        check.assess(faces(), {"ann": check.Cloak(masks["ann"], masks["ann"])}, [reader()])
    with pytest.raises(DataError, match="shape"):
        check.assess(faces(), {"ann": masks["ann"][0]}, [reader()])


# --- photos from folders -----------------------------------------------------------------------------


def album(counts: Mapping[str, int]) -> check.Album:
    return check.Album(
        {
            name: Gathered(
                torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 112, 112).float(),
                tuple(f"{name}/{n}.png" for n in range(count)),
            )
            for name, count in counts.items()
        }
    )


def test_photos_are_divided_without_overlap() -> None:
    known = check.divided(album({"ann": 11, "ben": 8, "cem": 7}), 3, learn=6)
    assert {name: len(one) for name, one in known.training.items()} == {"ann": 6, "ben": 6}
    assert {name: len(one) for name, one in known.probes.items()} == {"ann": 2, "ben": 1}
    assert {name: len(one) for name, one in known.gallery.items()} == {"ann": 3, "ben": 1, "cem": 7}
    together = torch.cat([known.training["ann"], known.probes["ann"], known.gallery["ann"]])[:, 0, 0, 0]
    assert sorted(together.tolist()) == list(range(11))
    alone = check.divided(album({"ann": 11, "dan": 2}), 3, learn=6)
    assert torch.equal(alone.training["ann"], known.training["ann"])
    assert not torch.equal(check.divided(album({"ann": 11}), 4, learn=6).training["ann"], known.training["ann"])
    most = check.divided(album({"ann": 11}), 3, learn=6, probes=1.0)
    assert (len(most.probes["ann"]), len(most.gallery["ann"])) == (4, 1)


def test_people_who_cannot_be_protected_are_named() -> None:
    some = album({"ann": 11, "ben": 7})
    assert list(check.divided(some, 0, protect=["ann"]).probes) == ["ann"]
    with pytest.raises(DataError, match="ben has 7 usable photos, and 8 are needed"):
        check.divided(some, 0, protect=["ben"])
    with pytest.raises(DataError, match="zoe has 0 usable"):
        check.divided(some, 0, protect=["zoe"])
    with pytest.raises(DataError, match="nobody has 22"):
        check.divided(some, 0, learn=20)


def test_an_album_is_read_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.faces.people import Seen

    def found(pixels: np.ndarray) -> list[Seen]:  # type: ignore[type-arg]
        if not pixels.any():
            return []
        return [Seen(None, None, torch.from_numpy(pixels.copy()).permute(2, 0, 1).float())]  # type: ignore[arg-type]

    monkeypatch.setattr(check, "faces_in", found)

    def save(place: str, picture: Tensor) -> None:
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8)).save(path)

    for number in range(3):
        save(f"ann/{number}.png", photo(0, number))
    save("ann/stranger.png", photo(5, 3))
    save("ann/twin.png", photo(0, 2))
    save("ann/nobody.png", crop({}))
    (tmp_path / "ann" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "ann" / "notes.txt").write_text("not a photo")
    (tmp_path / "ann" / ".hidden.png").write_bytes(b"")
    save("ben/0.png", photo(1, 0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose.png").write_bytes(b"")
    told: list[Event] = []
    made = check.read_album(tmp_path, [reader()], told.append)
    assert {name: [Path(path).name for path in one.paths] for name, one in made.people.items()} == {
        "ann": ["0.png", "1.png", "2.png"], "ben": ["0.png"]
    }  # fmt: skip
    reasons = {Path(one.path).name: one.reason for one in made.skipped}
    assert reasons.keys() == {"stranger.png", "twin.png", "nobody.png", "broken.jpg"}
    assert "the same file as" in reasons["twin.png"]
    assert "no face" in reasons["nobody.png"]
    assert "does not look like the person" in reasons["stranger.png"]
    assert sum(isinstance(one, Warned) for one in told) == 4
    assert [(one.done, one.total) for one in told if isinstance(one, Progressed)] == [(n, 8) for n in range(1, 9)]
    with pytest.raises(DataError, match="no folder"):
        check.read_album(tmp_path / "absent", [reader()])
    with pytest.raises(DataError, match="no faces in"):
        check.read_album(tmp_path / "empty", [reader()])
