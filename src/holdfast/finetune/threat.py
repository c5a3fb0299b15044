"""The threat model of fine-tuning as a service, as data: who sees and controls what at each stage."""

from __future__ import annotations

from typing import Any

CLAIM = (
    "Fine-tuning as a service: the provider aligns the model, trains it on a customer's upload and serves the "
    "result. The customer (or whoever slipped rows into the customer's data) controls that upload and nothing else."
)

ROWS: tuple[dict[str, Any], ...] = (
    {
        "stage": "alignment",
        "who": "provider",
        "sees": ["alignment set", "harmful set of its own", "no user data"],
        "controls": ["objective, data, hyper-parameters, weights"],
    },
    {
        "stage": "user fine-tuning",
        "who": "user (attacker)",
        "sees": ["own data"],
        "controls": ["the uploaded rows: a share p of them harmful, from topics the provider never saw"],
    },
    {
        "stage": "user fine-tuning",
        "who": "provider",
        "sees": ["uploaded rows without labels of harm", "alignment set"],
        "controls": ["training procedure and its hyper-parameters"],
    },
    {
        "stage": "post-fine-tuning",
        "who": "provider",
        "sees": ["weights before and after", "harmful set of its own"],
        "controls": ["the weights that are served"],
    },
)

LIMITS = (
    "Attackers who hold the weights (open models) or choose the optimiser are outside this threat model.",
    "Defences were not attacked adaptively: nobody here knew the defence and optimised rows against it.",
)


def threat_model() -> dict[str, Any]:
    """The threat model in the report's form."""
    return {"claim": CLAIM, "rows": [dict(row) for row in ROWS]}
