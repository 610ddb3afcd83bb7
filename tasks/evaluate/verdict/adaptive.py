"""Adaptive test of one measure: evidence after every item, and a decision that stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.evaluate.verdict.betting import (
    EQUAL_LOSS_BETS,
    Bets,
    capped,
    log_evidence_of,
    log_mixture,
    lowest_mean,
    margin_bets,
)
from tasks.evaluate.verdict.exact_bounds import Interval
from tasks.evaluate.verdict.margin_rule import Answer
from tasks.evaluate.verdict.pairs import Pairs
from tasks.shared.formats.verdict import Wealth

if TYPE_CHECKING:
    import numpy as np

MOST_WEALTH = 1e12
"""Larger evidence is reported as this."""


@dataclass(frozen=True)
class Test:
    """Margin and error rate of an adaptive test.

    margin: allowed loss; None for a measure that decides nothing.  planned: share of flips that the bets expect.
    share: of the baseline's value, for a relative margin; 0 for an absolute one.
    """

    __test__ = False
    alpha: float
    margin: float | None
    planned: float
    share: float = 0.0


@dataclass(frozen=True)
class Assessment:
    """Result of an adaptive test.

    bounds: valid at any number of looks.  answer: of the first unit that decides.  p: two-sided, of "no difference", valid likewise.
    loss_p: one-sided, of "not worse".
    """

    bounds: Interval
    answer: Answer
    wealth: Wealth
    p: float
    loss_p: float


def assess_pairs(pairs: Pairs, test: Test | None) -> Assessment | None:
    """Return the assessment of these items.

    None without a test, and for amounts whose range is not known.
    """
    if test is None or not pairs.bounded:
        return None
    gains, weights = pairs.grouped(pairs.gains)
    baseline, _ = pairs.grouped(pairs.baseline)
    return assess(gains, baseline, weights, test, pairs.largest)


def assess(
    gains: Sequence[float], baseline: Sequence[float], weights: Sequence[float], test: Test, largest: float = 0.0
) -> Assessment:
    """Return the assessment of units in the order of asking, with a look after each.

    The looks depend neither on the number of units nor on the weights that follow, so a decision stands.

    gains: (n,) between -1 and 1, positive in favor of the candidate.  baseline: (n,) the baseline's values, for a relative margin.
    weights: (n,) above 0, known before the answers.  largest: weight of the heaviest unit that may follow; it sets the scale of all
    stakes, so a heavier one later would change earlier evidence.
    """
    import numpy as np

    gain, weight = np.asarray(gains, dtype=float), np.asarray(weights, dtype=float) / max(largest, *weights)
    goal, loss = -math.log(test.alpha), log_evidence_of(-gain, weight, 0.0, EQUAL_LOSS_BETS)
    gained = log_evidence_of(gain, weight, 0.0, EQUAL_LOSS_BETS)
    means = np.cumsum(weight * gain) / np.cumsum(weight)
    bets = _bets(test)
    kept = _kept(gain, np.asarray(baseline, dtype=float), weight, test, bets)
    margin = test.margin or 0.0
    yes, no = kept >= goal, (loss >= goal) & (means <= -margin + 1e-12)
    decided = np.flatnonzero(yes | no) if test.margin is not None else np.array([], dtype=int)
    answer: Answer = "yes" if test.margin is None else "unknown"
    if len(decided):
        answer = "yes" if yes[decided[0]] else "no"
    low, high = lowest_mean(gain, weight, bets, test.alpha), -lowest_mean(-gain, weight, EQUAL_LOSS_BETS, test.alpha)
    if answer == "yes" and test.margin is not None and not test.share:
        low = max(low, -margin)  # what an earlier look showed stays shown
    if (loss >= goal).any():
        high = min(high, 0.0)
    wealth = Wealth(
        now=_wealth(kept[-1]), most=_wealth(kept.max()), needed=1.0 / test.alpha, loss=_wealth(loss.max()), units=len(gain),
        decided_at=int(decided[0]) + 1 if len(decided) else None,
    )  # fmt: skip
    either = np.logaddexp(loss, gained) - math.log(2.0)
    return Assessment(
        Interval(float(means[-1]), low, high), answer, wealth, _p(float(either.max())), _p(float(loss.max()))
    )


def _bets(test: Test) -> Bets:
    """Bets against the margin; bets of any size if it is absent or relative."""
    if test.margin is None or test.share:
        return EQUAL_LOSS_BETS
    return margin_bets(min(test.margin, 0.999), test.planned)


def _kept(gain: "np.ndarray", baseline: "np.ndarray", weight: "np.ndarray", test: Test, bets: Bets) -> "np.ndarray":
    """Logarithm of the evidence that less than the margin is lost, (n,)."""
    import numpy as np

    if test.share:  # gain + share x baseline has a mean above 0, in a range of 1 + share
        shifted = weight * (gain + test.share * np.abs(baseline)) / (1.0 + test.share)
        return log_mixture(np.cumsum(np.log1p(shifted[:, None] * capped(bets, 0.0)), axis=0), bets.weights)
    return log_evidence_of(gain, weight, -min(test.margin or 0.0, 0.999), bets)


def _wealth(logarithm: float) -> float:
    return float(min(MOST_WEALTH, math.exp(min(logarithm, 100.0))))


def _p(logarithm: float) -> float:
    """Anytime p-value of a largest evidence."""
    return min(1.0, math.exp(-logarithm))
