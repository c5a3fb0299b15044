"""Requests: what has a key before it runs, and a run folder after.

Training stages, answering and benches are all Requests, so one function decides whether a result is reused,
finished, mended or made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from holdfast.core.events import Sink, StageFinished, StageStarted, Warned, ignore
from holdfast.core.keys import key_of
from holdfast.core.runs import Run, Store


class Request(Protocol):
    """A result that can be asked for by its content.

    Attributes:
        kind: ``align``, ``finetune``, ``repair``, ``ask``, ``bench``.
        label: first part of the run folder's name.
        spec: everything that the result depends on, as JSON values.
        attacked: whether the weights involved were tuned on harmful rows.
    """

    @property
    def kind(self) -> str:
        """``align``, ``finetune``, ``repair`` or ``ask``."""
        ...

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        ...

    @property
    def attacked(self) -> bool:
        """Whether harmful rows went into the weights."""
        ...

    def validate(self) -> None:
        """Refuse what cannot work, before heavy work."""
        ...

    def make(self, store: Store, engine: Any = None, sink: Sink = ignore) -> Run:
        """The sealed run of this request."""
        ...


def request_key(request: Request) -> str:
    """Key of the run that a request leads to."""
    return key_of({"kind": request.kind, "spec": request.spec})


def find_or_make(request: Request, store: Store, sink: Sink, work: Callable[[Run, Sink], dict[str, Any]]) -> Run:
    """The run of a request: reused when sealed and undamaged, else made under the folder's lock.

    Args:
        request: what is wanted.
        store: where runs are.
        sink: where events go.
        work: called when there is work to do; returns what the seal is to show (``seconds`` among it,
            when the work knows better than the clock around it).

    Raises:
        HoldfastError: the work failed; what it finished is kept.
    """
    request.validate()  # first: knobs that are not numbers have no key
    run = store.run(request.kind, request.label, request.spec)
    if run.sealed:
        sink(StageFinished(run=run.name, stage=request.kind, reused=True))
        return run
    with run.working(sink) as log:
        problem = run.damage()
        if problem is None:  # another process made it while this one waited
            log(StageFinished(run=run.name, stage=request.kind, reused=True))
            return run
        if run.seal_record() is not None:
            log(Warned(run=run.name, message=f"{run.name} was finished, but {problem}; making it again"))
            run.reset()
        began = time.perf_counter()
        log(StageStarted(run=run.name, stage=request.kind, label=request.label))
        summary = work(run, log)
        seconds = float(summary.pop("seconds", time.perf_counter() - began))
        run.seal(seconds, **summary)
        log(StageFinished(run=run.name, stage=request.kind, seconds=seconds, peak_bytes=summary.get("peak_bytes")))
    return run
