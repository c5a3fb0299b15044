"""Typed events. Core and the parts emit them; only the CLI's renderers print."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``run`` names the run folder, empty outside one."""

    kind: ClassVar[str] = "event"
    run: str = ""
    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """JSON object with the kind of event first."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage (align, finetune, repair, ask, judge) began; ``total`` counts its steps or items."""

    kind: ClassVar[str] = "started"
    stage: str = ""
    label: str = ""
    total: int = 0
    done: int = 0


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """``done`` of ``total``; ``loss`` when training; ``detail`` holds what the method measured."""

    kind: ClassVar[str] = "progress"
    done: int = 0
    total: int = 0
    loss: float | None = None
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageFinished(Event):
    """A stage ended; ``reused`` when its sealed result was found and nothing had to run."""

    kind: ClassVar[str] = "finished"
    stage: str = ""
    seconds: float = 0.0
    reused: bool = False
    peak_bytes: int | None = None
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the user should know; ``hint`` says what to do about it."""

    kind: ClassVar[str] = "warning"
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class GridProgressed(Event):
    """Cells of a grid: ``done`` of ``total`` stages ran or were reused."""

    kind: ClassVar[str] = "grid"
    done: int = 0
    total: int = 0
    reused: int = 0


Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The default sink."""


class Fanout:
    """Hands each event to several sinks, one event at a time (workers report from threads)."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Hand the event on."""
        with self._lock:
            for sink in self._sinks:
                sink(event)
