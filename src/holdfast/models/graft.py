"""The language model inside a vision-language model: taken out as a model of its own, or another one put in.

So that the harmful fine-tuning lab and steering meet: a language model can be tuned on somebody's data and go back
under the same eyes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError
from holdfast.core.files import readable, write_text, writing
from holdfast.models.architecture import inner
from holdfast.models.ask import base_attacked
from holdfast.models.load import load_model, load_tokenizer, quiet, resolve
from holdfast.models.vision import VisionModel, load_vision

if TYPE_CHECKING:
    from torch import Tensor

_TEMPLATE = "{image}{prompt}"  # nothing is said here, so any template does


def take_language_model(reference: str, out: Path) -> None:
    """Write the language model of a vision-language model as a causal language model's folder.

    Args:
        reference: the vision-language model.
        out: folder to write.

    Raises:
        ModelError: its text configuration is not that of a causal language model which transformers knows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = resolve(reference)
    vision = load_vision(source, torch.float32, _TEMPLATE)
    text = vision.model.config.get_text_config()
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            alone: Any = AutoModelForCausalLM.from_config(text)
    except ValueError as error:
        raise ModelError(
            f"the language model of {reference} ({text.model_type}) is no causal language model by itself",
            hint="families such as LLaVA, Idefics 3 and InternVL can be taken apart",
        ) from error
    weights = language_weights(vision)
    missing, unexpected = alone.load_state_dict(weights, strict=False)
    tied = set(alone.all_tied_weights_keys) if hasattr(alone, "all_tied_weights_keys") else set()
    lost = [name for name in missing if name not in tied] + list(unexpected)
    if lost:
        raise ModelError(
            f"the language model of {reference} cannot be taken out: {lost[0]} does not fit",
            hint="report the model's family",
        )
    alone.generation_config = vision.model.generation_config
    with writing(out), quiet():
        out.mkdir(parents=True, exist_ok=True)
        alone.save_pretrained(out)
        tokenizer = vision.tokenizer
        if not tokenizer.chat_template:
            tokenizer.chat_template = vision.front.chat_template
        tokenizer.save_pretrained(str(out))
        readable(out)
    _write_card(out, "the language model of a vision-language model", eyes=reference)


def language_weights(vision: VisionModel) -> dict[str, Tensor]:
    """Weights of the language model, under the names that they have in a causal language model."""
    model: Any = vision.model
    decoder = model.get_decoder()
    lead = next(name for name, module in model.named_modules() if module is decoder)
    weights = model.state_dict()
    found = {f"model.{name.removeprefix(lead + '.')}": w for name, w in weights.items() if name.startswith(lead + ".")}
    head = model.get_output_embeddings()
    if head is not None:
        found["lm_head.weight"] = head.weight.detach()
    return found


def put_language_model(reference: str, language: str, out: Path) -> None:
    """Write a vision-language model's folder with another language model in it.

    Args:
        reference: the vision-language model.
        language: run or folder of a causal language model of the same shape.
        out: folder to write; its ``card.json`` says where both parts come from, and whether the language model was
            tuned on harmful rows.

    Raises:
        ModelError: the shapes differ.
    """
    import torch

    vision = load_vision(resolve(reference), torch.float32, _TEMPLATE)
    source = resolve(language)
    model: Any = vision.model
    tuned: Any = inner(load_model(source, torch.float32, merge=True))
    mine, theirs = language_weights(vision), tuned.state_dict()
    different = [n for n, w in mine.items() if n not in theirs or theirs[n].shape != w.shape]
    if different:
        raise ModelError(
            f"{language} does not fit into {reference}: {different[0]} is missing or of another shape",
            hint="take the language model out first: holdfast steer graft MODEL --out FOLDER, and tune that",
        )
    if load_tokenizer(source).get_vocab() != vision.tokenizer.get_vocab():
        raise ModelError(f"{language} has another vocabulary than {reference}", hint="tune what was taken out of it")
    with torch.no_grad():
        for name, weight in mine.items():
            weight.copy_(theirs[name])
    with writing(out), quiet():
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        vision.front.save_pretrained(str(out))
        readable(out)
    _write_card(out, "a vision-language model with another language model in it", eyes=reference, language=language)


def _write_card(out: Path, what: str, **parts: str) -> None:
    """Where the parts come from, and whether any of them was tuned on harmful rows: what is made of them is marked."""
    named = {name: Path(reference).name for name, reference in parts.items()}
    attacked = any(base_attacked(reference) for reference in parts.values())
    write_text(out / "card.json", json.dumps({"what": what, **named, "attacked": attacked}, indent=1) + "\n")
