"""Asking: a Model's answers to Items, as a run folder that judges read and nothing regenerates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError, ModelError
from holdfast.core.events import Sink, StageStarted, ignore
from holdfast.core.keys import digest
from holdfast.core.knobs import check, resolved
from holdfast.core.records import Item, Sample
from holdfast.core.runs import Run, Store, open_run
from holdfast.core.stage import Request, find_or_make, request_key
from holdfast.data.images import check_images, identity
from holdfast.models.answer import Decoding, answer_all
from holdfast.models.architecture import inner
from holdfast.models.engine import Engine, device_of, set_threads
from holdfast.models.load import ModelSource, load_model, load_tokenizer, require_torch, resolve
from holdfast.models.size import size_of
from holdfast.models.template import Template
from holdfast.models.vision import answer_all_seeing, is_vision, load_vision, seeing_batch

KIND = "ask"


def base_identity(base: str | Request) -> dict[str, Any]:
    """What identifies the model that a request starts from."""
    return resolve(base).identity if isinstance(base, str) else {"run": request_key(base)}


def base_attacked(base: str | Request) -> bool:
    """Whether a model was tuned on harmful rows, as far as its run says."""
    if not isinstance(base, str):
        return base.attacked
    folder = Path(base)
    if (folder / "spec.json").is_file():
        return bool(open_run(folder).spec.get("attacked", False))
    # runs/NAME/artifacts/model is the run's; a folder written elsewhere says it on its card.
    owner = folder.resolve().parent.parent
    if folder.resolve().parent.name == "artifacts" and (owner / "spec.json").is_file():
        return bool(open_run(owner).spec.get("attacked", False))
    try:
        card = json.loads((folder / "card.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and bool(card.get("attacked", False))


@dataclass(frozen=True)
class Ask:
    """Ask a model a set of items.

    Attributes:
        base: a model reference (see :mod:`holdfast.models.load`) or the request that makes the model.
        items: what to ask, ids unique.
        decoding: longest answer, for each group of items; groups not named use 512 tokens.
        template: how the model is spoken to.
        precision: ``fp32`` or ``bf16``.
    """

    base: str | Request
    items: tuple[Item, ...]
    decoding: Mapping[str, Decoding] = field(default_factory=dict)
    template: str = "auto"
    precision: str = "fp32"

    kind = KIND
    label = KIND

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the answers depend on; the items by their digest."""
        groups = sorted({item.group for item in self.items})
        return {
            "base": base_identity(self.base),
            "items": items_identity(self.items),
            "decoding": {group: resolved(self._decoding(group)) for group in groups},
            "template": self.template,
            "precision": self.precision,
            "attacked": self.attacked,
        }

    @property
    def attacked(self) -> bool:
        """Whether the answering weights were tuned on harmful rows."""
        return base_attacked(self.base)

    def validate(self) -> None:
        """Refuse what cannot work, before anything heavy is loaded.

        Raises:
            DataError: there is nothing to ask, or two items share an id.
            UsageError, ModelError: a knob or the model does not fit.
        """
        if not self.items:
            raise DataError("there is nothing to ask: the item set is empty", hint="check the file and its 'where' key")
        for group, decoding in self.decoding.items():
            check(decoding, f"decoding.{group}")
        check_images(self.items)
        if isinstance(self.base, str):
            source = resolve(self.base)
            if any(item.image for item in self.items) and not is_vision(source):
                raise ModelError(
                    f"{source.reference} is a text-only model, and the items have pictures",
                    hint="give a vision-language model, or items without an image column",
                )
        else:
            self.base.validate()

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run with the answers.

        Raises:
            HoldfastError: see :mod:`holdfast.core.errors`.
        """
        require_torch()
        engine = engine or Engine()
        reference = self.base if isinstance(self.base, str) else str(self.base.make(store, engine, sink).path)
        return find_or_make(self, store, sink, lambda run, log: self._answer(run, reference, engine, log))

    def _decoding(self, group: str) -> Decoding:
        return self.decoding.get(group, Decoding())

    def _answer(self, run: Run, reference: str, engine: Engine, sink: Sink) -> dict[str, Any]:
        import torch

        source = resolve(reference)
        set_threads(engine, size_of(source.folder))
        if is_vision(source):
            return self._answer_seeing(run, source, engine, sink)
        template = Template(load_tokenizer(source), self.template)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = load_model(source, dtype, merge=True).to(device_of(engine)).eval()
        check_vocabulary(template, model, source.reference)
        sink(StageStarted(run=run.name, stage=KIND, label=source.reference, total=len(self.items)))
        cut = 0
        for group in dict.fromkeys(item.group for item in self.items):
            asked = [item for item in self.items if item.group == group]
            path = run.path / "samples.jsonl"
            samples = answer_all(
                model, template, asked, self._decoding(group), path, batch_size=engine.answer_batch, sink=sink
            )
            cut = sum(sample.finish == "length" for sample in samples)
        return {"items": len(self.items), "cut_at_length": cut}

    def _answer_seeing(self, run: Run, source: ModelSource, engine: Engine, sink: Sink) -> dict[str, Any]:
        import torch

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        vision = load_vision(source, dtype, self.template)
        vision.model.to(device_of(engine))  # type: ignore[arg-type]
        sink(StageStarted(run=run.name, stage=KIND, label=source.reference, total=len(self.items)))
        samples: list[Sample] = []
        for group in dict.fromkeys(item.group for item in self.items):
            asked = [item for item in self.items if item.group == group]
            samples = answer_all_seeing(
                vision, asked, self._decoding(group), run.path / "samples.jsonl",
                batch_size=seeing_batch(engine, size_of(source.folder)), sink=sink,
            )  # fmt: skip
        return {"items": len(self.items), "cut_at_length": sum(sample.finish == "length" for sample in samples)}


def items_identity(items: Sequence[Item]) -> dict[str, Any]:
    """What a key is taken over: how many items, and a digest of them with the content of their pictures."""
    rows = [item.as_json() | ({"image": identity(item.image)} if item.image else {}) for item in items]
    return {"count": len(items), "digest": digest(rows)}


def check_vocabulary(template: Template, model: Any, reference: str) -> None:
    """Refuse a tokenizer whose end or padding token the model has no embedding for.

    transformers picks the tokenizer's class by the model's type and may add that type's special tokens to it.

    Raises:
        ModelError: the tokenizer and the model do not fit.
    """
    embeddings: Any = inner(model).get_input_embeddings()
    rows = int(embeddings.num_embeddings)
    for name, token in (("end", template.end), ("padding", template.pad)):
        if token >= rows:
            text = template.tokenizer.convert_ids_to_tokens(token)
            raise ModelError(
                f"the tokenizer of {reference} has the {name} token {text!r} with number {token}; the model has "
                f"embeddings for 0 to {rows - 1}",
                hint="give the tokenizer the special tokens that the model was made with (tokenizer_config.json)",
            )


def samples_of(run: Run) -> list[Sample]:
    """The answers in a run folder.

    Raises:
        DataError: the run has none.
        RunError: the file is damaged.
    """
    from holdfast.core.files import read_rows

    rows = read_rows(run.path / "samples.jsonl")
    if not rows:
        raise DataError(
            f"run {run.name} holds no answers: it is a {run.kind} run", hint="give the run of a 'holdfast ask'"
        )
    return [Sample.from_json(row) for row in rows]
