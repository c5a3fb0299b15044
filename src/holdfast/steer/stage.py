"""Requests of the part: fit a method, ask a steered model. Each leads to a run folder by its content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import __version__
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.events import Sink, StageStarted, Warned, ignore
from holdfast.core.files import write_json
from holdfast.core.knobs import check, resolved
from holdfast.core.records import Item
from holdfast.core.runs import Run, Store, open_run
from holdfast.core.stage import Request, find_or_make, request_key
from holdfast.data.images import check_images, open_image
from holdfast.models.answer import Decoding, answer_batches, check_ids
from holdfast.models.ask import base_attacked, base_identity, items_identity
from holdfast.models.engine import Engine, device_of, set_threads
from holdfast.models.load import ModelSource, require_torch, resolve
from holdfast.models.size import size_of
from holdfast.models.vision import is_vision, load_front, load_vision, seeing_batch, sighted_batches
from holdfast.steer.artifact import (
    FOLDER,
    KIND,
    Steering,
    artifact_folder,
    check_strength,
    load_steering,
    shape_of,
)
from holdfast.steer.choose import UNSAFE, Choice, Examiner, Trial, choose, fit_key, rates_of
from holdfast.steer.choose import VERSION as CHOICE_VERSION
from holdfast.steer.exam import Exam
from holdfast.steer.method import Anchors, Learned, SteeringMethod
from holdfast.steer.predict import predictors
from holdfast.steer.subject import CAPTION_PROMPT, Subject

if TYPE_CHECKING:
    from PIL.Image import Image


_POOL_SIZE = 512  # pixels on the longer side of a picture that is kept with an artifact


@dataclass(frozen=True)
class Speaking:
    """How the model is spoken to and run; part of every key.

    Attributes:
        template: ``auto``, or a text with ``{prompt}`` and ``{image}``.
        precision: ``fp32`` or ``bf16``.
        caption_prompt: how it is asked to describe a picture.
    """

    template: str = "auto"
    precision: str = "fp32"
    caption_prompt: str = CAPTION_PROMPT


def open_subject(reference: str, speaking: Speaking, engine: Engine, pool: tuple[Image, ...] = ()) -> Subject:
    """Load a vision-language model, ready to be read and asked.

    Raises:
        ModelError, UsageError, MissingExtra: see :func:`holdfast.models.vision.load_vision`.
    """
    import torch

    require_torch()
    source = resolve(reference)
    set_threads(engine, size_of(source.folder))
    dtype = torch.bfloat16 if speaking.precision == "bf16" else torch.float32
    vision = load_vision(source, dtype, speaking.template)
    vision.model.to(device_of(engine))  # type: ignore[arg-type]
    return Subject(vision, pool, seeing_batch(engine, size_of(source.folder)), speaking.caption_prompt)


def check_sees(base: str | Request, template: str = "") -> ModelSource | None:
    """Refuse a model without eyes, or one that cannot be spoken to, before weights are loaded.

    Args:
        base: the model.
        template: how it is to be spoken to; empty: not checked.

    Raises:
        ModelError: it is a text-only model, or has no chat template.
        UsageError: the template does not fit.
    """
    if not isinstance(base, str):
        base.validate()
        return None
    source = resolve(base)
    if not is_vision(source):
        raise ModelError(
            f"{base} is a text-only model: its configuration has no vision part",
            hint="give a vision-language model, for example sandbox/vlm-0 or a LLaVA folder",
        )
    if template:
        load_front(source, template)
    return source


def config_of(source: ModelSource) -> Any:
    """The configuration of a model; no weights are loaded.

    Raises:
        ModelError: transformers does not know the family, or the file is damaged.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the configuration of {source.reference} cannot be read: {reason}",
            hint="it must be a vision-language model that transformers knows without remote code",
        ) from error


def check_layers(method: SteeringMethod, config: Any) -> None:
    """Refuse layers that a model has not, or that only read the picture.

    Raises:
        UsageError: a named layer cannot be steered.
    """
    text = config.get_text_config()
    crossing = set(getattr(text, "cross_attention_layers", None) or ())
    able = [number for number in range(text.num_hidden_layers) if number not in crossing]
    wrong = [number for number in getattr(method, "layers", ()) if number not in able]
    if wrong:
        raise UsageError(
            f"{method.name}.layers = {wrong[0]}: the model has no such layer to steer",
            hint=f"layers that can be steered: {', '.join(map(str, able))}",
        )


def check_unsafe(exam: Exam) -> None:
    """Refuse an exam whose judges do not say which answers are harmful.

    Raises:
        UsageError: none does.
    """
    if UNSAFE not in exam.measures:
        names = ", ".join(judge.name for judge in exam.judges)
        raise UsageError(
            f"no judge of the {exam.group} answers says whether they are harmful (given: {names})",
            hint="add one that does, such as not-refused",
        )


@dataclass(frozen=True)
class FitStage:
    """Fit a steering method on anchors, its open knobs chosen on validation items.

    Attributes:
        method: with its knobs; open ones are chosen.
        base: a vision-language model.
        harmful, benign: anchors, each with a picture.
        validation: exams by group.
        choice: how open knobs are chosen.
        speaking: how the model is spoken to.
        pictures: unrelated pictures kept with the artifact, for the view ``natural``.
    """

    method: SteeringMethod
    base: str | Request
    harmful: tuple[Item, ...]
    benign: tuple[Item, ...]
    validation: Mapping[str, Exam] = field(default_factory=dict)
    choice: Choice = field(default_factory=Choice)
    speaking: Speaking = field(default_factory=Speaking)
    pictures: int = 8

    kind = KIND

    @property
    def label(self) -> str:
        """First part of the run folder's name."""
        return self.method.name

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        choosing = not self.method.settled
        return {
            "method": {"name": self.method.name, "version": self.method.version, "knobs": resolved(self.method)},
            "base": base_identity(self.base),
            "anchors": {"harmful": items_identity(self.harmful), "benign": items_identity(self.benign)},
            "validation": {group: exam.identity() for group, exam in self.validation.items()} if choosing else {},
            "choice": {"version": CHOICE_VERSION, **resolved(self.choice)} if choosing else {},
            "speaking": resolved(self.speaking),
            "pictures": self.pictures,
            "attacked": self.attacked,
        }

    @property
    def attacked(self) -> bool:
        """Whether the model was tuned on harmful rows."""
        return base_attacked(self.base)

    def validate(self) -> None:
        """Refuse what cannot work, before anything heavy is loaded.

        Raises:
            DataError: anchors of one class only, pictures that do not open, nothing to choose by.
            UsageError, ModelError: a knob or the model does not fit.
        """
        check(self.method, self.method.name)
        check(self.choice, "choice")
        strength = getattr(self.method, "strength", None)
        check_strength(strength, self.method.name)
        for name, items in (("harmful", self.harmful), ("benign", self.benign)):
            if len(items) < 2:
                raise DataError(
                    f"the anchors have {len(items)} {name} prompts; at least 2 of each class are needed",
                    hint=f"--{name} FILE with more prompts",
                )
        both = {item.prompt for item in self.harmful} & {item.prompt for item in self.benign}
        if both:
            raise DataError(
                f"{len(both)} prompts are harmful and harmless anchors at once (one begins {min(both)[:40]!r})",
                hint="give each class its own prompts",
            )
        for items in (self.harmful, self.benign):
            bare = next((item for item in items if not item.image), None)
            if bare is not None:
                raise DataError(f"anchor {bare.id!r} has no picture", hint="--images FOLDER, or --images scenes")
            check_images(items)
        check_apart(self)
        if not self.method.settled and "harmful" not in self.validation:
            raise DataError(
                f"{self.method.name}: layers or strength are open, and there are no validation items to choose by",
                hint="give --validation-harmful FILE (and --validation-benign FILE), or --layers and --strength",
            )
        if not self.method.settled:
            check_unsafe(self.validation["harmful"])
        source = check_sees(self.base)
        if source is not None:
            check_layers(self.method, config_of(source))

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run with the artifact.

        Raises:
            HoldfastError: see :mod:`holdfast.core.errors`.
        """
        require_torch()
        engine = engine or Engine()
        reference = self.base if isinstance(self.base, str) else str(self.base.make(store, engine, sink).path)
        return find_or_make(self, store, sink, lambda run, log: self._fit(run, reference, engine, log))

    def _fit(self, run: Run, reference: str, engine: Engine, sink: Sink) -> dict[str, Any]:
        subject = open_subject(reference, self.speaking, engine, self._pool())
        sink(StageStarted(run=run.name, stage=KIND, label=self.method.title, total=1))
        check_layers(self.method, subject.vision.model.config)
        anchors = Anchors(subject, self.harmful, self.benign)
        learned: dict[str, Learned] = {}
        for setting in self.method.grid(anchors.layers):
            if fit_key(setting) not in learned:
                learned[fit_key(setting)] = setting.fit(anchors)
        examiner = Examiner(subject, learned)
        method, trials = choose(
            self.method, anchors.layers, dict(self.validation), examiner.ask, self.choice,
            base=examiner.base, sink=sink,
        )  # fmt: skip
        found = predictors(anchors, method)
        if trials and trials[0].loss >= rates_of([examiner.base(self.validation["harmful"])])[UNSAFE]:
            lost = "no setting that was tried does better than no steering on the validation items"
            sink(Warned(run=run.name, message=lost, hint="diagnose the model first: holdfast steer diagnose"))
        for line in found.get("warnings", ()):
            sink(Warned(run=run.name, message=line))
        tensors = learned[fit_key(method)]
        # Only a method that shows unrelated pictures when it is applied has to keep them.
        pool = subject.pool if "natural" in method.views else ()
        steering = Steering(method, tensors, self._card(method, trials, found, subject, reference), pool)
        steering.save(run.artifacts / FOLDER)
        write_json(run.path / "metrics.json", {"trials": [trial.as_json() for trial in trials], "predictors": found})
        chosen = {name: value for name, value in resolved(method).items() if name in ("layers", "strength", "twin")}
        return {"chosen": chosen, "tried": len(trials), "loss": trials[0].loss if trials else None}

    def _pool(self) -> tuple[Image, ...]:
        """Unrelated pictures, evenly drawn from those of the benign anchors."""
        names = list(dict.fromkeys(item.image for item in self.benign))
        count = min(self.pictures, len(names))
        pictures = [open_image(names[int(i * len(names) / count)]) for i in range(count)]
        for picture in pictures:
            picture.thumbnail((_POOL_SIZE, _POOL_SIZE))
        return tuple(pictures)

    def _card(
        self, method: SteeringMethod, trials: list[Trial], found: Mapping[str, Any], subject: Subject, reference: str
    ) -> dict[str, Any]:
        return {
            "format": 1,
            "made_with": __version__,
            "method": {
                "name": method.name, "title": method.title, "paper": method.paper, "version": method.version,
                "knobs": resolved(method),
            },
            "model": {
                "reference": subject.vision.reference or reference, "identity": base_identity(reference),
                "shape": shape_of(subject.vision.model), "family": subject.vision.model.config.model_type,
                "attacked": self.attacked,
            },
            "speaking": resolved(self.speaking),
            "anchors": {"harmful": len(self.harmful), "benign": len(self.benign), "content": self.spec["anchors"]},
            "validation": self.spec["validation"],
            "choice": {"rule": resolved(self.choice), "trials": [trial.as_json() for trial in trials[:20]]},
            "predictors": dict(found),
        }  # fmt: skip


def check_apart(stage: FitStage) -> None:
    """Refuse validation items that are anchors too: a choice would be made on what was learned from.

    Raises:
        DataError: a prompt is in both.
    """
    anchors = {" ".join(item.prompt.casefold().split()) for item in (*stage.harmful, *stage.benign)}
    for group, exam in stage.validation.items():
        shared = [i for i in exam.items if " ".join(i.prompt.casefold().split()) in anchors]
        if shared:
            raise DataError(
                f"{len(shared)} {group} validation prompts are anchors too (one begins {shared[0].prompt[:40]!r})",
                hint="give other prompts: 'start' and 'limit' of a source cut a file in two",
            )


@dataclass(frozen=True)
class AskSteered:
    """Ask a steered model a set of items: answers like those of any other model, which judges read.

    Attributes:
        steering: run folder or artifact folder of a fitted method, or the request that fits it.
        base: the model; None for the one that it was fitted on.
        items: what is asked, ids unique.
        decoding: longest answer, for each group of items.
        speaking: how the model is spoken to; None for as it was when fitting.
        other: take a model that the method was not fitted on.
    """

    steering: Path | FitStage
    base: str | Request
    items: tuple[Item, ...]
    decoding: Mapping[str, Decoding] = field(default_factory=dict)
    speaking: Speaking = field(default_factory=Speaking)
    other: bool = False

    kind = "ask"
    label = "ask"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the answers depend on."""
        groups = sorted({item.group for item in self.items})
        return {
            "base": base_identity(self.base),
            "steering": self._identity(),
            "items": items_identity(self.items),
            "decoding": {group: resolved(self._decoding(group)) for group in groups},
            "speaking": resolved(self.speaking),
            "attacked": self.attacked,
        }

    @property
    def attacked(self) -> bool:
        """Whether the answering weights were tuned on harmful rows."""
        return base_attacked(self.base)

    def validate(self) -> None:
        """Refuse what cannot work, before anything heavy is loaded.

        Raises:
            DataError, ModelError, RunError: nothing to ask, no vectors, vectors of another model.
        """
        if not self.items:
            raise DataError("there is nothing to ask: the item set is empty", hint="check the file and its 'where' key")
        check_ids(self.items)
        check_images(self.items)
        check_sees(self.base, self.speaking.template)
        if isinstance(self.steering, FitStage):
            self.steering.validate()
            return
        steering = load_steering(self.steering)
        if isinstance(self.base, str):
            check_config(steering, resolve(self.base), other=self.other)

    def make(self, store: Store, engine: Engine | None = None, sink: Sink = ignore) -> Run:
        """The sealed run with the answers.

        Raises:
            HoldfastError: see :mod:`holdfast.core.errors`; ``NotApplied`` where a hook did not fire.
        """
        require_torch()
        engine = engine or Engine()
        reference = self.base if isinstance(self.base, str) else str(self.base.make(store, engine, sink).path)
        fitted = self.steering
        path = fitted.make(store, engine, sink).path if isinstance(fitted, FitStage) else fitted
        return find_or_make(self, store, sink, lambda run, log: self._answer(run, reference, path, engine, log))

    def _identity(self) -> dict[str, Any]:
        if isinstance(self.steering, FitStage):
            return {"run": request_key(self.steering)}
        if (self.steering / "spec.json").is_file():
            return {"run": open_run(self.steering).key}
        from holdfast.core.keys import folder_digest

        return {"digest": folder_digest(artifact_folder(self.steering), (".safetensors", "card.json", ".png"))}

    def _decoding(self, group: str) -> Decoding:
        return self.decoding.get(group, Decoding())

    def _answer(self, run: Run, reference: str, path: Path, engine: Engine, sink: Sink) -> dict[str, Any]:
        steering = load_steering(path)
        subject = open_subject(reference, self.speaking, engine, steering.pool)
        steering.check_model(subject.vision.model, base_identity(reference), other=self.other)
        sink(StageStarted(run=run.name, stage="ask", label=steering.method.title, total=len(self.items)))
        samples = []
        for group in dict.fromkeys(item.group for item in self.items):
            asked = [item for item in self.items if item.group == group]
            decoding = self._decoding(group)

            def ask(batch: list[int], asked: list[Item] = asked, decoding: Decoding = decoding) -> list[Any]:
                part = [asked[i] for i in batch]
                made = steering.method.answer(subject, steering.learned, part, decoding)
                return [(sample.text, sample.tokens, sample.finish) for sample in made]

            batches = sighted_batches(asked, subject.batch)
            samples = answer_batches(asked, batches, ask, run.path / "samples.jsonl", sink)
        return {"items": len(self.items), "cut_at_length": sum(sample.finish == "length" for sample in samples)}


def check_config(steering: Steering, source: ModelSource, *, other: bool = False) -> None:
    """Refuse vectors of another model by the configuration files alone, before weights are loaded.

    Raises:
        ModelError: another layer count or width; or another model, unless ``other``.
    """

    class Shaped:
        config = config_of(source)

    steering.check_model(Shaped, source.identity, other=other)
