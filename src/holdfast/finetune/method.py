"""What a method of each stage is, and what it may ask of whatever trains the model.

A method is a frozen dataclass of knobs. For the two training stages it makes a *step object*, which is called
once an optimiser step and leaves in ``.grad`` the gradient to apply; it never touches the optimiser. It
speaks to the trainer through :class:`Passes`, so the same step object runs in Holdfast's own loop, in
``transformers.Trainer`` and in TRL (DESIGN section 6). A post-fine-tuning method is called once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from holdfast.data.rows import Row

StageName = Literal["align", "finetune", "repair"]
Stream = Literal["safety", "harmful", "user"]
OWN_STREAM: Mapping[str, Stream] = {"align": "safety", "finetune": "user"}


# One optimiser step's rows of one stream, as one or more micro-batches. Opaque to methods: each trainer has
# its own type, and hands it back to the same trainer.
Batch = Any


class Passes(Protocol):
    """What a step object may ask of its trainer. All gradients are means over a batch's answer tokens."""

    @property
    def model(self) -> nn.Module:
        """The model being trained."""
        ...

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """The trainable parameters (fp32), in a fixed order."""
        ...

    @property
    def step(self) -> int:
        """0-based number of the optimiser step being made."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimiser steps that the stage will make."""
        ...

    def draw(self, stream: Stream) -> Batch:
        """The next batch of a stream."""
        ...

    def backward(self, batch: Batch, scale: float = 1.0) -> float | Tensor:
        """Add ``scale`` times the gradient of the batch's loss to ``.grad``; returns the loss, unscaled."""
        ...

    def gradient(self, batch: Batch) -> tuple[list[Tensor], float | Tensor]:
        """Gradient of the batch's loss as new tensors, ``.grad`` left as it was; and the loss."""
        ...

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """Parts of the batch's loss with their graphs, one a micro-batch; their sum is the loss.

        Each comes under the same noise (dropout) whenever the same batch is passed again.
        """
        ...

    def back(self, loss: Tensor) -> None:
        """Add the gradient of a part of a loss to ``.grad`` (mixed precision and sharding taken care of)."""
        ...

    def generator(self) -> torch.Generator:
        """Randomness of this step's own (on the CPU), the same after a restart."""
        ...

    def log(self, **numbers: float | Tensor) -> None:
        """Record what the method measured in this step."""
        ...


class StepObject:
    """One training run of one method: called once an optimiser step.

    Subclasses keep what must survive a restart in attributes that :meth:`state` returns.
    """

    def __call__(self, passes: Passes) -> float | Tensor:
        """Leave the gradient to apply in ``.grad``, which is empty at the call; return the loss to show."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """State to checkpoint: tensors, lists of tensors, and JSON values.

        Called after every step: return references, not copies.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""

    def finish(self, passes: Passes) -> None:
        """Called once after the last step, before the model is saved."""


class TrainingMethod:
    """Base of alignment-stage and fine-tuning-stage methods (subclasses are frozen dataclasses).

    Attributes:
        name: name in its table.
        stage: the stage it belongs to.
        version: raised whenever the same knobs could give another result than before.
        needs: streams it draws from; checked before any heavy work.
        passes: forward-backward passes of an optimiser step, relative to SFT (the ideal cost).
        copies: copies of the trainable parameters it keeps beside optimiser and gradient.
        off: knob values at which the method is exactly plain SFT (a repair: changes nothing).
        title, paper: how reports name it, and where it comes from.
    """

    name: ClassVar[str]
    stage: ClassVar[StageName]
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Stream, ...]]
    passes: ClassVar[float] = 1.0
    copies: ClassVar[int] = 0
    off: ClassVar[Mapping[str, Any]] = {}
    title: ClassVar[str]
    paper: ClassVar[str]

    def prepare(self, data: dict[Stream, list[Row]], seed: int) -> dict[Stream, list[Row]]:
        """Change what is trained on, before anything is tokenised; by default nothing."""
        return data

    def start(self, passes: Passes) -> StepObject:
        """The step object of a new training run; called when the model is on its device."""
        raise NotImplementedError


@dataclass
class Repair:
    """What a post-fine-tuning method works on.

    Attributes:
        model: the fine-tuned model, changed in place.
        aligned: weights before the user's fine-tuning, name -> tensor on the CPU, for the parameters
            that fine-tuning changed (LoRA tensors under the names they have in ``model``).
        calibration: stream -> batches, each ``input_ids`` (rows, tokens), a boolean ``mask`` of real tokens
            and ``labels`` (-100 where there is no answer), right-padded; only streams that were given.
        generator: source of randomness.
        measured: numbers for the run's summary.
    """

    model: nn.Module
    aligned: Mapping[str, Tensor]
    calibration: Mapping[Stream, Sequence[Mapping[str, Tensor]]]
    generator: torch.Generator
    measured: dict[str, float] = field(default_factory=dict)


class RepairMethod:
    """Base of post-fine-tuning methods (subclasses are frozen dataclasses).

    Attributes: see :class:`TrainingMethod`.
    """

    name: ClassVar[str]
    stage: ClassVar[StageName] = "repair"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Stream, ...]]
    off: ClassVar[Mapping[str, Any]] = {}
    title: ClassVar[str]
    paper: ClassVar[str]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that these knobs draw from; by default ``needs``."""
        return self.needs

    def check_tuning(self, *, lora: bool, continued: bool) -> None:
        """Refuse knobs that do not fit how the model was tuned; asked before training and again before mending.

        Args:
            lora: the user's fine-tuning trained a LoRA.
            continued: that LoRA is the one that alignment had trained.

        Raises:
            UsageError: they do not fit.
        """

    def apply(self, subject: Repair) -> None:
        """Mend ``subject.model`` in place."""
        raise NotImplementedError


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], by: float | Tensor) -> Iterator[None]:
    """Inside the block the parameters stand at ``w + by * direction``; afterwards at ``w``, to the bit.

    The values are put back from a copy: adding and subtracting drifts (relative 7e-8 in fp32 and 4.5e-3 in
    bf16 after 300 steps), and in bf16 most small moves vanish. In-place operations under ``no_grad`` are also
    right for sharded (DTensor) parameters, where assigning ``.data`` silently does nothing.
    """
    import torch

    with torch.no_grad():
        kept = [p.detach().clone() for p in parameters]
        for parameter, move in zip(parameters, direction, strict=True):
            parameter.add_(move, alpha=float(by))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), kept)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all tensors together, in fp32; whole (not per shard) for sharded tensors."""
    import torch

    total: Tensor = torch.linalg.vector_norm(
        torch.stack([_whole(n) for n in torch._foreach_norm(list(tensors))]).float()
    )
    return total


def _whole(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def require_streams(method: TrainingMethod | RepairMethod, given: Sequence[str]) -> None:
    """Refuse a method whose data was not given, before heavy work.

    Raises:
        UsageError: a stream that the method needs is missing.
    """
    needed = method.streams if isinstance(method, RepairMethod) else method.needs
    missing = [stream for stream in needed if stream not in given]
    if missing:
        raise UsageError(
            f"{method.name} needs {' and '.join(missing)} data",
            hint=" ".join(f"--{stream} FILE" for stream in missing) + f"  (in a recipe: data.{missing[0]} = ...)",
        )
