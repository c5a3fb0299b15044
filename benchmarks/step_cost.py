"""Cost of an optimiser step: each method against SFT, and Holdfast's loop against a bare PyTorch loop.

    python benchmarks/step_cost.py [--shape sandbox|small] [--rounds 9] [--out benchmarks/results/step_cost.json]

Everything is measured in one process and reported as ratios: the rounds interleave the methods, each round gives
one ratio a method, and the median over rounds is printed with its range. Processor seconds of one thread.
Limits named in the project's issue: Vaccine 2.1, Booster 3.15, Lisa 1.05, loop overhead 1.10.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.data import sandbox
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.alignment.vaccine import Vaccine
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.loop import Job, train
from holdfast.finetune.settings import Training
from holdfast.finetune.streams import RowStream
from holdfast.models.engine import Engine
from holdfast.models.load import load_model, load_tokenizer, resolve
from holdfast.models.template import Encoded, Template

LIMITS = {"vaccine": 2.1, "booster": 3.15, "lisa": 1.05, "loop": 1.10}
METHODS: dict[str, Any] = {
    "sft": SFT(),
    "vaccine": Vaccine(rho=2.0),
    "booster": Booster(alpha=0.01),
    "lisa": Lisa(rho=1.0, align_steps=10, user_steps=10),
}
SHAPES = {"sandbox": None, "small": (256, 6, 704)}


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(1)
    model, rows, pad = _setup(options.shape)
    ratios: dict[str, list[float]] = {name: [] for name in [*METHODS, "loop"]}
    seconds: dict[str, list[float]] = {name: [] for name in [*METHODS, "bare"]}
    for number in range(options.rounds + 1):
        measured = {name: _run(method, model, rows, pad, options.steps) for name, method in METHODS.items()}
        measured["bare"] = _bare(model, rows, pad, options.steps)
        if number == 0:
            continue  # warm-up
        for name, value in measured.items():
            seconds[name].append(1000 * value)
        for name in METHODS:
            ratios[name].append(measured[name] / measured["sft"])
        ratios["loop"].append(measured["sft"] / measured["bare"])
    report = {
        "shape": options.shape,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": options.steps,
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, torch {torch.__version__}, one thread",
        "milliseconds": {name: round(statistics.median(v), 2) for name, v in seconds.items()},
        "ratios": {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in ratios.items() if v},
        "limits": LIMITS,
    }
    for name, value in report["ratios"].items():
        limit = LIMITS.get(name)
        kept = "" if limit is None else f"   limit {limit}  {'kept' if value['median'] <= limit else 'EXCEEDED'}"
        print(f"{name:8} {value['median']:.2f}x  [{value['min']:.2f}, {value['max']:.2f}]{kept}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sandbox")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _setup(shape: str) -> tuple[Any, dict[str, list[Encoded]], int]:
    source = resolve("sandbox/micro-0")
    template = Template(load_tokenizer(source))
    sets = {
        "safety": sandbox.rows("sandbox/align-0", 1000, 0),
        "harmful": sandbox.rows("sandbox/harmful-0", 1000, 0),
        # The same rows for both stages: a user step must not look cheaper for having shorter answers.
        "user": sandbox.rows("sandbox/align-0", 1000, 1),
    }
    rows = {name: template.encode_all(found, 64, name)[0] for name, found in sets.items()}
    model: Any = load_model(source, torch.float32)
    if SHAPES[shape] is not None:
        hidden, layers, inner = SHAPES[shape]
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}
        model = LlamaForCausalLM(
            LlamaConfig(
                **{
                    **model.config.to_dict(),
                    **sizes,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 8,
                    "head_dim": hidden // 8,
                }
            )
        )
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        part.requires_grad_(False)
    return model, rows, template.pad


def _run(method: Any, model: Any, rows: dict[str, list[Encoded]], pad: int, steps: int) -> float:
    """Processor seconds a step of a method in Holdfast's loop."""
    fresh = copy.deepcopy(model)
    streams = {name: RowStream(found, 16, 1, pad, 0, name) for name, found in rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(fresh, method, streams, Training(steps=steps, batch_size=16, learning_rate=1e-4), steps, Path(folder))
        began = time.process_time()
        train(job, Engine(device="cpu"))
        return (time.process_time() - began) / steps


def _bare(model: Any, rows: dict[str, list[Encoded]], pad: int, steps: int) -> float:
    """Processor seconds a step of the shortest correct PyTorch loop on the same batches and loss."""
    fresh = copy.deepcopy(model).train()
    trained = [p for p in fresh.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    stream = RowStream(rows["safety"], 16, 1, pad, 0, "safety")
    began = time.process_time()
    for _ in range(steps):
        micro = stream.draw(torch.device("cpu")).micros[0]
        targets = micro.labels[:, 1:]
        where = (targets != -100).any(0).nonzero()[:, 0]
        logits = fresh(input_ids=micro.ids, use_cache=False, logits_to_keep=where).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, where].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.process_time() - began) / steps


if __name__ == "__main__":
    main()
