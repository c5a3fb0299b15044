"""``holdfast runs`` and ``holdfast show``."""

from __future__ import annotations

import time
from typing import Annotated, Any

from cyclopts import Parameter

from holdfast.cli.common import Common, emit
from holdfast.core.runs import Run, total_bytes

Flat = Parameter(name="*")


def runs(
    action: str = "list",
    *,
    kind: str = "",
    last: int = 0,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """List runs, newest first.

    Args:
        action: list.
        kind: only align, finetune, repair, ask or bench runs.
        last: only so many.
    """
    from holdfast.core.errors import unknown

    if action != "list":
        raise unknown("action", action, ["list"], "holdfast runs")
    found = [info for info in common.store.list() if not kind or info.kind == kind]
    found = found[:last] if last else found
    lines = [f"{'name':44} {'kind':9} {'made':16} state"]
    for info in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created))
        lines.append(f"{info.name:44} {info.kind:9} {made:16} {'done' if info.sealed else 'unfinished'}")
    text = "\n".join(lines) if found else f"no runs in {common.runs}"
    rows = [{"name": i.name, "key": i.key, "kind": i.kind, "created": i.created, "sealed": i.sealed} for i in found]
    emit(common, {"runs": rows}, text, then=f"holdfast show {found[0].name}" if found else "holdfast demo")
    return 0


def show(run: str, *, common: Annotated[Common, Flat] = Common()) -> int:
    """Show one run: its knobs, costs, rates and files.

    Args:
        run: run folder, name, key, or the beginning of one.
    """
    found = common.store.find(run)
    record = found.seal_record() or {}
    state = found.damage()
    result = {
        "name": found.name,
        "kind": found.kind,
        "spec": found.spec,
        "provenance": found.provenance,
        "state": "done" if state is None else state,
        "seconds": record.get("seconds"),
        "summary": record.get("summary", {}),
        "ratings": _rates(found),
        "bytes": total_bytes([found.path]),
        "files": _files(found),
    }
    emit(common, result, _text(found, result), run=found.path, then=_next(found))
    return 0


def _files(run: Run) -> list[str]:
    paths = (path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(run.path).as_posix() for path in paths)


def _rates(run: Run) -> list[dict[str, Any]]:
    if run.kind != "ask":
        return []
    from holdfast.raters.judging import ratings_of
    from holdfast.raters.measure import measure_for, rate
    from holdfast.raters.people import PEOPLE, people_values

    rates = []
    for file in ratings_of(run):
        if file.judge["name"] == PEOPLE:  # in the rates of the judges on the same scale
            continue
        measure = measure_for(file.group, file.scale.name)
        people = people_values(run, file.scale.name, file.group)
        metric = rate(measure.name, measure.better, [file.ratings], [people], file.scale)
        rates.append(metric.as_json() | {"judge": file.judge["name"], "label": measure.label})
    return rates


def _text(run: Run, result: dict[str, Any]) -> str:
    import json

    from holdfast.cli.judge import metric_text
    from holdfast.core.records import Metric

    lines = [f"{run.name}: {run.kind}, {result['state']}, {result['bytes'] / 2**20:.2f} MiB"]
    lines += [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in run.spec.items()]
    if result["summary"]:
        lines.append(f"  result: {json.dumps(result['summary'])}")
    lines += [f"  {r['label']:28} {metric_text(Metric.from_json(r))}   judge: {r['judge']}" for r in result["ratings"]]
    shown = result["files"][:20]
    more = f" and {len(result['files']) - 20} more" if len(result["files"]) > 20 else ""
    lines.append(f"  files: {', '.join(shown)}{more}")
    return "\n".join(lines)


def _next(run: Run) -> str:
    from holdfast.cli.ask import usual_judge

    groups = list(run.spec.get("decoding", {})) or [""]
    return {
        "ask": f"holdfast judge {run.path} --judge {usual_judge(groups[0])}",
        "bench": f"holdfast report {run.path}",
        "ensemble": f"holdfast ensemble answer {run.path} NEW_TABLE",
        "ensemble-summary": "holdfast ensemble summarise TABLE",
        "agree": "holdfast agree TABLE",
        "steer": f"holdfast steer apply {run.path} --items FILE --images FOLDER",
        "diagnose": "holdfast steer fit transplant --model MODEL --harmful FILE --benign FILE",
        "steer-compare": f"holdfast steer report {run.path}",
        "mask": f"holdfast faces protect {run.path} PHOTOS --out protected",
        "faces-compare": f"holdfast faces report {run.path}",
        "faces-check": "holdfast faces check KEY PHOTOS",
        "face-mask": "holdfast faces compare RECIPE",
        "album": "holdfast faces compare RECIPE",
    }.get(run.kind, f"holdfast ask --model {run.path} --items FILE")
