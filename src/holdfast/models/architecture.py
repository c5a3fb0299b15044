"""Where things are inside a Hugging Face causal language model, whatever its family.

Found by structure (the module list as long as the configuration says there are layers), not by a list
of class names, so that a family released tomorrow works without a change here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from holdfast.core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_NOT_LANGUAGE = {"vision_tower", "vision_model", "visual", "vision_encoder", "audio_tower", "image_tower"}
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer")


def inner(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT and distributed wrappings."""
    while True:
        deeper = getattr(model, "module", None) or _peft_base(model)
        if deeper is None:
            return model  # type: ignore[return-value]
        model = deeper


def _peft_base(model: nn.Module) -> nn.Module | None:
    found = getattr(model, "get_base_model", None)
    return found() if callable(found) else None


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of the language model, first to last.

    Of a model that also sees, the layers of its language model: the vision tower's are never taken, even where
    there are as many of them.

    Raises:
        ModelError: no module list of the configured length exists.
    """
    from torch import nn

    core = inner(model)
    depth = core.config.get_text_config().num_hidden_layers
    for place in (*_declared_decoders(core), core):
        # Least deep first: the decoder's own list before one inside a part of it (Idefics's resampler).
        for name, module in sorted(place.named_modules(), key=lambda found: found[0].count(".")):
            listed = isinstance(module, nn.ModuleList) and len(module) == depth
            if listed and not _NOT_LANGUAGE & set(name.split(".")):
                return list(module)
    raise ModelError(
        f"{type(core).__name__} has no list of {depth} layers",
        hint="this method needs a decoder made of equal layers; use another method or report the family",
    )


def _declared_decoders(core: nn.Module) -> Iterator[nn.Module]:
    """What transformers itself calls the decoder, where it says so."""
    declared = getattr(core, "get_decoder", None)
    found = declared() if callable(declared) else None
    if found is not None and found is not core:
        yield found


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The attention module of each decoder layer.

    Raises:
        ModelError: a layer has none under the usual names.
    """
    return [_part(layer, _ATTENTION, "attention") for layer in decoder_layers(model)]


def _part(layer: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    for name in names:
        found = getattr(layer, name, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise ModelError(
        f"{type(layer).__name__} has no {what} module among {', '.join(names)}",
        hint="this method does not know the family; use another method or report the family",
    )


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> every linear map inside the decoder layers (GPT-2's ``Conv1D`` included)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    core = inner(model)
    inside = {id(sub) for layer in decoder_layers(core) for sub in layer.modules()}
    return {
        name: module
        for name, module in core.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) in inside
    }


def context_length(model_config: object) -> int | None:
    """Longest sequence the model can take, in tokens; None when its configuration states none."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        found = getattr(model_config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None
