"""Tables of methods: names stay strings until a method is used.

A table maps a name to ``"module:Class"`` and one line of summary, so ``list`` and ``--help`` import
nothing heavy. A third party's method comes in through an entry point in the table's group
(``holdfast.alignment``, ``holdfast.finetuning``, ``holdfast.post_finetuning``, ``holdfast.steering``,
``holdfast.judges``, ``holdfast.tasks``), touching no file here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from holdfast.core.errors import UsageError, unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table: where the class is, and what it does in a few words."""

    target: str
    summary: str


class Table:
    """Names of one kind of method, in display order.

    Args:
        kind: what the entries are, for messages ("alignment-stage method").
        group: entry-point group through which third parties add to the table.
        entries: name -> :class:`Entry`.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(entries)

    @cached_property
    def _all(self) -> dict[str, Entry]:
        found = dict(self._own)
        for point in importlib.metadata.entry_points(group=self.group):
            # A third party may not replace a method of ours under its name: results would lie.
            found.setdefault(point.name, Entry(point.value, f"from {point.dist.name if point.dist else 'a plug-in'}"))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Names with their entries, without importing anything."""
        return iter(self._all.items())

    def load(self, name: str, where: str = "") -> type[Any]:
        """The class behind ``name``.

        Raises:
            UsageError: no such name (with the nearest one), or a third party's module is broken.
        """
        if name not in self._all:
            raise unknown(self.kind, name, self._all, where)
        module, _, attribute = self._all[name].target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._own:
                raise
            raise UsageError(
                f"{self.kind} {name!r} cannot be loaded from {self._all[name].target!r}: {error}",
                hint="reinstall or update the package that provides it",
            ) from error
        return found if isinstance(found, type) else type(found)
