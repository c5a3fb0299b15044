"""What happens inside a stage's run folder: load, tune or mend, save. Needs torch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from holdfast.core.errors import ModelError, ResourceError, UsageError
from holdfast.core.events import Sink, StageStarted, Warned
from holdfast.core.files import free_bytes, read_json, readable, write_json, writing
from holdfast.core.runs import Run
from holdfast.finetune.cost import Meter
from holdfast.finetune.loop import Job, Outcome, train
from holdfast.finetune.method import OWN_STREAM, Repair, Stream
from holdfast.finetune.settings import Adapter
from holdfast.finetune.stages import RepairStage, TrainStage, tuned_from, write_card
from holdfast.finetune.streams import RowStream, calibration_batches
from holdfast.models.architecture import context_length, inner, linear_modules
from holdfast.models.ask import check_vocabulary
from holdfast.models.engine import Engine, device_of, set_threads
from holdfast.models.load import ModelSource, load_model, load_tokenizer, quiet, resolve
from holdfast.models.size import Size, size_of
from holdfast.models.template import Encoded, Template

if TYPE_CHECKING:
    from torch import Tensor, nn


def make_training(stage: TrainStage, run: Run, below: Run | None, engine: Engine, sink: Sink) -> dict[str, Any]:
    """Train in a run folder; returns what the seal shows.

    Raises:
        HoldfastError: see :meth:`TrainStage.make`.
    """
    source = resolve(str(below.path) if below is not None else str(stage.base))
    size = size_of(source.folder)
    check_room(stage, size, run.path, engine)
    set_threads(engine, size)
    meter = Meter()
    template = Template(load_tokenizer(source), stage.template)
    encoded = _encoded(stage, template, source, sink)
    model = prepare_model(source, stage)
    check_vocabulary(template, model, source.reference)
    own = OWN_STREAM[stage.kind]
    steps = stage.training.total_steps(len(encoded[own]))
    sink(StageStarted(run=run.name, stage=stage.kind, label=stage.method.name, total=steps))
    streams = {
        name: RowStream(rows, stage.training.batch_size, stage.training.accumulate, template.pad, stage.seed, name)
        for name, rows in encoded.items()
    }
    job = Job(model, stage.method, streams, stage.training, steps, run.path / "checkpoint", stage.seed)
    outcome = train(job, engine, sink)
    _warn_of_collapse(outcome, sink)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    save_model(model, template, source, run, merge=stage.kind == "align" and stage.adapter.policy == "fresh")
    _remember_start(run, source)
    cost = meter.read() | {"seconds": round(outcome.seconds, 3)}
    card = {"steps": outcome.steps, "measured": outcome.measured, "first": outcome.first}
    write_card(_artifact(run), stage, run, card | cost)
    write_json(run.artifacts / "losses.json", outcome.losses)
    last = outcome.losses[-1][1] if outcome.losses else None
    return {**cost, "steps": outcome.steps, "loss": last, "trainable": trainable, "measured": outcome.measured}


def make_repair(stage: RepairStage, run: Run, below: Path, engine: Engine) -> dict[str, Any]:
    """Mend a fine-tuned model in a run folder; returns what the seal shows.

    Raises:
        HoldfastError: see :meth:`RepairStage.make`.
    """
    folder, start = tuned_from(str(below))
    source = resolve(str(folder))
    set_threads(engine, size_of(source.folder))
    meter = Meter()
    template = Template(load_tokenizer(source), stage.template)
    device = device_of(engine)
    model = load_model(source, torch.float32).to(device).eval()
    calibration = {stream: _calibration(stage, stream, template, model, device) for stream in stage.data}
    generator = torch.Generator().manual_seed(random.Random(f"repair-{stage.seed}").getrandbits(62))
    subject = Repair(model, weights_before(model, source, start), calibration, generator)
    stage.method.apply(subject)
    save_model(model, template, source, run, merge=False)
    _remember_start(run, start)
    cost = meter.read()
    write_card(_artifact(run), stage, run, {"measured": subject.measured, **cost})
    return {**cost, "measured": subject.measured}


def prepare_model(source: ModelSource, stage: TrainStage) -> nn.Module:
    """Load a model and make exactly the parameters trainable that the adapter settings name.

    Raises:
        UsageError: the settings contradict the adapter that the model comes with.
        ModelError: no parameter would be trained.
    """
    adapter = stage.adapter
    bf16_base = stage.training.precision == "bf16" and adapter.train == "lora"
    model = load_model(source, torch.bfloat16 if bf16_base else torch.float32)
    if source.adapter is not None and (adapter.train != "lora" or adapter.policy == "fresh"):
        raise UsageError(
            f"{source.reference} carries a LoRA, and the settings ask for train = {adapter.train!r}, "
            f"policy = {adapter.policy!r}",
            hint="align with policy = 'fresh' (which merges the LoRA), or keep it: train = 'lora', policy = 'keep'",
        )
    if adapter.train == "lora":
        model = model if source.adapter is not None else _add_lora(model, adapter, stage.seed, stage.kind)
    else:
        model.requires_grad_(True)
        if adapter.train == "body":
            _freeze_embeddings(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("nothing in this model would be trained", hint="check adapter.targets")
    return model


def _freeze_embeddings(model: nn.Module) -> None:
    core = inner(model)
    for part in (core.get_input_embeddings(), core.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(False)


def _add_lora(model: nn.Module, adapter: Adapter, seed: int, kind: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name in linear_modules(model)}
    targets = list(adapter.targets) or sorted(names)
    absent = [name for name in targets if name not in names]
    if absent:
        raise UsageError(
            f"adapter.targets: this model has no module {absent[0]!r}", hint=f"it has: {', '.join(sorted(names))}"
        )
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.scale,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=adapter.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=_uses_conv1d(model),
    )
    with torch.random.fork_rng(devices=[]):
        # PEFT draws the initial A matrices from the global generator; it is put back afterwards.
        torch.manual_seed(random.Random(f"lora-{kind}-{seed}").getrandbits(62))
        return get_peft_model(model, config)


def _uses_conv1d(model: nn.Module) -> bool:
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def save_model(model: nn.Module, template: Template, source: ModelSource, run: Run, *, merge: bool) -> None:
    """Write a model that the libraries' own ``from_pretrained`` opens: a plain folder, or a PEFT adapter.

    Raises:
        ResourceError, RunError: the disk is full or the folder cannot be written.
    """
    is_adapter = hasattr(model, "peft_config")
    if is_adapter and merge:
        model = model.merge_and_unload()  # type: ignore[operator]
        is_adapter = False
    folder = run.artifacts / ("adapter" if is_adapter else "model")
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        if is_adapter:
            # The adapter must name a base that from_pretrained can open: a folder or a hub id.
            for config in model.peft_config.values():  # type: ignore[operator]
                config.base_model_name_or_path = source.base
        model.save_pretrained(folder)  # type: ignore[operator]
        template.tokenizer.save_pretrained(str(folder))
        readable(folder)


def weights_before(model: nn.Module, source: ModelSource, start: ModelSource) -> dict[str, Tensor]:
    """Values that fine-tuning started from, under their names in the tuned model.

    For a continued adapter: the adapter before. For a fresh one: zeros, since its product B A was zero. For a
    model without adapter: its weights before.
    """
    if source.adapter is not None and start.adapter is None:
        return {name: torch.zeros_like(p, device="cpu") for name, p in model.named_parameters() if "lora_" in name}
    before = load_model(start, torch.float32)
    return {name: p.detach().cpu() for name, p in before.named_parameters()}


def check_room(stage: TrainStage, size: Size, folder: Path, engine: Engine) -> None:
    """Refuse a stage that cannot fit in memory or on the disk.

    Raises:
        ResourceError: it does not fit, with what would.
    """
    need = training_bytes(stage, size)
    if engine.device in ("auto", "cpu") and not torch.cuda.is_available():
        import psutil

        free = psutil.virtual_memory().available
        if need["memory"] > free:
            raise ResourceError(
                f"training needs about {_gib(need['memory'])} GiB of memory before activations; {_gib(free)} are free",
                hint="use adapter train = 'lora', precision = 'bf16', or a smaller model",
            )
    free = free_bytes(folder)
    if need["disk"] > free:
        raise ResourceError(
            f"the run needs about {_gib(need['disk'])} GiB of disk; {_gib(free)} are free",
            hint="free some space, choose another folder with --runs DIR, or use adapter train = 'lora'",
        )


def training_bytes(stage: TrainStage, size: Size) -> dict[str, int]:
    """Memory (weights, gradients, AdamW's two moments, the method's copies) and disk (result, checkpoints)."""
    lora = stage.adapter.train == "lora"
    trained = size.lora_per_rank * stage.adapter.rank if lora else size.parameters
    base = size.parameters * (2 if stage.training.precision == "bf16" and lora else 4)
    memory = base * lora + trained * 4 * (4 + stage.method.copies)
    whole = not lora or (stage.kind == "align" and stage.adapter.policy == "fresh")
    disk = (size.parameters if whole else trained) * 4 + 3 * trained * 4 * (3 + stage.method.copies)
    return {"memory": memory, "disk": disk, "trainable": trained}


def _encoded(stage: TrainStage, template: Template, source: ModelSource, sink: Sink) -> dict[Stream, list[Encoded]]:
    limit = stage.training.max_length
    context = context_length(_text_config(source))
    if context is not None and context < limit:
        limit = context
    out: dict[Stream, list[Encoded]] = {}
    for name, rows in stage.rows().items():
        if name not in stage.method.needs:
            continue
        out[name], cut = template.encode_all(rows, limit, name)
        if cut:
            sink(
                Warned(
                    message=f"{cut} of {len(rows)} {name} answers were cut at {limit} tokens",
                    hint="raise max_length if the ends of the answers matter",
                )
            )
    return out


def _text_config(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the configuration of {source.reference} cannot be used: {error}",
            hint="it must be a model that transformers knows without remote code",
        ) from error


def _calibration(
    stage: RepairStage, stream: Stream, template: Template, model: nn.Module, device: torch.device
) -> list[dict[str, Tensor]]:
    limit = min(context_length(inner(model).config) or 256, 256)
    encoded, _ = template.encode_all(stage.rows(stream), limit, stream)
    return calibration_batches(encoded, 32, template.pad, device)


def _warn_of_collapse(outcome: Outcome, sink: Sink) -> None:
    """Booster's simulated step must not flip the model (see its module): h(w') near 0 trains compliance."""
    after, before = outcome.measured.get("harmful_loss_after_step"), outcome.measured.get("harmful_loss")
    if after is not None and before is not None and after < 0.05 * before:
        sink(
            Warned(
                message=f"the simulated harmful step drives the harmful loss from {before:.3g} to {after:.3g}: beyond "
                "this radius the regulariser rewards compliance",
                hint="lower alpha (keep lam * alpha about constant)",
            )
        )


def _remember_start(run: Run, start: ModelSource) -> None:
    """A repair must find the model that fine-tuning started from; where it lies is no part of the key."""
    header = read_json(run.path / "spec.json")
    here = Path(start.reference)
    header.setdefault("provenance", {})["start"] = str(here.absolute()) if here.exists() else start.reference
    write_json(run.path / "spec.json", header)


def _artifact(run: Run) -> Path:
    return next(path for name in ("adapter", "model") if (path := run.artifacts / name).is_dir())


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f}"
