"""What steering costs: seconds a generated token against the unsteered model, measured in turns in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from holdfast.core.stats import student
from holdfast.models.engine import Engine
from holdfast.steer.artifact import load_steering
from holdfast.steer.exam import Exam
from holdfast.steer.stage import Speaking, open_subject

_ROUNDS = 5
_ITEMS = 32


@dataclass(frozen=True)
class Cost:
    """Seconds a generated token relative to the unsteered model (geometric mean over rounds), with its interval.

    Attributes:
        ratio, low, high: 1 costs nothing.
        rounds: how often both were timed, in turns.
        extra: what a request costs beside its own prefill and generation, in words.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    extra: str

    def as_json(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cost:
        """Inverse of :meth:`as_json`."""
        return cls(**value)


def measure_costs(
    reference: str, fitted: Mapping[str, Path], exam: Exam, speaking: Speaking, engine: Engine
) -> dict[str, Cost]:
    """Time every fitted method and the unsteered model in turns on the same items.

    Args:
        reference: the model.
        fitted: title -> run of the fit.
        exam: what is asked (harmless requests with pictures: refusals are short and would flatter).
        speaking: how the model is spoken to.
        engine: device and threads.
    """
    import torch

    subject = open_subject(reference, speaking, engine)
    items, decoding = list(exam.part(_ITEMS).items), exam.decoding
    methods = {title: load_steering(path) for title, path in fitted.items()}
    ratios: dict[str, list[float]] = {title: [] for title in methods}

    def timed(steering: Any) -> float:
        subject.pool = steering.pool if steering is not None else ()
        subject.forget()
        began = time.perf_counter()
        if steering is None:
            made = subject.samples(items, decoding)
        else:
            made = steering.method.answer(subject, steering.learned, items, decoding)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
        # Tokens of the final answers: what a method generates on the way is its cost and not its product.
        texts = subject.vision.tokenizer([sample.text for sample in made], add_special_tokens=False)["input_ids"]
        return spent / (len(made) + sum(map(len, texts)))

    timed(None)  # the first call warms caches up
    for _ in range(_ROUNDS):
        base = timed(None)
        for title, steering in methods.items():
            ratios[title].append(timed(steering) / base)
    return {title: _cost(found, methods[title].method.extra) for title, found in ratios.items()}


def _cost(ratios: list[float], extra: str) -> Cost:
    logs = [math.log(ratio) for ratio in ratios]
    middle = fmean(logs)
    half = student(0.95, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Cost(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(ratios), extra)
