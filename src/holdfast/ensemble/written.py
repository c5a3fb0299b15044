"""TOPLA-Summary measured: trained on one part of a table, and what it writes compared on the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from holdfast.core.errors import DataError
from holdfast.core.events import Sink, ignore
from holdfast.core.files import read_json, write_json
from holdfast.core.knobs import resolved
from holdfast.core.records import Metric
from holdfast.core.runs import Run, Store
from holdfast.core.stats import difference_interval, mean_interval
from holdfast.ensemble.answers import best_f1, counts_f1, exact, normal
from holdfast.ensemble.outputs import Floats
from holdfast.ensemble.summary import ToplaSummary
from holdfast.ensemble.table import Row

KIND = "ensemble-summary"
_FEWEST = 20

Texts = Sequence[str]


def measure(
    rows: Sequence[Row],
    method: ToplaSummary,
    spec: Mapping[str, Any],
    store: Store,
    *,
    test: float,
    sink: Sink = ignore,
) -> tuple[Run, dict[str, Any]]:
    """Train on one part of the items, answer the other by real generation, and keep model and figures as a run.

    Args:
        rows: items with question, candidates and references.
        method: what is trained.
        spec: what identifies the rows.
        store: where runs are.
        test: share of the items kept to measure on.
        sink: where progress goes.

    Raises:
        DataError: too few items with a question, a right answer and candidates.
    """
    usable = [row for row in rows if row.question and row.gold and any(any(texts) for texts in row.answers.values())]
    if len(usable) < _FEWEST:
        raise DataError(
            f"{len(usable)} items have a question, a right answer and candidates",
            hint="JSON Lines with item, question, references, answers; at least 20",
        )
    began = time.perf_counter()
    run = store.run(KIND, KIND, {**spec, "knobs": resolved(method), "version": method.version, "test": test})
    with run.working(sink) as inner:
        if run.sealed and (run.path / "metrics.json").is_file():
            return run, read_json(run.path / "metrics.json")
        order = np.random.default_rng([method.seed, 1234]).permutation(len(usable))
        held = max(1, round(test * len(usable)))
        check, train = ([usable[i] for i in part] for part in (order[:held], order[held:]))
        fuser = method.fit(*_columns(train), run.artifacts / "summary", inner)
        questions, candidates, _ = _columns(check)
        said = {"TOPLA-Summary": fuser.answer(questions, candidates), **_rivals(train, check)}
        result = _compared(said, check) | {
            "items": {"train": len(train), "test": len(check), "unused": len(rows) - len(usable)},
            "members": list(fuser.members),
            "history": fuser.history,
            "shortened": fuser.shortened,
        }
        write_json(run.path / "metrics.json", result)
        run.seal(time.perf_counter() - began, token_f1=result["texts"]["TOPLA-Summary"]["token F1"]["value"])
    return run, result


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[dict[str, list[str]]], list[str]]:
    candidates = [{name: [t for t in texts if t] for name, texts in row.answers.items() if any(texts)} for row in rows]
    return [row.question for row in rows], candidates, [row.gold[0] for row in rows]


def _rivals(train: Sequence[Row], check: Sequence[Row]) -> dict[str, list[str]]:
    """The member with the best mean token F1 in training, alone, and the medoid of all."""
    names = list(dict.fromkeys(name for row in train for name in row.answers))
    means = {name: float(np.mean([best_f1(_first(row, name), row.gold) for row in train])) for name in names}
    best = max(means, key=lambda name: means[name])
    return {f"best single: {best}": [_first(row, best) for row in check], "medoid": [_medoid(row) for row in check]}


def _first(row: Row, name: str) -> str:
    return next((text for text in row.answers.get(name, []) if text), "")


def _medoid(row: Row) -> str:
    from collections import Counter

    texts = [text for given in row.answers.values() for text in given if text]
    bags = [Counter(normal(text).split()) for text in texts]
    return texts[int(np.argmax([sum(counts_f1(one, other) for other in bags) for one in bags]))]


def _compared(said: Mapping[str, Texts], check: Sequence[Row]) -> dict[str, Any]:
    """Token F1 and exact match of each, and what TOPLA-Summary is above the others, on the same items."""
    scored: dict[str, dict[str, Floats]] = {
        name: {
            "token F1": np.array([best_f1(text, row.gold) for text, row in zip(texts, check, strict=True)]),
            "exact match": np.array([float(exact(text, row.gold)) for text, row in zip(texts, check, strict=True)]),
        }
        for name, texts in said.items()
    }
    ours = scored["TOPLA-Summary"]
    return {
        "texts": {name: {key: _mean(key, values) for key, values in one.items()} for name, one in scored.items()},
        "gains": {
            name: {key: _gain(key, ours[key], values) for key, values in one.items()}
            for name, one in scored.items()
            if name != "TOPLA-Summary"
        },
    }


def _mean(name: str, values: Floats) -> dict[str, Any]:
    value, low, high = (100 * x for x in mean_interval([values]))
    return asdict(Metric(name, value, low, high, len(values), "%", "higher", method="Wilson, effective sample size"))


def _gain(name: str, left: Floats, right: Floats) -> dict[str, Any]:
    value, low, high = (100 * x for x in difference_interval([left], [right]))
    return asdict(Metric(name, value, low, high, len(left), "points", "higher", method="paired, normal"))
