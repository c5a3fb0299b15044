"""Fine-tuning-stage methods: how the provider trains on the user's data. One file a paper."""

from __future__ import annotations

from holdfast.core.methods import Entry, Table

_HERE = "holdfast.finetune.finetuning"

FINETUNING = Table(
    "fine-tuning-stage method",
    "holdfast.finetuning",
    {
        "sft": Entry(f"{_HERE}.sft:SFT", "supervised fine-tuning on the user's data: no defence"),
        "lisa": Entry(f"{_HERE}.lisa:Lisa", "two states with a proximal term (NeurIPS 2024); rho = 0 is BSO"),
        "safeinstruct": Entry(f"{_HERE}.safeinstruct:SafeInstruct", "safety rows mixed into the upload (ICLR 2024)"),
    },
)
