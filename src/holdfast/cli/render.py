"""Renderers of events, all on standard error: a live view, plain lines, JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.core.events import Event, GridProgressed, Progressed, Sink, StageFinished, StageStarted, Warned, ignore

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def renderer(*, as_json: bool, quiet: bool) -> Iterator[Sink]:
    """The sink that fits where standard error goes."""
    if quiet:
        yield _warnings_only
    elif as_json:
        yield _json_line
    elif sys.stderr.isatty():
        view = LiveView()
        with view.progress:
            yield view
    else:
        yield PlainLines()


def _warnings_only(event: Event) -> None:
    if isinstance(event, Warned):
        print(_warning(event), file=sys.stderr)


def _json_line(event: Event) -> None:
    print(json.dumps(event.as_json(), ensure_ascii=False), file=sys.stderr, flush=True)


def _warning(event: Warned) -> str:
    return f"note: {event.message}" + (f" ({event.hint})" if event.hint else "")


class PlainLines:
    """One line when a stage ends, one a tenth while it runs, and the grid's count with the time left."""

    def __init__(self) -> None:
        self._tenth: dict[str, int] = {}
        self._began = time.monotonic()
        self._grid = False

    def __call__(self, event: Event) -> None:
        """Print the event's line, if it has one."""
        line = self._line(event)
        if line:
            print(line, file=sys.stderr, flush=True)

    def _line(self, event: Event) -> str:
        if isinstance(event, Warned):
            return _warning(event)
        if isinstance(event, GridProgressed):
            self._grid = True
            return f"[{event.done}/{event.total}] {time_left(self._began, event)}"
        if isinstance(event, StageFinished) and event.stage != "judge":
            done = "already there" if event.reused else f"{event.seconds:.1f} s"
            return f"{event.stage:9} {event.run}  {done}"
        if isinstance(event, Progressed) and not self._grid and event.total:
            tenth = 10 * event.done // event.total
            if tenth > self._tenth.get(event.run, 0):
                self._tenth[event.run] = tenth
                loss = f"  loss {event.loss:.4f}" if event.loss is not None else ""
                return f"  {event.done}/{event.total}{loss}"
        return ""


class LiveView:
    """Bars: one for the grid with the time left, one for each stage at work."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._grid: TaskID | None = None
        self._current = ""

    def __call__(self, event: Event) -> None:
        """Move the bars."""
        if isinstance(event, Warned):
            self.progress.console.print(_warning(event), style="yellow", markup=False)
        elif isinstance(event, GridProgressed):
            self._grid_bar(event)
        elif isinstance(event, StageStarted) and event.total:
            self._drop(event.run)
            label = f"{event.stage} {event.label}"[:34]
            self._bars[event.run] = self.progress.add_task(f"  {label}", total=event.total, note="")
            self._current = event.run
        elif isinstance(event, Progressed):
            bar = self._bars.get(event.run or self._current)
            if bar is not None:
                note = f"loss {event.loss:.4f}" if event.loss is not None else ""
                self.progress.update(bar, completed=event.done, note=note)
        elif isinstance(event, StageFinished):
            self._drop(event.run)

    def _grid_bar(self, event: GridProgressed) -> None:
        if self._grid is None:
            self._grid = self.progress.add_task("stages", total=event.total, note="")
        note = f"{event.reused} already there" if event.reused else ""
        self.progress.update(self._grid, completed=event.done, note=note)

    def _drop(self, run: str) -> None:
        bar = self._bars.pop(run, None)
        if bar is not None:
            self.progress.remove_task(bar)


def time_left(began: float, event: GridProgressed) -> str:
    """``about 1 min 20 s left``, from the pace so far; stages found finished do not count."""
    made = event.done - event.reused
    if made <= 0 or event.done >= event.total:
        return "" if event.done < event.total else "done"
    seconds = (time.monotonic() - began) / made * (event.total - event.done)
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes} min {rest} s left" if minutes else f"about {rest} s left"


__all__ = ["LiveView", "PlainLines", "ignore", "renderer", "time_left"]
