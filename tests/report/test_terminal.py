"""The table in a terminal, in a pipe, and for other programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from holdfast.report import terminal

Result = dict[str, Any]


def test_a_pipe_gets_plain_columns_that_do_not_fold(result: Result) -> None:
    lines = terminal.text(result).splitlines()
    booster = next(line for line in lines if "Booster" in line)
    assert booster.split("  ")[0] == "Customer data"
    assert "1.0 (0.0–2.4)" in booster
    assert booster.endswith("2.04×")
    assert "\x1b" not in "".join(lines)
    assert any(line.startswith("The best single defence, Booster") for line in lines)


def test_a_terminal_gets_colour_within_its_width(result: Result) -> None:
    import re

    lines = terminal.text(result, colour=True, width=110).splitlines()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert "\x1b[32m" in "".join(lines)
    assert max(len(line) for line in plain) <= 110
    assert sum("Customer data" in line for line in plain) == 2


def test_a_rich_table_has_a_row_for_each_cell(result: Result) -> None:
    made = terminal.table(result)
    assert isinstance(made, Table)
    assert made.row_count == len(result["cells"])


def test_tab_separated_lines_are_whole_numbers_and_all(result: Result) -> None:
    head, *rows = [line.split("\t") for line in terminal.lines(result)]
    assert len(rows) == len(result["cells"]) + len(result["aligned"])
    assert {len(row) for row in rows} == {len(head)}
    found = [dict(zip(head, row, strict=True)) for row in rows]
    stack = next(r for r in found if (r["defence"], r["workload"], r["p"]) == ("Stack", "mixed", "0.1"))
    assert (stack["harmful_score"], stack["harmful_score_n"], stack["cost_ratio"]) == ("0.2", "600", "2.11")


def test_undefined_and_missing_are_said(result: Result, sample: Any) -> None:
    sample.find(result, "Lisa")["metrics"]["harmful_score"].update(value=None, low=None, high=None, reason="no answers")
    result["complete"] = False
    result["missing"] = [
        {"defence": "X", "workload": "mixed", "p": 0.1, "seed": s, "reason": "no memory"} for s in (0, 1)
    ]
    found = terminal.text(result)
    assert "undefined: no answers" in found
    assert "Not complete: 2 trained models missing." in found
    assert "2 × no memory" in found
    tabbed = next(line for line in terminal.lines(result) if line.startswith("mixed\t0.1\tLisa"))
    assert tabbed.split("\t")[4:7] == ["", "", ""]


def test_names_cannot_carry_markup_or_escapes(result: Result) -> None:
    for cell in result["cells"]:
        if cell["defence"] == "Lisa":
            cell["defence"] = "[red]Lisa[/red]\x1b[31m\tx"
    found = terminal.text(result)
    assert "[red]Lisa[/red]" in found
    assert "\x1b" not in found
    assert all(line.count("\t") == terminal.lines(result)[0].count("\t") for line in terminal.lines(result))
