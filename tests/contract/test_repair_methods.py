"""What every post-fine-tuning method promises; a method is tested by being in the table."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.core.errors import UsageError
from holdfast.core.knobs import build, check, describe, resolved
from holdfast.finetune.method import Repair, RepairMethod, Stream, require_streams
from holdfast.finetune.post_finetuning import POST_FINETUNING as TABLE
from holdfast.finetune.streams import calibration_batches

every_method = pytest.mark.parametrize("name", list(TABLE))
SETS: Any = {stream: calibration_batches(tiny.rows(stream, 6), 3, tiny.PAD, tiny.CPU) for stream in get_args(Stream)}


def subject(seed: int = 0) -> Repair:
    """A fresh LoRA on an aligned model: every target that a method may have can be worked on."""
    model: nn.Module = tiny.lora(tiny.llama()).eval()
    before = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "lora_" in name}
    return Repair(model, before, SETS, torch.Generator().manual_seed(seed))


def repaired(method: RepairMethod, seed: int = 0) -> tuple[dict[str, Tensor], Repair]:
    work = subject(seed)
    method.apply(work)
    return tiny.weights(work.model), work


@every_method
def test_it_is_a_frozen_dataclass_of_documented_knobs(name: str) -> None:
    cls = TABLE.load(name)
    assert issubclass(cls, RepairMethod)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (cls.name, cls.stage) == (name, "repair")
    assert cls.version >= 1
    assert all(said["doc"] and said["type"] not in ("Any", "object") for said in describe(cls).values())
    check(cls(), name)
    assert build(cls, resolved(cls()), name) == cls()
    hash(cls())


@every_method
def test_its_module_cites_its_paper(name: str) -> None:
    cls = TABLE.load(name)
    doc = sys.modules[cls.__module__].__doc__ or ""
    cited = re.findall(r"arXiv:\d{4}\.\d{5}", cls.paper)
    assert cited
    assert all(paper in doc for paper in cited)
    assert inspect.getdoc(cls)
    assert cls.title


@every_method
def test_a_missing_stream_is_named(name: str) -> None:
    cls = TABLE.load(name)
    assert set(cls.needs) <= set(get_args(Stream))
    for missing in cls.needs:
        with pytest.raises(UsageError, match=f"{name} needs {missing} data"):
            require_streams(cls(), [stream for stream in cls.needs if stream != missing])


@every_method
def test_strength_zero_changes_nothing(name: str) -> None:
    cls = TABLE.load(name)
    assert cls.off, "a repair must say at which knobs it is off"
    assert cls.off.keys() <= describe(cls).keys()
    untouched = tiny.weights(subject().model)
    assert tiny.same(repaired(dataclasses.replace(cls(), **cls.off))[0], untouched)
    assert not tiny.same(repaired(cls())[0], untouched), "the repair does nothing"


@every_method
def test_it_repeats(name: str) -> None:
    method = TABLE.load(name)()
    before = torch.random.get_rng_state()
    once, _ = repaired(method)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)  # the global generator has no say
    assert tiny.same(repaired(method)[0], once)


@every_method
def test_what_it_measures_is_finite_and_the_model_still_answers(name: str) -> None:
    _, work = repaired(TABLE.load(name)())
    assert work.measured
    assert all(isinstance(value, (int, float)) and abs(value) < float("inf") for value in work.measured.values())
    assert not work.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in work.model.modules())
    assert torch.isfinite(work.model(input_ids=torch.tensor([[3, 4, 5]])).logits).all()
