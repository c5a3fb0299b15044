"""A steered model as a Model: opened from a fitted method, asked Items, or put around your own ``generate`` calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import UsageError
from holdfast.core.records import Item, Sample
from holdfast.data.images import check_images
from holdfast.models.answer import Decoding
from holdfast.models.ask import base_identity
from holdfast.models.engine import Engine
from holdfast.models.load import resolve
from holdfast.steer.artifact import Steering, load_steering
from holdfast.steer.intervene import Edit, Intervention, Tally
from holdfast.steer.methods.cmrm import added
from holdfast.steer.stage import Speaking, check_config, open_subject
from holdfast.steer.subject import Subject


@dataclass(frozen=True)
class SteeredModel:
    """A vision-language model with a fitted steering method.

    Attributes:
        subject: the model.
        steering: the fitted method.
    """

    subject: Subject
    steering: Steering

    @classmethod
    def open(
        cls, steering: str | Path, model: str = "", *, engine: Engine | None = None, other: bool = False
    ) -> SteeredModel:
        """Load a fitted method and its model.

        Args:
            steering: run of a 'holdfast steer fit', or the folder of its artifact.
            model: the model; empty: the one that the method was fitted on.
            engine: device and threads.
            other: take a model that was tuned from the one the method was fitted on.

        Raises:
            ModelError, RunError: no vectors, a model of another shape, or another model.
        """
        found = load_steering(Path(steering))
        reference = model or str(found.card["model"]["reference"])
        check_config(found, resolve(reference), other=other)
        subject = open_subject(reference, Speaking(**found.card["speaking"]), engine or Engine(), found.pool)
        found.check_model(subject.vision.model, base_identity(reference), other=other)
        return cls(subject, found)

    def answer(self, items: Sequence[Item], decoding: Decoding | None = None) -> list[Sample]:
        """Steered answers, in order.

        Raises:
            DataError: a picture does not open.
            NotApplied: a hook did not fire as often as it must; no answer is returned.
        """
        check_images(items)
        return self.steering.method.answer(self.subject, self.steering.learned, items, decoding or Decoding())

    @contextmanager
    def on(self, *, sees: Sequence[bool] | None = None) -> Iterator[Tally]:
        """Steer every ``generate`` and forward call on ``subject.vision.model`` inside the block.

        For methods that add a constant: beams, sampling, chunked prefill, several answers a prompt, your own batches.
        Methods that look at each request need Items: :meth:`answer`.

        Args:
            sees: which rows have a picture, for callers that pass embeddings instead of token ids.

        Raises:
            UsageError: the method is no constant, or the model is being steered already.
        """
        method = self.steering.method
        method.check_settled()
        shifts = method.constant(self.steering.learned)
        if not shifts and not method.is_off:
            raise UsageError(
                f"{method.title} with these knobs looks at each request, so it needs the requests",
                hint="use answer(items), or fit cmrm with level = 'dataset'",
            )
        knobs: Any = method
        edits = [
            Edit(layer, added(shift[None]), getattr(knobs, "tokens", "last"), getattr(knobs, "phases", "all"))
            for layer, shift in shifts.items()
        ]
        with Intervention(edits, when=method.when, sees=sees).on(self.subject.vision.model) as tally:
            yield tally
