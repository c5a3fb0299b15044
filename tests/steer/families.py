"""Tiny random models of twelve vision-language families, and batches that each of them can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

PAD, IMAGE, VIDEO, START, END = 0, 95, 96, 97, 98  # none is ever an answer: see `_made`
VOCABULARY, WIDTH, LAYERS = 99, 32, 3
ALL = (0, 1, 2)
# Text before and after the picture; no two prompts are equally long, so a batch is padded.
PROMPTS = (((1, 11, 12), (21, 22, 23)), ((1, 13), (24, 25, 26, 27, 28, 29)), ((1,), (31, 32)))

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
# As many layers as the language model has: a search by length alone would find these first.
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {"depth": LAYERS, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}

# Number of the picture in each row of a batch (None: the row has none) and the token ids -> what brings them in.
Pictures = Callable[[Sequence[int | None], Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """A model and what it reads.

    Attributes:
        model: random, in evaluation mode, in fp32.
        placeholders: tokens that a picture takes in a prompt; 0 where the family has none.
        pictures: see :data:`Pictures`.
        chunk: length of the pieces that transformers can read a prompt with a picture in; None where it cannot.
    """

    model: nn.Module
    placeholders: int
    pictures: Pictures
    chunk: int | None = 3

    def with_image(self) -> dict[str, Tensor]:
        """All prompts, each with a picture, padded on the left."""
        return self.batch(ALL)

    def single(self, number: int) -> dict[str, Tensor]:
        """One prompt with its picture, not padded."""
        return self.batch((number,))

    def text_only(self) -> dict[str, Tensor]:
        """All prompts, without pictures."""
        return self.batch(ALL, seeing=())

    def mixed(self) -> dict[str, Tensor]:
        """All prompts; the second has no picture."""
        return self.batch(ALL, seeing=(0, 2))

    def batch(self, numbers: Sequence[int], seeing: Sequence[int] = ALL) -> dict[str, Tensor]:
        """Prompts of these numbers, with a picture where the number is among ``seeing``."""
        shown = [number if number in seeing else None for number in numbers]
        rows = []
        for number, picture in zip(numbers, shown, strict=True):
            before, after = PROMPTS[number]
            rows.append([*before, *[IMAGE] * (0 if picture is None else self.placeholders), *after])
        width = max(map(len, rows))
        ids = torch.tensor([[*[PAD] * (width - len(row)), *row] for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), **self.pictures(shown, ids)}


def noise(number: int, *shape: int) -> Tensor:
    """The picture of a prompt."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def _made(model_class: type, config: Any) -> nn.Module:
    """A model whose weights are large enough that every input shows in its answers, with all gates open."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).eval()
        for name, weight in model.named_parameters():
            weight.requires_grad_(False)
            if weight.dim() > 1:
                weight.normal_(std=0.25)
            if "gate" in name.split(".")[-1] or "alpha_" in name:
                weight.fill_(1.0)
    special = [IMAGE, VIDEO, START, END]  # answered without a picture, they would be an error
    model.generation_config = hf.GenerationConfig(pad_token_id=PAD, bos_token_id=1, suppress_tokens=special)
    return model


def _stacked(*shape: int, types: str | None = None, **more: list[int]) -> Pictures:
    """Pictures one after another, as many as the batch has; ``more`` is said of each of them."""

    def pictures(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
        found = {} if types is None else {types: (ids == IMAGE).long()}
        seen = [number for number in shown if number is not None]
        if seen:
            found["pixel_values"] = torch.stack([noise(number, *shape) for number in seen])
            found |= {name: torch.tensor([value] * len(seen)) for name, value in more.items()}
        return found

    return pictures


def llava() -> Family:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_layer=-1,
    )  # fmt: skip
    return Family(_made(hf.LlavaForConditionalGeneration, config), 4, _stacked(3, 8, 8))


def llava_next() -> Family:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=hf.MistralConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE, vision_feature_layer=-1, image_grid_pinpoints=[[8, 16], [16, 8]],
    )  # fmt: skip
    # The whole picture (4), and two tiles side by side (2 rows of 4 and a newline).
    pictures = _stacked(3, 3, 8, 8, image_sizes=[8, 16])
    return Family(_made(hf.LlavaNextForConditionalGeneration, config), 4 + 2 * 5, pictures)


def _qwen(model_class: type, config: Any) -> Family:
    return Family(_made(model_class, config), 4, _patches)


def _patches(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
    """Qwen's pictures: 4 by 4 patches each, all below one another."""
    found = _stacked(16, 3 * 2 * 4 * 4, types="mm_token_type_ids", image_grid_thw=[1, 4, 4])(shown, ids)
    return {name: value.flatten(0, 1) if name == "pixel_values" else value for name, value in found.items()}


def qwen2_vl() -> Family:
    vision = QWEN_VISION | {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    return _qwen(
        hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS)
    )


def qwen2_5_vl() -> Family:
    vision = QWEN_VISION | {
        "hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 24, "window_size": 8,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    return _qwen(
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS),
    )


def qwen3_vl() -> Family:
    vision = QWEN_VISION | {
        "hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 24, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = QWEN_TEXT | {"head_dim": 8}
    return _qwen(
        hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    )


def internvl() -> Family:
    config = hf.InternVLConfig(
        vision_config=VISION | {"patch_size": 2}, text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Family(_made(hf.InternVLForConditionalGeneration, config), 4, _stacked(3, 8, 8))


def idefics() -> Family:
    vision = {name: value for name, value in VISION.items() if name != "hidden_size"} | {"embed_dim": 16}
    config = hf.IdeficsConfig(
        **{name: value for name, value in TEXT.items() if name != "num_key_value_heads"},
        vision_config=vision, alpha_initializer="ones", use_resampler=True,
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": 4, "resampler_depth": LAYERS, "resampler_n_heads": 2,
            "resampler_head_dim": 8,
        },
    )  # fmt: skip

    def pictures(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
        # A prompt without a picture comes with a black one that no token looks at.
        pixels = [torch.zeros(1, 3, 8, 8) if number is None else noise(number, 1, 3, 8, 8) for number in shown]
        sees = torch.tensor([number is not None for number in shown])[:, None, None]
        looks = ((ids != PAD)[:, :, None] & sees).long()
        return {"pixel_values": torch.stack(pixels), "image_attention_mask": looks}

    return Family(_made(hf.IdeficsForVisionText2Text, config), 0, pictures, chunk=None)


def _idefics_pictures(size: int) -> Pictures:
    """A list of pictures for each row; rows that have none hold a black one, which is left out."""

    def pictures(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
        if all(number is None for number in shown):
            return {}
        shape = (1, 3, size, size)
        pixels = torch.stack([torch.zeros(shape) if number is None else noise(number, *shape) for number in shown])
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(len(shown), 1, size, size).long()}

    return pictures


def idefics2() -> Family:
    config = hf.Idefics2Config(
        vision_config=VISION, text_config=hf.MistralConfig(**TEXT, head_dim=8), image_token_id=IMAGE,
        perceiver_config={
            "hidden_size": WIDTH, "resampler_n_latents": 4, "resampler_depth": LAYERS, "resampler_n_heads": 2,
            "num_key_value_heads": 1, "resampler_head_dim": 8,
        },
    )  # fmt: skip
    return Family(_made(hf.Idefics2ForConditionalGeneration, config), 4, _idefics_pictures(8))


def idefics3() -> Family:
    config = hf.Idefics3Config(
        vision_config=VISION | {"image_size": 16}, text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE,
        scale_factor=2, pad_token_id=PAD,
    )  # fmt: skip
    return Family(_made(hf.Idefics3ForConditionalGeneration, config), 4, _idefics_pictures(16))


def paligemma() -> Family:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=hf.GemmaConfig(**TEXT, head_dim=8), image_token_index=IMAGE, projection_dim=WIDTH,
        hidden_size=WIDTH, vocab_size=VOCABULARY,
    )  # fmt: skip

    def pictures(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
        # All of a prompt is prefix (0) and read in both directions: in pieces it is read differently.
        return _stacked(3, 8, 8)(shown, ids) | {"token_type_ids": torch.zeros_like(ids)}

    return Family(_made(hf.PaliGemmaForConditionalGeneration, config), 4, pictures, chunk=None)


def gemma3() -> Family:
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VISION | {"patch_size": 2}, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(
            **TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END, mm_tokens_per_image=4,
    )  # fmt: skip
    pictures = _stacked(3, 8, 8, types="token_type_ids")
    # A picture is read in both directions, so a piece has to hold all of it.
    return Family(_made(hf.Gemma3ForConditionalGeneration, config), 4, pictures, chunk=10)


def mllama() -> Family:
    vision = VISION | {
        "num_global_layers": 1, "attention_heads": 2, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
        "intermediate_layers_indices": [0], "vision_output_dim": 32,
    }  # fmt: skip
    vision.pop("num_attention_heads")
    config = hf.MllamaConfig(
        vision_config=vision, text_config=TEXT | {"cross_attention_layers": [1]}, image_token_index=IMAGE
    )

    def pictures(shown: Sequence[int | None], ids: Tensor) -> dict[str, Tensor]:
        if all(number is None for number in shown):
            return {}
        shape = (1, 1, 3, 8, 8)
        pixels = torch.stack([torch.zeros(shape) if number is None else noise(number, *shape) for number in shown])
        sees = torch.tensor([[number is not None] for number in shown]).long()
        # From its placeholder on, a prompt looks at the picture.
        looks = (ids == IMAGE).long().cumsum(1)[:, :, None, None]
        return {
            "pixel_values": pixels, "aspect_ratio_ids": sees, "aspect_ratio_mask": torch.ones(len(shown), 1, 1).long(),
            "cross_attention_mask": looks,
        }  # fmt: skip

    return Family(_made(hf.MllamaForConditionalGeneration, config), 1, pictures, chunk=None)


FAMILIES: dict[str, Callable[[], Family]] = {
    made.__name__: made
    for made in (
        llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, idefics, idefics2, idefics3, paligemma, gemma3,
        mllama,
    )
}  # fmt: skip
