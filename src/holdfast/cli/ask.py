"""``holdfast ask``: a model answers a set of prompts; the answers are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from holdfast.cli.common import Common, base_of, emit
from holdfast.core.errors import UsageError
from holdfast.core.knobs import check, knob
from holdfast.core.records import Item
from holdfast.core.runs import open_run
from holdfast.core.stage import Request
from holdfast.data import read
from holdfast.finetune.plan import items_of
from holdfast.finetune.recipe import Test
from holdfast.models.answer import Decoding
from holdfast.models.ask import Ask, samples_of
from holdfast.models.engine import Engine

Flat = Parameter(name="*")


@dataclass(frozen=True)
class AskFlags:
    """Who is asked what."""

    model: str = knob(doc="sandbox/micro-0, a model folder, a hub id, or a run folder")
    items: str = knob(doc="prompts: a file, sandbox/hazards-test-0, or hub:org/name")
    group: str = knob("harmful", "what the prompts are: harmful, task, benign or visual (names what judges measure)")
    task: str = knob("", "the task that turns records into prompts (sst2, agnews, gsm8k)")
    columns: dict[str, str] = knob({}, "renames, e.g. --columns.prompt question")
    where: dict[str, str] = knob({}, "keep only records with this value, e.g. --where.label unsafe")
    images: str = knob("", "pictures for a model that sees: a folder, scenes (generated), or plain:white")
    limit: int | None = knob(None, "ask only the first ones", low=1)
    template: str = knob("auto", "how the model is spoken to: auto, alpaca, or a text with {prompt}")
    precision: Literal["fp32", "bf16"] = knob("fp32", "type of the weights while answering")
    members: str = knob("", "members file, when the model is an ensemble")


def ask(
    *,
    flags: Annotated[AskFlags, Flat],
    show: int = 3,
    show_text: bool = False,
    decoding: Annotated[Decoding, Flat] = Decoding(),
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Let a model answer a set of prompts.

    Args:
        show: answers printed.
        show_text: print answers to harmful prompts too.
    """
    check(flags, "ask")
    items, group, task = flags.items, flags.group, flags.task
    table: dict[str, Any] = {"path": items, "task": task, "limit": flags.limit, "where": flags.where}
    table["images"] = flags.images
    if flags.columns:
        table["columns"] = flags.columns
    source = read.source({k: v for k, v in table.items() if v}, "--items")
    asked = tuple(items_of(Test(group, source, (), decoding)))
    request = _request(flags, asked, decoding, common)
    request.validate()
    with common.sink() as sink:
        run = request.make(common.store, engine, sink)
    samples = samples_of(run)
    hidden = group == "harmful" and not show_text
    lines = [f"{len(samples)} answers, {sum(s.finish == 'length' for s in samples)} cut at the length limit"]
    for sample in samples[:show]:
        text = f"[hidden: {len(sample.text)} characters; --show-text shows it]" if hidden else sample.text
        lines.append(f"  {sample.item.prompt[:90]}\n    -> {text[:200]}")
    result = {"answers": len(samples), "attacked": request.attacked, "file": str(run.path / "samples.jsonl")}
    judge = usual_judge(group, task)
    emit(common, result, "\n".join(lines), run=run.path, then=f"holdfast judge {run.path} --judge {judge}")
    return 0


def _request(flags: AskFlags, items: tuple[Item, ...], decoding: Decoding, common: Common) -> Request:
    """What is asked of whom: a language model, or an ensemble over its members' endpoints."""
    base = base_of(flags.model, common)
    folder = Path(base)
    if not ((folder / "spec.json").is_file() and open_run(folder).kind == "ensemble"):
        if flags.members:
            raise UsageError("--members is for an ensemble", hint="--model runs/ensemble-..., or leave --members out")
        return Ask(base, items, {flags.group: decoding}, flags.template, flags.precision)
    if not flags.members:
        raise UsageError(f"{folder.name} is an ensemble", hint="--members members.toml says where its members are")
    from holdfast.ensemble.asking import AskEnsemble
    from holdfast.ensemble.members import read_members

    return AskEnsemble(folder, read_members(Path(flags.members)), items, common.runs / ".answers")


def usual_judge(group: str, task: str = "") -> str:
    """The judge that fits a group of items."""
    if task:
        return f"task:{task}"
    return {"benign": "refusal", "task": "task:exact", "visual": "exact"}.get(group, "not-refused")
