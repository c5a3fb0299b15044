"""Checkpoints of a training run: everything it takes to go on as if nothing had happened.

A checkpoint is a folder ``checkpoint/step-N`` that is written under another name and renamed when it is whole;
its ``state.json`` holds the hash of each tensor file. Of two or more, the newest undamaged one counts. Tensors
are stored as safetensors, never pickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import RunError
from holdfast.core.events import Sink, Warned
from holdfast.core.files import read_json, write_json, writing
from holdfast.core.keys import file_digest

if TYPE_CHECKING:
    from torch import Tensor

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """State at the start of a step.

    Attributes:
        step: the next step to make.
        tensors: group (``parameters``, ``optimizer``, ``method``) -> name -> tensor.
        values: JSON values: stream positions, method scalars, seconds so far.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and drop all but the last two.

    Raises:
        ResourceError, RunError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save_file

    final = folder / f"step-{checkpoint.step:09d}"
    working = folder / f".step-{checkpoint.step}.part"
    shutil.rmtree(working, ignore_errors=True)
    with writing(final):
        working.mkdir(parents=True)
    hashes = {}
    for group, tensors in checkpoint.tensors.items():
        path = working / f"{group}.safetensors"
        with writing(path):
            save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, path)
        hashes[path.name] = file_digest(path)
    write_json(working / "state.json", {"step": checkpoint.step, "values": dict(checkpoint.values), "files": hashes})
    with writing(final):
        shutil.rmtree(final, ignore_errors=True)
        os.replace(working, final)
    for old in sorted(folder.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, sink: Sink) -> Checkpoint | None:
    """The newest whole checkpoint; None when there is none. Damaged ones are reported and skipped."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return _read(path)
        except (RunError, OSError, KeyError, TypeError, ValueError) as error:
            sink(
                Warned(
                    message=f"checkpoint {path.name} is damaged ({error}); going back to the one before",
                    hint="nothing to do: the lost steps are made again",
                )
            )
    return None


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    state = read_json(path / "state.json")
    tensors = {}
    for name, expected in state["files"].items():
        if file_digest(path / name) != expected:
            raise RunError(f"{name} does not match its hash", hint="the checkpoint before it is used")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Checkpoint(state["step"], tensors, state["values"])


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a method's state into tensors (lists become ``name.0``, ``name.1``...) and JSON values."""
    import torch

    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            tensors |= {f"{name}.{number:06d}": tensor for number, tensor in enumerate(value)}
        else:
            values[name] = value
    return tensors, values


def unflatten(tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Inverse of :func:`flatten`, with the tensors on ``device``."""
    state: dict[str, Any] = dict(values)
    for name in sorted(tensors):
        base, _, number = name.rpartition(".")
        if base and number.isdigit():
            state.setdefault(base, []).append(tensors[name].to(device))
        else:
            state[name] = tensors[name].to(device)
    return state
