"""Folding: a constant shift becomes part of the weights, so that any engine serves it at no cost.

A decoder layer ends in ``residual + down_proj(...)``. Where the family's MLP can carry a bias, the shift behind layer
l is that layer's ``down_proj.bias``: the same number added at the same place, at every position of every prompt. So a
folded model equals the hooked one with ``tokens = "all"``, ``phases = "all"`` and ``when = "always"``: it is steered
whether or not there is a picture, which is why the unfolded weights should go on serving text.

    can carry it      language models with ``mlp_bias`` in their configuration (Llama: LLaVA 1.5, LLaVA-NeXT on Vicuna,
                      Idefics 3, SmolVLM, ...); Qwen2's and Mistral's text models rewritten as Llama ones, where their
                      arithmetic is Llama's (no sliding window in use, no multimodal rotary embedding)
    cannot            a norm after the branch (Gemma), multimodal rotary embeddings without a bias (Qwen2-VL), mixtures
                      of experts, cross-attention layers (Mllama): the hook is what serves them
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.events import Sink, ignore
from holdfast.core.files import readable, write_json, write_text, writing
from holdfast.core.runs import Run, Store
from holdfast.core.stage import find_or_make
from holdfast.models.architecture import decoder_layers
from holdfast.models.ask import base_attacked, base_identity
from holdfast.models.engine import Engine
from holdfast.models.load import quiet, require_torch, resolve
from holdfast.models.vision import VisionModel, load_vision
from holdfast.steer.artifact import Steering, load_steering
from holdfast.steer.stage import AskSteered, check_config, check_sees, config_of

if TYPE_CHECKING:
    from torch import Tensor

KIND = "fold"
# Text models whose arithmetic is Llama's once biases are allowed; value: configuration keys that carry over.
_LLAMA_LIKE = {"mistral": "sliding_window", "qwen2": "use_sliding_window"}
_HOOK = "serve it with the hook (holdfast steer apply, or SteeredModel in Python)"


def foldable(config: Any) -> str:
    """Empty where a shift can become a bias; otherwise why not.

    Args:
        config: the configuration of a vision-language model.
    """
    text = config.get_text_config()
    kind = text.model_type
    if hasattr(text, "mlp_bias"):
        return ""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if "mrope_section" in rope:
        return f"{kind} has a multimodal rotary embedding and no bias in its MLP"
    if kind.startswith("gemma"):
        return f"{kind} has a norm behind each branch, which would rescale a bias"
    if getattr(text, "cross_attention_layers", None):
        return f"{kind} has cross-attention layers and no bias in its MLP"
    if kind in _LLAMA_LIKE:
        key = _LLAMA_LIKE[kind]
        return f"{kind} uses a sliding window, which Llama has not" if getattr(text, key, None) else ""
    return f"the MLP of {kind} has no bias"


def folded(vision: VisionModel, shifts: Mapping[int, Tensor], *, in_place: bool = False) -> Any:
    """The model with the shifts in its weights.

    Args:
        vision: the model.
        shifts: layer -> what is added behind it, shape (width,).
        in_place: change the model itself where its family allows it, instead of a copy: half the memory.

    Raises:
        ModelError: the family cannot carry it.
    """
    import torch

    model: Any = vision.model
    reason = foldable(model.config)
    if reason:
        raise ModelError(f"a shift cannot be folded into this model: {reason}", hint=_HOOK)
    if hasattr(model.config.get_text_config(), "mlp_bias"):
        made = model if in_place else copy.deepcopy(model)
        made.config.get_text_config().mlp_bias = True
        for number, layer in enumerate(decoder_layers(made)):
            _give_biases(layer.mlp)
            if number in shifts:
                _bias_of(layer).data.add_(shifts[number].to(made.dtype))
        return made.eval().requires_grad_(False)
    config = copy.deepcopy(model.config)
    weights = dict(model.state_dict())
    _allow_bias(config, weights)
    with quiet(), torch.random.fork_rng(devices=[]):
        made = type(model)(config).to(model.dtype)
    missing, unexpected = made.load_state_dict(weights, strict=False)
    wrong = [name for name in missing if not name.endswith("proj.bias")] + list(unexpected)
    if wrong:
        raise ModelError(f"folding does not know the weight {wrong[0]}", hint=_HOOK)
    with torch.no_grad():
        named = dict(made.named_parameters())
        for name in missing:
            named[name].zero_()
        for number, layer in enumerate(decoder_layers(made)):
            if number in shifts:
                # Added: a Llama may have had biases of its own, or another shift folded in.
                _bias_of(layer).add_(shifts[number].to(model.dtype))
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval().requires_grad_(False)


def _give_biases(mlp: Any) -> None:
    """Zero biases for the maps of an MLP that have none: what ``mlp_bias`` in the configuration stands for."""
    import torch

    for name in ("gate_proj", "up_proj", "down_proj"):
        linear = getattr(mlp, name)
        if linear.bias is None:
            weight = linear.weight
            zeros = torch.zeros(linear.out_features, dtype=weight.dtype, device=weight.device)
            linear.bias = torch.nn.Parameter(zeros, requires_grad=False)


def _allow_bias(config: Any, weights: dict[str, Tensor]) -> None:
    """A configuration in which a Llama-like text model is rewritten as Llama, whose MLPs may have biases."""
    from transformers import LlamaConfig

    text = config.get_text_config()
    attention_bias = any(name.endswith("q_proj.bias") for name in weights)
    kept = {k: v for k, v in text.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    config.text_config = LlamaConfig(**kept | {"mlp_bias": True, "attention_bias": attention_bias})


def _bias_of(layer: Any) -> Tensor:
    bias: Tensor | None = getattr(getattr(layer, "mlp", None), "down_proj", None).bias  # type: ignore[union-attr]
    if bias is None:
        raise ModelError("a decoder layer has no down_proj with a bias", hint=_HOOK)
    return bias


def constant_shifts(steering: Steering) -> dict[int, Tensor]:
    """The constant that a fitted method adds behind each layer.

    Raises:
        UsageError: the method is no constant: it looks at the request, or works on the prompt.
    """
    method: Any = steering.method
    found = steering.method.constant(steering.learned)
    tokens, phases = getattr(method, "tokens", "all"), getattr(method, "phases", "all")
    if found and (tokens, phases) != ("all", "all"):
        # A bias acts at every position: another intervention than the one that was chosen and measured.
        raise UsageError(
            f"{method.title} was fitted with tokens = {tokens!r} and phases = {phases!r}; a bias acts at every "
            "position of the prompt and of the answer",
            hint=f"fit it as it will be served: steer fit {method.name} ... --tokens all --phases all; or {_HOOK}",
        )
    if not found:
        raise UsageError(
            f"{steering.method.title} with these knobs is no constant shift, so it cannot become a weight",
            hint="fold cmrm with level = 'dataset' and gate = 'none', refusal-direction or caa; or " + _HOOK,
        )
    return found


@dataclass(frozen=True)
class Fold:
    """Fold a fitted method's constant shift into a model's weights: a plain Hugging Face folder.

    Attributes:
        steering: run folder of a fitted method.
        base: the model; the one that the method was fitted on.
        precision: type of the saved weights.
    """

    steering: Path
    base: str
    precision: str = "fp32"

    kind = KIND
    label = KIND

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        return {
            "base": base_identity(self.base),
            "steering": AskSteered(self.steering, self.base, ()).spec["steering"],
            "precision": self.precision,
            "attacked": self.attacked,
        }

    @property
    def attacked(self) -> bool:
        """Whether the weights were tuned on harmful rows."""
        return base_attacked(self.base)

    def validate(self) -> None:
        """Refuse what cannot work, before weights are loaded.

        Raises:
            ModelError, RunError, UsageError: no constant shift, another model, or a family that cannot carry it.
        """
        source = check_sees(self.base)
        assert source is not None
        steering = load_steering(self.steering)
        check_config(steering, source)
        constant_shifts(steering)
        reason = foldable(config_of(source))
        if reason:
            raise ModelError(f"a shift cannot be folded into {self.base}: {reason}", hint=_HOOK)

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run with the folded model.

        Raises:
            HoldfastError: see :mod:`holdfast.core.errors`.
        """
        require_torch()
        return find_or_make(self, store, sink, lambda run, _log: self._fold(run))

    def _fold(self, run: Run) -> dict[str, Any]:
        import torch

        source = resolve(self.base)
        steering = load_steering(self.steering)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        vision = load_vision(source, dtype, "{image}{prompt}")
        shifts = constant_shifts(steering)
        before = sum(p.numel() for p in vision.model.parameters())
        model = folded(vision, shifts, in_place=True)
        folder = run.artifacts / "model"
        with writing(folder), quiet():
            folder.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(folder)
            vision.front.save_pretrained(str(folder))
            readable(folder)
        card = dict(steering.card) | {"folded": {"layers": sorted(shifts), "site": "down_proj.bias"}}
        write_json(folder / "steering-card.json", card)
        write_json(folder / "card.json", {"what": f"{source.reference}, steered", "attacked": self.attacked})
        write_text(folder / "README.md", _readme(steering, source.reference, sorted(shifts)))
        extra = sum(p.numel() for p in model.parameters()) - before
        return {"layers": sorted(shifts), "added_parameters": extra}


def _readme(steering: Steering, reference: str, layers: list[int]) -> str:
    places = ", ".join(map(str, layers))
    return (
        f"# {reference} with {steering.method.title} folded in\n\n"
        f"The shift is the bias of `mlp.down_proj` in decoder layer {places}; the other new biases are zero. It is "
        "added at every position of every prompt, with or without a picture: measure text-only requests, or let the "
        "original weights serve them.\n\nWhat it was fitted on: `steering-card.json`.\n"
    )
