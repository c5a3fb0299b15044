"""Rows: what models are tuned on, and Items: what they are asked.

A :class:`Row` is one demonstration (a request and the answer to imitate) in the field's usual shapes
after normalisation; :mod:`holdfast.data.read` turns files into Rows, and
:mod:`holdfast.models.template` turns Rows into token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast.core.records import Item


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: a request and the answer that the model is to imitate.

    Attributes:
        prompt: the user's request (``instruction`` in Alpaca-shaped data).
        response: the target answer. Only its tokens carry loss.
        input: optional second field of Alpaca-shaped data, set apart by the prompt template.
        system: optional system message.
        history: earlier turns as ``(user, assistant)`` pairs, oldest first.
        is_safe: whether the answer is safe, where the source says so; None is "not stated".
        category: harm category or class label, where the source has one.
    """

    prompt: str
    response: str
    input: str = ""
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    is_safe: bool | None = None
    category: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values, empty fields left out (this form is what digests are taken over)."""
        full = {
            "prompt": self.prompt,
            "response": self.response,
            "input": self.input,
            "system": self.system,
            "history": [list(turn) for turn in self.history],
            "is_safe": self.is_safe,
            "category": self.category,
        }
        return {name: value for name, value in full.items() if value not in ("", [], None)}

    def as_item(self, identity: str) -> Item:
        """The same request as an Item to ask, with the response as its reference."""
        return Item(
            id=identity,
            prompt=self.prompt,
            input=self.input,
            system=self.system,
            reference=self.response,
            category=self.category,
        )
