"""The table of a result for a terminal, for a pipe, and as tab-separated lines for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from holdfast.report import facts
from holdfast.report.facts import ACCURACY, HARM
from holdfast.report.headline import headline
from holdfast.report.phrases import bounds, number, plural, share
from holdfast.report.schema import CellJson, MetricJson, ResultJson, check

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_COLOURS = {"better": "green", "worse": "red"}
_PIPE_WIDTH = 240


def table(result: Mapping[str, Any]) -> Table:
    """The results as a table of rich: one row a cell, grouped by workload and poison ratio.

    Raises:
        RunError: the result is damaged.
    """
    return _table(check(result), boxed=True)


def text(result: Mapping[str, Any], *, colour: bool = False, width: int | None = None) -> str:
    """Title, table and headline sentences.

    Args:
        result: as in :mod:`holdfast.report.schema`.
        colour: for a terminal: coloured, with rules, folded to its width; else plain columns that never fold.
        width: columns; by default the terminal's, or enough.

    Raises:
        RunError: the result is damaged.
    """
    import io

    from rich.console import Console
    from rich.text import Text

    checked = check(result)
    fitted = width or (shutil.get_terminal_size().columns if colour else _PIPE_WIDTH)
    file = io.StringIO()
    console = Console(
        file=file,
        width=fitted,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        legacy_windows=False,
    )
    console.print(Text(_line(checked["title"]), style="bold"))
    console.print(_table(checked, boxed=colour))
    for line in _below(checked):
        console.print(Text(_line(line)), soft_wrap=not colour)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def lines(result: Mapping[str, Any]) -> list[str]:
    """Tab-separated lines, a header first: numbers unrounded, empty where undefined.

    Columns: workload, p, defence, seeds, then value, low, high and n of each measure, then cost ratio, seconds and
    peak bytes.

    Raises:
        RunError: the result is damaged.
    """
    checked = check(result)
    names = list(checked["measures"])
    parts = [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_n")]
    rows = [["workload", "p", "defence", "seeds", *parts, "cost_ratio", "cost_seconds", "peak_bytes"]]
    rows += [_tabbed(cell, names) for cell in [*checked["aligned"], *checked["cells"]]]
    return ["\t".join(_line(value) for value in row) for row in rows]


def _tabbed(cell: CellJson, names: list[str]) -> list[str]:
    found = [cell["workload"], _plain(cell["p"]), cell["defence"], str(len(cell["seeds"]))]
    for name in names:
        metric = cell["metrics"].get(name)
        numbers = (metric["value"], metric["low"], metric["high"], metric["n"]) if metric else (None,) * 4
        found += [_plain(value) for value in numbers]
    cost = cell["cost"]
    shown = [metric["value"] if metric else None for metric in (cost["ratio"], cost["seconds"])]
    return found + [_plain(value) for value in (*shown, cost["peak_bytes"])]


def _line(text: str) -> str:
    """Foreign text on one line: names and reasons could hold escape sequences that a terminal obeys."""
    return "".join(character if character.isprintable() else " " for character in text)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _table(result: ResultJson, *, boxed: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD if boxed else None, pad_edge=False, header_style="bold")
    for head in ("Workload", "p", "Defence"):
        made.add_column(head, no_wrap=True)
    for name, measure in result["measures"].items():
        way = {"lower": " ↓", "higher": " ↑"}.get(measure["better"], "")
        width = len("100.0 (90.0–100.0)") if name in (HARM, ACCURACY) else None
        made.add_column(Text(_line(f"{measure['label']}, {measure['unit']}{way}")), overflow="fold", min_width=width)
    made.add_column(Text(f"Time × {result['baseline']}"), no_wrap=True)
    for workload in facts.workloads_with_cells(result):
        for p in reversed(facts.ratios(result, workload)):
            baseline = facts.find(result, result["baseline"], workload, p)
            cells = facts.cells_at(result, workload, p)
            for cell in cells:
                row = list(_row(result, cell, baseline))
                if boxed and cell is not cells[0]:
                    # On a screen the group's name stands once; in a pipe each line must stand alone.
                    row[:2] = [Text(""), Text("")]
                made.add_row(*row, end_section=boxed and cell is cells[-1])
    return made


def _row(result: ResultJson, cell: CellJson, baseline: CellJson | None) -> Iterator[Text]:
    from rich.text import Text

    title = result["workloads"][cell["workload"]]["title"] or cell["workload"]
    there, planned = len(cell["seeds"]), len(result["seeds"])
    partial = f" ({there} of {plural(planned, 'seed')})" if there < planned else ""
    yield Text(_line(title))
    yield Text(share(cell["p"] or 0.0))
    yield Text(_line(cell["defence"]) + partial, style="bold" if cell is baseline else "")
    for name, measure in result["measures"].items():
        metric = cell["metrics"].get(name)
        verdict = facts.verdict(cell, baseline, name, measure["better"]) if baseline and cell is not baseline else ""
        yield Text(_line(_number(metric, name in (HARM, ACCURACY))), style=_COLOURS.get(verdict, ""))
    ratio = cell["cost"]["ratio"]
    yield Text(number(ratio["value"], "x") if ratio and ratio["value"] is not None else "not measured")


def _number(metric: MetricJson | None, with_interval: bool) -> str:
    if metric is None:
        return "not measured"
    if metric["value"] is None:
        return f"undefined: {metric['reason']}"
    value = number(metric["value"], metric["unit"]).rstrip("%")
    return f"{value} ({bounds(metric).replace(' to ', '–')})" if with_interval else value


def _below(result: ResultJson) -> Iterator[str]:
    """What the table cannot say."""
    if result["missing"] or not result["complete"]:
        yield ""
        yield f"Not complete: {plural(len(result['missing']), 'trained model')} missing."
        reasons: dict[str, int] = {}
        for row in result["missing"]:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        yield from (f"  {count} × {reason}" for reason, count in reasons.items())
    found = headline(result)
    yield ""
    yield from found.answer
    yield ""
    yield from (f"- {sentence}" for sentence in found.also)
