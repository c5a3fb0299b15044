"""Vision-language models: loading them, asking them with and without pictures, and their decoder.

Any Hugging Face folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` open without remote code. What is
said to the model comes from its own chat template, or from a text with ``{prompt}`` and ``{image}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.events import Sink, ignore
from holdfast.core.records import Item, Sample
from holdfast.data.images import open_image, require_pillow
from holdfast.models.answer import Answer, Decoding, answer_batches, check_ids, cut_answers
from holdfast.models.architecture import context_length
from holdfast.models.load import ModelSource, quiet, require_torch

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import PreTrainedModel

    from holdfast.models.engine import Engine
    from holdfast.models.size import Size

Inputs = dict[str, Any]
_SMALL = 50_000_000  # parameters below which memory for many prompts is not the limit


def is_vision(source: ModelSource) -> bool:
    """Whether a model found on disk sees pictures; read from its configuration, nothing is loaded."""
    try:
        config = json.loads((source.folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return any(name in config for name in ("vision_config", "vision_cfg", "visual"))


def require_vision() -> None:
    """Say which extra to install when something that models with eyes need is missing.

    Raises:
        MissingExtra: torch, transformers or Pillow is not installed.
    """
    require_torch("vision")
    require_pillow()


@dataclass(frozen=True)
class VisionModel:
    """A vision-language model and how it is spoken to.

    Attributes:
        model: the transformers model, in evaluation mode on its device.
        front: its transformers processor: tokenizer, image preprocessing and chat template.
        template: ``auto``, or a text with ``{prompt}`` and ``{image}`` (where the picture goes).
        reference: what the user called it.
    """

    model: PreTrainedModel
    front: Any
    template: str = "auto"
    reference: str = ""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.front.tokenizer

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.model.parameters()).device

    @cached_property
    def pad(self) -> int:
        """The padding token; the end token where there is none."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end an answer, of the tokenizer and of the model's generation settings."""
        declared = getattr(self.model.generation_config, "eos_token_id", None)
        found = declared if isinstance(declared, list) else [declared]
        return sorted({int(token) for token in [*found, self.tokenizer.eos_token_id] if token is not None})

    def text(self, item: Item) -> str:
        """What is said to the model for an item, up to where the answer starts; a picture is its placeholder."""
        prompt = self._plain(f"{item.prompt}\n\n{item.input}" if item.input else item.prompt)
        if self.template not in ("auto", "chat"):
            mark = f"{self.front.image_token}\n" if item.image else ""
            return self.template.format(prompt=prompt, image=mark, system=item.system)
        content: list[dict[str, str]] = [{"type": "text", "text": prompt}]
        if item.image:
            content.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": content}]
        if item.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self._plain(item.system)}]})
        return str(self.front.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _plain(self, text: str) -> str:
        """Text without the placeholder of a picture: where pictures go is the template's business, not a prompt's."""
        mark = getattr(self.front, "image_token", None)
        return text.replace(mark, "").strip() if mark and mark in text else text

    def inputs(self, items: Sequence[Item], change: Callable[[Item, Image], Image] | None = None) -> Inputs:
        """Model inputs of a batch, padded on the left: all have a picture, or none has.

        Args:
            items: what is asked.
            change: makes of each item's picture the one that is shown instead.

        Raises:
            DataError: a picture does not open, or only some items have one.
        """
        return self.encoded([self.text(item) for item in items], items, change)

    def encoded(
        self, texts: Sequence[str], items: Sequence[Item], change: Callable[[Item, Image], Image] | None = None
    ) -> Inputs:
        """As :meth:`inputs`, for texts of the caller's own (a prompt with the beginning of an answer, say)."""
        seen = {bool(item.image) for item in items}
        if len(seen) != 1:
            raise DataError("a batch mixes items with and without a picture", hint="ask them apart")
        bos = self.tokenizer.bos_token
        options: dict[str, Any] = {
            "text": list(texts),
            "padding": True,
            "padding_side": "left",
            "return_tensors": "pt",
            # A chat template that writes the first token itself must not get a second one.
            "add_special_tokens": not (bos and texts[0].startswith(bos)),
        }
        if seen.pop():
            pictures = [open_image(item.image) for item in items]
            if change is not None:
                pictures = [change(item, picture) for item, picture in zip(items, pictures, strict=True)]
            options["images"] = [[picture] for picture in pictures]
        found = self.front(**options)
        return self.placed(found)

    def placed(self, inputs: Any) -> Inputs:
        """The inputs on the model's device, pictures in its type."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
            if hasattr(value, "to")
        }


def load_vision(source: ModelSource, dtype: torch.dtype, template: str = "auto") -> VisionModel:
    """Load a vision-language model: safetensors only, never remote code.

    Args:
        source: what :func:`holdfast.models.load.resolve` found.
        dtype: type of the weights.
        template: ``auto``, or a text with ``{prompt}`` and ``{image}``.

    Raises:
        ModelError: a text-only model, an unknown family, a damaged folder, or no chat template.
        UsageError: the template lacks ``{prompt}`` or ``{image}``.
        MissingExtra: transformers or Pillow is not installed.
    """
    require_vision()
    front = load_front(source, template)
    return VisionModel(_load_weights(source, dtype), front, template, source.reference)


def load_front(source: ModelSource, template: str = "auto") -> Any:
    """The transformers processor of a model (tokenizer, image preprocessing, chat template), checked.

    Raises: see :func:`load_vision`.
    """
    require_vision()
    from transformers import AutoProcessor

    _check_sees(source)
    check_template(template)
    try:
        with quiet():
            front = AutoProcessor.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"the tokenizer and image settings of {source.reference} cannot be loaded: {_first_line(error)}",
            hint="the folder needs processor_config.json or preprocessor_config.json, and the tokenizer's files",
        ) from error
    if not hasattr(front, "image_processor") or not hasattr(front, "tokenizer"):
        raise ModelError(
            f"{source.reference} has no image settings", hint="add preprocessor_config.json of the model's release"
        )
    front.tokenizer.padding_side = "left"
    if template in ("auto", "chat") and not front.chat_template:
        front.chat_template = front.tokenizer.chat_template
    if template in ("auto", "chat") and not front.chat_template:
        raise ModelError(
            f"{source.reference} has no chat template",
            hint="declare how to speak to it: --template 'USER: {image}{prompt} ASSISTANT:'",
        )
    if front.tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source.reference} has no end-of-text token", hint="set eos_token")
    if front.tokenizer.pad_token is None:
        front.tokenizer.pad_token = front.tokenizer.eos_token
    return front


def _check_sees(source: ModelSource) -> None:
    if not is_vision(source):
        raise ModelError(
            f"{source.reference} is a text-only model: its configuration has no vision part",
            hint="give a vision-language model, for example sandbox/vlm-0 or a LLaVA folder",
        )


def check_template(template: str) -> None:
    """Refuse a text that cannot be a prompt template of a model that sees.

    Raises:
        UsageError: it lacks ``{prompt}`` or ``{image}``, has one of them twice, or an unknown field.
    """
    if template in ("auto", "chat"):
        return
    try:
        filled = template.format(prompt="\0prompt\0", image="\0image\0", system="")
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise UsageError(
            f"the prompt template {template!r} is not valid: {error!r}",
            hint="use {prompt} and {image}, and optionally {system}; write {{ and }} for braces",
        ) from error
    for name in ("prompt", "image"):
        count = filled.count(f"\0{name}\0")
        if count != 1:
            raise UsageError(
                f"the prompt template {template!r} contains {{{name}}} {count} times, not once",
                hint="for example 'USER: {image}{prompt} ASSISTANT:'",
            )


def _load_weights(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        with quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source.folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            model, found = loaded
            if found["missing_keys"]:
                # transformers fills what is missing with random numbers and only warns.
                raise ValueError(f"the weights lack {sorted(found['missing_keys'])[0]}")
            if source.adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(source.adapter)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{source.reference} cannot be loaded: {_first_line(error)}",
            hint="it must be a vision-language model that transformers knows without remote code, with safetensors "
            "weights; if the file is damaged, fetch or make it again",
        ) from error
    made: PreTrainedModel = model.eval().requires_grad_(False)
    return made


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def generate(vision: VisionModel, inputs: Inputs, decoding: Decoding) -> list[Answer]:
    """Greedy answers of one batch of inputs, padded on the left.

    Raises:
        DataError: a prompt with its picture and its answer do not fit the model's context.
    """
    import torch
    from transformers import GenerationConfig

    longest, limit = inputs["input_ids"].shape[1], context_length(vision.model.config.get_text_config())
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise DataError(
            f"a prompt has {longest} tokens with its picture; with {decoding.max_new_tokens} new tokens it exceeds the "
            f"model's context of {limit}",
            hint=f"set max_new_tokens to at most {max(limit - longest, 0)}, or drop the longest prompts",
        )
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=vision.pad,
        eos_token_id=vision.ends,
        use_cache=True,
    )
    with torch.inference_mode():
        out = vision.model.generate(**inputs, generation_config=settings)  # type: ignore[operator]
    width = inputs["input_ids"].shape[1]
    return list(cut_answers(out[:, width:].tolist(), vision.ends, vision.tokenizer))


def sighted_batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Positions of items in batches of which all have a picture, or none has."""
    groups = [[i for i, item in enumerate(items) if bool(item.image) is sees] for sees in (True, False)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def seeing_batch(engine: Engine, size: Size) -> int:
    """Prompts with pictures that are answered at once: one number for base and steered runs, so that they compare.

    A picture is hundreds of tokens: 16 prompts of a model with 7 billion parameters are about 5 GB of keys and values.
    """
    return min(engine.answer_batch, 128 if size.parameters < _SMALL else 16)


def answer_all_seeing(
    vision: VisionModel, items: Sequence[Item], decoding: Decoding, path: Path, *, batch_size: int, sink: Sink = ignore
) -> list[Sample]:
    """As :func:`holdfast.models.answer.answer_all`, for items with or without pictures.

    Raises:
        DataError: two items share an id, or a picture does not open.
    """
    check_ids(items)

    def ask(batch: list[int]) -> list[Answer]:
        return generate(vision, vision.inputs([items[i] for i in batch]), decoding)

    return answer_batches(items, sighted_batches(items, batch_size), ask, path, sink)
