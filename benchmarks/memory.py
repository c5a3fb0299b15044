"""Extra memory of each method over SFT, in copies of the trainable parameters (limit: two).

    python benchmarks/memory.py [--out benchmarks/results/memory.json]

Each method trains a Llama-shaped model of random weights (about 38M parameters, all trained, tiny batches so that
activations do not count) for three steps in a process of its own; the figure is its peak resident memory
above SFT's, divided by the bytes of the trainable parameters. Linux only (it reads the process's VmHWM).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 2.0
METHODS = ("sft", "vaccine", "booster", "lisa")


def main() -> None:
    """Measure every method in its own process, three times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    rows = {name: sorted(_measured(name)["peak"] for _ in range(3))[1] for name in METHODS}
    size = _measured("sft")["trainable"]
    copies = {name: round((peak - rows["sft"]) / size, 2) for name, peak in rows.items()}
    for name, value in copies.items():
        print(f"{name:8} {value:+.2f} copies of the trainables over SFT   {'kept' if value <= LIMIT else 'OVER'}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"copies": copies, "limit": LIMIT, "trainable_bytes": size, "peak_bytes": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _measured(name: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(name: str) -> dict[str, int]:
    """Peak resident bytes and trainable bytes of three steps of a method."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdfast.finetune.alignment.booster import Booster
    from holdfast.finetune.alignment.sft import SFT
    from holdfast.finetune.alignment.vaccine import Vaccine
    from holdfast.finetune.finetuning.lisa import Lisa
    from holdfast.finetune.loop import Job, train
    from holdfast.finetune.settings import Training
    from holdfast.finetune.streams import RowStream
    from holdfast.models.engine import Engine
    from holdfast.models.template import Encoded

    torch.set_num_threads(1)
    methods = {"sft": SFT(), "vaccine": Vaccine(), "booster": Booster(), "lisa": Lisa(align_steps=1, user_steps=1)}
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=8, **shape))
    rows = [Encoded(tuple(range(10, 18)), 4)] * 8
    streams = {stream: RowStream(rows, 1, 1, 0, 0, stream) for stream in ("safety", "harmful", "user")}
    with tempfile.TemporaryDirectory() as folder:
        training = Training(steps=4, batch_size=1, learning_rate=1e-5)
        train(Job(model, methods[name], streams, training, 4, Path(folder)), Engine(device="cpu"))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {"peak": int(found[1]) * 1024, "trainable": trainable}


if __name__ == "__main__":
    main()
