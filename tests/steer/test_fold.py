"""Folding: a constant shift as a bias is the same model as the hook that adds it, and a plain folder afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from holdfast.core.errors import ModelError, RunError, UsageError
from holdfast.core.knobs import resolved
from holdfast.core.records import Item
from holdfast.core.runs import Store
from holdfast.data import workshop
from holdfast.data.images import paired
from holdfast.models.answer import Decoding
from holdfast.models.ask import base_identity
from holdfast.models.load import resolve
from holdfast.models.vision import VisionModel, generate, load_vision
from holdfast.steer.artifact import Steering, shape_of
from holdfast.steer.fold import Fold, constant_shifts, foldable, folded
from holdfast.steer.intervene import Edit, Intervention
from holdfast.steer.method import Anchors, SteeringMethod
from holdfast.steer.methods.adashield import AdaShield
from holdfast.steer.methods.caa import Caa
from holdfast.steer.methods.cmrm import Cmrm, added
from holdfast.steer.methods.inferaligner import InferAligner
from holdfast.steer.methods.refusal_direction import RefusalDirection
from holdfast.steer.methods.shiftdc import ShiftDC
from holdfast.steer.methods.transplant import Transplant
from holdfast.steer.subject import Subject
from steer.families import FAMILIES, IMAGE, LAYERS, TEXT, VISION, WIDTH, noise

MODEL = "sandbox/vlm-0"
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def requests(kind: workshop.Kind, n: int, seed: int = 0) -> tuple[Item, ...]:
    return tuple(paired(workshop.workshop(0).items(kind, "align")[:n], "scenes", seed))


ASKED = requests("hazard", 4, 5) + requests("benign", 4, 5)
BARE = tuple(replace(item, image="") for item in ASKED)


@dataclass(frozen=True)
class World:
    vision: VisionModel
    anchors: Anchors

    def steering(self, method: SteeringMethod) -> Steering:
        card = {
            "format": 1, "made_with": "0", "anchors": {"harmful": 5, "benign": 5}, "predictors": {},
            "speaking": {"template": "auto", "precision": "fp32"},
            "method": {"name": method.name, "title": method.title, "paper": method.paper, "knobs": resolved(method)},
            "model": {"reference": MODEL, "identity": base_identity(MODEL), "shape": shape_of(self.vision.model)},
        }  # fmt: skip
        return Steering(method, method.fit(self.anchors), card, self.anchors.subject.pool)


@pytest.fixture(scope="module")
def world() -> World:
    vision = load_vision(resolve(MODEL), torch.float32)
    anchors = Anchors(Subject(vision), requests("hazard", 5), requests("benign", 5))
    return World(vision, anchors)


def hooked(shifts: Mapping[int, Tensor]) -> Intervention:
    return Intervention([Edit(n, added(v[None]), "all", "all") for n, v in shifts.items()], when="always")


def logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs).logits  # type: ignore[no-any-return]


def real(found: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Of positions that are no padding: what stands at padding is never read."""
    return found[inputs["attention_mask"].bool()]


METHODS = [
    Cmrm(strength=1.0, layers=(3,), twin="blank", tokens="all", phases="all"),
    Cmrm(strength=0.5, layers=(2, 4), twin="noise", project="safety", anchors="all", tokens="all", phases="all"),
    RefusalDirection(0.75, (4,)),
    Caa(1.0, (1,), refuse="sorry ,", comply="take the", tokens="all"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.layers}")
def test_folded_is_hooked_at_every_position_of_every_prompt(world: World, method: SteeringMethod) -> None:
    shifts = constant_shifts(world.steering(method))
    assert tuple(shifts) == method.layers  # type: ignore[attr-defined]
    made = folded(world.vision, shifts)
    also = replace(world.vision, model=made)
    for items in (ASKED, BARE):
        inputs = world.vision.inputs(items)
        plain = logits(world.vision.model, inputs)
        with hooked(shifts).on(world.vision.model):
            wanted = logits(world.vision.model, inputs)
            said = generate(world.vision, inputs, Decoding(16))
        found = logits(made, inputs)
        torch.testing.assert_close(real(found, inputs), real(wanted, inputs), **CLOSE)
        assert (real(wanted, inputs) - real(plain, inputs)).abs().max() > 0.1, "there was something to fold"
        assert generate(also, inputs, Decoding(16)) == said
        assert torch.equal(logits(world.vision.model, inputs), plain), "the model itself is as it was"


def test_the_shift_stands_in_one_bias_and_the_others_are_zero(world: World) -> None:
    shifts = {2: noise(1, 64), 5: noise(2, 64)}
    made = folded(world.vision, shifts)
    before = world.vision.model.state_dict()
    after = made.state_dict()
    new = {name for name in after if name not in before}
    assert len(new) == 3 * 6
    for name in new:
        layer, part = int(name.split(".layers.")[1].split(".")[0]), name.split(".")[-2]
        wanted = shifts[layer] if part == "down_proj" and layer in shifts else torch.zeros_like(after[name])
        assert torch.equal(after[name], wanted)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert made.config.text_config.mlp_bias
    assert not getattr(world.vision.model.config.text_config, "mlp_bias", False)
    assert not made.training


def test_without_shifts_nothing_changes(world: World) -> None:
    inputs = world.vision.inputs(ASKED)
    assert torch.equal(logits(folded(world.vision, {}), inputs), logits(world.vision.model, inputs))


def test_folding_again_adds_to_what_is_there(world: World) -> None:
    one, two = {2: noise(1, 64)}, {2: noise(2, 64), 3: noise(3, 64)}
    twice = folded(replace(world.vision, model=folded(world.vision, one)), two)
    once = folded(world.vision, {2: one[2] + two[2], 3: two[3]})
    assert twice.state_dict().keys() == once.state_dict().keys()
    for name, weight in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], weight)


def test_in_half_precision(world: World) -> None:
    half = load_vision(resolve(MODEL), torch.bfloat16)
    shift = noise(1, 64)
    made = folded(half, {3: shift})
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert torch.equal(made.state_dict()["model.language_model.layers.3.mlp.down_proj.bias"], shift.bfloat16())


# -- families ----------------------------------------------------------------------------------------------


def llava_on(text: Any) -> VisionModel:
    """LLaVA over a tiny random language model of a family, every bias at work."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config).eval().requires_grad_(False)
        for weight in model.parameters():
            weight.normal_(std=0.25)
    return VisionModel(model, None)


@pytest.mark.parametrize(
    "text",
    [
        lambda: hf.LlamaConfig(**TEXT),
        lambda: hf.LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True),
        lambda: hf.Qwen2Config(**TEXT),
        lambda: hf.Qwen2Config(**TEXT, tie_word_embeddings=True),
        lambda: hf.Qwen2Config(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        lambda: hf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        lambda: hf.MistralConfig(**TEXT, head_dim=16, sliding_window=None, rms_norm_eps=1e-2),
    ],
    ids=["llama", "llama-biased", "qwen2", "qwen2-tied", "qwen2-rope", "mistral", "mistral-heads"],
)
def test_language_models_that_are_llama_in_other_words_fold(text: Callable[[], Any]) -> None:
    vision = llava_on(text())
    assert foldable(vision.model.config) == ""
    inputs = FAMILIES["llava"]().with_image()
    shifts = {0: noise(1, WIDTH), LAYERS - 1: noise(2, WIDTH)}
    plain = logits(vision.model, inputs)
    torch.testing.assert_close(logits(folded(vision, {}), inputs), plain, **CLOSE)
    with hooked(shifts).on(vision.model):
        wanted = logits(vision.model, inputs)
    made = folded(vision, shifts)
    assert made.config.get_text_config().model_type == "llama"
    torch.testing.assert_close(real(logits(made, inputs), inputs), real(wanted, inputs), **CLOSE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen2_vl", "multimodal rotary embedding"),
        ("qwen2_5_vl", "multimodal rotary embedding"),
        ("qwen3_vl", "multimodal rotary embedding"),
        ("gemma3", "norm behind each branch"),
        ("paligemma", "norm behind each branch"),
        ("mllama", "cross-attention layers"),
    ],
)
def test_families_that_cannot_carry_a_shift_are_refused_with_the_reason(name: str, reason: str) -> None:
    model: Any = FAMILIES[name]().model
    assert reason in foldable(model.config)
    with pytest.raises(ModelError, match=reason) as caught:
        folded(VisionModel(model, None), {0: torch.zeros(WIDTH)})
    assert "holdfast steer apply" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        lambda: hf.MistralConfig(**TEXT, head_dim=8, sliding_window=8),
        lambda: hf.Qwen2Config(**TEXT, use_sliding_window=True),
    ],
)
def test_a_sliding_window_in_use_is_refused(text: Callable[[], Any]) -> None:
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**VISION), text_config=text(), image_token_index=IMAGE)
    assert "sliding window" in foldable(config)


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_families_on_llama_fold_as_they_are(name: str) -> None:
    made = FAMILIES[name]()
    shifts = {1: noise(1, WIDTH)}
    found = folded(VisionModel(made.model, None), shifts)  # type: ignore[arg-type]
    for inputs in (made.with_image(), made.text_only()):
        with hooked(shifts).on(made.model):
            wanted = logits(made.model, inputs)
        torch.testing.assert_close(real(logits(found, inputs), inputs), real(wanted, inputs), **CLOSE)


# -- methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        Cmrm(level="sample", strength=1.0, layers=(3,), twin="blank"),
        Cmrm(gate="text", strength=1.0, layers=(3,), twin="blank"),
        Transplant(1.0, (3,)),
        InferAligner(1.0, (3,)),
        ShiftDC(layers=(3,)),
        AdaShield(),
    ],
    ids=lambda m: m.name,
)
def test_methods_that_look_at_the_request_are_refused(world: World, method: SteeringMethod, tmp_path: Path) -> None:
    made = world.steering(method)
    with pytest.raises(UsageError, match="no constant shift") as caught:
        constant_shifts(made)
    assert "level = 'dataset'" in caught.value.hint
    made.save(tmp_path / "steering")
    with pytest.raises(UsageError, match="no constant shift"):
        Fold(tmp_path / "steering", MODEL).validate()


@pytest.mark.parametrize(
    "method",
    [
        Cmrm(strength=1.0, layers=(3,), twin="blank"),
        Cmrm(strength=1.0, layers=(3,), twin="blank", tokens="all"),
        Cmrm(strength=1.0, layers=(3,), twin="blank", phases="all"),
        RefusalDirection(1.0, (3,), tokens="last"),
        RefusalDirection(1.0, (3,), phases="prefill"),
        Caa(1.0, (3,)),
    ],
    ids=lambda m: m.name,
)
def test_a_shift_that_was_measured_at_fewer_positions_than_a_bias_has_is_refused(
    world: World, method: SteeringMethod
) -> None:
    with pytest.raises(UsageError, match="a bias acts at every position") as caught:
        constant_shifts(world.steering(method))
    assert "--tokens all --phases all" in caught.value.hint


# -- as a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steering_folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steering")
    world.steering(METHODS[0]).save(folder)
    return folder


def test_a_folded_folder_is_a_plain_model_that_answers_as_the_hooked_one(
    world: World, steering_folder: Path, tmp_path: Path
) -> None:
    request = Fold(steering_folder, MODEL)
    request.validate()
    run = request.make(Store(tmp_path))
    folder = run.artifacts / "model"
    assert json.loads((folder / "config.json").read_text())["text_config"]["mlp_bias"] is True
    again = load_vision(resolve(str(folder)), torch.float32)
    shifts = constant_shifts(world.steering(METHODS[0]))
    inputs = world.vision.inputs(ASKED)
    torch.testing.assert_close(again.inputs(ASKED), inputs)
    assert torch.equal(logits(again.model, inputs), logits(folded(world.vision, shifts), inputs))
    with hooked(shifts).on(world.vision.model):
        said = generate(world.vision, inputs, Decoding(16))
    assert generate(again, inputs, Decoding(16)) == said
    assert again.ends == world.vision.ends
    summary = (run.seal_record() or {})["summary"]
    assert summary == {"layers": [3], "added_parameters": 6 * (2 * 128 + 64)}
    card = json.loads((folder / "steering-card.json").read_text())
    assert card["folded"] == {"layers": [3], "site": "down_proj.bias"}
    assert "decoder layer 3" in (folder / "README.md").read_text()
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}, "others can serve it"
    assert not any(path.suffix in (".bin", ".pt") for path in folder.iterdir())
    assert request.make(Store(tmp_path)).path == run.path
    assert resolve(str(run.path)).folder == folder, "the run itself is a model too"


def test_folding_into_another_model_is_refused(world: World, steering_folder: Path) -> None:
    with pytest.raises(ModelError, match="fitted on another model"):
        Fold(steering_folder, "sandbox/vlm-1").validate()
    with pytest.raises(ModelError, match="text-only model"):
        Fold(steering_folder, "sandbox/micro-0").validate()
    with pytest.raises(RunError, match="holds no steering vectors"):
        Fold(steering_folder / "gone", MODEL).validate()
