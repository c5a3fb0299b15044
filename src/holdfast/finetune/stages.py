"""Stages: align, finetune, repair. Each is a request whose result is a run folder.

A stage knows its key before anything runs: the hash of its resolved knobs, the digests of its data and
the key of the stage it starts from. ``make`` finds or makes the run; two cells of a grid that share a stage
therefore share a run (DESIGN section 4, rules 8 and 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.events import Sink, ignore
from holdfast.core.files import write_json
from holdfast.core.knobs import check, resolved
from holdfast.core.runs import Run, Store, open_run
from holdfast.core.stage import find_or_make
from holdfast.data import read
from holdfast.data.mixes import Mix, mix_rows
from holdfast.finetune.method import RepairMethod, StageName, Stream, TrainingMethod, require_streams
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.tasks import TASKS
from holdfast.models.ask import base_attacked, base_identity
from holdfast.models.engine import Engine
from holdfast.models.load import ModelSource, require_torch, resolve

if TYPE_CHECKING:
    from holdfast.data.rows import Row


@dataclass(frozen=True)
class UserData:
    """What the user uploads: benign task rows, and the share of harmful ones that makes it an attack.

    Attributes:
        task: where the benign rows come from.
        poison: where the harmful rows come from; None when ``mix.p`` is 0.
        mix: how many rows in all, and which share of them is harmful.
    """

    task: read.Source
    poison: read.Source | None
    mix: Mix

    def rows(self, seed: int) -> list[Row]:
        """The uploaded rows, shuffled.

        Raises:
            DataError: a pool is too small.
        """
        harmful = rows_of(self.poison) if self.poison is not None and self.mix.p > 0 else []
        return mix_rows(rows_of(self.task), harmful, self.mix, seed)

    def identity(self) -> dict[str, Any]:
        """What a key is taken over: digests of the sources that count, and the mix."""
        poison = read.digest(self.poison) if self.poison is not None and self.mix.p > 0 else None
        return {"task": read.digest(self.task), "poison": poison, "mix": resolved(self.mix)}


Data = Mapping[Stream, "read.Source | UserData"]


def rows_of(source: read.Source) -> list[Row]:
    """Rows of a source, through its task when it names one.

    Raises:
        DataError: the source does not hold what it must.
        UsageError: no such task.
    """
    if source.task:
        task = TASKS.load(source.task)()
        return read.read(source, task.rows)
    return read.read(source)


@dataclass(frozen=True)
class TrainStage:
    """The alignment or the fine-tuning stage.

    Attributes:
        method: a method of the stage, with its knobs.
        base: a model reference (see :mod:`holdfast.models.load`) or the stage to start from.
        data: stream -> where its rows come from.
        training: length, rate, batch and so on.
        adapter: which parameters are trained.
        template: how the model is spoken to (see :class:`holdfast.models.template.Template`).
        seed: seed of the data order, the mix, the adapter's initialisation and the noise.
    """

    method: TrainingMethod
    base: str | TrainStage
    data: Data
    training: Training
    adapter: Adapter = field(default_factory=Adapter)
    template: str = "auto"
    seed: int = 0

    @property
    def kind(self) -> StageName:
        """``align`` or ``finetune``."""
        return self.method.stage

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on, with all defaults filled in."""
        return {
            "method": method_spec(self.method),
            "base": base_identity(self.base),
            "data": {s: _identity(self.data[s]) for s in sorted(self.method.needs) if s in self.data},
            "training": resolved(self.training),
            "adapter": resolved(self.adapter),
            "template": self.template,
            "seed": self.seed,
            "attacked": self.attacked,
        }

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        return self.method.name

    @property
    def attacked(self) -> bool:
        """Whether harmful rows were among what these weights were tuned on."""
        user = self.data.get("user")
        here = isinstance(user, UserData) and user.mix.p > 0
        return here or base_attacked(self.base)

    @property
    def reference(self) -> str:
        """The model that the chain of stages starts from."""
        return self.base if isinstance(self.base, str) else self.base.reference

    def validate(self) -> None:
        """Refuse what cannot work, before anything heavy is loaded.

        Raises:
            UsageError: a knob out of range, or data that the method needs and was not given.
            DataError, ModelError: what is read lightly (names, folders) is not there.
        """
        check(self.method, f"{self.kind} {self.method.name}")
        check(self.training, f"{self.kind} training")
        check(self.adapter, "adapter")
        require_streams(self.method, list(self.data))
        if isinstance(self.base, str):
            resolve(self.base)
        else:
            self.base.validate()

    def rows(self) -> dict[Stream, list[Row]]:
        """Rows of every stream that the method draws from, after the method's own preparation."""
        data: dict[Stream, list[Row]] = {}
        for stream in self.method.needs:
            source = self.data[stream]
            data[stream] = source.rows(self.seed) if isinstance(source, UserData) else rows_of(source)
        return self.method.prepare(data, self.seed)

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run of this stage: found, finished, or made.

        Raises:
            HoldfastError: see the classes in :mod:`holdfast.core.errors`.
        """
        require_torch()
        self.validate()  # before the stages below are made: they may take hours
        from holdfast.finetune.making import make_training

        below = None if isinstance(self.base, str) else self.base.make(store, engine, sink)
        return find_or_make(
            self, store, sink, lambda run, log: make_training(self, run, below, engine or Engine(), log)
        )


@dataclass(frozen=True)
class RepairStage:
    """The post-fine-tuning stage.

    Attributes:
        method: a post-fine-tuning method, with its knobs.
        base: the fine-tuning stage, or the folder of its run.
        data: stream -> calibration rows.
        samples: calibration rows used of each stream.
        template, seed: as in :class:`TrainStage`.
    """

    method: RepairMethod
    base: str | TrainStage
    data: Data
    samples: int = 2000
    template: str = "auto"
    seed: int = 0

    kind = "repair"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """See :attr:`TrainStage.spec`."""
        return {
            "method": method_spec(self.method),
            "base": base_identity(self.base),
            "data": {stream: _identity(source) for stream, source in sorted(self.data.items())},
            "samples": self.samples,
            "template": self.template,
            "seed": self.seed,
            "attacked": self.attacked,
        }

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        return self.method.name

    @property
    def attacked(self) -> bool:
        """Repaired weights stay marked: the repair may have missed something."""
        return base_attacked(self.base)

    @property
    def reference(self) -> str:
        """The model that the chain of stages starts from."""
        return self.base if isinstance(self.base, str) else self.base.reference

    def validate(self) -> None:
        """See :meth:`TrainStage.validate`."""
        check(self.method, f"repair {self.method.name}")
        require_streams(self.method, list(self.data))
        if isinstance(self.base, str):
            tuned_from(self.base)
            return
        self.base.validate()
        self.method.check_tuning(lora=_trains_lora(self.base), continued=_continues_lora(self.base))

    def rows(self, stream: Stream) -> list[Row]:
        """The first ``samples`` calibration rows of a stream."""
        source = self.data[stream]
        found = source.rows(self.seed) if isinstance(source, UserData) else rows_of(source)
        return found[: self.samples]

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """See :meth:`TrainStage.make`."""
        require_torch()
        self.validate()
        from holdfast.finetune.making import make_repair

        below = Path(self.base) if isinstance(self.base, str) else self.base.make(store, engine, sink).path
        settings = engine or Engine()
        return find_or_make(self, store, sink, lambda run, _log: make_repair(self, run, below, settings))


Stage = TrainStage | RepairStage


def _trains_lora(stage: TrainStage) -> bool:
    return stage.adapter.train == "lora"


def _continues_lora(stage: TrainStage) -> bool:
    """Whether a stage goes on training the LoRA of the stage before it (of a run on disk: not known yet)."""
    before = stage.base
    return isinstance(before, TrainStage) and _trains_lora(before) and before.adapter.policy == "keep"


def method_spec(method: TrainingMethod | RepairMethod) -> dict[str, Any]:
    """Name, version and all knobs of a method."""
    return {"name": method.name, "version": method.version, "knobs": resolved(method)}


def tuned_from(reference: str) -> tuple[Path, ModelSource]:
    """The run folder of a fine-tuned model, and the model it was tuned from.

    Raises:
        ModelError: it is not a fine-tuning run, or the model it started from is gone.
    """
    folder = Path(reference)
    if not (folder / "spec.json").is_file():
        raise ModelError(
            f"{reference} is not a run folder: a repair must know what the model was before fine-tuning",
            hint="give the run folder of a 'holdfast finetune'",
        )
    run = open_run(folder)
    if run.kind != "finetune":
        raise UsageError(f"{run.name} is a {run.kind} run", hint="repair takes the run folder of a 'holdfast finetune'")
    start = run.provenance.get("start")
    if start is None:
        raise ModelError(f"{run.name} does not record its start", hint="run the fine-tuning again")
    return folder, resolve(str(start))


def _identity(source: read.Source | UserData) -> Any:
    return source.identity() if isinstance(source, UserData) else read.digest(source)


def write_card(folder: Path, stage: Stage, run: Run, extra: Mapping[str, Any]) -> None:
    """The card beside an artifact: what made it, and whether it was attacked."""
    write_json(
        folder / "holdfast.json",
        {
            "format": 1,
            "run": run.name,
            "kind": stage.kind,
            "method": method_spec(stage.method),
            "attacked": stage.attacked,
            "spec": stage.spec,
            **extra,
        },
    )
