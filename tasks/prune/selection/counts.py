"""Number of units to keep: a ratio rounded to widths that file formats take (pure Python)."""

from collections.abc import Callable

from tasks.shared.errors import TechniqueError

MULTIPLES = (256, 64, 32)
"""Widths that formats ask for, best first: llama.cpp's k-quants and most 2- and 3-bit types, its q2_0 and nvfp4, its other types."""
TOLERANCE = 0.05
"""Largest share of the units by which rounding to such a multiple may move what the ratio asks for."""
SHOWN = 8


def any_count(count: int) -> bool:
    """Return True: every number of units is possible."""
    return True


def choose_count(
    total: int, ratio: float, size: int = 1, multiple: int = 0, fits: Callable[[int], bool] = any_count
) -> int:
    """Choose the number of units to keep, nearest to (1 - ratio) * total.

    total: units of a layer.
    ratio: fraction of them to remove.
    size: columns of the last projection per unit; its width is a multiple of what a format asks.
    multiple: of the width; 0 takes the first of `MULTIPLES` that moves the number by at most 5 % of all units or half a unit,
    and none of them if all move it by more.
    fits: numbers that the model's configuration takes.
    Of two numbers equally near, the larger is taken.
    Raises TechniqueError if no unit is left, or none goes although the ratio is not 0.
    """
    if ratio == 0:
        return total
    wanted = (1 - ratio) * total
    digits = max(2, len(str(total)))  # a rounded limit is less than half a unit away
    if round(wanted) < 1:
        raise TechniqueError(
            "ratio", f"{ratio} leaves none of {total}", "at least one kept in every layer",
            f"ratio={1 - 1 / total:.{digits}f} or less" if total > 1 else "0, or another kind of unit",
        )  # fmt: skip
    for step in (multiple,) if multiple else (*MULTIPLES, 1):
        counts = [count for count in range(1, total + 1) if fits(count) and count * size % step == 0]
        best = min(counts, key=lambda count: (abs(count - wanted), -count), default=total)
        if multiple or step == 1 or (counts and abs(best - wanted) <= max(0.5, TOLERANCE * total)):
            break
    if best == total:
        less = [count for count in counts if count < total]
        fix = f"ratio={1 - max(less) / total:.{digits}f} or more" if less else "ratio=0, or leave the step out"
        raise TechniqueError(
            "ratio", f"{ratio} of {total} removes none: the nearest possible width is the full one",
            f"a width that is a multiple of {step}" if step > 1 else "a fraction of at least one unit",
            f"{fix}, or multiple=1" if step > 1 else fix,
        )  # fmt: skip
    return best


def check_count(name: str, count: int, total: int, fits: Callable[[int], bool] = any_count) -> int:
    """Return an explicit number of units.

    name: of the setting.
    fits: numbers that the model's configuration takes.
    Raises TechniqueError if there are not so many, or the configuration does not take it.
    """
    if 1 <= count <= total and fits(count):
        return count
    near = sorted((other for other in range(1, total + 1) if fits(other)), key=lambda other: abs(other - count))
    reason = f"{count} of {total}" + ("" if count > total else ", which the model's configuration does not take")
    raise TechniqueError(
        name, reason, f"one of {', '.join(map(str, sorted(near[:SHOWN])))}", f"{name}={near[0]}" if near else "0"
    )


def best_multiple(width: int) -> int:
    """Return the largest of `MULTIPLES` that divides a width; 1 if none does."""
    return next((step for step in MULTIPLES if width % step == 0), 1)
