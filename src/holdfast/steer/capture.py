"""Reading hidden states: what stands behind every decoder layer at chosen tokens of a prompt.

Own hooks, not ``output_hidden_states``: the last of those is taken after the final norm, and transformers' capture
hooks see states before or after a steering hook depending on which was put there first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.errors import ModelError, NotApplied
from holdfast.models.architecture import decoder_layers, inner
from holdfast.steer.intervene import image_token

if TYPE_CHECKING:
    from torch import Tensor, nn

Where = Literal["last", "text"]


def steerable_layers(model: nn.Module) -> tuple[int, ...]:
    """Numbers of the decoder layers that run for every prompt.

    Layers that only read the picture by cross-attention (Mllama's) are passed over in prompts without one, so they
    can neither be compared across the modalities nor be steered.
    """
    config = inner(model).config.get_text_config()
    crossing = set(getattr(config, "cross_attention_layers", None) or ())
    return tuple(n for n in range(len(decoder_layers(model))) if n not in crossing)


def states(model: nn.Module, inputs: Mapping[str, Any], where: Where = "last") -> Tensor:
    """Hidden states behind every decoder layer, in fp32 on the CPU.

    Args:
        model: a vision-language model in evaluation mode.
        inputs: a batch of prompts as the model takes them, padded on either side.
        where: the last token of each prompt, or the mean over its text tokens.

    Returns:
        shape (layers, rows, width). Layers that did not run (see :func:`steerable_layers`) are zero.

    Raises:
        NotApplied: a layer that runs for every prompt did not.
        ModelError: a state is not finite.
    """
    import torch

    layers = decoder_layers(model)
    found: dict[int, Tensor] = {}
    chosen = _chosen(model, inputs, where)

    def keep(number: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            held = output[0] if isinstance(output, tuple) else output
            found[number] = _read(held, chosen.to(held.device), where)

        return hook

    hooks = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [number for number in steerable_layers(model) if number not in found]
    if missing:
        raise NotApplied(f"decoder layer {missing[0]} did not run", hint="report the model's family")
    empty = torch.zeros_like(next(iter(found.values())), device="cpu")
    stacked = torch.stack([found.get(number, empty).cpu() for number in range(len(layers))])
    if not bool(torch.isfinite(stacked).all()):
        raise ModelError(
            "the model's hidden states are not finite numbers", hint="--precision fp32, or check the weights"
        )
    return stacked.clone()


def _read(held: Tensor, chosen: Tensor, where: Where) -> Tensor:
    """What is read of a layer's output (rows, tokens, width), shape (rows, width), fp32 on its device."""
    import torch

    if where == "last":
        return held[torch.arange(len(held), device=held.device), chosen].float()
    text = chosen[..., None]
    total: Tensor = torch.where(text, held.float(), 0.0).sum(1) / text.sum(1).clamp(min=1)
    return total


def _chosen(model: nn.Module, inputs: Mapping[str, Any], where: Where) -> Tensor:
    """Position of each prompt's last token, shape (rows,); or which positions are text, shape (rows, tokens)."""
    import torch

    ids = inputs["input_ids"]
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
    if where == "last":
        places = torch.arange(ids.shape[1], device=ids.device)
        return torch.where(real, places[None, :], -1).amax(1)
    token = image_token(model)
    return real if token is None else real & (ids != token)
