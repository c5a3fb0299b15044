"""The one error tree. Each error says what to type next (``hint``) and has an exit code.

    HoldfastError                 1
    ├── UsageError                2   a flag, a recipe key, a knob out of range, contradictory options
    ├── DataError                 3   a file that is missing, malformed, empty, or lacks a column
    ├── ModelError                4   a model folder that cannot be loaded or does not fit the job
    ├── MissingExtra              5   an optional dependency is not installed
    ├── RunError                  6   a run folder that is locked, damaged or read-only
    ├── ResourceError             7   too little memory or disk
    ├── TrainingError             8   a loss that is not finite, gradients that vanished
    ├── RequestRefused           10   an endpoint does not take a request of this form
    ├── NotApplied               11   a steering hook did not fire as often as it must: nothing may be trusted
    └── Interrupted             130   Ctrl-C; what was done is kept

Anything else that reaches the top is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HoldfastError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: what is wrong, naming the file and key.
        hint: what to type or change next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(HoldfastError):
    """A flag, recipe key or knob is unknown, out of range or contradicts another."""

    exit_code = 2


class DataError(HoldfastError):
    """A data file is missing, malformed, empty or lacks a column."""

    exit_code = 3


class ModelError(HoldfastError):
    """A model cannot be loaded, or does not fit what it is asked to do."""

    exit_code = 4


class MissingExtra(HoldfastError):
    """An optional dependency is not installed."""

    exit_code = 5

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"this needs {package!r}, which is not installed",
            hint=f"pip install 'holdfast[{extra}]'",
        )
        self._made_of = (extra, package)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Errors travel between processes; this one is not made of its message."""
        return type(self), self._made_of


class RunError(HoldfastError):
    """A run folder is locked, damaged or cannot be written."""

    exit_code = 6


class ResourceError(HoldfastError):
    """Too little memory or disk for what was asked."""

    exit_code = 7


class TrainingError(HoldfastError):
    """Training cannot go on: the loss is not finite, or no gradient reached the parameters."""

    exit_code = 8


class RequestRefused(HoldfastError):
    """An endpoint does not take a request of this form: a schema, log-probabilities, several answers."""

    exit_code = 10


class NotApplied(HoldfastError):
    """A model was to be steered and was not, or not everywhere: its answers must not be used."""

    exit_code = 11


class Interrupted(HoldfastError):
    """Stopped by the user; everything finished so far is kept."""

    exit_code = 130


def nearest(name: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'? `` for a mistyped name, or the empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? " if close else ""


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> UsageError:
    """Error for a name that is not in a closed list, with the nearest valid one."""
    names = sorted(valid)
    place = f"{where}: " if where else ""
    return UsageError(
        f"{place}unknown {kind} {name!r}",
        hint=f"{nearest(name, names)}valid: {', '.join(names)}",
    )
