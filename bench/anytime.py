"""Error rates and items asked of the adaptive verdict, looking after every 16 items.

python -m bench.anytime                     everything; about five minutes on two idle cores
python -m bench.anytime answers             only these tables (see TABLES)
python -m bench.anytime errors --items 3000 error rates of so many items

errors      right/wrong answers, counted exactly: ships at a loss of the margin, and refusals of equal candidates, by number of items
answers     right/wrong answers, counted exactly: items asked against the fixed test with the same power
amounts     simulated: ships at a loss of the margin and items asked, for amounts and for groups that flip together
groups      simulated: ships among candidates that lose the margin or nothing, on groups of unequal sizes, weighted by item and counted once
fixed       ships at a loss of the margin when the fixed test is looked at again on a doubled test set, counted exactly
candidates  simulated: false discoveries among 20 candidates, and the share of answers asked
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import convolve

from bench.tables import run, show
from bench.verdict import limits_of
from tasks.evaluate.verdict.betting import EQUAL_LOSS_BETS, Bets, confirmed, log_evidence_of, looks, margin_bets
from tasks.evaluate.verdict.courses import BATCH, Rules, follow, outcomes
from tasks.evaluate.verdict.power import minimum_detectable

ALPHA, PLANNED = 0.05, 0.06
ITEMS = (3000,)
DESIGNS = (
    (0.05, 0.03, 0.8),
    (0.05, 0.06, 0.8),
    (0.05, 0.06, 0.95),
    (0.05, 0.1, 0.95),
    (0.03, 0.06, 0.95),
    (0.02, 0.03, 0.95),
)
"""Margin, share of flips, power."""
TRIALS, UNITS = 1000, 2000

Draw = Callable[[np.random.Generator, float, int], np.ndarray]


def split(flips: float, gain: float) -> tuple[float, float]:
    """Probabilities of a loss and of a gain, for this mean gain and an equal candidate's flips."""
    return flips / 2 + max(0.0, -gain), flips / 2 + max(0.0, gain)


def errors(items: Sequence[int]) -> None:
    rows = []
    for most in items:
        for margin in (0.02, 0.05, 0.1):
            rules = Rules(margin, PLANNED, ALPHA)
            at_margin = [
                last(rules, (flips + margin) / 2, (flips - margin) / 2, most)[0]
                for flips in (margin, margin + 0.06, 0.3)
            ]
            equal = [last(rules, flips / 2, flips / 2, most) for flips in (0.03, 0.06, 0.25)]
            rows.append(
                [
                    most,
                    f"{margin:g}",
                    *(f"{share:.4f}" for share in at_margin),
                    *(f"{yes:.3f} / {no:.4f}" for yes, no in equal),
                ]
            )
    columns = (
        "items", "margin", "ships, flips = margin", "margin + 6 %", "30 %", "equal: yes / no, 3 % flips", "6 %", "25 %",
    )  # fmt: skip
    show(f"ships at a loss of the margin; equal candidates (looks every {BATCH} items, alpha {ALPHA:g})", columns, rows)


def last(rules: Rules, p_lost: float, p_gained: float, most: int) -> tuple[float, float]:
    look = list(follow(rules, p_lost, p_gained, most))[-1]
    return look.yes, look.no


def course(rules: Rules, flips: float, gain: float, most: int) -> tuple[float, float]:
    """Mean number of items asked, and the share that ships."""
    asked, before, open_, yes = 0.0, 0, 1.0, 0.0
    for look in follow(rules, *split(flips, gain), most):
        asked, before, open_, yes = (
            asked + open_ * (look.items - before),
            look.items,
            1.0 - look.yes - look.no,
            look.yes,
        )
    return asked, yes


def fixed_items(margin: float, flips: float, power: float) -> int:
    """Fewest items, to about 1 %, with which the fixed test passes an equal candidate."""
    few, many = 16, 4096
    while many - few > 0.01 * many:
        middle = (few + many) // 2
        few, many = (few, middle) if minimum_detectable(middle, flips, ALPHA, power) <= margin else (middle, many)
    return many


def answers(_: Sequence[int]) -> None:
    rows = []
    for margin, flips, power in DESIGNS:
        rules, fixed = Rules(margin, PLANNED, ALPHA), fixed_items(margin, flips, power)
        cap = next(look.items for look in follow(rules, flips / 2, flips / 2, 10_000) if look.yes >= power)
        cells = []
        for gain in (margin / 2, 0.0, -margin / 2, -2 * margin, -4 * margin):
            asked, yes = course(rules, flips, gain, cap)
            cells.append(f"{asked:.0f} ({asked / fixed:.2f}), {yes:.3f}")
        rows.append([f"{margin:g}", f"{flips:g}", f"{power:g}", fixed, cap, *cells])
    columns = (
        "margin",
        "flips",
        "power",
        "fixed n",
        "cap",
        "half a margin better",
        "equal",
        "half a margin worse",
        "2 worse",
        "4 worse",
    )
    show(f"items asked on average (ratio to the fixed test), share that ships; bets plan {PLANNED:g}", columns, rows)


def normal(draw: np.random.Generator, mean: float, units: int) -> np.ndarray:
    return np.clip(draw.normal(mean, 0.2, (TRIALS, units)), -1.0, 1.0)


def rare(draw: np.random.Generator, mean: float, units: int) -> np.ndarray:
    """One unit in twenty loses everything, and the others make up for it."""
    return np.where(draw.random((TRIALS, units)) < 0.05, -1.0, (mean + 0.05) / 0.95)


def grouped(draw: np.random.Generator, mean: float, units: int) -> np.ndarray:
    """Means of groups of four answers: half of the groups flip together."""
    lost, gained = split(PLANNED, mean)
    kinds, chances = [-1.0, 1.0, 0.0], [lost, gained, 1.0 - lost - gained]
    alone = draw.choice(kinds, (TRIALS, units, 4), p=chances).mean(axis=2)
    return np.where(draw.random((TRIALS, units)) < 0.5, draw.choice(kinds, (TRIALS, units), p=chances), alone)


def amounts(_: Sequence[int]) -> None:
    margin, rows = 0.05, []
    bets = margin_bets(margin, PLANNED)
    at = np.array(list(looks(UNITS, BATCH))) - 1
    cases: dict[str, Draw] = {"normal, sd 0.2": normal, "rare large losses": rare, "groups of four": grouped}
    for name, draw_gains in cases.items():
        row = [name]
        for mean in (-margin, 0.0, -2 * margin):
            draw = np.random.default_rng(1)
            first = [crossing(gains, margin, bets, at) for gains in draw_gains(draw, mean, UNITS)]
            passed = [units for units in first if units is not None]
            median = f", median {np.median(passed):.0f} units" if passed and mean == 0.0 else ""
            row.append(f"{len(passed) / TRIALS:.3f}{median}")
        rows.append(row)
    columns = ("gains", "ships at a loss of the margin", "equal", "twice the margin")
    show(f"{TRIALS} simulated candidates, up to {UNITS} units, margin {margin:g}", columns, rows)


Sizes = Callable[[np.random.Generator, int], np.ndarray]
SIZES: dict[str, Sizes] = {
    "1 to 8": lambda draw, groups: draw.integers(1, 9, groups),
    "one of 20, others alone": lambda draw, groups: np.where(np.arange(groups) == draw.integers(groups), 20, 1),
    "geometric, mean 2.5, at most 15": lambda draw, groups: np.minimum(draw.geometric(0.4, groups), 15),
}


def group_means(draw: np.random.Generator, sizes: np.ndarray, loss: float) -> np.ndarray:
    """Mean gain of each group.

    Items of a group flip the same way, with a chance of the group's own (intraclass correlation 0.2).
    """
    lost = (PLANNED + loss) / 2
    chances = draw.beta(4 * PLANNED, 4 * (1 - PLANNED), len(sizes))
    flipped = draw.binomial(sizes, chances) / sizes
    return np.where(draw.random(len(sizes)) < lost / PLANNED, -flipped, flipped)


def groups(_: Sequence[int]) -> None:
    margin, trials, rows = 0.05, TRIALS, []
    bets, goal = margin_bets(margin, PLANNED), -math.log(ALPHA)
    for name, sizes_of in SIZES.items():
        for count in (132, 300, 600):
            shares = []
            for loss in (margin, 0.0):
                draw, passed = np.random.default_rng(3), np.zeros(2)
                for _trial in range(trials):
                    sizes = sizes_of(draw, count)
                    gains = group_means(draw, sizes, loss)
                    for place, weights in enumerate((sizes / sizes.max(), np.ones(count))):
                        passed[place] += (log_evidence_of(gains, weights, -margin, bets) >= goal).any()
                shares += [f"{share:.3f}" for share in passed / trials]
            rows.append([name, count, *shares])
    columns = ("sizes", "groups", "loss of the margin: by item", "once", "equal: by item", "once")
    show(
        f"ships among {trials} simulated candidates, {PLANNED:.0%} of the answers flip, margin {margin:g}",
        columns,
        rows,
    )


def crossing(gains: np.ndarray, margin: float, bets: Bets, at: np.ndarray) -> int | None:
    """Number of units at the first look that ships; None if none does."""
    found = np.flatnonzero(log_evidence_of(gains, np.ones(len(gains)), -margin, bets)[at] >= -math.log(ALPHA))
    return int(at[found[0]]) + 1 if len(found) else None


def candidates(_: Sequence[int]) -> None:
    """Twenty candidates on the same items: ten lose the margin, five nothing, five four margins."""
    margin, most, trials, rows = 0.05, 1000, 200, []
    bets, losses = margin_bets(margin, PLANNED), [margin] * 10 + [0.0] * 5 + [4 * margin] * 5
    draw = np.random.default_rng(2)
    at = np.array(list(looks(most, BATCH))) - 1
    for name in ("each alone", "e-BH"):
        false_shares, any_false, good, asked = [], [], [], []
        for _trial in range(trials):
            evidence, stops = [], []
            for loss in losses:
                lost, gained = split(PLANNED, -loss)
                gains = draw.choice([-1.0, 1.0, 0.0], most, p=[lost, gained, 1 - lost - gained])
                course_ = log_evidence_of(gains, np.ones(most), -margin, bets)[at]
                goal = math.log(len(losses) / ALPHA) if name == "e-BH" else -math.log(ALPHA)
                harmed = log_evidence_of(-gains, np.ones(most), 0.0, EQUAL_LOSS_BETS)[at] >= -math.log(ALPHA)
                beyond = np.cumsum(gains)[at] <= -margin * (at + 1)
                stop = np.flatnonzero((course_ >= goal) | (harmed & beyond))
                last_look = int(stop[0]) if len(stop) else len(at) - 1
                evidence.append(float(course_[last_look]))
                stops.append(int(at[last_look]) + 1)
            shipped = (
                confirmed(evidence, ALPHA) if name == "e-BH" else [value >= -math.log(ALPHA) for value in evidence]
            )
            wrong = sum(ships for ships, loss in zip(shipped, losses, strict=True) if loss)
            false_shares.append(wrong / max(1, sum(shipped)))
            any_false.append(wrong > 0)
            good.append(sum(ships for ships, loss in zip(shipped, losses, strict=True) if not loss) / 5)
            asked.append(sum(stops) / (most * len(losses)))
        rows.append([name, *(f"{np.mean(part):.3f}" for part in (false_shares, any_false, good, asked))])
    columns = ("rule", "false discoveries", "runs with any", "equal candidates that ship", "answers asked of 20 x 1000")
    show(f"20 candidates, {trials} simulated sweeps", columns, rows)


def fixed(_: Sequence[int]) -> None:
    """The fixed test at 192 items, and again after each doubling."""
    margin, rows = 0.05, []
    for flips in (0.07, 0.11):
        p_lost, p_gained = (flips + margin) / 2, (flips - margin) / 2
        chances, shipped, before, row = np.ones((1, 1)), 0.0, 0, []
        for items in (192, 384, 768):
            kernel = outcomes(items - before, p_lost, p_gained)
            chances, before = convolve(chances, kernel), items
            limits = limits_of("exact", items, margin, flips)
            lost, gained = np.indices(chances.shape)
            passed = lost <= np.append(limits, -1)[np.minimum(lost + gained, len(limits))]
            shipped, chances = shipped + float(chances[passed].sum()), np.where(passed, 0.0, chances)
            row.append(f"{shipped:.4f}")
        rows.append([f"{margin:g}", f"{flips:g}", *row])
    show("fixed test, looked at again", ("margin", "flips", "192 items", "and 384", "and 768"), rows)


TABLES = {
    "fixed": fixed,
    "errors": errors,
    "answers": answers,
    "amounts": amounts,
    "groups": groups,
    "candidates": candidates,
}


if __name__ == "__main__":
    run(__doc__, TABLES, ITEMS)
