"""Simulated error rates of the verdict on amounts, with independent and with grouped items.

python -m bench.resampling                       everything; about fifteen minutes on two idle cores
python -m bench.resampling groups --items 240    only this table (see TABLES), for these numbers of items

amounts   false-ship rate at the margin, by method, for normal, heavy-tailed and skewed differences
power     predicted and simulated share of equal candidates that pass
groups    false-ship rate for right/wrong answers when items flip in groups
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from bench.tables import run, show
from tasks.evaluate.verdict.exact_bounds import lower_bound
from tasks.evaluate.verdict.intervals import grouped_bounds, mean_bounds, ratio_bounds
from tasks.evaluate.verdict.paired_tests import sign_flip_loss_p
from tasks.evaluate.verdict.power import detectable_mean

ALPHA, POWER = 0.05, 0.8
ITEMS = (10, 20, 50, 100, 240, 500)
TRIALS = 1000


AMOUNTS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda draw, n: draw.normal(size=n), 0.0),
    "heavy tails (t, 3 df)": (lambda draw, n: draw.standard_t(3, n), 0.0),
    "losses log-normal, sigma 1": (lambda draw, n: -draw.lognormal(0, 1, n), -math.exp(0.5)),
    "losses log-normal, sigma 1.5": (lambda draw, n: -draw.lognormal(0, 1.5, n), -math.exp(1.125)),
    "a loss on 1 item in 10": (lambda draw, n: -draw.lognormal(0, 1, n) * (draw.random(n) < 0.1), -0.1 * math.exp(0.5)),
    "gains and larger losses": (lambda draw, n: draw.lognormal(0, 1, n) - draw.lognormal(0, 1.2, n), math.exp(0.5) - math.exp(0.72)),
}  # fmt: skip


def amounts(items: Sequence[int]) -> None:
    trials, rows = TRIALS, []
    for name, (make, mean) in AMOUNTS.items():
        for weighted in (False, True):
            for n in items:
                draw, misses, harmed = np.random.default_rng(n), np.zeros(5), 0
                for trial in range(trials):
                    weights = draw.lognormal(0, 0.5, n) if weighted else np.ones(n)
                    drawn = make(draw, n)
                    bounds = ratio_bounds(weights * drawn, weights, ALPHA, 1000, trial)
                    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
                    misses += [*(bound[0] > mean for bound in bounds), low > mean, high < mean]
                    harmed += sign_flip_loss_p(drawn - mean, weights, 500, trial) <= ALPHA if trial < trials // 4 else 0
                shares = (f"{share:.3f}" for share in misses / trials)
                rows.append([name, "log-normal" if weighted else "one", n, *shares, f"{harmed / (trials // 4):.3f}"])
    error = math.sqrt(0.0475 / trials)
    title = f"false ships at the margin for amounts, {trials} simulated candidates (standard error {error:.3f})"
    bounds = ("t", "BCa", "studentized", "farthest", "gains called shown", "harm found by sign flips, true harm none")
    show(title, ("differences", "weights", "items", *bounds), rows)


def power(items: Sequence[int]) -> None:
    rows = []
    for name in ("normal", "heavy tails (t, 3 df)", "gains and larger losses"):
        make, mean = AMOUNTS[name]
        deviation = float((make(np.random.default_rng(0), 1_000_000) - mean).std())
        for n in items:
            draw, margin = np.random.default_rng(n), detectable_mean(deviation, n, ALPHA, POWER)
            lows = [
                mean_bounds(make(draw, n) - mean, np.ones(n), ALPHA, 1000, trial, 99.0).low for trial in range(TRIALS)
            ]
            rows.append([name, n, f"{margin / deviation:.3f}", f"{np.mean(np.array(lows) > -margin):.3f}"])
    title = f"power for amounts, {TRIALS} simulated equal candidates per figure; target {POWER:g}"
    show(title, ("differences", "items", "detectable margin, standard deviations", "equal candidates that pass"), rows)


def groups(items: Sequence[int]) -> None:
    margin, discordance, trials, rows = 0.05, 0.1, TRIALS, []
    for n in (count for count in items if count >= 100):
        for together in (2, 4, 8):
            cells = [grouped_rates(n, together, share, margin, discordance, trials) for share in (0.0, 0.5, 1.0)]
            rows.append([n, together, *(f"{alone:.3f} / {whole:.3f}" for alone, whole in cells)])
    title = (
        f"false ships at a margin of {margin:g}, {discordance:g} flips, when items flip in groups: by items / by groups"
    )
    show(title, ("items", "in groups of", "none together", "half together", "all together"), rows)


def grouped_rates(
    n: int, together: int, share: float, margin: float, discordance: float, trials: int
) -> tuple[float, float]:
    """Pass rates at the margin, with items and with groups treated as independent.

    share: fraction of groups that flip together.
    """
    draw, passed = np.random.default_rng(n), np.zeros(2)
    chances = [1 - discordance, (discordance + margin) / 2, (discordance - margin) / 2]
    whole = -(-n // together)
    names = [str(number // together) for number in range(n)]
    for trial in range(trials):
        own, common = draw.choice(3, size=n, p=chances), np.repeat(draw.choice(3, size=whole, p=chances), together)[:n]
        kind = np.where(np.repeat(draw.random(whole) < share, together)[:n], common, own)
        alone = lower_bound(int((kind == 1).sum()), int((kind == 2).sum()), n, ALPHA) > -margin
        passed += (
            alone,
            alone and grouped_bounds(kind == 1, kind == 2, np.ones(n), names, ALPHA, 500, trial).low > -margin,
        )
    return float(passed[0]) / trials, float(passed[1]) / trials


TABLES = {"amounts": amounts, "power": power, "groups": groups}


if __name__ == "__main__":
    run(__doc__, TABLES, ITEMS)
