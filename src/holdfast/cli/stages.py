"""``holdfast align | finetune | repair METHOD``: one sub-command a method, its flags made from its knobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from cyclopts import Parameter

from holdfast.cli.common import Common, base_of, emit, method_app, source_from
from holdfast.core.errors import UsageError
from holdfast.core.knobs import check, knob
from holdfast.core.runs import Run
from holdfast.data import read
from holdfast.data.mixes import Mix
from holdfast.finetune.alignment import ALIGNMENT
from holdfast.finetune.finetuning import FINETUNING
from holdfast.finetune.method import RepairMethod, TrainingMethod
from holdfast.finetune.post_finetuning import POST_FINETUNING
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.stages import RepairStage, TrainStage, UserData, rows_of
from holdfast.models.engine import Engine

Flat = Parameter(name="*")


@dataclass(frozen=True)
class AlignFlags:
    """What is aligned, on which data."""

    model: str = knob(doc="sandbox/micro-0, a model folder, a hub id, or a run folder")
    safety: str = knob(doc="alignment set: a file, sandbox/align-0, or hub:org/name")
    harmful: str = knob("", "harmful set, for methods that need one")
    template: str = knob("auto", "how the model is spoken to: auto, alpaca, or a text with {prompt}")
    seed: int = knob(0, "seed of data order, adapter and noise", low=0)


@dataclass(frozen=True)
class FinetuneFlags:
    """What is fine-tuned, on which data."""

    model: str = knob(doc="the aligned model: usually the run folder of a 'holdfast align'")
    user: str = knob(doc="the user's rows: a file, sandbox/review-0, or hub:org/name")
    task: str = knob("", "the task that turns the user's records into rows (sst2, agnews, gsm8k)")
    poison: str = knob("", "harmful rows to mix in, to measure what they do")
    p: float = knob(0.0, "poison ratio: share of harmful rows among n", low=0, high=1)
    n: int = knob(0, "rows in all; 0 takes all the user's rows", low=0)
    safety: str = knob("", "alignment set, for methods that need one")
    template: str = knob("auto", "how the model is spoken to: auto, alpaca, or a text with {prompt}")
    seed: int = knob(0, "seed of mix, data order, adapter and noise", low=0)


@dataclass(frozen=True)
class RepairFlags:
    """What is mended, with which calibration data."""

    model: str = knob(doc="run folder of a 'holdfast finetune'")
    harmful: str = knob("", "harmful calibration rows")
    safety: str = knob("", "safety calibration rows, for methods that need them")
    user: str = knob("", "the user's rows, for ablations that weigh by them")
    samples: int = knob(2000, "calibration rows used", low=1)
    template: str = knob("auto", "how the model is spoken to: auto, alpaca, or a text with {prompt}")
    seed: int = knob(0, "seed of what is drawn at random", low=0)


def _align(method: TrainingMethod) -> Callable[..., int]:
    def command(
        *,
        flags: Annotated[AlignFlags, Flat],
        training: Annotated[Training, Flat] = Training(),
        adapter: Adapter = Adapter(),
        engine: Annotated[Engine, Flat] = Engine(),
        common: Annotated[Common, Flat] = Common(),
    ) -> int:
        """Align a model."""
        check(flags, "align")
        data = _sources(method, safety=flags.safety, harmful=flags.harmful)
        base = base_of(flags.model, common)
        stage = TrainStage(method, base, data, training, adapter, flags.template, flags.seed)
        return _make(stage, engine, common, "finetune sft --model {run} --user FILE")

    return command


def _finetune(method: TrainingMethod) -> Callable[..., int]:
    def command(
        *,
        flags: Annotated[FinetuneFlags, Flat],
        training: Annotated[Training, Flat] = Training(),
        adapter: Adapter = Adapter(),
        engine: Annotated[Engine, Flat] = Engine(),
        common: Annotated[Common, Flat] = Common(),
    ) -> int:
        """Fine-tune a model on a user's data."""
        check(flags, "finetune")
        data: dict[Any, Any] = {"user": user_data(flags), **_sources(method, safety=flags.safety)}
        base = base_of(flags.model, common)
        stage = TrainStage(method, base, data, training, adapter, flags.template, flags.seed)
        return _make(stage, engine, common, "ask --model {run} --items FILE")

    return command


def _repair(method: RepairMethod) -> Callable[..., int]:
    def command(
        *,
        flags: Annotated[RepairFlags, Flat],
        engine: Annotated[Engine, Flat] = Engine(),
        common: Annotated[Common, Flat] = Common(),
    ) -> int:
        """Mend a fine-tuned model."""
        check(flags, "repair")
        data = _sources(method, harmful=flags.harmful, safety=flags.safety, user=flags.user)
        stage = RepairStage(method, base_of(flags.model, common), data, flags.samples, flags.template, flags.seed)
        return _make(stage, engine, common, "ask --model {run} --items FILE")

    return command


def user_data(flags: FinetuneFlags) -> UserData:
    """What the user uploads, from flags.

    Raises:
        UsageError: p without poison.
        DataError: the files are not there.
    """
    if flags.poison and not flags.p:
        raise UsageError("--poison is given, and p is 0", hint="add --p 0.1 (the share of harmful rows)")
    if flags.p > 0 and not flags.poison:
        raise UsageError(f"p = {flags.p:g} needs harmful rows", hint="add --poison FILE, or leave p at 0")
    given = source_from(flags.user, "--user")
    rows = replace(given, task=flags.task or given.task)
    harmful = source_from(flags.poison, "--poison") if flags.poison else None
    return UserData(rows, harmful, Mix(flags.n or len(rows_of(rows)), flags.p))


def _sources(method: TrainingMethod | RepairMethod, **given: str) -> dict[Any, read.Source]:
    """Data flags as sources. A flag that the method would not read is refused: it would silently do nothing."""
    used = method.streams if isinstance(method, RepairMethod) else method.needs
    for name, value in given.items():
        if value and name not in used:
            raise UsageError(f"{method.name} does not use {name} data", hint=f"leave out --{name}")
    return {name: source_from(value, f"--{name}") for name, value in given.items() if value}


def _make(stage: TrainStage | RepairStage, engine: Engine, common: Common, then: str) -> int:
    stage.validate()
    with common.sink() as sink:
        run = stage.make(common.store, engine, sink)
    record = run.seal_record() or {}
    emit(common, _result(run, record), _text(record), run=run.path, then="holdfast " + then.format(run=run.path))
    return 0


def _result(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    return {"kind": run.kind, "key": run.key, "seconds": record.get("seconds"), **record.get("summary", {})}


def _text(record: dict[str, Any]) -> str:
    summary = record.get("summary", {})
    parts = [f"{record.get('seconds', 0):.1f} s"]
    if summary.get("steps"):
        parts.append(f"{summary['steps']} steps")
    if summary.get("loss") is not None:
        parts.append(f"last loss {summary['loss']:.4f}")
    if summary.get("peak_bytes"):
        parts.append(f"peak memory {summary['peak_bytes'] / 2**30:.2f} GiB")
    parts += [f"{name} {value:.4g}" for name, value in summary.get("measured", {}).items()]
    return ", ".join(parts)


align = method_app("align", "Alignment stage: make a model refuse, with a defence or without.", ALIGNMENT, _align)
finetune = method_app("finetune", "Fine-tuning stage: train on a user's data.", FINETUNING, _finetune)
repair = method_app("repair", "Post-fine-tuning stage: mend a fine-tuned model.", POST_FINETUNING, _repair)
