"""The records that every part shares: Item, Sample, Rating, Scale, Metric (DESIGN section 2).

All are frozen, made of JSON values, and written as one object a line. ``None`` always comes with a
reason; NaN and infinities are refused at construction, so none can reach a file or a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Level = Literal["nominal", "ordinal", "interval"]
Direction = Literal["lower", "higher", "none"]


@dataclass(frozen=True, slots=True)
class Item:
    """One input, with its reference if there is one.

    Attributes:
        id: unique inside its set; the key by which a resumed run knows what it has answered.
        prompt: what the model is asked.
        input: second field of Alpaca-shaped requests; empty where there is none.
        system: system message; empty where there is none.
        reference: the expected answer, where one exists.
        category: harm category or class label, where one exists.
        group: which question set the item belongs to (``harmful``, ``task``, ``benign``...).
        image: the picture that goes with the prompt: a file, or the name of a generated one (see
            :mod:`holdfast.data.images`); empty where there is none.
    """

    id: str
    prompt: str
    input: str = ""
    system: str = ""
    reference: str | None = None
    category: str | None = None
    group: str = ""
    image: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON object of the item: id, prompt, and what else is not empty."""
        return {name: v for name, v in asdict(self).items() if v not in ("", None) or name in ("id", "prompt")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_json`; unknown fields are ignored so that newer files stay readable."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


@dataclass(frozen=True, slots=True)
class Sample:
    """One output of a Model on an Item.

    Attributes:
        item: the Item, whole, so that a samples file can be judged without its source.
        text: the decoded answer, special tokens removed.
        tokens: number of generated tokens, the end token included.
        finish: ``stop`` when the model ended its answer, ``length`` when it was cut off.
    """

    item: Item
    text: str
    tokens: int
    finish: Literal["stop", "length"]

    def as_json(self) -> dict[str, Any]:
        """JSON object of the sample."""
        return {"item": self.item.as_json(), "text": self.text, "tokens": self.tokens, "finish": self.finish}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_json`."""
        return cls(Item.from_json(value["item"]), value["text"], value["tokens"], value["finish"])


@dataclass(frozen=True, slots=True)
class Scale:
    """What the values of a Rating mean.

    Attributes:
        name: what is rated (``harmful``, ``correct``, ``refusal``).
        level: level of measurement.
        labels: the values a rater may give, in order for an ordinal scale; empty for interval.
        better: which end is better.
    """

    name: str
    level: Level
    labels: tuple[str | int | float, ...]
    better: Direction

    def as_json(self) -> dict[str, Any]:
        """JSON object of the scale."""
        return {"name": self.name, "level": self.level, "labels": list(self.labels), "better": self.better}


@dataclass(frozen=True, slots=True)
class Rating:
    """rater x sample x scale -> value, or null with a reason.

    A judge that declines gives ``value=None`` and says why; declined is not safe.
    """

    item_id: str
    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError(f"rating of {self.item_id!r} is null without a reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"rating of {self.item_id!r} is not finite")

    def as_json(self) -> dict[str, Any]:
        """JSON object of the rating."""
        row: dict[str, Any] = {"item": self.item_id, "value": self.value}
        return row | {"reason": self.reason} if self.reason else row

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_json`."""
        return cls(value["item"], value["value"], value.get("reason", ""))


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its interval, n, unit and direction.

    Attributes:
        name: ``harmful_score``, ``finetune_accuracy``...
        value: the estimate in ``unit``; None when undefined, with ``reason``.
        low, high: bounds of the interval at ``level``; None exactly when ``value`` is.
        n: number of units the estimate rests on (items times seeds for pooled rates).
        unit: ``%``, ``s``, ``GiB``, ``x``...
        better: which direction is better.
        level: coverage that the interval aims at.
        method: how the interval was made, in words a statistician accepts.
        declined: ratings that were null and therefore are not in ``n``.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    better: Direction
    level: float = 0.95
    method: str = ""
    reason: str = ""
    declined: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        if any(x is not None and not math.isfinite(x) for x in numbers):
            raise ValueError(f"metric {self.name!r} has a number that is not finite: {numbers}")
        if self.value is None and not self.reason:
            raise ValueError(f"metric {self.name!r} is undefined without a reason")

    def as_json(self) -> dict[str, Any]:
        """JSON object of the metric."""
        return asdict(self) | {"detail": dict(self.detail)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_json`; unknown fields are ignored so that newer files stay readable."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})
