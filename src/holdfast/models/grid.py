"""Running a grid: every distinct stage once, in as many processes as there are cores.

The run folders carry all state, so a grid that was killed, or lost a process, is finished by the same call.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from holdfast.core.errors import HoldfastError, Interrupted, ResourceError, UsageError
from holdfast.core.events import Event, Fanout, GridProgressed, Sink, ignore
from holdfast.core.runs import Store
from holdfast.core.stage import Request
from holdfast.models.ask import samples_of
from holdfast.models.engine import Engine
from holdfast.raters.base import Judge
from holdfast.raters.judging import judge_run

Judges = tuple[tuple[str, Judge], ...]

_PARTING = 2.0  # seconds that a stopped worker, whose work is done, has to end by itself


@dataclass(frozen=True)
class Task:
    """One distinct stage to make, and who judges it when it is a set of answers."""

    key: str
    request: Request
    judges: Judges = ()


@dataclass
class GridResult:
    """What ran, what was found finished, and what failed (key -> reason)."""

    made: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_tasks(
    tasks: Mapping[str, Task],
    parents: Mapping[str, str],
    store: Store,
    engine: Engine,
    *,
    workers: int = 0,
    sink: Sink = ignore,
) -> GridResult:
    """Make every stage of a grid.

    Args:
        tasks: what to make, by key; a stage comes after the one that it starts from.
        parents: key of a stage -> key of the stage that it starts from, where there is one.
        store: where runs are.
        engine: device and threads of each process.
        workers: processes; 0 is one for each core (one in all when an accelerator is used); 1 runs in this process.
        sink: where events go.

    Returns:
        counts, and the stages that failed; stages that depend on a failed one fail with its reason.

    Raises:
        Interrupted: Ctrl-C; what was finished is kept.
        ResourceError: a process was killed (usually for memory).
    """
    if workers < 0:
        raise UsageError(f"workers = {workers}", hint="give 1 or more, or 0 for one process a core")
    count = workers or default_workers(engine)
    if count == 1 or len(tasks) == 1:
        return _run_here(tasks, parents, store, engine, sink)
    return _run_pool(tasks, parents, store, engine, min(count, len(tasks)), sink)


def default_workers(engine: Engine) -> int:
    """One process a core on the CPU; one where an accelerator would be shared."""
    import torch

    if engine.device != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_task(task: Task, store: Store, engine: Engine, sink: Sink) -> bool:
    """Make one stage and, for answers, rate them; returns whether everything was already there.

    Raises:
        HoldfastError: see :mod:`holdfast.core.errors`.
    """
    run = store.run(task.request.kind, task.request.label, task.request.spec)
    reused = run.sealed
    run = task.request.make(store, engine, sink)
    if task.judges:
        samples = samples_of(run)
        for group, judge in task.judges:
            judge_run(run, judge, samples, group=group, sink=sink)
    return reused


def _run_here(
    tasks: Mapping[str, Task], parents: Mapping[str, str], store: Store, engine: Engine, sink: Sink
) -> GridResult:
    result = GridResult()
    for key, task in tasks.items():
        parent = parents.get(key)
        if parent in result.failed:
            result.failed[key] = result.failed[parent]
            continue
        try:
            _count(result, make_task(task, store, engine, sink))
        except Interrupted:
            raise
        except HoldfastError as error:
            result.failed[key] = error.message
        _tell(result, len(tasks), sink)
    return result


def _run_pool(
    tasks: Mapping[str, Task], parents: Mapping[str, str], store: Store, engine: Engine, workers: int, sink: Sink
) -> GridResult:
    """Hand out each stage when the one it starts from is there."""
    sink = Fanout(sink)  # the workers' events come from a thread, the counts from here
    result = GridResult()
    waiting = dict(tasks)
    running: dict[Future[bool], str] = {}
    context = multiprocessing.get_context("spawn")
    # Each process computes with its share of the cores.
    engine = engine if engine.threads else replace(engine, threads=max(1, default_workers(engine) // workers))
    with _events(context, sink) as queue, _pool(context, workers, (store, engine, queue), running) as pool:
        while waiting or running:
            for key in _ready(parents, waiting, running, result):
                running[pool.submit(_in_worker, waiting.pop(key))] = key
            _drop_orphans(parents, waiting, result)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                _collect(future, running.pop(future), result)
                _tell(result, len(tasks), sink)
    return result


def _ready(
    parents: Mapping[str, str], waiting: Mapping[str, Task], running: Mapping[Future[bool], str], result: GridResult
) -> list[str]:
    """Stages whose parent is finished: neither waiting, running nor failed."""
    busy = set(waiting) | set(running.values()) | set(result.failed)
    return [key for key in waiting if parents.get(key) not in busy]


def _drop_orphans(parents: Mapping[str, str], waiting: dict[str, Task], result: GridResult) -> None:
    for key in [key for key in waiting if parents.get(key) in result.failed]:
        result.failed[key] = result.failed[parents[key]]
        del waiting[key]


def _collect(future: Future[bool], key: str, result: GridResult) -> None:
    try:
        _count(result, future.result())
    except Interrupted:
        raise
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker process died (the system may have killed it for memory)",
            hint="run the same command again: finished stages are kept; with less memory use --workers 1",
        ) from error
    except HoldfastError as error:
        result.failed[key] = error.message


def _count(result: GridResult, reused: bool) -> None:
    result.made += not reused
    result.reused += reused


def _tell(result: GridResult, total: int, sink: Sink) -> None:
    sink(GridProgressed(done=result.made + result.reused + len(result.failed), total=total, reused=result.reused))


@contextmanager
def _pool(
    context: Any, workers: int, begin: tuple[Store, Engine, Any], running: Collection[Future[bool]]
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; ``running`` holds, at any time, the stages handed to them."""
    # Workers hold the other end: it closes when they are to stop, and also when this process is killed.
    reader, lifeline = context.Pipe(duplex=False)
    others = multiprocessing.active_children()  # a program that calls us may have processes of its own
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(*begin, reader))
    try:
        yield pool
    except BaseException as error:
        lifeline.close()
        _end(pool, running, others)
        if isinstance(error, KeyboardInterrupt):
            raise _stopped() from None
        raise
    pool.shutdown(wait=True)


def _end(pool: ProcessPoolExecutor, running: Collection[Future[bool]], others: Collection[BaseProcess]) -> None:
    """Stop the workers: each writes its checkpoint and reports; a second Ctrl-C does not wait for that.

    A process whose main thread was interrupted cannot be trusted to end by itself: the interruption may have come
    while a lock of one of its threads was held, and the interpreter joins its threads before it exits. Its work is
    reported and on disk by then, so it is killed.
    """
    children = [child for child in multiprocessing.active_children() if child not in others]
    pool.shutdown(wait=False, cancel_futures=True)
    try:
        wait(list(running))
        deadline = time.monotonic() + _PARTING
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            child.kill()


def _stopped() -> Interrupted:
    return Interrupted("stopped", hint="the same command goes on where it stopped")


@contextmanager
def _events(context: Any, sink: Sink) -> Iterator[Any]:
    """A queue from the workers, drained into the sink by a thread."""
    queue = context.Queue()

    def drain() -> None:
        while (event := queue.get()) is not None:
            sink(event)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join(timeout=10)
        queue.cancel_join_thread()  # a killed worker may have held the queue's lock


_worker: dict[str, Any] = {}


def _begin(store: Store, engine: Engine, queue: Any, reader: Connection) -> None:
    """Set up a worker process: how it is told to stop.

    Ctrl-C reaches the whole process group, and a supervisor's signal only the first process, so both ways lead to
    the same flag. A stage at work is interrupted once (a second time would cut its checkpoint short), an idle
    worker takes no further stage, and a worker whose parent was killed ends with it.
    """
    _worker.update(store=store, engine=engine, queue=queue, busy=False, stopped=False)
    # The same notice of peft's as in the first process (cli.main).
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    first, _worker["stopped"] = not _worker["stopped"], True
    if first and _worker["busy"]:
        raise KeyboardInterrupt


def _watch(reader: Connection) -> None:
    with suppress(EOFError, OSError):
        reader.recv()
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    _thread.interrupt_main()


def _in_worker(task: Task) -> bool:
    def send(event: Event) -> None:
        _worker["queue"].put(event)

    try:
        _worker["busy"] = True
        if _worker["stopped"]:
            raise _stopped()
        return make_task(task, _worker["store"], _worker["engine"], send)
    except KeyboardInterrupt:
        raise _stopped() from None
    finally:
        _worker["busy"] = False
