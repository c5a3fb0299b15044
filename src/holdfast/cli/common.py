"""What every command shares: where runs are, how results and progress are shown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.core.events import Sink
from holdfast.core.runs import Store


@dataclass(frozen=True)
class Common:
    """Options of every command."""

    runs: Path = field(default=Path("runs"), metadata={"help": "folder that holds the runs"})
    json: bool = field(default=False, metadata={"help": "result as one JSON document, progress as JSON lines"})
    quiet: bool = field(default=False, metadata={"help": "no progress"})

    @property
    def store(self) -> Store:
        """The runs."""
        return Store(self.runs)

    @contextmanager
    def sink(self) -> Iterator[Sink]:
        """Where progress goes: a live view on a terminal, plain lines in a pipe, JSON lines for machines."""
        from holdfast.cli.render import renderer

        with renderer(as_json=self.json, quiet=self.quiet) as sink:
            yield sink


def emit(common: Common, result: Mapping[str, Any], text: str, *, run: Path | None = None, then: str = "") -> None:
    """Print a result on standard output.

    Args:
        common: decides between text and JSON.
        result: the result as JSON values.
        text: the result for people.
        run: the run folder, named in the last line.
        then: the next useful command.
    """
    if common.json:
        folder = {"run": str(run)} if run is not None else {}
        print(json.dumps({**result, **folder, **({"next": then} if then else {})}, ensure_ascii=False, allow_nan=False))
        return
    if text:
        print(text)
    last = "   ".join(part for part in (f"run: {run}" if run else "", f"next: {then}" if then else "") if part)
    if last:
        print(last)


def this_command() -> str:
    """The command line as typed, for reports."""
    return shlex.join(["holdfast", *sys.argv[1:]])
