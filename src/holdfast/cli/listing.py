"""``holdfast list``: what there is, from the tables, without importing anything heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from cyclopts import Parameter

from holdfast.cli.common import Common, emit
from holdfast.core.errors import unknown
from holdfast.core.knobs import describe
from holdfast.core.methods import Table

Flat = Parameter(name="*")


def listing(what: str = "all", *, common: Annotated[Common, Flat] = Common()) -> int:
    """List methods, judges, combining methods, tasks, recipes and shipped models.

    Args:
        what: all, methods, judges, combiners, tasks, recipes or models.
    """
    makers = {
        "methods": _methods,
        "judges": _judges,
        "combiners": _combiners,
        "tasks": _tasks,
        "recipes": _recipes,
        "models": _models,
    }
    if what != "all" and what not in makers:
        raise unknown("list", what, ["all", *makers], "holdfast list")
    result = {name: make() for name, make in makers.items() if what in ("all", name)}
    lines = []
    for name, rows in result.items():
        lines.append(f"{name}")
        for row in rows:
            label = f"{row['stage']} {row['name']}" if "stage" in row else row["name"]
            lines.append(f"  {label:24} {row['summary']}")
    emit(common, result, "\n".join(lines), then="holdfast align booster --help" if what == "all" else "")
    return 0


def _methods() -> list[dict[str, Any]]:
    from holdfast.faces.method import MASKS
    from holdfast.finetune.recipe import METHODS
    from holdfast.steer.method import STEERING

    rows = []
    for stage, table in METHODS.items():
        for row in _rows(table):
            cls = table.load(row["name"])
            extra = {"title": cls.title, "paper": cls.paper, "needs": list(cls.needs)}
            cost = {"passes": cls.passes, "copies": cls.copies} if stage != "repair" else {}
            rows.append({"stage": stage, **row, **extra, **cost, "knobs": describe(cls)})
    for stage, others in (("steer", STEERING), ("faces", MASKS)):
        for row in _rows(others):
            cls = others.load(row["name"])
            rows.append({"stage": stage, **row, "title": cls.title, "paper": cls.paper, "knobs": describe(cls)})
    return rows


def _judges() -> list[dict[str, Any]]:
    from holdfast.raters.base import JUDGES

    return list(_rows(JUDGES))


def _combiners() -> list[dict[str, Any]]:
    from holdfast.ensemble.combine import COMBINERS, FUSERS

    return [*_rows(COMBINERS), *_rows(FUSERS)]


def _tasks() -> list[dict[str, Any]]:
    from holdfast.finetune.tasks import TASKS

    return list(_rows(TASKS))


def _recipes() -> list[dict[str, Any]]:
    import tomllib

    from holdfast.data.recipes import shipped_recipes

    rows = []
    for folder, command in (("", "bench"), ("steer", "steer compare"), ("faces", "faces compare")):
        for name, path in shipped_recipes(folder).items():
            title = tomllib.loads(path.read_text("utf-8")).get("title", "")
            rows.append({"name": name, "summary": f"{title} ({command})", "path": str(path), "command": command})
    return rows


def _models() -> list[dict[str, Any]]:
    from holdfast.models import sandbox, sandbox_vision

    blind = [{"name": f"sandbox/{name}", "summary": "embedded sandbox model"} for name in sandbox.SHIPPED]
    seeing = [
        {"name": f"sandbox/{name}", "summary": "embedded sandbox model that sees"} for name in sandbox_vision.SHIPPED
    ]
    return blind + seeing


def _rows(table: Table) -> Iterable[dict[str, Any]]:
    return ({"name": name, "summary": entry.summary} for name, entry in table.items())
