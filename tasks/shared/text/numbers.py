"""Format numbers: one form per unit on page and console, "not measured" for None."""

from math import floor, log10

from tasks.shared.formats.verdict import Score, Spread

MISSING = "not measured"
MINUS = "\N{MINUS SIGN}"
SHARE = "share"
"""Unit of measures whose values are shares of 1."""


def count(value: float | None) -> str:
    """Format a whole number with a narrow space between thousands."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def quantity(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; powers of ten only below one thousandth."""
    if value is None:
        return MISSING
    if value == 0 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    return count(value) if abs(value) >= 10_000 else f"{value:.{places}f}"


def byte_size(value: float | None, digits: int = 3) -> str:
    """Format bytes in decimal units: 98 MB, 1.54 GB; a forecast deserves two digits."""
    if value is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{quantity(value / size, digits)} {unit}"
    return f"{value:.0f} B"


def round_size(value: float) -> str:
    """Format bytes for an axis tick: 50 MB, 1.5 GB."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if value >= s), ("B", 1))
    return f"{value / size:g} {unit}"


def parameters(value: int | None) -> str:
    """Format a number of parameters in millions or billions."""
    if value is None:
        return MISSING
    return f"{quantity(value / 1e9)} B" if value >= 1e9 else f"{quantity(value / 1e6)} M"


def times(value: float | None) -> str:
    """Format a ratio: 3.4x."""
    if value is None:
        return MISSING
    return f"{value:.2f}x" if value < 0.95 else f"{value:.1f}x"


def ratio(spread: Spread | None) -> str:
    """Format a ratio with its range, if it has one: 2.8x [2.6x, 2.9x]."""
    if spread is None or spread.low == spread.high:
        return times(spread.median if spread else None)
    return f"{times(spread.median)} [{times(spread.low)}, {times(spread.high)}]"


def smaller(ratio: float | None, other: str = "") -> str:
    """Compare sizes in words: "4.1x smaller", "same size", "1.3x larger".

    ratio: the other size over this one.  other: name of the other, appended if given.
    """
    if ratio is None or ratio <= 0:
        return MISSING
    if 0.95 <= ratio < 1.05:
        return f"same size as {other}" if other else "same size"
    words = f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"
    return f"{words} than {other}" if other else words


def percent(value: float | None, places: int = 1) -> str:
    """Format a share of 1 as a percentage."""
    return MISSING if value is None else f"{100 * value:.{places}f} %"


def points(value: float | None, signed: bool = True) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    if value is None:
        return MISSING
    shown = f"{abs(100 * value):.1f}"
    if shown == "0.0" or not signed:
        return shown if value >= 0 or shown == "0.0" else MINUS + shown
    return (MINUS if value < 0 else "+") + shown


def amount(value: float | None, unit: str = SHARE, places: int = 1) -> str:
    """Format a value without its unit's name: a share in percent, others with three digits."""
    if value is None or unit == SHARE:
        return percent(value, places)
    return quantity(value).replace("-", MINUS)


def gap(value: float | None, unit: str = SHARE, signed: bool = True) -> str:
    """Format a difference without its unit's name: shares in points, others with three digits."""
    if value is None or unit == SHARE:
        return points(value, signed)
    shown = quantity(abs(value))
    return shown if not signed or value == 0 else (MINUS if value < 0 else "+") + shown


def gap_unit(unit: str) -> str:
    """Unit of a difference: "points" for shares, else the measure's unit."""
    return "points" if unit == SHARE else unit


def margin(value: float | None, unit: str = SHARE) -> str:
    """Format a margin in points or in the measure's unit, without trailing zeros."""
    if value is None:
        return "none"
    return f"{100 * value:.3g}" if unit == SHARE else f"{value:.3g}"


def interval(low: float | None, high: float | None, unit: str = SHARE) -> str:
    """Format the bounds of a difference."""
    return "" if low is None or high is None else f"[{gap(low, unit)}, {gap(high, unit)}]"


def score_interval(score: Score | None, unit: str = SHARE) -> str:
    """Format the bounds of a score; those of a share in percent."""
    if score is None:
        return ""
    if unit == SHARE:
        return f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"[{amount(score.low, unit)}, {amount(score.high, unit)}]"


def duration(value: float | None, digits: int = 3) -> str:
    """Format seconds: milliseconds below 1 s, minutes from 2 min, hours from 2 h."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{quantity(1e3 * value, digits)} ms"
    if value < 120:
        return f"{quantity(value, digits)} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def seconds(spread: Spread | None) -> str:
    """Format the median of a time."""
    return MISSING if spread is None else duration(spread.median)


def p_value(value: float | None) -> str:
    """Format a p-value, never as 0."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
