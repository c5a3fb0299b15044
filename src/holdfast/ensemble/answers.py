"""What an answer says: a label, a number or a short text, and how near a text is to a reference.

``None`` is an abstention: an answer was asked for and none can be read.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Literal

from holdfast.data.numbers import final_number

Kind = Literal["choice", "number", "short", "long"]
KINDS: tuple[Kind, ...] = ("choice", "number", "short", "long")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOLERANCE = Decimal("1e-6")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")
_PHRASE = re.compile(r"answer\s*(?:is|:)\s*", re.IGNORECASE)


def label_in(text: str, labels: Mapping[str, int]) -> int | None:
    """The label that an answer gives: the whole answer, or the last "answer is X", or the last letter on its own.

    Args:
        text: the answer.
        labels: known labels, folded (:func:`fold`), with their codes.
    """
    whole = labels.get(fold(text))
    if whole is not None:
        return whole
    phrases = list(_PHRASE.finditer(text))
    found = [_LETTER.search(text, phrases[-1].end())] if phrases else []
    found += list(_LETTER.finditer(text))[-1:]
    return next((labels[fold(one[1])] for one in found if one and fold(one[1]) in labels), None)


def fold(text: str) -> str:
    """A label without the marks that models put around it: ``(b).`` is ``b``."""
    return " ".join(text.split()).strip("()[].:*\"'` ").casefold()


def number(text: str) -> Decimal | None:
    """The number of an answer; None without one. See :func:`holdfast.data.numbers.final_number`."""
    found = final_number(text)
    return None if found is None else found + 0


def same_number(left: Decimal, right: Decimal) -> bool:
    """Whether two numbers are one, within a millionth."""
    return abs(left - right) <= _TOLERANCE * max(Decimal(1), abs(left), abs(right))


def normal(text: str) -> str:
    """A short answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(left: str, right: str) -> float:
    """F1 of the words of two texts, normalised (Rajpurkar et al. 2016); 1 when both are empty, 0 when one is."""
    return counts_f1(Counter(normal(left).split()), Counter(normal(right).split()))


def counts_f1(left: Counter[str], right: Counter[str]) -> float:
    """F1 of two bags of words."""
    size = left.total() + right.total()
    return 1.0 if size == 0 else 2 * (left & right).total() / size


def best_f1(text: str, references: Sequence[str]) -> float:
    """Largest token F1 with any reference."""
    return max((token_f1(text, reference) for reference in references), default=0.0)


def exact(text: str, references: Sequence[str]) -> bool:
    """Whether a normalised text equals a normalised reference."""
    return normal(text) in {normal(reference) for reference in references}
