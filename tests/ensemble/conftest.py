"""Small outputs."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.table import Row, outputs_of

LETTERS = "ABCD"


def voters(n_items: int, skills: list[float], seed: int = 0, subjects: int = 1) -> Outputs:
    """Choices of models that know the answer with these probabilities and guess otherwise; all miss a tenth."""
    generator = np.random.default_rng(seed)
    rows = []
    for item in range(n_items):
        gold, hard = int(generator.integers(4)), generator.random() < 0.1
        row = Row(f"q{item}", gold=(LETTERS[gold],), n_options=4, subject=f"s{item % subjects}" if subjects > 1 else "")
        for place, skill in enumerate(skills):
            knows = not hard and generator.random() < skill
            row.answers[f"m{place}"] = [LETTERS[gold if knows else int(generator.integers(4))]]
        rows.append(row)
    return outputs_of(rows)


@pytest.fixture
def pool() -> Outputs:
    """Five models of different strength on 400 items."""
    return voters(400, [0.3, 0.5, 0.55, 0.6, 0.65])
