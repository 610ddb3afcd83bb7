"""Comparison of a candidate with the baseline on one measure, overall and within slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.evaluate.verdict.adaptive import Test, assess_pairs
from tasks.evaluate.verdict.courses import smallest_margin
from tasks.evaluate.verdict.exact_bounds import Interval
from tasks.evaluate.verdict.intervals import (
    grouped_bounds,
    mean_bounds,
    retention_bounds,
    score_bounds,
    weighted_mean,
)
from tasks.evaluate.verdict.margin_rule import decide
from tasks.evaluate.verdict.paired_tests import count_flips, effect_size, holm, mcnemar_p, sign_flip_p, weighted_spread
from tasks.evaluate.verdict.pairs import Pairs
from tasks.evaluate.verdict.power import detectable_mean, minimum_detectable
from tasks.shared.errors import ConfigError
from tasks.shared.formats.scores import ItemScore, Measure
from tasks.shared.formats.verdict import Answer, Flip, Gate, MeasureComparison, NoiseFloor, Score


@dataclass(frozen=True)
class Rules:
    """Error rates of the decisions.

    alpha: probability of shipping a candidate whose true loss equals the margin.  power: probability of passing an equal candidate
    that the data must offer before a failure counts against it.  seed: of the bootstrap.
    planned: share of flips that the bets of an adaptive test expect; None for the fixed test.
    """

    alpha: float
    power: float
    resamples: int
    seed: int
    planned: float | None = None


def score(measure: Measure, values: Sequence[float], weights: Sequence[float], seed: int) -> Score:
    """Return a model's mean with its 95 % interval."""
    found = score_bounds(values, weights, measure.binary, seed=seed)
    return Score(value=found.value, low=found.low, high=found.high, n=len(values))


def compare_measure(pairs: Pairs, gate: Gate, rules: Rules) -> MeasureComparison:
    """Compare on one measure; `holm_correct` sets `p_holm` once all measures are compared."""
    baseline = weighted_mean(pairs.baseline, pairs.weights)
    if gate.relative and not baseline:
        raise ConfigError(
            "relative_margins", "the baseline's value is 0", "an absolute margin", "move the measure to margins"
        )
    margin = None if gate.margin is None else gate.margin * (abs(baseline) if gate.relative else 1.0)
    detectable = passing_margin(pairs, rules)
    if found := assess_pairs(pairs, adaptive_test(rules, margin, gate)):
        bounds, answer, p = found.bounds, found.answer, found.p
    else:
        bounds = change_bounds(pairs, rules)
        answer, p = _answer(pairs, gate, margin, bounds, detectable, rules), difference_p(pairs, rules)
    retention = _retention(pairs, rules, found.bounds if found else None)
    return MeasureComparison(
        n=len(pairs.baseline), baseline=baseline, candidate=weighted_mean(pairs.candidate, pairs.weights),
        difference=bounds.value, low=bounds.low, high=bounds.high, p=p, p_holm=p,
        effect=effect_size(pairs.gains, pairs.weights, pairs.measure.binary),
        to_wrong=sum(gain < 0 for gain in pairs.gains), to_right=sum(gain > 0 for gain in pairs.gains),
        flip_rate=sum(gain != 0 for gain in pairs.gains) / len(pairs.gains),
        retention=retention.value if retention else None,
        retention_low=retention.low if retention else None, retention_high=retention.high if retention else None,
        margin=margin, detectable=detectable, answer=answer,
        wealth=found.wealth if found else None,
    )  # fmt: skip


def adaptive_test(rules: Rules, margin: float | None = None, gate: Gate | None = None) -> Test | None:
    """Return the adaptive test of a measure; None in fixed mode.

    margin: in the measure's unit; None if it does not decide.
    """
    if rules.planned is None:
        return None
    return Test(rules.alpha, margin, rules.planned, gate.margin or 0.0 if gate and gate.relative else 0.0)


def _retention(pairs: Pairs, rules: Rules, bounds: Interval | None) -> Interval | None:
    """Ratio candidate / baseline with its bounds.

    Those of an adaptive test follow from the bounds of the difference.

    None if lower values are better, or unless the baseline's mean is above zero.
    """
    if pairs.measure.better != "higher":
        return None
    if bounds is None:
        return retention_bounds(
            pairs.baseline, pairs.candidate, pairs.weights, rules.alpha, rules.resamples, rules.seed
        )
    baseline = weighted_mean(pairs.baseline, pairs.weights)
    if baseline <= 0.0:
        return None
    return Interval(*(max(0.0, 1.0 + part / baseline) for part in (bounds.value, bounds.low, bounds.high)))


def _answer(
    pairs: Pairs, gate: Gate, margin: float | None, bounds: Interval, detectable: float, rules: Rules
) -> Answer:
    if margin is None:
        return "yes"
    if not gate.relative or gate.margin is None:
        return decide(bounds, margin, detectable)
    # A relative margin depends on the baseline's value, estimated from the same items: bound gain + share x baseline as one mean.
    share = gate.margin
    shifted = [gain + share * abs(before) for gain, before in zip(pairs.gains, pairs.baseline, strict=True)]
    found = mean_bounds(
        *pairs.grouped(shifted), rules.alpha, rules.resamples, rules.seed, (1.0 + share) * max(pairs.reach, 1e-12)
    )
    return decide(replace(bounds, low=found.low - margin), margin, detectable)


def change_bounds(pairs: Pairs, rules: Rules) -> Interval:
    """Mean gain of the candidate with one-sided 1 - alpha bounds.

    Exact for right/wrong answers, bootstrap for amounts.
    """
    if pairs.measure.binary:
        return grouped_bounds(
            *pairs.correctness, pairs.weights, pairs.clusters, rules.alpha, rules.resamples, rules.seed
        )
    return mean_bounds(*pairs.grouped(pairs.gains), rules.alpha, rules.resamples, rules.seed, pairs.reach)


def difference_p(pairs: Pairs, rules: Rules) -> float:
    """Two-sided p-value of "no difference".

    McNemar's exact test where flips are independent, else sign flips of the cluster means.
    """
    if pairs.measure.binary and not pairs.clustered:
        return mcnemar_p(count_flips(*pairs.correctness))
    return sign_flip_p(*pairs.grouped(pairs.gains), rules.resamples, rules.seed)


def passing_margin(pairs: Pairs, rules: Rules) -> float:
    """Smallest margin that an equal candidate would pass on items like these."""
    if pairs.measure.binary and not pairs.clustered:
        flips = count_flips(*pairs.correctness)
        if rules.planned is not None:
            return smallest_margin(flips.items, round(flips.rate, 2), rules.planned, rules.alpha, rules.power)
        return minimum_detectable(flips.items, flips.rate, rules.alpha, rules.power)
    spread = weighted_spread(*pairs.grouped(pairs.gains))
    return detectable_mean(spread.deviation, spread.items, rules.alpha, rules.power, pairs.reach)


def holm_correct(comparisons: Mapping[str, MeasureComparison]) -> dict[str, MeasureComparison]:
    """Return the comparisons with p-values adjusted over all measures (Holm 1979)."""
    adjusted = holm([found.p for found in comparisons.values()])
    return {
        name: found.model_copy(update={"p_holm": p})
        for (name, found), p in zip(comparisons.items(), adjusted, strict=True)
    }


def noise_floor(pairs: Pairs, model: str) -> NoiseFloor:
    """Difference and flip rate between the baseline and one of its repeats."""
    gains = pairs.gains
    return NoiseFloor(
        model=model, n=len(gains), difference=weighted_mean(gains, pairs.weights), flip_rate=sum(gain != 0 for gain in gains) / len(gains)
    )  # fmt: skip


def list_flips(measure: Measure, items: Sequence[ItemScore], baseline: str, candidate: str) -> list[Flip]:
    """Return every item of a binary measure on which candidate and baseline differ."""
    good = 1.0 if measure.better == "higher" else 0.0
    return [
        Flip(
            candidate=candidate, id=item.id, kind=item.tags.get("kind", ""), measure=item.measure,
            direction="to_wrong" if item.values[baseline] == good else "to_right", question=item.question, wanted=item.wanted,
            baseline_answer=item.answers.get(baseline, ""), candidate_answer=item.answers.get(candidate, ""),
        )
        for item in items
        if measure.binary and {baseline, candidate} <= item.values.keys() and item.values[baseline] != item.values[candidate]
    ]  # fmt: skip
