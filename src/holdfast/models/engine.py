"""How work is executed: device, threads, batch of answers. Never part of a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob

if TYPE_CHECKING:
    import torch

    from holdfast.models.size import Size

_SMALL = 20_000_000  # parameters below which more than one CPU thread costs more than it brings


@dataclass(frozen=True)
class Engine:
    """How the work is executed: it changes time and memory, not what is asked for."""

    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps")
    threads: int = knob(0, "CPU threads of a process; 0: one for models under 20M parameters, else all", low=0)
    checkpoint_every: int = knob(0, "steps between checkpoints; 0: about once a minute", low=0)
    answer_batch: int = knob(256, "prompts answered at once", low=1)


def device_of(engine: Engine) -> torch.device:
    """The device to work on.

    Raises:
        UsageError: the named device is not there.
    """
    import torch

    if engine.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {engine.device!r} is not there", hint="--device cpu works everywhere") from error
    return device


def set_threads(engine: Engine, size: Size) -> None:
    """CPU threads of this process. Two threads on a small model stall each other: measured, 2.7 times slower."""
    import torch

    if engine.threads:
        torch.set_num_threads(engine.threads)
    elif size.parameters < _SMALL:
        torch.set_num_threads(1)
