"""Judging stored answers: one append-only ratings file a judge, nothing regenerated.

``ratings/<judge>-<key>.jsonl`` has one row an answer; ``ratings/<judge>-<key>.json`` holds the judge's spec,
counts and the file's hash, and is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import RunError
from holdfast.core.events import Progressed, Sink, StageFinished, StageStarted, ignore
from holdfast.core.files import RowFile, read_json, read_rows, write_json
from holdfast.core.keys import file_digest, key_of
from holdfast.core.records import Rating, Sample, Scale
from holdfast.core.runs import Run
from holdfast.raters.base import Judge, judge_spec

_CHUNK = 256


@dataclass(frozen=True)
class RatingsFile:
    """A finished ratings file: who rated, on which scale, which groups, and the rows."""

    path: Path
    judge: dict[str, Any]
    scale: Scale
    group: str
    ratings: list[Rating]


def judge_run(
    run: Run, judge: Judge, samples: Sequence[Sample], *, group: str = "", sink: Sink = ignore
) -> RatingsFile:
    """Rate a run's answers, or find the ratings that the same judge already gave to the same answers.

    Args:
        run: the run that holds the answers.
        judge: who rates.
        samples: the run's answers.
        group: rate only items of this group; empty rates all.
        sink: where progress goes.

    Raises:
        HoldfastError: the judge cannot work, or the folder cannot be written.
    """
    chosen = [sample for sample in samples if not group or sample.item.group == group]
    # A task and a judge may have one name; they rate on different scales.
    asked = {"scale": judge.scale.name, "group": group, "samples": file_digest(run.path / "samples.jsonl")}
    spec = judge_spec(judge) | asked
    path = run.path / "ratings" / f"{judge.name}-{key_of(spec)}.jsonl"
    found = _finished(path, spec)
    if found is not None:
        sink(StageFinished(run=run.name, stage="judge", reused=True))
        return found
    with run.working(sink) as log:
        log(StageStarted(run=run.name, stage="judge", label=judge.name, total=len(chosen)))
        done = {row["item"] for row in read_rows(path)}
        waiting = [sample for sample in chosen if sample.item.id not in done]
        with RowFile(path) as rows:
            for start in range(0, len(waiting), _CHUNK):
                rows.append(rating.as_json() for rating in judge.rate(waiting[start : start + _CHUNK]))
                log(Progressed(run=run.name, done=len(done) + min(start + _CHUNK, len(waiting)), total=len(chosen)))
        header = {"judge": spec, "scale": judge.scale.as_json(), "n": len(chosen), "sha256": file_digest(path)}
        write_json(path.with_suffix(".json"), header)
        log(StageFinished(run=run.name, stage="judge"))
    return ratings_file(path.with_suffix(".json"))


def ratings_of(run: Run) -> list[RatingsFile]:
    """All finished ratings of a run, in file order."""
    return [ratings_file(path) for path in sorted((run.path / "ratings").glob("*.json"))]


def ratings_file(header: Path) -> RatingsFile:
    """Read a finished ratings file by its header.

    Raises:
        RunError: header or rows are damaged.
    """
    value = read_json(header)
    path = header.with_suffix(".jsonl")
    if not path.exists() or file_digest(path) != value["sha256"]:
        raise RunError(f"{path} changed after it was finished", hint=f"delete {path} and {header}, then judge again")
    scale = value["scale"]
    return RatingsFile(
        path,
        value["judge"],
        Scale(scale["name"], scale["level"], tuple(scale["labels"]), scale["better"]),
        value["judge"]["group"],
        [Rating.from_json(row) for row in read_rows(path)],
    )


def _finished(path: Path, spec: dict[str, Any]) -> RatingsFile | None:
    header = path.with_suffix(".json")
    if not header.exists():
        return None
    try:
        found = ratings_file(header)
    except RunError:
        header.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return None
    return found if found.judge == spec else None
