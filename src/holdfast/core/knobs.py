"""Knobs: the fields of a Method or of a stage's settings, and building one from TOML or JSON.

The dataclass is the only schema (DESIGN section 4, rule 2): the same fields make the TOML keys, the
command-line flags, the ``list --json`` output and the documentation.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from holdfast.core.errors import UsageError, unknown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knob:
    """What is known of a field beside its type and default.

    Attributes:
        doc: one line, shown by ``--help``.
        low, high: inclusive bounds for numbers; None is unbounded.
        source: where the default comes from (paper and section, or "measured on the sandbox").
    """

    doc: str
    low: float | None = None
    high: float | None = None
    source: str = ""


def knob(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    source: str = "",
) -> Any:
    """Declare a knob of a frozen dataclass. A missing default makes it required."""
    shown = f"{doc} [{source}]" if source else doc
    metadata = {"knob": Knob(doc, low, high, source), "help": shown}
    if isinstance(default, (dict, list)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def describe(cls: type) -> dict[str, dict[str, Any]]:
    """Name -> type, default, bounds, doc and source of each knob of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: {
            "type": _type_name(hints[field.name]),
            "default": _default(field),
            "low": _knob(field).low,
            "high": _knob(field).high,
            "doc": _knob(field).doc,
            "source": _knob(field).source,
        }
        for field in dataclasses.fields(cls)
    }


def resolved(value: Any) -> Any:
    """JSON form of a dataclass of knobs with every default filled in: what a key is taken over."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: resolved(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): resolved(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolved(inner) for inner in value]
    return value


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of knobs from a mapping, refusing what does not fit.

    Args:
        cls: the frozen dataclass.
        values: names to values, as read from TOML, JSON or the command line.
        where: file and section, named by the errors.

    Raises:
        UsageError: an unknown key (with the nearest valid one), a missing required key, a value of the
            wrong type, or one out of its range.
    """
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in fields:
            raise unknown("key", name, fields, where)
    made: dict[str, Any] = {}
    for name, field in fields.items():
        place = f"{where}.{name}" if where else name
        if name in values:
            made[name] = _convert(values[name], hints[name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: missing required key {name!r}", hint=f"add {name} = ...: {_knob(field).doc}")
    instance = cls(**made)
    check(instance, where)
    return instance


def check(value: Any, where: str) -> None:
    """Check the bounds of every knob, and the cross-field rules of ``value.check()`` if it has one.

    Raises:
        UsageError: a number is out of its range or not finite, or a cross-field rule fails.
    """
    for field in dataclasses.fields(value):
        spec, number = _knob(field), getattr(value, field.name)
        place = f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(number):
            check(number, place)
        for single in number if isinstance(number, tuple) else (number,):
            _check_number(single, spec, place)
    rule = getattr(value, "check", None)
    if callable(rule):
        rule(where)


def _check_number(number: Any, spec: Knob, place: str) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return
    if not math.isfinite(number):
        raise UsageError(f"{place} = {number} is not a finite number", hint=f"{spec.doc}")
    below = spec.low is not None and number < spec.low
    above = spec.high is not None and number > spec.high
    if below or above:
        low = "-inf" if spec.low is None else f"{spec.low:g}"
        high = "inf" if spec.high is None else f"{spec.high:g}"
        raise UsageError(f"{place} = {number:g} is outside [{low}, {high}]", hint=f"{place}: {spec.doc}")


def _knob(field: dataclasses.Field[Any]) -> Knob:
    found = field.metadata.get("knob")
    return found if isinstance(found, Knob) else Knob("")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return resolved(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return resolved(field.default_factory())
    return None


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_name(part) for part in get_args(hint))
    if hint is type(None):
        return "null"
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))


def _convert(value: Any, hint: Any, place: str) -> Any:
    """``value`` as the annotated type; integers serve as floats, lists as tuples, tables as dataclasses."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, _table(value, place), place)
    if origin is Literal:
        return _choice(value, get_args(hint), place)
    if origin in (Union, types.UnionType):
        return _alternative(value, get_args(hint), place)
    if origin is tuple:
        inner = get_args(hint)[0]
        return tuple(_convert(part, inner, place) for part in _sequence(value, place))
    if origin in (dict, Mapping):
        return dict(_table(value, place))
    return _scalar(value, hint, place)


def _scalar(value: Any, hint: Any, place: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**1023:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool)):
        return value
    raise UsageError(f"{place} = {value!r} is not a {_type_name(hint)}", hint=f"give a {_type_name(hint)}")


def _choice(value: Any, choices: tuple[Any, ...], place: str) -> Any:
    if value in choices:
        return value
    raise unknown("value", str(value), [str(choice) for choice in choices], place)


def _alternative(value: Any, parts: tuple[Any, ...], place: str) -> Any:
    if value is None and type(None) in parts:
        return None
    real = [part for part in parts if part is not type(None)]
    for part in real[:-1]:
        try:
            return _convert(value, part, place)
        except UsageError:
            continue
    return _convert(value, real[-1], place)


def _table(value: Any, place: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise UsageError(f"{place} = {value!r} is not a table", hint=f"write {place} = {{ key = value }}")


def _sequence(value: Any, place: str) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    raise UsageError(f"{place} = {value!r} is not a list", hint=f"write {place} = [ ... ]")
