"""Exact error rates of the verdict on right/wrong answers, summed over all outcomes.

python -m bench.verdict                          everything; about fifteen minutes on two idle cores
python -m bench.verdict size power               only these tables (see TABLES)
python -m bench.verdict size --items 30 100      for these numbers of items

size      false-ship rate at the margin, at the worst discordance, by method
answers   rates of yes, no and unknown, by true loss
power     predicted and simulated: equal candidates that pass, losses that are found
controls  the baseline against itself, and against its own shuffled answers
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import binom, norm

from bench.tables import run, show
from tasks.evaluate.verdict.exact_bounds import difference_bounds, flip_bounds, p_value_function, score_bound
from tasks.evaluate.verdict.intervals import unseen_share
from tasks.evaluate.verdict.margin_rule import decide
from tasks.evaluate.verdict.paired_tests import count_flips, mcnemar_loss_p, mcnemar_p
from tasks.evaluate.verdict.power import detectable_loss, minimum_detectable

ALPHA, POWER = 0.05, 0.8
ITEMS = (30, 48, 100, 192, 240, 500, 1000)
MARGINS = (0.02, 0.05, 0.1)
DISCORDANCES = (0.03, 0.06, 0.1, 0.2)
TRIALS = 1000


def exact_passes(lost: int, gained: int, items: int, margin: float) -> bool:
    """Return True if the deciding bound is above -margin, without computing the bound."""
    order = float(score_bound(lost, gained, items, ALPHA))
    return p_value_function(order, lost + gained, items, ALPHA)(-margin) <= ALPHA


def resampled_sums(lost: int, gained: int, items: int) -> np.ndarray:
    """Exact bootstrap distribution of the sum of n differences, from -n to n."""
    step = np.zeros(2 * items + 1)
    step[:3] = lost / items, 1 - (lost + gained) / items, gained / items  # shifted by one
    return np.clip(np.fft.irfft(np.fft.rfft(step) ** items, 2 * items + 1), 0.0, None)


def percentile_low(lost: int, gained: int, items: int) -> float:
    below = np.cumsum(resampled_sums(lost, gained, items))
    return (int(np.searchsorted(below, ALPHA)) - items) / items


def bca_low(lost: int, gained: int, items: int) -> float:
    """Lower BCa bound, with the floor for unobserved losses."""
    chances, total = resampled_sums(lost, gained, items), gained - lost
    floor = -unseen_share(items, ALPHA) if lost == 0 else 1.0
    if lost + gained == 0:
        return floor
    below = np.cumsum(chances)
    bias = norm.ppf(below[total + items] - chances[total + items] / 2)
    mean = total / items
    moment = {
        k: lost * (-1 - mean) ** k + gained * (1 - mean) ** k + (items - lost - gained) * (-mean) ** k for k in (2, 3)
    }
    shifted = bias + norm.ppf(ALPHA)
    level = (
        norm.cdf(bias + shifted / (1 - moment[3] / (6 * moment[2] ** 1.5) * shifted)) if moment[2] > 1e-12 else ALPHA
    )
    return min(floor, (int(np.searchsorted(below, level)) - items) / items)


Passes = Callable[[int, int, int, float], bool]
METHODS: dict[str, Passes] = {
    "percentile bootstrap": lambda lost, gained, items, margin: percentile_low(lost, gained, items) > -margin + 1e-9,
    "BCa": lambda lost, gained, items, margin: bca_low(lost, gained, items) > -margin + 1e-9,
    "Tango's score": lambda lost, gained, items, margin: float(score_bound(lost, gained, items, ALPHA)) > -margin,
    "exact": exact_passes,
}


@cache
def most_lost(method: str, items: int, margin: float, flips: int) -> int:
    """Largest number of losses among `flips` with which a candidate passes; -1 if none."""
    passes, fits, fails = METHODS[method], -1, flips + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if passes(middle, flips - middle, items, margin) else (fits, middle)
    return fits


def chance_of(limits: np.ndarray, items: int, p_lost: float, p_gained: float) -> float:
    """Probability that at most limits[flips] of the flips are losses."""
    flips = np.arange(len(limits))
    return float(
        (binom.pmf(flips, items, p_lost + p_gained) * binom.cdf(limits, flips, p_lost / (p_lost + p_gained))).sum()
    )


def limits_of(method: str, items: int, margin: float, upto: float = 1.0) -> np.ndarray:
    most = items if upto >= 1 else int(binom.isf(1e-12, items, upto))
    return np.array([most_lost(method, items, margin, flips) for flips in range(most + 1)])


def size(items: Sequence[int]) -> None:
    compared = ("BCa", "Tango's score", "exact")
    rows = []
    for n in items:
        for margin in MARGINS:
            angles = np.linspace(math.asin(margin**0.5), math.pi / 2, int(40 * n**0.5))
            row = []
            for name in METHODS:
                limits = limits_of(name, n, margin)
                worst = max(chance_of(limits, n, (d + margin) / 2, (d - margin) / 2) for d in np.sin(angles) ** 2)
                row.append(f"{worst:.4f}")
            equal = [chance_of(limits_of(name, n, margin), n, 0.03, 0.03) for name in compared]
            rows.append([n, f"{margin:g}", *row, *(f"{p:.3f}" for p in equal)])
    title = f"false ships among candidates whose true loss is the margin, worst discordance (alpha {ALPHA:g})"
    show(title, ["items", "margin", *METHODS, *(f"pass if equal, 6 % flips: {name}" for name in compared)], rows)


@dataclass(frozen=True)
class Rule:
    """Decision rule for a number of items and a margin."""

    items: int
    margin: float

    def shares(self, loss: float, discordance: float) -> tuple[float, float, float, float]:
        """Probabilities of ship, do not ship, not enough data, and of a refusal by power alone."""
        most = int(binom.isf(1e-9, self.items, min(1.0, discordance + loss)))
        yes = no = bold = 0.0
        large = self.large_until(most)
        for flips in range(most + 1):
            lost = np.arange(flips + 1)
            chance = binom.pmf(flips, self.items, discordance + loss) * binom.pmf(
                lost, flips, (discordance / 2 + loss) / (discordance + loss)
            )
            passed = lost <= most_lost("exact", self.items, self.margin, flips)
            # By symmetry: the baseline passes against it.
            shown = lost > flips - most_lost("exact", self.items, 0.0, flips) - 1
            beyond = 2 * lost - flips >= self.margin * self.items - 1e-9
            yes += chance[passed].sum()
            no += chance[~passed & shown & (beyond | (flips <= large))].sum()
            bold += chance[~passed & ((shown & beyond) | (flips <= large))].sum()
        return yes, no, 1.0 - yes - no, bold

    def large_until(self, most: int) -> int:
        """Largest number of flips with which an equal candidate could still pass."""
        fits, fails = -1, most + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            enough = detectable_at(self.items, middle) <= self.margin
            fits, fails = (middle, fails) if enough else (fits, middle)
        return fits


def answers(items: Sequence[int]) -> None:
    margin, rows = 0.05, []
    for n in items:
        for discordance in DISCORDANCES:
            found = [Rule(n, margin).shares(loss, discordance) for loss in (0.0, margin / 2, margin, 2 * margin)]
            cells = [" / ".join(f"{share:.3f}" for share in shares[:3]) for shares in found]
            rows.append([n, f"{discordance:g}", *cells, f"{found[0][3]:.3f}"])
    title = f"answers of the rule, margin {margin:g} (yes / no / unknown); bold: no whenever a large enough test is not passed"
    columns = ("items", "flips", "no loss", "half the margin", "the margin", "twice the margin", "bold: no loss, no")
    show(title, columns, rows)


def drawn_pair(draw: np.random.Generator, items: int, p_lost: float, p_gained: float) -> tuple[np.ndarray, np.ndarray]:
    kind = draw.choice(3, size=items, p=[1 - p_lost - p_gained, p_lost, p_gained])
    right = draw.random(items) < 0.7
    return np.where(kind == 0, right, kind == 1), np.where(kind == 0, right, kind == 2)


def power(items: Sequence[int]) -> None:
    rows = []
    for n in items:
        for discordance in DISCORDANCES:
            draw = np.random.default_rng(n)
            margin, loss = (
                minimum_detectable(n, discordance, ALPHA, POWER),
                detectable_loss(n, discordance, ALPHA, POWER),
            )
            half = discordance / 2
            pairs = [drawn_pair(draw, n, half, half) for _ in range(TRIALS)]
            passed = np.mean([decide(difference_bounds(*pair, ALPHA), margin, 1.0) == "yes" for pair in pairs])
            pairs = [drawn_pair(draw, n, half + loss, half) for _ in range(TRIALS)] if loss < 1 else []
            found = np.mean([mcnemar_loss_p(*pair) <= ALPHA for pair in pairs]) if pairs else math.nan
            rows.append([n, f"{discordance:g}", f"{margin:.4f}", f"{passed:.3f}", f"{loss:.4f}", f"{found:.3f}"])
    error = math.sqrt(0.16 / TRIALS)
    title = f"power, {TRIALS} simulated candidates per figure (standard error {error:.3f}); target {POWER:g}"
    columns = ("items", "flips", "detectable margin", "equal candidates that pass", "detectable loss", "losses found")
    show(title, columns, rows)


def controls(items: Sequence[int]) -> None:
    trials, rows = TRIALS // 10, []
    for n in items:
        draw, right = np.random.default_rng(n), np.arange(n) < 0.7 * n
        shuffled = [draw.permutation(right) for _ in range(trials)]
        same = count_flips(right, right)
        for margin in MARGINS:
            own = answer(right, right, margin)
            given = [answer(right, other, margin) for other in shuffled]
            shares = " / ".join(f"{given.count(kind) / trials:.2f}" for kind in ("yes", "no", "unknown"))
            flips = np.mean([count_flips(right, other).rate for other in shuffled])
            low = difference_bounds(right, right, ALPHA).low
            rows.append([n, f"{margin:g}", f"{low:.4f}", f"{mcnemar_p(same):g}", own, f"{flips:.2f}", shares])
    title = f"controls: the baseline against itself, and against its own shuffled answers ({trials} times, 70 % right)"
    columns = (
        "items",
        "margin",
        "itself: low",
        "itself: p",
        "itself: answer",
        "shuffled: flips",
        "shuffled: yes / no / unknown",
    )
    show(title, columns, rows)


def answer(baseline: np.ndarray, candidate: np.ndarray, margin: float) -> str:
    flips = count_flips(baseline, candidate)
    return decide(flip_bounds(flips, ALPHA), margin, detectable_at(flips.items, flips.to_wrong + flips.to_right))


@cache
def detectable_at(items: int, flips: int) -> float:
    return minimum_detectable(items, flips / items, ALPHA, POWER)


TABLES = {"size": size, "answers": answers, "power": power, "controls": controls}


if __name__ == "__main__":
    run(__doc__, TABLES, ITEMS)
