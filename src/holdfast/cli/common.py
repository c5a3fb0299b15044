"""What every command shares: where runs are, how results and progress are shown."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from holdfast.core.errors import UsageError
from holdfast.core.events import Sink
from holdfast.core.methods import Table
from holdfast.core.runs import Store
from holdfast.data import read

Flat = Parameter(name="*")


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


def method_app(name: str, help_text: str, table: Table, make: Callable[[Any], Callable[..., int]]) -> App:
    """One sub-command a method of a table, its flags made from its knobs."""
    app = App(name=name, help=help_text)
    for method_name, entry in table.items():
        app.command(with_knobs(table.load(method_name), make), name=method_name, help=entry.summary)
    return app


def with_knobs(cls: type[Any], make: Callable[[Any], Callable[..., int]]) -> Callable[..., int]:
    """The command with the method's knobs as flags in front of its own."""
    shape = make(cls())

    def command(*words: Any, **given: Any) -> int:
        return make(given.pop("method", cls()))(*words, **given)

    command.__doc__ = shape.__doc__
    command.__name__ = shape.__name__
    signature = inspect.signature(shape, eval_str=True)
    parameters = list(signature.parameters.values())
    if fields(cls):
        knobs = inspect.Parameter(
            "method", inspect.Parameter.KEYWORD_ONLY, default=cls(), annotation=Annotated[cls, Flat]
        )
        in_front = sum(parameter.kind is not inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
        parameters.insert(in_front, knobs)
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
    return command


def base_of(reference: str, common: Common) -> str:
    """A model reference; a run's name or key is looked up among the runs."""
    if reference.startswith("sandbox/") or Path(reference).exists() or "/" in reference:
        return reference
    names = [info for info in common.store.list() if reference in (info.name, info.key)]
    return str(common.runs / names[0].name) if names else reference


def source_from(text: str, flag: str) -> read.Source:
    """A data flag: a path, or a TOML table such as '{ path = "a.csv", columns = { prompt = "q" } }'.

    Raises:
        UsageError: the table is not TOML, or has a key that a source does not.
    """
    if not text.lstrip().startswith("{"):
        return read.source(text, flag)
    try:
        table = tomllib.loads(f"source = {text}")["source"]
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{flag} is not a TOML table: {error}",
            hint='write it as \'{ path = "a.csv", columns = { prompt = "q" } }\'',
        ) from error
    return read.source(table, flag)
