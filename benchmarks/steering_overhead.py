"""What steering costs a generated token, against the same model without it, in turns in one process.

    python benchmarks/steering_overhead.py            a LLaVA of 0.2 billion random weights on the CPU
    python benchmarks/steering_overhead.py --large    LLaVA-1.5-7B's shape in bf16, on an accelerator

Limits: folded 1.00 (to the noise of the run, 1.02), a dataset-level hook under 1.02 a generated token, the sample level
at most its further prefills. Writes benchmarks/results/steering_overhead.json; ends with exit code 1 where a limit is
missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from holdfast.models.vision import VisionModel
from holdfast.steer.capture import states
from holdfast.steer.fold import folded
from holdfast.steer.intervene import Edit, Intervention
from holdfast.steer.methods.cmrm import added

LARGE = "--large" in sys.argv
ROUNDS, TOKENS = (7, 64) if LARGE else (9, 24)
TEXT_TOKENS, IMAGE_TOKENS = 40, 576
DEVICE = "cuda" if LARGE else "cpu"
DTYPE = torch.bfloat16 if LARGE else torch.float32
OUT = Path(__file__).parent / "results" / "steering_overhead.json"


def llava() -> Any:
    text = (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        if LARGE
        else {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16, "num_attention_heads": 16}
    )
    vision = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14),
        text_config=LlamaConfig(vocab_size=32_064 if LARGE else 4096, **text),
        image_token_index=31 if not LARGE else 32_000, vision_feature_layer=-1, image_seq_length=IMAGE_TOKENS,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlavaForConditionalGeneration(config)
    return model.to(DTYPE).eval().requires_grad_(False)


def inputs_of(model: Any, image: bool = True) -> dict[str, Any]:
    ids = torch.randint(100, 3000, (1, TEXT_TOKENS))
    if image:
        ids = torch.cat([torch.full((1, IMAGE_TOKENS), model.config.image_token_id), ids], 1)
    made: dict[str, Any] = {"input_ids": ids.to(DEVICE), "attention_mask": torch.ones_like(ids).to(DEVICE)}
    if image:
        made["pixel_values"] = torch.rand(1, 3, 336, 336, device=DEVICE, dtype=DTYPE)
    return made


def seconds(work: Callable[[], object]) -> float:
    if LARGE:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode():
        work()
    if LARGE:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def a_token(model: Any, inputs: dict[str, Any], around: Callable[[], AbstractContextManager[object]]) -> float:
    """Seconds of a generated token after the first: the prefill is left out."""

    def generate(count: int) -> Callable[[], object]:
        settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return lambda: model.generate(**inputs, generation_config=settings)

    with around():
        return (seconds(generate(TOKENS + 1)) - seconds(generate(1))) / TOKENS


def main() -> int:
    model = llava()
    depth, width = model.config.text_config.num_hidden_layers, model.config.text_config.hidden_size
    shift = 0.01 * torch.randn(width)
    layers = range(depth - 2, depth)
    edits = [Edit(n, added(shift[None]), "last", "all") for n in layers]
    every = [Edit(n, added(shift[None]), "all", "all") for n in range(depth)]
    bias = folded(VisionModel(model, None), dict.fromkeys(layers, shift)).to(DEVICE)
    inputs = inputs_of(model)
    ways: dict[str, tuple[Any, Callable[[], AbstractContextManager[object]]]] = {
        "hook, two layers": (model, lambda: Intervention(edits).on(model)),
        "hook, all layers": (model, lambda: Intervention(every).on(model)),
        "folded": (bias, nullcontext),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    a_token(model, inputs, nullcontext)
    for _ in range(ROUNDS):
        for name, (steered, around) in ways.items():
            # Before and after, so that a drift of the machine's speed does not land on one side.
            before = a_token(model, inputs, nullcontext)
            ratios[name].append(a_token(steered, inputs, around) / ((before + a_token(model, inputs, nullcontext)) / 2))
    text, prompt = inputs_of(model, image=False), inputs
    prefills = [(seconds(lambda: states(model, text)), seconds(lambda: states(model, prompt))) for _ in range(ROUNDS)]
    result = {
        "device": torch.cuda.get_device_name() if LARGE else "cpu", "shape": {"layers": depth, "width": width},
        "dtype": str(DTYPE), "tokens": TOKENS, "rounds": ROUNDS,
        "seconds_a_token_ratio": {n: summary(r) for n, r in ratios.items()},
        "text_prefill_share_of_prompt_prefill": summary([a / b for a, b in prefills]),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    OUT.parent.mkdir(exist_ok=True)
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(kept | {"large" if LARGE else "cpu": result}, indent=1) + "\n")
    medians = {name: statistics.median(found) for name, found in ratios.items()}
    return int(medians["hook, two layers"] > 1.02 or medians["folded"] > 1.02)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4)}


if __name__ == "__main__":
    sys.exit(main())
