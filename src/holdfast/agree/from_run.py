"""Ratings of a run of ours as a table: its judges and the people who rated it, on one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.agree.panel import Labels
from holdfast.core.errors import UsageError, nearest
from holdfast.core.runs import Run
from holdfast.raters.judging import ratings_of
from holdfast.raters.people import PEOPLE, who

if TYPE_CHECKING:
    import polars as pl


def table_of(run: Run, scale: str = "") -> tuple[pl.DataFrame, Labels]:
    """The long table of a run's ratings on one scale, and the scale's labels.

    Args:
        run: a run of answers with ratings.
        scale: name of the scale; empty for the one that people rated on.

    Raises:
        UsageError: the run has no ratings, none by people, or not on that scale.
    """
    import polars as pl

    files = ratings_of(run)
    scales = list(dict.fromkeys(file.scale.name for file in files))
    rated = [file.scale.name for file in files if file.judge["name"] == PEOPLE]
    if not rated:
        what = "ratings by people" if files else "ratings"
        hint = f"holdfast judge {run.path} --judge JUDGE --sheet sheet.csv draws a sheet for them"
        raise UsageError(f"{run.name} has no {what}", hint=hint)
    chosen = scale or rated[0]
    if chosen not in scales:
        raise UsageError(
            f"{run.name} has no ratings on the scale {chosen!r}", hint=f"{nearest(chosen, scales)}--scale {scales[0]}"
        )
    mine = [file for file in files if file.scale.name == chosen]
    rows = [
        (rating.item_id, *who(file), None if rating.value is None else f"{rating.value:g}")
        for file in mine
        for rating in file.ratings
    ]
    schema = dict.fromkeys(("item", "rater", "kind", "run", "label"), pl.String)
    found = mine[0].scale
    names = tuple(int(label) if float(label).is_integer() else label for label in map(_number, found.labels))
    return pl.DataFrame(rows, schema=schema, orient="row"), Labels(names, found.level)


def _number(label: object) -> float:
    return float(str(label))
