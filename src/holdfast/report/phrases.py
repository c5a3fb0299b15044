"""Numbers and intervals as text. A number is never shown as more, or less, certain than it is."""

from __future__ import annotations

from holdfast.report.schema import MetricJson

_MINUS = "−"


def number(value: float, unit: str = "") -> str:
    """A number with its unit, rounded for reading: ``94.1%``, ``3.05×``, ``41 s``, ``−4.9 points``.

    A percentage that is not 0 or 100 is never rounded to it.
    """
    if unit == "%":
        if 0 < value < 0.05:
            return "<0.1%"
        if 99.95 <= value < 100:
            return ">99.9%"
        return f"{_fixed(value, 1)}%"
    if unit == "points":
        return f"{_fixed(value, 1)} points"
    if unit == "x":
        return f"{_fixed(value, 2)}×"
    if unit == "s":
        return duration(value)
    return f"{value:.3g} {unit}".strip()


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    # "-0.0" says that there is a sign where there is none.
    return text.replace("-", _MINUS) if float(text) else text.lstrip("-")


def signed(value: float) -> str:
    """A difference with its sign: ``+0.3``, ``−93.1``, ``0.0``."""
    text = _fixed(value, 1)
    return text if value <= 0 or not float(text) else f"+{text}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``41 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def bounds(metric: MetricJson) -> str:
    """``90.1 to 96.5``, without the unit; empty where the metric is undefined."""
    if metric["low"] is None or metric["high"] is None:
        return ""
    digits = 2 if metric["unit"] == "x" else 1
    return f"{_fixed(metric['low'], digits)} to {_fixed(metric['high'], digits)}"


def interval_name(metric: MetricJson) -> str:
    """``95% interval``; ``range`` for the spread from least to most over seeds."""
    return "range" if metric["level"] >= 1 else f"{100 * metric['level']:g}% interval"


def with_interval(metric: MetricJson, *, named: bool = True) -> str:
    """``94.1% (95% interval 90.1 to 96.5)``, or why it is undefined."""
    if metric["value"] is None:
        return f"undefined ({metric['reason']})"
    name = f"{interval_name(metric)} " if named else ""
    return f"{number(metric['value'], metric['unit'])} ({name}{bounds(metric)})"


def share(p: float) -> str:
    """A poison ratio in percent: ``10%``."""
    return f"{100 * p:g}%"


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def direction(better: str) -> str:
    """How to read an axis: ``lower is better``; empty when neither is."""
    return f"{better} is better" if better in ("lower", "higher") else ""


def axis_title(label: str, unit: str, better: str) -> str:
    """``Harmful score, % (lower is better)``."""
    way = direction(better)
    return f"{label}, {unit}" + (f" ({way})" if way else "")
