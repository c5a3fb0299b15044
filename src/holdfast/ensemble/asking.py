"""An ensemble asked a set of Items: a run like that of any other Model, which judges read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import RowFile, read_rows
from holdfast.core.keys import digest
from holdfast.core.records import Item, Sample
from holdfast.core.runs import Run, Store, open_run
from holdfast.core.stage import find_or_make
from holdfast.ensemble.members import Members
from holdfast.ensemble.model import EnsembleModel
from holdfast.ensemble.record import load

_BATCH = 16


@dataclass(frozen=True)
class AskEnsemble:
    """Ask an ensemble a set of items.

    Attributes:
        ensemble: run folder of the fitted ensemble.
        members: where its members are.
        items: what to ask, ids unique.
        cache: folder of the members' answers on disk.
    """

    ensemble: Path
    members: Members
    items: tuple[Item, ...]
    cache: Path | None = None

    kind = "ask"
    label = "ask"
    attacked = False

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that the answers depend on."""
        groups = sorted({item.group for item in self.items})
        return {
            "base": {"run": open_run(self.ensemble).key},
            "members": self.members.of(load(self.ensemble).models).identity(),
            "items": {"count": len(self.items), "digest": digest([item.as_json() for item in self.items])},
            "decoding": {group: {} for group in groups},
            "attacked": self.attacked,
        }

    def validate(self) -> None:
        """Refuse what cannot work.

        Raises:
            DataError: nothing to ask, or no ensemble.
            UsageError: a member is not in the members file.
        """
        if not self.items:
            raise DataError("there is nothing to ask: the item set is empty", hint="check the file and its 'where' key")
        self.members.of(load(self.ensemble).models)

    def make(self, store: Store, engine: Any = None, sink: Sink = ignore) -> Run:
        """The sealed run with the answers; answers on disk are not asked for again."""
        return find_or_make(self, store, sink, self._answer)

    def _answer(self, run: Run, sink: Sink) -> dict[str, Any]:
        path = run.path / "samples.jsonl"
        done = {row["item"]["id"] for row in read_rows(path)} if path.exists() else set()
        left = [item for item in self.items if item.id not in done]
        with EnsembleModel(load(self.ensemble), self.members, self.cache) as model, RowFile(path) as rows:
            for start in range(0, len(left), _BATCH):
                made: list[Sample] = model.answer(left[start : start + _BATCH])
                rows.append([sample.as_json() for sample in made])
                sink(Progressed(done=len(done) + start + len(made), total=len(self.items)))
        return {"items": len(self.items), "cut_at_length": 0}
