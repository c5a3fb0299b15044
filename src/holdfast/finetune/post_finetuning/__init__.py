"""Post-fine-tuning-stage methods: what the provider does to the tuned model. One file a paper."""

from __future__ import annotations

from holdfast.core.methods import Entry, Table

_HERE = "holdfast.finetune.post_finetuning"

POST_FINETUNING = Table(
    "post-fine-tuning-stage method",
    "holdfast.post_finetuning",
    {
        "antidote": Entry(f"{_HERE}.antidote:Antidote", "remove harmful coordinates found by Wanda scores (ICML 2025)"),
    },
)
