"""Comparison of a candidate with the baseline on one measure, overall and within slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.evaluate.verdict.adaptive import Assessment, Test, assess
from tasks.evaluate.verdict.courses import smallest_margin
from tasks.evaluate.verdict.exact_bounds import Interval
from tasks.evaluate.verdict.intervals import (
    by_group,
    grouped_bounds,
    mean_bounds,
    retention_bounds,
    score_bounds,
    weighted_mean,
)
from tasks.evaluate.verdict.margin_rule import decide
from tasks.evaluate.verdict.paired_tests import count_flips, effect_size, holm, mcnemar_p, sign_flip_p, weighted_spread
from tasks.evaluate.verdict.power import detectable_mean, minimum_detectable
from tasks.shared.errors import ConfigError, TechniqueError
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


@dataclass(frozen=True)
class Pairs:
    """Paired values of baseline and candidate, (n,) each, with the items' weights and clusters."""

    measure: Measure
    baseline: Sequence[float]
    candidate: Sequence[float]
    weights: Sequence[float]
    clusters: Sequence[str]

    @property
    def sign(self) -> float:
        """+1 where higher is better, -1 where lower is better."""
        return 1.0 if self.measure.better == "higher" else -1.0

    @property
    def correctness(self) -> tuple[list[bool], list[bool]]:
        """Binary values as right or wrong; where lower is better, 1 is wrong."""
        good = 1.0 if self.measure.better == "higher" else 0.0
        return [value == good for value in self.baseline], [value == good for value in self.candidate]

    @property
    def gains(self) -> list[float]:
        """Difference per item, (n,); positive in favor of the candidate."""
        return [self.sign * (after - before) for before, after in zip(self.baseline, self.candidate, strict=True)]

    @property
    def clustered(self) -> bool:
        """True if items share clusters, so that there are fewer independent items than items."""
        return len(set(self.clusters)) < len(self.clusters)

    @property
    def bounded(self) -> bool:
        """True if all values are known to lie between 0 and 1."""
        return self.measure.unit == "share" and all(0.0 <= value <= 1.0 for value in (*self.baseline, *self.candidate))

    @property
    def reach(self) -> float:
        """Largest change one item can make: 1 for a share, or the observed range if that is larger."""
        seen = [*self.baseline, *self.candidate]
        return max(max(seen) - min(seen), 1.0 if self.measure.unit == "share" else 0.0)

    def grouped(self, changes: Sequence[float]) -> tuple[list[float], list[float]]:
        """Cluster means and cluster weights of one value per item: the units of resampling."""
        return by_group(changes, self.weights, self.clusters)


def pair_items(measure: Measure, items: Sequence[ItemScore], baseline: str, candidate: str) -> Pairs:
    """Return the items of one measure that both models have.

    Raises TechniqueError if one model has items that the other lacks.
    """
    odd = [item.id for item in items if (baseline in item.values) != (candidate in item.values)]
    if odd:
        raise TechniqueError(
            f"comparison of {candidate} with {baseline}",
            f"{len(odd)} items answered by one model only ({', '.join(odd[:3])})",
            "the same items for both",
        )
    both = [item for item in items if baseline in item.values]
    return Pairs(
        measure,
        [item.values[baseline] for item in both],
        [item.values[candidate] for item in both],
        [item.weight for item in both],
        [item.cluster or item.id for item in both],
    )


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
    if found := assess_pairs(pairs, rules, margin, gate.margin if gate.relative else None):
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


def assess_pairs(pairs: Pairs, rules: Rules, margin: float | None, share: float | None = None) -> Assessment | None:
    """Return the adaptive test of these items; None for the fixed test, and for amounts whose range is not known.

    margin: in the measure's unit.  share: of the baseline's value, if the margin is relative.
    """
    if rules.planned is None or not pairs.bounded:
        return None
    gains, weights = pairs.grouped(pairs.gains)
    baseline, _ = pairs.grouped(pairs.baseline)
    return assess(gains, baseline, weights, Test(rules.alpha, margin, rules.planned, share or 0.0))


def _retention(pairs: Pairs, rules: Rules, bounds: Interval | None) -> Interval | None:
    """Ratio candidate / baseline with its bounds; of an adaptive test, from the bounds of the difference.

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
        return grouped_bounds(*pairs.correctness, pairs.clusters, rules.alpha, rules.resamples, rules.seed)
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
