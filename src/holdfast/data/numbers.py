"""Numbers as people and models write them: thousands separators, decimals, signs, currency."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(
    r"""(?<![\w.])                       # not inside a word or a longer number
        (?P<sign>[-+\u2212]?)\s?[$€£¥]?\s?(?P<inner>[-\u2212]?)
        (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)""",
    re.VERBOSE | re.ASCII,
)
_PHRASE = re.compile(r"final\s+answer\s+is\s*:?|####", re.IGNORECASE)


def final_number(text: str) -> Decimal | None:
    """The number that an answer gives: the first after its last "final answer is" or "####", else its last number.

    A minus sign counts only where it is no subtraction: "7-3" ends in 3, "is -3" in -3; "1,200" is 1200.
    """
    everywhere = [_value(found) for found in _NUMBER.finditer(text)]
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        found = _NUMBER.search(text, phrases[-1].end())
        if found:
            return _value(found)
    return everywhere[-1] if everywhere else None


def _value(found: re.Match[str]) -> Decimal:
    number = Decimal(found["digits"].replace(",", ""))
    negative = found["sign"] in ("-", "\u2212") or bool(found["inner"])
    return -number if negative else number
