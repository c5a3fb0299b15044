"""Ratings by people of a run's answers: a sheet to fill in, and how the filled one becomes ratings of the run.

A sheet is a CSV file with the columns item, rater, value (and, for the rater to read, prompt and answer). A person's
ratings are one file of the run's ``ratings/`` folder, as a judge's are: ``people-<rater>-<key>.jsonl`` with its header.
Rates of the run are then corrected with them (:func:`holdfast.raters.measure.rate`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import DataError, UsageError, nearest
from holdfast.core.files import write_json, write_text
from holdfast.core.keys import file_digest, key_of
from holdfast.core.records import Rating, Sample, Scale
from holdfast.core.runs import Run
from holdfast.raters.judging import RatingsFile, ratings_of

PEOPLE = "people"
_COLUMNS = ("item", "rater", "value")

Sheet = dict[str, dict[str, float]]
"""Rater -> item -> value."""


def draw_sheet(path: Path, samples: Sequence[Sample], n: int, seed: int) -> int:
    """Write a sheet of randomly drawn answers for people to rate; returns how many.

    Only a random part tells of the rest: people are to rate all rows of the sheet.

    Raises:
        UsageError: the file is there already, or nothing is to be drawn.
    """
    if path.exists():
        raise UsageError(f"{path} is there already", hint="give another name, or remove it")
    if n < 1 or not samples:
        raise UsageError(f"{n} of {len(samples)} answers cannot be drawn", hint="--sheet-size 100")
    order = np.random.default_rng(seed).permutation(len(samples))[:n]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS, "prompt", "answer"])
    for place in order:
        sample = samples[int(place)]
        writer.writerow([sample.item.id, "", "", _cell(sample.item.prompt), _cell(sample.text)])
    write_text(path, out.getvalue())
    return len(order)


def read_sheet(path: Path, samples: Sequence[Sample], scale: Scale) -> Sheet:
    """A filled sheet. Rows without a value are left out; all else that cannot be meant is an error.

    Raises:
        DataError: a missing file or column, an unknown item, a value off the scale, or a second value for a rating.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="holdfast judge RUN --sheet FILE draws one")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in _COLUMNS if rows and name not in rows[0]]
    if not rows or missing:
        raise DataError(f"{path}: no {'column ' + repr(missing[0]) if missing else 'rows'}", hint="item,rater,value")
    known = {sample.item.id for sample in samples}
    values = {_text(label): float(label) for label in scale.labels if not isinstance(label, str)}
    found: Sheet = defaultdict(dict)
    for number, row in enumerate(rows, 2):
        item, rater, value = ((row[name] or "").strip() for name in _COLUMNS)
        if not value:
            continue
        where = f"{path}, line {number}"
        if item not in known:
            raise DataError(f"{where}: the run has no answer to item {item!r}", hint=nearest(item, known).strip())
        if not rater:
            raise DataError(f"{where}: no rater", hint="write a code for the person, not a name")
        if _text(value) not in values:
            raise DataError(f"{where}: {value!r} is not on the scale {scale.name!r}", hint=f"use {', '.join(values)}")
        if found[rater].setdefault(item, values[_text(value)]) != values[_text(value)]:
            raise DataError(f"{where}: {rater!r} rated item {item!r} twice, differently", hint="keep one of the two")
    if not found:
        raise DataError(f"{path}: no row has a value", hint=f"fill in the column value with {', '.join(values)}")
    return dict(found)


def keep_sheet(run: Run, sheet: Sheet, scale: Scale, group: str) -> list[Path]:
    """Write people's ratings into a run, one file a person; the same ratings again change nothing.

    Raises:
        RunError: the folder is in use or cannot be written.
    """
    made = []
    with run.working():
        for rater, values in sorted(sheet.items()):
            ratings = [Rating(item, value).as_json() for item, value in sorted(values.items())]
            spec = {"name": PEOPLE, "rater": rater, "scale": scale.name, "group": group}
            name = re.sub(r"[^A-Za-z0-9_-]", "_", rater)[:40]
            path = run.path / "ratings" / f"{PEOPLE}-{name}-{key_of(spec | {'ratings': ratings})}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_text(path, "".join(_line(row) for row in ratings))
            header = {"judge": spec, "scale": scale.as_json(), "n": len(ratings), "sha256": file_digest(path)}
            write_json(path.with_suffix(".json"), header)
            made.append(path)
    return made


def people_values(run: Run, scale: str, group: str) -> dict[str, float]:
    """Mean value by people of each item that they rated on a scale; empty without people's ratings."""
    each: dict[str, list[float]] = defaultdict(list)
    for file in ratings_of(run):
        if file.judge["name"] == PEOPLE and file.scale.name == scale and file.group == group:
            for rating in file.ratings:
                if rating.value is not None:
                    each[rating.item_id].append(rating.value)
    return {item: float(np.mean(values)) for item, values in each.items()}


def who(file: RatingsFile) -> tuple[str, str, str]:
    """Rater, kind and number of the run; knobs tell apart two judges of one kind."""
    judge = file.judge
    if judge["name"] == PEOPLE:
        return str(judge["rater"]), "human", "1"
    knobs: dict[str, Any] = judge.get("knobs", {})
    name = str(judge["name"])
    more = [str(knobs[key]) for key in ("model", "path", "phrases") if knobs.get(key)]
    return " ".join([name, *more]), "judge", str(knobs.get("run", 1))


def _cell(text: str) -> str:
    """Foreign text that a spreadsheet must not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _text(value: object) -> str:
    """1, 1.0 and "1" are one value."""
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value)


def _line(row: Mapping[str, object]) -> str:
    import json

    return json.dumps(row, ensure_ascii=False) + "\n"
