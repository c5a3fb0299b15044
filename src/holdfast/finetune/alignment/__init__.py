"""Alignment-stage methods: what the provider does before any user fine-tunes. One file a paper."""

from __future__ import annotations

from holdfast.core.methods import Entry, Table

_HERE = "holdfast.finetune.alignment"

ALIGNMENT = Table(
    "alignment-stage method",
    "holdfast.alignment",
    {
        "sft": Entry(f"{_HERE}.sft:SFT", "supervised fine-tuning on the alignment set: no defence"),
        "vaccine": Entry(f"{_HERE}.vaccine:Vaccine", "perturbation-aware alignment (NeurIPS 2024)"),
        "booster": Entry(f"{_HERE}.booster:Booster", "attenuate the harmful perturbation (ICLR 2025)"),
    },
)
