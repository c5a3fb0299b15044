"""What every alignment-stage and fine-tuning-stage method promises; a method is tested by being in a table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import nn

import tiny
from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, describe, resolved
from holdfast.core.methods import Table
from holdfast.data.rows import Row
from holdfast.finetune import checkpoint
from holdfast.finetune.alignment import ALIGNMENT
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.finetuning import FINETUNING
from holdfast.finetune.method import OWN_STREAM, StepObject, Stream, TrainingMethod, require_streams
from holdfast.finetune.passes import LoopPasses
from holdfast.models.template import Encoded

TABLES = {"align": ALIGNMENT, "finetune": FINETUNING}
ALL = [(stage, name) for stage, table in TABLES.items() for name in table]
every_method = pytest.mark.parametrize(("stage", "name"), ALL, ids=[f"{stage}-{name}" for stage, name in ALL])


def decode(row: Encoded) -> Row:
    """Token ids as text, so that methods that work on rows have rows."""
    words = list(map(str, row.ids))
    return Row(" ".join(words[: row.prompt_length]), " ".join(words[row.prompt_length :]))


CONTENT = {stream: list(map(decode, tiny.rows(stream, 40))) for stream in get_args(Stream)}


def encode(row: Row) -> Encoded:
    prompt, answer = ([int(word) for word in text.split()] for text in (row.prompt, row.response))
    return Encoded((*prompt, *answer), len(prompt))


def trained(method: TrainingMethod, folder: Path, seed: int = 0, steps: int = 4) -> dict[str, torch.Tensor]:
    """Weights after a few steps, the method's own change of the rows included."""
    rows = method.prepare({stream: list(found) for stream, found in CONTENT.items()}, seed)
    model = tiny.llama()
    encoded = {stream: [encode(row) for row in found] for stream, found in rows.items()}
    tiny.fit(model, method, folder, sets=encoded, steps=steps, seed=seed)
    return tiny.weights(model)


# --- what is declared --------------------------------------------------------------------------------


@every_method
def test_it_is_a_frozen_dataclass_of_documented_knobs(stage: str, name: str) -> None:
    cls = TABLES[stage].load(name)
    assert issubclass(cls, TrainingMethod)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.name == name
    assert cls.stage == stage
    for knob, said in describe(cls).items():
        assert said["doc"], f"{knob} has no doc"
        assert said["type"] not in ("Any", "object"), f"{knob} has no type"
    check(cls(), name)
    assert build(cls, resolved(cls()), name) == cls()
    hash(cls())


@every_method
def test_its_module_cites_its_paper(stage: str, name: str) -> None:
    """Every identifier in ``paper`` is in the module's docstring; only SFT has no paper."""
    cls = TABLES[stage].load(name)
    doc = sys.modules[cls.__module__].__doc__ or ""
    cited = re.findall(r"arXiv:\d{4}\.\d{5}", cls.paper)
    assert (name == "sft") == (not cited)
    assert all(paper in doc for paper in cited)
    assert inspect.getdoc(cls)
    assert cls.title


@every_method
def test_its_costs_and_needs_are_declared(stage: str, name: str) -> None:
    cls = TABLES[stage].load(name)
    assert OWN_STREAM[stage] in cls.needs
    assert set(cls.needs) <= set(get_args(Stream))
    assert cls.passes >= 1
    assert cls.copies >= 0
    assert cls.version >= 1
    assert cls.off.keys() <= describe(cls).keys()


@every_method
def test_a_missing_stream_is_named(stage: str, name: str) -> None:
    cls = TABLES[stage].load(name)
    require_streams(cls(), cls.needs)
    for missing in cls.needs:
        with pytest.raises(UsageError, match=f"{name} needs {missing} data") as caught:
            require_streams(cls(), [stream for stream in cls.needs if stream != missing])
        assert f"--{missing} FILE" in caught.value.hint


# --- what it does ------------------------------------------------------------------------------------


@every_method
def test_strength_zero_is_sft_to_the_bit(stage: str, name: str, tmp_path: Path) -> None:
    cls = TABLES[stage].load(name)
    plain = trained(TABLES[stage].load("sft")(), tmp_path / "sft")
    assert tiny.same(trained(dataclasses.replace(cls(), **cls.off), tmp_path / "off"), plain)
    if name != "sft":
        assert cls.off, "a defence must say at which knobs it is off"
        assert not tiny.same(trained(cls(), tmp_path / "on"), plain), "the defence does nothing"


@every_method
def test_the_seed_decides_everything(stage: str, name: str, tmp_path: Path) -> None:
    method = TABLES[stage].load(name)()
    once = trained(method, tmp_path / "once", seed=1)
    torch.rand(7)  # the global generator has no say
    assert tiny.same(trained(method, tmp_path / "again", seed=1), once)
    assert not tiny.same(trained(method, tmp_path / "other", seed=2), once)


@every_method
def test_it_draws_only_what_it_needs(stage: str, name: str, tmp_path: Path) -> None:
    """``tiny.fit`` hands over the declared streams alone; and nothing declared stays unused for long."""
    method = TABLES[stage].load(name)()
    streams = tiny.streams({stream: tiny.rows(stream, 4) for stream in method.needs}, 2)
    passes = tiny.passes(tiny.llama(), streams, steps=3)
    step = method.start(passes)
    for _ in range(3):
        step(passes)
        passes.step += 1
    assert sum(stream.position for stream in streams.values()) >= 3


@every_method
def test_its_state_survives_a_checkpoint(stage: str, name: str, tmp_path: Path) -> None:
    """After three steps: saved, loaded into a new step object, and the next steps are the same to the bit."""
    method = TABLES[stage].load(name)()
    if name == "lisa":
        method = dataclasses.replace(method, align_steps=2, user_steps=3)

    def going(model: nn.Module) -> LoopPasses:
        return tiny.passes(model, tiny.streams({stream: tiny.rows(stream, 6) for stream in method.needs}, 2), steps=8)

    def descend(passes: LoopPasses, step: StepObject, count: int) -> None:
        for _ in range(count):
            passes.model.zero_grad()
            step(passes)
            with torch.no_grad():
                for p in passes.parameters:
                    p.sub_(0.1 * p.grad)
            passes.step += 1

    passes = going(tiny.llama())
    step = method.start(passes)
    descend(passes, step, 3)
    tensors, values = checkpoint.flatten(step.state())
    checkpoint.save(tmp_path, checkpoint.Checkpoint(3, {"method": tensors}, values))
    weights, positions = tiny.weights(passes.model), {name: found.position for name, found in passes.streams.items()}
    descend(passes, step, 4)

    resumed = going(tiny.llama(seed=5))
    new = method.start(resumed)
    found = checkpoint.load(tmp_path, lambda event: pytest.fail(str(event)))
    assert found is not None
    new.restore(checkpoint.unflatten(found.tensors["method"], found.values, tiny.CPU))
    resumed.model.load_state_dict(weights)
    resumed.step = 3
    for stream, position in positions.items():
        resumed.streams[stream].position = position
    descend(resumed, new, 4)
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(passes.model))


# --- methods of third parties ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Foreign(SFT):
    """A method from another package."""

    name: ClassVar[str] = "foreign"


@pytest.fixture(params=[ALIGNMENT, FINETUNING], ids=["alignment", "finetuning"])
def with_points(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs entry points; gives a fresh table made from the real one's own entries."""
    table = request.param

    def install(points: Mapping[str, str]) -> Table:
        made = [importlib.metadata.EntryPoint(name, target, table.group) for name, target in points.items()]

        def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
            return importlib.metadata.EntryPoints(made if group == table.group else [])

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        return Table(table.kind, table.group, table._own)

    return install


def test_a_third_partys_method_is_found_and_loaded(with_points: Any) -> None:
    table = with_points({"foreign": f"{__name__}:Foreign"})
    assert "foreign" in table
    assert table.load("foreign") is Foreign
    assert [name for name, _ in table.items()][-1] == "foreign"


def test_a_third_party_cannot_take_our_name(with_points: Any) -> None:
    table = with_points({"sft": f"{__name__}:Foreign"})
    assert table.load("sft") is not Foreign
    assert list(table).count("sft") == 1


@pytest.mark.parametrize("target", ["no_such_package.module:Method", f"{__name__}:NoSuchClass"])
def test_a_third_partys_broken_method_is_not_our_traceback(target: str, with_points: Any) -> None:
    table = with_points({"broken": target})
    assert "broken" in table  # listing imports nothing
    with pytest.raises(UsageError, match="'broken' cannot be loaded") as caught:
        table.load("broken")
    assert "reinstall" in caught.value.hint


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown alignment-stage method 'vacine'") as caught:
        ALIGNMENT.load("vacine")
    assert "did you mean 'vaccine'?" in caught.value.hint
