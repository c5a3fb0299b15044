"""``holdfast ensemble``: which models to keep, how to combine them, and the ensemble as a model."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from holdfast.cli.common import Common, emit, this_command
from holdfast.core.errors import UsageError
from holdfast.core.keys import file_digest, key_of
from holdfast.core.knobs import check, knob
from holdfast.ensemble.summary import ToplaSummary

Flat = Parameter(name="*")

ensemble = App(name="ensemble", help="Few, diverse, better: pick models by focal diversity, learn to combine them.")


@dataclass(frozen=True)
class ReadFlags:
    """How outputs are read."""

    models: tuple[str, ...] = knob((), "models to use, e.g. --models a,b,c; all when not given")
    kind: Literal["auto", "choice", "number", "short", "long"] = knob("auto", "what an answer is")
    columns: dict[str, str] = knob({}, "renames, e.g. --columns.gold answer (item, gold, subject, n_options...)")
    cost: dict[str, float] = knob({}, "dollars an item, e.g. --cost.gpt 0.002")
    threshold: float = knob(0.5, "score from which a long answer is right", low=0, high=1)


@dataclass(frozen=True)
class PickFlags:
    """What is decided before looking at test items."""

    size: int = knob(0, "models of the team; 0: the smallest within one standard error of the best", low=0)
    method: str = knob("", "combining method; empty: the best in training")
    test: float = knob(0.5, "share of the items kept to measure on", low=0.05, high=0.9)
    seed: int = knob(0, "seed of the split and of all fitting", low=0)
    diversity: float | None = knob(None, "weight of focal diversity in the choice; not given: tuned", low=0)
    accuracy: float | None = knob(None, "weight of plurality accuracy in the choice", low=0)
    size_penalty: float = knob(0.0, "fitness lost by a team of all models; smaller teams pay their share", low=0)
    money_penalty: float = knob(0.0, "fitness lost by the cost of all models", low=0)
    refit: bool = knob(False, "fit the saved ensemble on all items; the numbers stay those of the training part")


@ensemble.command
def pick(
    *tables: Path,
    read: Annotated[ReadFlags, Flat] = ReadFlags(),
    flags: Annotated[PickFlags, Flat] = PickFlags(),
    charts: Path | None = None,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Which k of my models, and is it worth it? Chooses a team and a way to combine it; keeps both as a run.

    Args:
        tables: outputs: one .csv, .tsv, .jsonl or .parquet table, or the runs of several models.
        charts: folder to write every chart into, as .svg, .png, .pdf and .html.
    """
    return _assessed(tables, read, flags, charts, common)


@ensemble.command(name="fit")
def fit_(
    *tables: Path,
    read: Annotated[ReadFlags, Flat] = ReadFlags(),
    method: str = "",
    test: float = 0.5,
    seed: int = 0,
    refit: bool = False,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Learn to combine all the given models (no choice among them), and measure it.

    Args:
        tables: outputs: one .csv, .tsv, .jsonl or .parquet table, or the runs of several models.
        method: combining method ('holdfast list combiners'); empty: the best in training.
        test: share of the items kept to measure on.
        seed: seed of the split and of all fitting.
        refit: fit the saved ensemble on all items; the numbers stay those of the training part.
    """
    outputs, _ = _outputs(tables, read)
    flags = PickFlags(size=outputs.n_models, method=method, test=test, seed=seed, refit=refit)
    return _assessed(tables, read, flags, None, common)


@ensemble.command
def diversity(
    *tables: Path,
    read: Annotated[ReadFlags, Flat] = ReadFlags(),
    team: str = "",
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Focal diversity and its family, of a team on all items.

    Args:
        tables: outputs: one .csv, .tsv, .jsonl or .parquet table, or the runs of several models.
        team: models of the team, e.g. a,b,c; all when not given.
    """
    from holdfast.core import diversity as family
    from holdfast.ensemble.diverse import measured

    outputs, _ = _outputs(tables, read)
    outputs = outputs.take(outputs.known & outputs.asked.all(axis=1))
    names = _names((team,)) or outputs.models
    for name in names:
        if name not in outputs.models:
            raise UsageError(f"--team: no model {name!r}", hint=f"models: {', '.join(outputs.models)}")
    if outputs.n_items == 0:
        raise UsageError("no item with a right answer was asked of all models", hint="--models A,B leaves others out")
    part = outputs.of([outputs.models.index(name) for name in names])
    values: dict[str, Any] = {}
    lines = [f"{part.n_models} models, {part.n_items:,} items", ""]
    for metric in family.METRICS.values():
        if metric.of == "labels" and part.kind != "choice":
            continue
        found = measured(metric, part)
        values[metric.name] = found.as_json()
        shown = f"undefined: {found.reason}"
        if found.value is not None:
            shown = f"{found.value:7.4f} [{found.low:7.4f}, {found.high:7.4f}]   {metric.diverse} is diverse"
        lines.append(f"{metric.name:26} {shown}")
    focal = {}
    if part.n_models > 1:
        each = family.focal_diversities(family.co_failures(part.failed), range(part.n_models))
        focal = {name: float(x) for name, x in zip(part.models, each, strict=True)}
        lines += ["", "where this model fails, focal diversity of the team"]
        lines += [f"  {name:40} {x:.4f}" for name, x in focal.items()]
    emit(
        common,
        {"n": part.n_items, "metrics": values, "focal": focal},
        "\n".join(lines),
        then="holdfast ensemble pick TABLE",
    )
    return 0


@ensemble.command
def summarise(
    table: Path,
    *,
    method: Annotated[ToplaSummary, Flat] = ToplaSummary(),
    test: float = 0.3,
    columns: dict[str, str] | None = None,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """TOPLA-Summary: train a model that reads question and candidates and writes the answer; measured by generation.

    Args:
        table: JSON Lines with item, question, references, answers.
        test: share of the items kept to measure on.
        columns: renames, e.g. --columns.question text.
    """
    check(method, "summarise")
    from holdfast.ensemble.table import Layout, read_rows
    from holdfast.ensemble.terminal import number
    from holdfast.ensemble.written import measure

    rows = read_rows(table, Layout(columns or {}))
    spec = {"content": file_digest(table), "columns": columns or {}}
    with common.sink() as sink:
        run, result = measure(rows, method, spec, common.store, test=test, sink=sink)
    items = result["items"]
    lines = [f"trained on {items['train']:,} items; answers generated for {items['test']:,} others", ""]
    lines.append(f"{'':34} {'token F1':22} {'exact match':22} TOPLA-Summary is above it by (F1)")
    for name, one in result["texts"].items():
        over = result["gains"].get(name)
        cells = f"{number(one['token F1']):22} {number(one['exact match']):22}"
        lines.append(f"{name[:34]:34} {cells} {number(over['token F1'], sign=True) if over else ''}".rstrip())
    emit(common, result, "\n".join(lines), run=run.path, then=f"holdfast show {run.path}")
    return 0


@ensemble.command
def answer(
    run: str,
    *tables: Path,
    out: Path | None = None,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Combine members' answers to new items with a fitted ensemble; a member without answers is left out.

    Args:
        run: run of 'holdfast ensemble pick' or 'fit'.
        tables: the members' answers; right answers are not needed.
        out: JSON Lines file for the answers; printed when not given.
    """
    from holdfast.core.files import write_text
    from holdfast.ensemble.record import load

    made = load(common.store.find(run).path)
    rows = made.combine(made.read([_found(path, common) for path in tables]))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if out is not None:
        write_text(out, "\n".join(lines) + "\n")
    silent = sum(row["answer"] is None for row in rows)
    text = f"{len(rows):,} answers, {silent:,} items without any member's answer"
    shown = "\n".join(lines) if out is None else f"{text}: {out}"
    emit(common, {"answers": rows if out is None else len(rows), "silent": silent}, shown)
    return 0


@ensemble.command
def collect(
    members: Path,
    items: Path,
    out: Path,
    *,
    columns: dict[str, str] | None = None,
    limit: int = 0,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Ask models for answers; what was answered is on disk, so the same command goes on after a stop.

    Args:
        members: members file (TOML): who is asked, how, at what price.
        items: questions: item, question, and as wanted gold, subject, options.
        out: answers file (.jsonl) for 'holdfast ensemble pick'.
        columns: renames, e.g. --columns.question text.
        limit: first so many items; 0: all.
    """
    from holdfast.core.errors import ModelError
    from holdfast.ensemble.collect import collect as ask_all
    from holdfast.ensemble.members import read_members
    from holdfast.ensemble.table import read_questions

    if out.suffix not in (".jsonl", ".ndjson"):
        raise UsageError(f"{out}: answers are JSON Lines", hint=f"{out.with_suffix('.jsonl')}")
    found = read_members(members)
    asked = read_questions(items, columns or {})[: limit or None]
    with common.sink() as sink:
        done = ask_all(found, asked, out, store=common.store, cache=common.runs / ".answers", sink=sink)
    lines = [f"{'member':26} {'answers':>8} {'missing':>8} {'dollars':>10} {'of it now':>10}"]
    for name, one in done.items():
        cells = f"{one['answers']:8,} {one['missing']:8,} {one['dollars']:10.4f} {one['dollars_now']:10.4f}"
        lines.append(f"{name:26} {cells}")
    lines += [
        f"{name} lacks {one['missing']:,} answers: {one['reason']}" for name, one in done.items() if one["missing"]
    ]
    short = any(one["missing"] for one in done.values())
    then = "the same command asks for what is missing" if short else f"holdfast ensemble pick {out}"
    emit(common, {"members": done, "file": str(out)}, "\n".join(lines), then=then)
    return ModelError.exit_code if short else 0


@ensemble.command
def probe(members: Path, *, common: Annotated[Common, Flat] = Common()) -> int:
    """What each member's endpoint can do: log-probabilities, several answers a call, seeds. Asks a few questions.

    Args:
        members: members file (TOML).
    """
    from holdfast.core.errors import HoldfastError, ModelError
    from holdfast.ensemble.collect import capabilities
    from holdfast.ensemble.members import read_members

    rows: dict[str, Any] = {}
    for member in read_members(members).member:
        try:
            rows[member.name] = capabilities(member)
        except HoldfastError as error:
            rows[member.name] = {"error": error.message}
    said = {True: "yes", False: "no", None: "cannot tell"}
    lines = [f"{'member':26} {'answers':12} {'log-probs':12} {'several':12} {'seed':12}"]
    for name, row in rows.items():
        cells = (
            [f"{said[row[key]]:12}" for key in ("answers", "logprobs", "several", "seed")] if "error" not in row else []
        )
        lines.append(f"{name:26} {' '.join(cells)}{row.get('error', '')}".rstrip())
    emit(common, {"members": rows}, "\n".join(lines), then=f"holdfast ensemble collect {members} ITEMS answers.jsonl")
    return ModelError.exit_code if any("error" in row for row in rows.values()) else 0


@ensemble.command
def serve(
    run: str,
    members: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8400,
    key: str = "HOLDFAST_API_KEY",
    within: float = 0.0,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Put an ensemble behind an endpoint that speaks the OpenAI protocol; a member that dies is left out.

    Args:
        run: run of 'holdfast ensemble pick' or 'fit'.
        members: members file (TOML): where the members are.
        host: address to listen on; other than this machine needs a key.
        port: port to listen on; 0: any free one.
        key: environment variable with the bearer token that requests need; unset: none is needed.
        within: seconds after which a member counts as silent; 0: its own timeout and retries.
    """
    import os

    from holdfast.core.errors import MissingExtra
    from holdfast.ensemble.members import read_members
    from holdfast.ensemble.model import EnsembleModel
    from holdfast.ensemble.record import load

    token = os.environ.get(key, "")
    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise UsageError(f"--host {host} is open to others, and {key} is not set", hint=f"export {key}=SECRET")
    found = common.store.find(run)
    made = load(found.path)
    whom = read_members(members)
    try:
        import uvicorn

        from holdfast.ensemble.serve import application
    except ModuleNotFoundError as error:
        raise MissingExtra("serve", error.name or "fastapi") from error
    with EnsembleModel(made, whom, answer_within=within or None) as model:
        app = application(model, found.name, token)
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)
        sockets = [config.bind_socket()]
        address = f"http://{host}:{sockets[0].getsockname()[1]}/v1"
        text = f"{found.name}: {len(made.models)} members\nlistening on {address}   model: {found.name}   stop: Ctrl-C"
        emit(common, {"url": address, "model": found.name, "members": list(made.models)}, text)
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets)
    return 0


def _assessed(tables: tuple[Path, ...], read: ReadFlags, flags: PickFlags, charts: Path | None, common: Common) -> int:
    check(read, "ensemble")
    check(flags, "ensemble")
    from holdfast.ensemble.assess import Settings
    from holdfast.ensemble.combine import COMBINERS
    from holdfast.ensemble.prune import Fitness
    from holdfast.ensemble.record import record
    from holdfast.ensemble.terminal import table

    if flags.method:
        COMBINERS.load(flags.method, "--method")
    fitness = None
    if flags.diversity is not None or flags.accuracy is not None or flags.size_penalty or flags.money_penalty:
        weights = (
            0.5 if flags.diversity is None else flags.diversity,
            0.5 if flags.accuracy is None else flags.accuracy,
        )
        fitness = Fitness(*weights, flags.size_penalty, flags.money_penalty)
    outputs, content = _outputs(tables, read, common)
    if flags.size > outputs.n_models:
        raise UsageError(
            f"--size {flags.size}: there are {outputs.n_models} models", hint=f"--size 1 to {outputs.n_models}"
        )
    if flags.money_penalty and outputs.cost is None:
        raise UsageError(
            "--money-penalty needs every model's cost", hint=f"--cost.{outputs.models[0]} DOLLARS_AN_ITEM, and so on"
        )
    settings = Settings(flags.test, flags.seed, fitness, flags.size, flags.method)
    title = ", ".join(path.stem for path in tables)
    with common.sink() as sink:
        run, result = record(
            outputs, settings, content, common.store,
            title=f"Ensemble: {title}", command=this_command(), refit=flags.refit, sink=sink,
        )  # fmt: skip
    if charts is not None:
        result = result | {"charts": _charts(result, charts)}
    text = f"{table(result)}\n\nreport: {run.path / 'report.html'}"
    emit(common, result, text, run=run.path, then=f"holdfast ensemble answer {run.path} NEW_TABLE")
    return 0


def _outputs(tables: tuple[Path, ...], read: ReadFlags, common: Common = Common()) -> tuple[Any, dict[str, Any]]:
    """Outputs, and what identifies them: content and layout, never a path."""
    from holdfast.ensemble.table import Layout, read_outputs

    if not tables:
        raise UsageError("no outputs given", hint="holdfast ensemble pick answers.csv")
    paths = [_found(path, common) for path in tables]
    kind = None if read.kind == "auto" else read.kind
    layout = Layout(
        read.columns, _names(read.models), kind, read.threshold, {k: float(v) for k, v in read.cost.items()}
    )
    outputs = read_outputs(paths, layout)
    content = [file_digest(path) if path.is_file() else key_of({"run": path.name}) for path in paths]
    shape: dict[str, Any] = {"columns": dict(read.columns), "models": list(outputs.models), "kind": outputs.kind}
    shape |= {"threshold": read.threshold, "cost": dict(layout.cost)}
    return outputs, {"content": content, "layout": shape}


def _found(path: Path, common: Common) -> Path:
    """A table, or the folder of a run that is called by its name or key."""
    if path.exists() or path.suffix:
        return path
    return common.store.find(str(path)).path


def _charts(result: dict[str, Any], folder: Path) -> list[str]:
    from holdfast.ensemble import charts
    from holdfast.report.charts import save

    made: dict[str, Any] = {
        "frontier-size": charts.frontier(result, "size"), "frontier-cost": charts.frontier(result, "cost"),
        "pairs": charts.pairs(result), "teams": charts.teams(result), "calibration": charts.calibration(result),
    }  # fmt: skip
    endings = (".svg", ".png", ".pdf", ".html")
    return [
        str(save(chart, folder / f"{name}{end}"))
        for name, chart in made.items()
        if chart is not None
        for end in endings
    ]


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for part in given for name in part.split(",") if name.strip())
