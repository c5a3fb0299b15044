"""Any step-object defence inside ``transformers.Trainer`` and TRL's ``SFTTrainer``.

    class Defended(DefenceMixin, Trainer): ...

    trainer = Defended(model=..., args=..., train_dataset=alignment_rows,
                       defence=Booster(lam=5, alpha=0.1), harmful_dataset=harmful_rows)
    trainer.train()

``train_dataset`` is the stage's own data: the alignment set for an alignment-stage method, the user's for
a fine-tuning-stage one. The other sets a method needs are given beside it, in the form of ``train_dataset``.

The whole optimiser step, all its micro-batches and passes, is made at the step's last micro-batch, so a
method is right under gradient accumulation. The trainer keeps everything else: mixed precision, clipping,
optimiser, schedule, logging, checkpoints (a method's state is saved beside them and taken up on resume).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from holdfast.core.errors import UsageError
from holdfast.core.files import read_json, write_json
from holdfast.core.knobs import check
from holdfast.finetune import checkpoint
from holdfast.finetune.method import OWN_STREAM, StepObject, Stream, TrainingMethod, require_streams
from holdfast.finetune.passes import as_numbers, draws_noise

_STATE = "holdfast_defence"


@dataclass(frozen=True)
class TrainerBatch:
    """Micro-batches of one optimiser step, and the number of loss tokens when the trainer counts them."""

    micros: Sequence[Any]
    tokens: Any
    noise: int


class TrainerPasses:
    """:class:`holdfast.finetune.method.Passes` by means of a trainer's own loss and backward pass."""

    def __init__(self, trainer: Any, datasets: Mapping[Stream, Any], own: Stream) -> None:
        self._trainer, self._datasets, self._own = trainer, datasets, own
        self.positions = dict.fromkeys(datasets, 0)
        self.current: TrainerBatch | None = None
        self.measured: dict[str, Any] = {}
        self.model: nn.Module = trainer.model
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        wrong = [p.dtype for p in self.parameters if p.dtype != torch.float32]
        if wrong:
            raise UsageError(
                f"trainable parameters are {wrong[0]}; small moves vanish below fp32",
                hint="load the model in fp32, or train a LoRA (its weights are fp32), and set bf16=True for the passes",
            )
        self._noisy = draws_noise(trainer.model)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def step(self) -> int:
        """See :class:`Passes`."""
        return int(self._trainer.state.global_step)

    @property
    def total_steps(self) -> int:
        """See :class:`Passes`."""
        return int(self._trainer.state.max_steps)

    def draw(self, stream: Stream) -> TrainerBatch:
        """See :class:`Passes`. The stage's own batch is the one that the trainer drew."""
        if stream == self._own:
            assert self.current is not None
            return self.current
        args, dataset = self._trainer.args, self._datasets[stream]
        parts = self._trainer.current_gradient_accumulation_steps
        size = args.per_device_train_batch_size
        position = self.positions[stream]
        self.positions[stream] += parts * size
        micros = []
        for part in range(parts):
            indices = [self._index(stream, position + part * size + row, len(dataset)) for row in range(size)]
            micros.append(self._trainer.data_collator([dataset[index] for index in indices]))
        tokens = self._trainer._get_num_items_in_batch(micros, args.device)
        return TrainerBatch(micros, tokens, self._seed("noise", stream, position))

    def backward(self, batch: TrainerBatch, scale: float = 1.0) -> Tensor:
        """See :class:`Passes`."""
        parts = []
        for loss in self.losses(batch):
            self.back(loss if scale == 1.0 else scale * loss)
            parts.append(loss.detach())
        return torch.stack(parts).sum()

    def gradient(self, batch: TrainerBatch) -> tuple[list[Tensor], Tensor]:
        """See :class:`Passes`."""
        held = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        loss = self.backward(batch)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for p, before in zip(self.parameters, held, strict=True):
            p.grad = before
        return found, loss

    def losses(self, batch: TrainerBatch) -> Iterator[Tensor]:
        """See :class:`Passes`."""
        trainer = self._trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # a trainer with a loss of its own says so
        if scaled is None:
            counted = trainer.model_accepts_loss_kwargs and batch.tokens is not None
            scaled = counted or trainer.compute_loss_func is not None
        for number, micro in enumerate(batch.micros):
            inputs = trainer._prepare_inputs(micro)
            with self._noise(batch.noise + number), trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model_wrapped, dict(inputs), num_items_in_batch=batch.tokens)
            yield loss if scaled else loss / len(batch.micros)

    def back(self, loss: Tensor) -> None:
        """See :class:`Passes`."""
        self._trainer.accelerator.backward(loss)

    def generator(self) -> torch.Generator:
        """See :class:`Passes`."""
        return torch.Generator().manual_seed(self._seed("step", self.step))

    def log(self, **numbers: float | Tensor) -> None:
        """See :class:`Passes`."""
        self.measured.update(numbers)

    def own_batch(self, micros: Sequence[Any], tokens: Any) -> TrainerBatch:
        """The trainer's batch of this step."""
        return TrainerBatch(list(micros), tokens, self._seed("noise", self._own, self.step))

    def _index(self, stream: str, place: int, count: int) -> int:
        number, offset = divmod(place, count)
        if self._orders.get(stream, (-1, []))[0] != number:
            order = list(range(count))
            random.Random(self._seed("order", stream, number)).shuffle(order)
            self._orders[stream] = (number, order)
        return self._orders[stream][1][offset]

    def _seed(self, *what: Any) -> int:
        args = self._trainer.args
        label = "-".join(map(str, (*what, args.seed if args.data_seed is None else args.data_seed)))
        return random.Random(label).getrandbits(62)

    @contextmanager
    def _noise(self, seed: int) -> Iterator[None]:
        if not self._noisy:
            yield
            return
        device = self._trainer.args.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


class DefenceMixin:
    """Put before a ``transformers.Trainer`` (or TRL ``SFTTrainer``) in a class's bases.

    Args:
        defence: an alignment-stage or fine-tuning-stage method with its knobs.
        safety_dataset, harmful_dataset: sets that the method needs beside ``train_dataset``, in the same form
            (an ``SFTTrainer`` prepares them as it prepares ``train_dataset``).

    Raises:
        UsageError: the method needs a set that was not given, changes the rows (mix them yourself), several
            processes are used, or fp16 or DeepSpeed is.
    """

    def __init__(
        self,
        *args: Any,
        defence: TrainingMethod,
        safety_dataset: Any = None,
        harmful_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        check(defence, defence.name)
        own = OWN_STREAM[defence.stage]
        given = {"safety": safety_dataset, "harmful": harmful_dataset, own: kwargs.get("train_dataset")}
        require_streams(defence, [name for name, dataset in given.items() if dataset is not None])
        if type(defence).prepare is not TrainingMethod.prepare:
            raise UsageError(
                f"{defence.name} only changes the rows",
                hint="mix the safety rows into train_dataset and train as usual",
            )
        super().__init__(*args, **kwargs)
        _refuse_unsupported(self)
        self.defence = defence
        others = {n: d for n, d in given.items() if n != own and n in defence.needs}
        self._other_sets = {name: self._prepared(name, dataset) for name, dataset in others.items()}
        self._own_stream = own
        self._passes: TrainerPasses | None = None
        self._stepper: StepObject | None = None
        self._resume_folder: Path | None = None
        self.add_callback(_StateSaver(self))  # type: ignore[attr-defined]

    def _prepared(self, name: str, dataset: Any) -> Any:
        prepare = getattr(self, "_prepare_dataset", None)  # TRL tokenises inside the trainer
        if prepare is None:
            return dataset
        trainer: Any = self
        return prepare(dataset, trainer.processing_class, trainer.args, False, None, name)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As the trainer's; the defence's state is taken up from the checkpoint too."""
        trainer: Any = super()
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        self._resume_folder = Path(folder) if folder else None
        self._passes = self._stepper = None
        result = trainer.train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        passes, stepper = self._parts
        if stepper is not None and passes is not None:
            stepper.finish(passes)
        return result

    @property
    def _parts(self) -> tuple[TrainerPasses | None, StepObject | None]:
        return self._passes, self._stepper

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's; keeps the step's micro-batches together."""
        trainer: Any = super()
        micros, tokens = trainer.get_batch_samples(*args, **kwargs)
        self._micros, self._tokens, self._part = micros, tokens, 0
        return micros, tokens

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The whole step at its last micro-batch, nothing before."""
        device = self.args.device  # type: ignore[attr-defined]
        self._part += 1
        if self._part < len(self._micros):
            return torch.zeros((), device=device)
        model.train()
        passes, stepper = self._started()
        passes.current = passes.own_batch(self._micros, self._tokens)
        return torch.as_tensor(stepper(passes), device=device).detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the trainer's, with what the defence measured."""
        passes: TrainerPasses | None = getattr(self, "_passes", None)
        measured = as_numbers(passes.measured) if passes is not None else {}
        trainer: Any = super()
        trainer.log({**logs, **{f"defence/{name}": value for name, value in measured.items()}}, *args, **kwargs)

    def _started(self) -> tuple[TrainerPasses, StepObject]:
        if self._passes is None or self._stepper is None:
            self._passes = TrainerPasses(self, self._other_sets, self._own_stream)
            self._stepper = self.defence.start(self._passes)
            if self._resume_folder is not None:
                _restore(self._resume_folder, self._passes, self._stepper)
        return self._passes, self._stepper


class _StateSaver(TrainerCallback):
    """Saves a defence's state into each of the trainer's checkpoints."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the trainer has written a checkpoint."""
        passes, stepper = self._trainer._passes, self._trainer._stepper
        if passes is None or stepper is None:
            return
        from safetensors.torch import save_file

        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tensors, values = checkpoint.flatten(stepper.state())
        save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, folder / f"{_STATE}.safetensors")
        write_json(folder / f"{_STATE}.json", {"positions": passes.positions, "values": values})


def _restore(folder: Path, passes: TrainerPasses, stepper: StepObject) -> None:
    path = folder / f"{_STATE}.json"
    if not path.exists():
        raise UsageError(
            f"{folder} holds no state of a defence",
            hint="resume from a checkpoint that this trainer wrote, or start anew",
        )
    from safetensors.torch import load_file

    found = read_json(path)
    passes.positions.update(found["positions"])
    device = passes.parameters[0].device
    stepper.restore(checkpoint.unflatten(load_file(folder / f"{_STATE}.safetensors"), found["values"], device))


def _refuse_unsupported(trainer: Any) -> None:
    reason = ""
    if trainer.accelerator.num_processes > 1 or trainer.args.n_gpu > 1:
        reason = "several processes or GPUs"
    elif trainer.args.fp16:
        reason = "fp16 loss scaling"
    elif trainer.args.deepspeed:
        reason = "DeepSpeed"
    if reason:
        raise UsageError(f"defences do not support {reason} yet", hint="use one process, and fp32 or bf16=True")
