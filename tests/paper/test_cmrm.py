"""CMRM (arXiv:2410.09047) on a linear model that sees, whose hidden states have a closed form worked out in numpy.

The paper's sign: Delta leads from the text to the image and is taken away,

    Delta = h(x, x') - h(x)          h(x, image)  <-  h(x, image) - alpha * Delta .
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from holdfast.core.errors import UsageError
from holdfast.core.knobs import check
from holdfast.models.answer import Decoding
from holdfast.steer.method import Learned
from holdfast.steer.methods.cmrm import Cmrm
from holdfast.steer.subject import Batch, Subject, View
from steer import toy
from steer.toy import ASKED, BENIGN, HARMFUL, LAYERS, Numbers, expected

LAYER = 2
CLOSE = 1e-5
TWINS = ("blank", "noise", "blur", "natural")
SHIFTS = ("twin-text", "image-twin", "image-text")
CASES = list(product(SHIFTS, TWINS))


@cache
def model() -> Subject:
    """Shared by the tests, none of which leaves anything on it."""
    return toy.subject()


@cache
def anchors() -> Any:
    return toy.anchors(model())


def fitted(**knobs: Any) -> tuple[Cmrm, Learned]:
    method = Cmrm(**{"strength": 1.0, "layers": (LAYER,), "twin": "blank", "shift": "image-text", **knobs})
    check(method, "cmrm")
    return method, method.fit(anchors())


def views(shift: str, twin: str) -> tuple[View, View]:
    """Where a shift leads to and where from, by the words of its name: "twin-text" lies between the two."""
    more, less = ({"twin": twin}.get(word, word) for word in shift.split("-"))
    return more, less  # type: ignore[return-value]


def shifts(shift: str, twin: str, asked: Any) -> Numbers:
    """In closed form, shape (layers, prompts, width)."""
    more, less = views(shift, twin)
    return expected(model(), asked, more) - expected(model(), asked, less)


def at_hook(**knobs: Any) -> Numbers:
    """Steered states of the prompts that are asked, at the layer of the hook, shape (prompts, width)."""
    return toy.steered(model(), *fitted(**knobs))[LAYER]


def image(asked: Any = ASKED) -> Numbers:
    return expected(model(), asked, "image")[LAYER]


# -- the sign --------------------------------------------------------------------------------------------


def test_at_strength_one_the_image_leaves_the_state_that_the_text_alone_has() -> None:
    found = at_hook(level="sample", shift="image-text")
    text = expected(model(), ASKED, "text")[LAYER]
    np.testing.assert_allclose(found, text, atol=CLOSE)
    assert np.abs(text - image()).max() > 1, "there was something to undo"


def test_dataset_level_moves_the_mean_image_state_onto_the_mean_text_state() -> None:
    found = toy.steered(model(), *fitted(level="dataset", shift="image-text"), HARMFUL)[LAYER]
    np.testing.assert_allclose(found.mean(0), expected(model(), HARMFUL, "text")[LAYER].mean(0), atol=CLOSE)


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_the_gap_to_the_text_closes_linearly_with_the_strength(level: str) -> None:
    gap = at_hook(level=level, strength=1.0) - image()
    for strength in (0.25, 0.5, 2.0):
        found = at_hook(level=level, strength=strength)
        np.testing.assert_allclose(found - image(), strength * gap, atol=CLOSE)


# -- what is learned, and what is done with it -------------------------------------------------------------


@pytest.mark.parametrize(("shift", "twin"), CASES)
def test_the_learned_shift_is_the_mean_over_anchors_in_closed_form(shift: str, twin: str) -> None:
    _, learned = fitted(shift=shift, twin=twin)
    np.testing.assert_allclose(learned["shift"], shifts(shift, twin, HARMFUL).mean(1), atol=CLOSE)
    _, of_all = fitted(shift=shift, twin=twin, anchors="all")
    np.testing.assert_allclose(of_all["shift"], shifts(shift, twin, (*HARMFUL, *BENIGN)).mean(1), atol=CLOSE)


@pytest.mark.parametrize(("shift", "twin"), CASES)
def test_each_shift_is_subtracted(shift: str, twin: str) -> None:
    own = shifts(shift, twin, ASKED)[LAYER]
    mean = shifts(shift, twin, HARMFUL).mean(1)[LAYER]
    assert np.abs(own).max() > 0.01, "the case says something"
    np.testing.assert_allclose(at_hook(level="sample", shift=shift, twin=twin), image() - own, atol=CLOSE)
    np.testing.assert_allclose(at_hook(level="dataset", shift=shift, twin=twin), image() - mean, atol=CLOSE)


def test_shift_read_over_the_text_is_the_mean_over_text_tokens() -> None:
    method, learned = fitted(read="text", shift="image-text")
    subject = model()
    for view, sign in (("image", 1), ("text", -1)):
        learned = {**learned, "shift": learned["shift"] - sign * text_mean(subject, view).float()}
    np.testing.assert_allclose(learned["shift"], 0, atol=CLOSE)
    assert method.views == ()


def text_mean(subject: Subject, view: View) -> Any:
    """Token by token, each as the last one of what stands before it."""
    import torch

    net: Any = subject.vision.model
    rows = []
    for item in HARMFUL:
        ids = subject.inputs([item], view)
        places = [t for t, token in enumerate(ids["input_ids"][0].tolist()) if token != toy.IMAGE]
        read = []
        for t in places:
            part = {name: ids[name][:, : t + 1] for name in ("input_ids", "attention_mask")}
            pixels = {"pixel_values": ids["pixel_values"]} if toy.IMAGE in part["input_ids"] else {}
            held: list[Any] = []
            hooks = [
                layer.register_forward_hook(lambda _m, _g, out, held=held: held.append(out[0, -1]))
                for layer in layers(net)
            ]
            net(**part, **pixels)
            for hook in hooks:
                hook.remove()
            read.append(torch.stack(held).double())
        rows.append(torch.stack(read).mean(0))
    return torch.stack(rows).mean(0)


def layers(net: Any) -> Any:
    return net.decoder.layers


@pytest.mark.parametrize("twin", TWINS)
def test_principal_direction_against_eigenvectors(twin: str) -> None:
    _, learned = fitted(direction="principal", shift="twin-text", twin=twin)
    for layer, found in enumerate(shifts("twin-text", twin, HARMFUL)):
        values, vectors = np.linalg.eigh(found.T @ found)
        first, mean = vectors[:, values.argmax()], found.mean(0)
        got = learned["shift"][layer].numpy()
        np.testing.assert_allclose(got, first * (first @ mean), atol=CLOSE)
        assert got @ mean > 0, "turned as the mean is"
        np.testing.assert_allclose(np.abs(got @ first), np.linalg.norm(got), rtol=1e-4)


def test_principal_direction_of_shifts_with_one_direction_is_their_mean() -> None:
    import torch

    from holdfast.steer.methods.cmrm import principal

    direction = np.array([3.0, -4.0]) / 5
    made = np.outer([1.0, 2.0, 6.0], -direction)[None]
    np.testing.assert_allclose(principal(torch.tensor(made))[0], -3 * direction, atol=1e-12)


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_projected_on_safety_only_that_coordinate_moves(level: str) -> None:
    found = at_hook(level=level, project="safety", strength=0.75)
    towards = toy.safety(model())[LAYER]
    moved = found - image()
    whole = shifts("image-text", "", ASKED if level == "sample" else HARMFUL)[LAYER]
    along = whole @ towards if level == "sample" else np.full(len(ASKED), whole.mean(0) @ towards)
    np.testing.assert_allclose(moved @ towards, -0.75 * along, atol=CLOSE)
    np.testing.assert_allclose(moved - np.outer(moved @ towards, towards), 0, atol=CLOSE)
    assert np.abs(along).min() > 0.01


def test_safety_points_from_harmful_to_harmless() -> None:
    _, learned = fitted()
    np.testing.assert_allclose(learned["safety"], toy.safety(model()), atol=CLOSE)


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_the_gate_opens_for_texts_on_the_harmful_side_of_the_middle(level: str) -> None:
    towards = toy.safety(model())
    middle = [
        (expected(model(), HARMFUL, "text").mean(1)[n] + expected(model(), BENIGN, "text").mean(1)[n]) @ s / 2
        for n, s in enumerate(towards)
    ]
    asked = (*ASKED, *HARMFUL, *BENIGN)
    text, whole = (expected(model(), asked, view) for view in ("text", "image"))
    method, learned = fitted(level=level, gate="text", layers=(0,))
    np.testing.assert_allclose(learned["gate"], middle, atol=CLOSE)
    for layer in range(LAYERS):
        method, _ = fitted(level=level, gate="text", layers=(layer,))
        moved = np.abs(toy.steered(model(), method, learned, asked)[layer] - whole[layer]).max(1) > 0.01
        harmful = text[layer] @ towards[layer] < middle[layer]
        assert moved.tolist() == harmful.tolist()
        assert set(harmful[: len(ASKED)]) == {True, False}, "both kinds are asked"
    assert "text" in method.views


def test_a_gated_row_is_steered_as_without_the_gate() -> None:
    open_, gated = at_hook(level="sample"), at_hook(level="sample", gate="text")
    moved = np.abs(gated - image()).max(1) > 0.01
    np.testing.assert_array_equal(gated[moved], open_[moved])
    np.testing.assert_allclose(gated[~moved], image()[~moved], atol=CLOSE)


# -- where it is added -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [{}, {"project": "safety"}, {"direction": "principal"}, {"shift": "twin-text", "twin": "noise", "strength": 0.5}],
)
def test_the_constant_is_what_the_edits_add(knobs: dict[str, Any]) -> None:
    method, learned = fitted(layers=(1, LAYER), **knobs)
    constant = method.constant(learned)
    assert list(constant) == [1, LAYER]
    for layer in constant:
        added = toy.changes(model(), layer, lambda: toy.steered(model(), method, learned))[0]
        np.testing.assert_allclose(added[:, -1], np.tile(constant[layer], (len(ASKED), 1)), atol=CLOSE)
        assert not added[:, :-1].any(), "the last token of the prompt alone"


@pytest.mark.parametrize("knobs", [{"level": "sample"}, {"gate": "text"}, {"strength": None}])
def test_what_depends_on_the_request_is_no_constant(knobs: dict[str, Any]) -> None:
    method, learned = fitted(**knobs)
    assert method.constant(learned) == {}


@pytest.mark.parametrize("tokens", ["last", "text", "image", "all"])
@pytest.mark.parametrize("phases", ["prefill", "all"])
@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_positions_and_phases(tokens: str, phases: str, level: str) -> None:
    method, learned = fitted(tokens=tokens, phases=phases, strength=0.5, level=level)
    mean = shifts("image-text", "", HARMFUL).mean(1)[LAYER]
    moves = -0.5 * (shifts("image-text", "", ASKED)[LAYER] if level == "sample" else np.tile(mean, (len(ASKED), 1)))
    subject = model()
    passes = toy.changes(
        subject, LAYER, lambda: subject.answers(ASKED, Decoding(4), lambda batch: method.around(learned, batch))
    )
    first, *later = passes[-4:]  # of four tokens; before them stand the readings of the request's other views
    ids = subject.inputs(ASKED, "image")["input_ids"].numpy()
    last = np.zeros_like(ids, dtype=bool)
    last[:, -1] = True
    picture, real = ids == toy.IMAGE, ids != toy.PAD
    wanted = {"last": last, "text": real & ~picture, "image": picture, "all": real}[tokens]
    np.testing.assert_allclose(first, wanted[..., None] * moves[:, None], atol=CLOSE)
    assert len(passes) == 4 + len(method.views)
    for one in later:
        np.testing.assert_allclose(one[:, 0], moves * (phases == "all"), atol=CLOSE)


def test_without_a_picture_nothing_is_added() -> None:
    method, learned = fitted()
    bare = [toy.Item(item.id, item.prompt) for item in ASKED]
    inputs = model().inputs(bare, "text")
    with method.around(learned, Batch(model(), bare)):
        found = toy.states(model().vision.model, inputs)
    np.testing.assert_array_equal(found, model().states(bare, "text"))


@pytest.mark.parametrize(
    ("shift", "level", "gate", "expects"),
    [
        ("twin-text", "dataset", "none", ()),
        ("twin-text", "dataset", "text", ("text",)),
        ("twin-text", "sample", "none", ("noise", "text")),
        ("image-twin", "sample", "none", ("image", "noise")),
        ("image-twin", "sample", "text", ("image", "noise", "text")),
        ("image-text", "sample", "text", ("image", "text")),
    ],
)
def test_passes_that_a_request_costs(shift: str, level: str, gate: str, expects: tuple[str, ...]) -> None:
    method, learned = fitted(shift=shift, level=level, gate=gate, twin="noise")
    assert method.views == expects
    batch = Batch(model(), list(ASKED))
    method.edits(learned, batch)
    assert {view for _, view, _ in batch._read} == set(expects)


@pytest.mark.parametrize("knobs", [{"direction": "principal"}, {"read": "text"}])
def test_knobs_of_the_dataset_level_are_refused_at_the_sample_level(knobs: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is for level = 'dataset'") as caught:
        check(Cmrm(level="sample", **knobs), "cmrm")
    assert caught.value.hint
