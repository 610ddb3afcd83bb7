"""Numbers as people read them: one form per unit, the same on the page and in the console, "not measured" for none."""

from math import floor, log10

from tasks.shared.formats.verdict import Score, Spread

MISSING = "not measured"
MINUS = "\N{MINUS SIGN}"
SHARE = "share"
"""The unit of a measure whose values are shares of 1."""


def count(value: float | None) -> str:
    """A whole number with a thin gap between thousands."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def quantity(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten above one thousandth."""
    if value is None:
        return MISSING
    if value == 0 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    return count(value) if abs(value) >= 10_000 else f"{value:.{places}f}"


def byte_size(value: float | None) -> str:
    """Bytes in decimal units: 98 MB, 1.54 GB."""
    if value is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{quantity(value / size)} {unit}"
    return f"{value:.0f} B"


def round_size(value: float) -> str:
    """Bytes at a tick of an axis: 50 MB, 1.5 GB."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if value >= s), ("B", 1))
    return f"{value / size:g} {unit}"


def parameters(value: int | None) -> str:
    """Parameters in millions or billions."""
    if value is None:
        return MISSING
    return f"{quantity(value / 1e9)} B" if value >= 1e9 else f"{quantity(value / 1e6)} M"


def times(value: float | None) -> str:
    """A ratio: 3.4x."""
    if value is None:
        return MISSING
    return f"{value:.2f}x" if value < 0.95 else f"{value:.1f}x"


def ratio(spread: Spread | None) -> str:
    """A ratio with its range, where it has one: 2.8x [2.6x, 2.9x]."""
    if spread is None or spread.low == spread.high:
        return times(spread.median if spread else None)
    return f"{times(spread.median)} [{times(spread.low)}, {times(spread.high)}]"


def smaller(ratio: float | None, other: str = "") -> str:
    """How a size compares: "4.1x smaller", "same size", "1.3x larger", each with the other's name if it is given."""
    if ratio is None or ratio <= 0:
        return MISSING
    if 0.95 <= ratio < 1.05:
        return f"same size as {other}" if other else "same size"
    words = f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"
    return f"{words} than {other}" if other else words


def percent(value: float | None, places: int = 1) -> str:
    """A share of 1 as a percentage."""
    return MISSING if value is None else f"{100 * value:.{places}f} %"


def points(value: float | None, signed: bool = True) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return MISSING
    shown = f"{abs(100 * value):.1f}"
    if shown == "0.0" or not signed:
        return shown if value >= 0 or shown == "0.0" else MINUS + shown
    return (MINUS if value < 0 else "+") + shown


def amount(value: float | None, unit: str = SHARE, places: int = 1) -> str:
    """A measure's value without its unit's name: a share in per cent, anything else with three digits."""
    if value is None or unit == SHARE:
        return percent(value, places)
    return quantity(value).replace("-", MINUS)


def gap(value: float | None, unit: str = SHARE, signed: bool = True) -> str:
    """A difference of two values without its unit's name: of shares in points, of anything else with three digits."""
    if value is None or unit == SHARE:
        return points(value, signed)
    shown = quantity(abs(value))
    return shown if not signed or value == 0 else (MINUS if value < 0 else "+") + shown


def gap_unit(unit: str) -> str:
    """What a difference is counted in."""
    return "points" if unit == SHARE else unit


def margin(value: float | None, unit: str = SHARE) -> str:
    """A margin without a useless decimal: in points, or in the measure's unit."""
    if value is None:
        return "none"
    return f"{100 * value:.3g}" if unit == SHARE else f"{value:.3g}"


def interval(low: float | None, high: float | None, unit: str = SHARE) -> str:
    """Bounds of a difference."""
    return "" if low is None or high is None else f"[{gap(low, unit)}, {gap(high, unit)}]"


def score_interval(score: Score | None, unit: str = SHARE) -> str:
    """Bounds of a score; of a share in per cent."""
    if score is None:
        return ""
    if unit == SHARE:
        return f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"[{amount(score.low, unit)}, {amount(score.high, unit)}]"


def duration(value: float | None) -> str:
    """Seconds as people read them: milliseconds below one, minutes from two on, hours from two on."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{quantity(1e3 * value)} ms"
    if value < 120:
        return f"{quantity(value)} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def seconds(spread: Spread | None) -> str:
    """Median of a time."""
    return MISSING if spread is None else duration(spread.median)


def p_value(value: float | None) -> str:
    """A p value, never as 0."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
