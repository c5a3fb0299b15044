"""An ensemble as a run: what was chosen, its page, and the fitted combiner, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError
from holdfast.core.events import Sink, ignore
from holdfast.core.files import read_json, write_json, write_text
from holdfast.core.knobs import resolved
from holdfast.core.runs import Run, Store, open_run
from holdfast.ensemble.answers import Kind
from holdfast.ensemble.assess import Settings, assess
from holdfast.ensemble.combine.base import Fitted, fit, load_fitted
from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.table import Layout, Row, outputs_of, read_outputs

VERSION = 1
"""Raised whenever the same outputs could lead to another ensemble than before."""

KIND = "ensemble"


@dataclass(frozen=True)
class Ensemble:
    """A fitted team: turns its members' answers into one.

    Attributes:
        fitted: the combiner.
        kind: what an answer is.
        labels: of a choice, folded.
        threshold: score from which a long answer is right.
    """

    fitted: Fitted
    kind: Kind
    labels: tuple[str, ...]
    threshold: float

    @property
    def models(self) -> tuple[str, ...]:
        """The members' names."""
        return self.fitted.models

    def outputs(self, rows: Sequence[Row]) -> Outputs:
        """Members' answers as arrays; right answers need not be known."""
        return outputs_of(rows, self._layout(), "answers")

    def read(self, paths: Sequence[Path]) -> Outputs:
        """Members' answers from a table; a member that has no column is silent."""
        found = read_outputs(paths, replace(self._layout(), models=()))
        if not set(found.models) & set(self.models):
            raise DataError(f"no member has answers; members: {', '.join(self.models)}", hint="one column a member")
        return found if set(self.models) <= set(found.models) else _with_silent(found, self.models)

    def combine(self, outputs: Outputs) -> list[dict[str, Any]]:
        """One answer an item: text (None where no member answered) and calibrated probability of being right."""
        chosen, stated = self.fitted.answers(outputs), self.fitted.probabilities(outputs)
        return [
            {
                "item": item,
                "answer": outputs.candidates[place][code] if code >= 0 else None,
                "probability": round(float(stated[place, code]), 6) if code >= 0 else None,
            }
            for place, (item, code) in enumerate(zip(outputs.items, chosen.tolist(), strict=True))
        ]

    def _layout(self) -> Layout:
        return Layout(models=self.models, kind=self.kind, threshold=self.threshold, labels=self.labels, unknown=True)

    def save(self, folder: Path) -> None:
        """Write the combiner and what reads answers into a folder."""
        self.fitted.save(folder)
        card = {"kind": self.kind, "labels": list(self.labels), "threshold": self.threshold}
        write_json(folder / "ensemble.json", card)


def load(path: Path) -> Ensemble:
    """An ensemble from its run folder, or from the folder of its artifact.

    Raises:
        DataError: the folder holds no ensemble.
        RunError: the run is damaged.
    """
    folder = path
    if (path / "spec.json").is_file():
        run = open_run(path)
        problem = run.damage()
        if run.kind != KIND or problem:
            reason = problem or f"it is a {run.kind} run"
            raise DataError(
                f"{run.name} is no ensemble: {reason}", hint="give the run folder of 'holdfast ensemble pick'"
            )
        folder = run.artifacts / "ensemble"
    try:
        card = read_json(folder / "ensemble.json")
        return Ensemble(load_fitted(folder), card["kind"], tuple(card["labels"]), float(card["threshold"]))
    except (OSError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no ensemble", hint="give the run folder of 'holdfast ensemble pick'") from error


def record(
    outputs: Outputs,
    settings: Settings,
    spec: Mapping[str, Any],
    store: Store,
    *,
    title: str,
    command: str,
    refit: bool = False,
    sink: Sink = ignore,
) -> tuple[Run, dict[str, Any]]:
    """Assess outputs and keep the result, the page and the recommended ensemble in a run folder.

    Args:
        outputs: what the models answered.
        settings: what was declared.
        spec: everything that the result depends on beside the settings: the table's content, the layout.
        store: where runs are.
        title: of the page.
        command: that makes the page again.
        refit: fit the recommended ensemble on all items afterwards; the numbers are those of training items alone.
        sink: where progress goes.
    """
    from holdfast.ensemble.page import render

    began = time.perf_counter()
    whole = {"version": VERSION, **spec, "settings": resolved(settings), "refit": refit}
    run = store.run(KIND, KIND, whole)
    with run.working(sink) as inner:
        if run.sealed and (run.path / "metrics.json").is_file() and (run.path / "report.html").is_file():
            return run, read_json(run.path / "metrics.json")
        if run.seal_record() is not None:  # damaged since
            run.reset()
        made = assess(outputs, settings, inner)
        fitted = made.fitted
        if refit:
            part = outputs.take(outputs.known & outputs.asked.all(axis=1))
            part = part.of([part.models.index(name) for name in fitted.models])
            fitted = fit(fitted.method, part, settings.seed).fitted
        Ensemble(fitted, outputs.kind, outputs.labels, outputs.threshold).save(run.artifacts / "ensemble")
        result = made.result | {"title": title, "command": command}
        write_json(run.path / "metrics.json", result)
        write_text(run.path / "report.html", render(result, command=command, title=title))
        run.seal(time.perf_counter() - began, models=list(fitted.models), method=fitted.method.name)
    return run, result


def _with_silent(found: Outputs, models: Sequence[str]) -> Outputs:
    """Members that the table does not have, as ones that were not asked."""
    import numpy as np

    more = [name for name in models if name not in found.models]
    n = len(more)
    return replace(
        found,
        models=(*found.models, *more),
        belief=np.pad(found.belief, ((0, 0), (0, n), (0, 0))),
        asked=np.pad(found.asked, ((0, 0), (0, n))),
        score=np.pad(found.score, ((0, 0), (0, n))),
        cost=None,
        samples=np.pad(found.samples, (0, n)),
    )
