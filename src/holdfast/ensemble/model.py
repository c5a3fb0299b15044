"""An ensemble with its members: a Model that answers Items, whoever of the members is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.core.errors import HoldfastError, ModelError, UsageError
from holdfast.core.records import Item, Sample
from holdfast.ensemble.collect import Given, Line
from holdfast.ensemble.members import Members
from holdfast.ensemble.record import Ensemble
from holdfast.ensemble.table import Row

_FAILURES = 3  # in a row, after which a member is left alone for a while
_PAUSE = 30.0  # seconds
_AT_ONCE = 8  # items under way
_GRACE = 0.5  # seconds in which a member's own time-out tells what was wrong


@dataclass(frozen=True)
class Combined:
    """One answer of an ensemble.

    Attributes:
        text: None where no member answered.
        probability: calibrated, of being right; None without an answer.
        given: what each member said.
        dollars: cost of the members' answers.
        seconds: that it took.
    """

    text: str | None
    probability: float | None
    given: Mapping[str, Given]
    dollars: float
    seconds: float


@dataclass
class _State:
    """How a member has been doing."""

    failures: int = 0
    until: float = 0.0


@dataclass
class EnsembleModel:
    """A fitted ensemble over its members' endpoints; threads may share it.

    Attributes:
        ensemble: the fitted team.
        members: where its members are; those that it does not use are not asked.
        cache: folder of the members' answers on disk; None: nothing is kept.
        workers: requests to members under way at once.
        answer_within: seconds after which a member counts as silent; None: its own timeout.
    """

    ensemble: Ensemble
    members: Members
    cache: Path | None = None
    workers: int = 64
    answer_within: float | None = None
    _lines: dict[str, Line] = field(default_factory=dict, init=False)
    _states: dict[str, _State] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        chosen = self.members.of(self.ensemble.models)
        local = [one.name for one in chosen.member if one.local]
        if local:
            raise UsageError(
                f"{local[0]!r} is a local model: an ensemble asks endpoints",
                hint="serve it (vLLM and llama.cpp speak the protocol) and give its url",
            )
        self._lines = {one.name: Line(one, chosen.prompt, self.cache) for one in chosen.member}
        self._states = {one.name: _State() for one in chosen.member}
        self._pool = ThreadPoolExecutor(self.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for line in self._lines.values():
            line.chat.close()

    def say(self, messages: Sequence[Mapping[str, str]], n_options: int = 0) -> Combined:
        """The ensemble's answer to a conversation. A member that fails or is late is left out."""
        began = time.monotonic()
        given = {name: Given(error="left alone after repeated failures") for name in self._lines}
        asked: dict[str, Future[Given]] = {
            name: self._pool.submit(line.say, messages, n_options)
            for name, line in self._lines.items()
            if time.monotonic() >= self._states[name].until
        }
        limit = self.answer_within or max(
            line.member.timeout * (1 + line.member.retries) for line in self._lines.values()
        )
        wait(asked.values(), timeout=limit + _GRACE)
        for name, future in asked.items():
            given[name] = self._result(name, future)
        row = Row(
            "request", n_options=n_options, answers={name: list(one.texts) or [None] for name, one in given.items()}
        )
        row.probs = {name: one.probs for name, one in given.items() if one.probs}
        (made,) = self.ensemble.combine(self.ensemble.outputs([row]))
        dollars = sum(one.cost for one in given.values())
        return Combined(made["answer"], made["probability"], given, dollars, time.monotonic() - began)

    def _result(self, name: str, future: Future[Given]) -> Given:
        state = self._states[name]
        if not future.done():
            future.cancel()
            error = "no answer in time"
        else:
            try:
                made = future.result()
                state.failures = 0
                return made
            except HoldfastError as problem:
                error = problem.message
        state.failures += 1
        if state.failures >= _FAILURES:
            state.until, state.failures = time.monotonic() + _PAUSE, 0
        return Given(error=error)

    def answer(self, items: Sequence[Item]) -> list[Sample]:
        """One Sample an Item, in order: what every other part reads.

        Raises:
            ModelError: no member answered an item.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._sample, items))

    def _sample(self, item: Item) -> Sample:
        text = f"{item.prompt}\n{item.input}" if item.input else item.prompt
        system = [{"role": "system", "content": item.system}] if item.system else []
        found = self.say([*system, {"role": "user", "content": text}])
        if found.text is None:
            reasons = "; ".join(f"{name}: {one.error or 'no readable answer'}" for name, one in found.given.items())
            raise ModelError(
                f"no member answered item {item.id!r} ({reasons})", hint="start the members, then run the same command"
            )
        tokens = sum(one.tokens[1] for one in found.given.values())
        return Sample(item, found.text, tokens, "stop")


def details(found: Combined) -> dict[str, Any]:
    """What stands behind an answer, as JSON values."""
    return {
        "probability": found.probability,
        "dollars": found.dollars,
        "seconds": round(found.seconds, 3),
        "members": {
            name: {
                "answers": one.texts, "error": one.error or None, "dollars": one.cost, "seconds": round(one.seconds, 3)
            }
            for name, one in found.given.items()
        },
    }  # fmt: skip
