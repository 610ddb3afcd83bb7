"""From items to comparisons: one measure of one candidate against the baseline, over all items and within slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluate.judging.exact_bounds import Interval
from tasks.evaluate.judging.intervals import by_group, grouped_bounds, mean_bounds, retention_bounds, score_bounds
from tasks.evaluate.judging.paired_tests import count_flips, effect_size, holm, mcnemar_p, sign_flip_p, weighted_spread
from tasks.evaluate.judging.power import decide, detectable_mean, minimum_detectable
from tasks.shared.errors import TechniqueError
from tasks.shared.scores import ItemScore, Measure
from tasks.shared.verdict import Flip, Gate, MeasureComparison, NoiseFloor, Score


@dataclass(frozen=True)
class Rules:
    """How certain a decision has to be.

    alpha: chance of shipping a candidate whose true loss is exactly the margin.  power: chance to pass of an equal one that
    "the data would have shown it" means.  seed: of the bootstrap.
    """

    alpha: float
    power: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Pairs:
    """Values of baseline and candidate on the same items, aligned, with the items' weights and clusters."""

    measure: Measure
    baseline: Sequence[float]
    candidate: Sequence[float]
    weights: Sequence[float]
    clusters: Sequence[str]

    @property
    def sign(self) -> float:
        """+1 where higher is better, -1 where lower is."""
        return 1.0 if self.measure.better == "higher" else -1.0

    @property
    def right(self) -> tuple[list[bool], list[bool]]:
        """Binary values as right or wrong: a value of 1 is wrong where lower is better."""
        good = 1.0 if self.measure.better == "higher" else 0.0
        return [value == good for value in self.baseline], [value == good for value in self.candidate]

    @property
    def gains(self) -> list[float]:
        """Differences by item, in favour of the candidate."""
        return [self.sign * (after - before) for before, after in zip(self.baseline, self.candidate, strict=True)]


def pair(measure: Measure, items: Sequence[ItemScore], baseline: str, candidate: str) -> Pairs:
    """The items of one measure that both models have.  Raises TechniqueError if one model has items that the other lacks."""
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


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Sum of weight x value over sum of weights."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def score(measure: Measure, values: Sequence[float], weights: Sequence[float], seed: int) -> Score:
    """A model's mean with its 95 % interval."""
    found = score_bounds(values, weights, measure.binary, seed=seed)
    return Score(value=found.value, low=found.low, high=found.high, n=len(values))


def compare_measure(pairs: Pairs, gate: Gate, rules: Rules) -> MeasureComparison:
    """All that is said of one measure; its `p_holm` is set once all measures are known (`correct`)."""
    baseline = weighted_mean(pairs.baseline, pairs.weights)
    margin = None if gate.margin is None else gate.margin * (abs(baseline) if gate.relative else 1.0)
    test, bounds = _test(pairs, rules), change_bounds(pairs, rules)
    retention = (
        retention_bounds(pairs.baseline, pairs.candidate, pairs.weights, rules.alpha, rules.resamples, rules.seed)
        if pairs.measure.better == "higher"
        else None
    )
    return MeasureComparison(
        n=len(pairs.baseline), baseline=baseline, candidate=weighted_mean(pairs.candidate, pairs.weights),
        difference=bounds.value, low=bounds.low, high=bounds.high, p=test.p, p_holm=test.p,
        effect=effect_size(pairs.gains, pairs.weights, pairs.measure.binary),
        to_wrong=sum(gain < 0 for gain in pairs.gains), to_right=sum(gain > 0 for gain in pairs.gains),
        flip_rate=sum(gain != 0 for gain in pairs.gains) / len(pairs.gains),
        retention=retention.value if retention else None,
        retention_low=retention.low if retention else None, retention_high=retention.high if retention else None,
        margin=margin, detectable=test.detectable, answer="yes" if margin is None else decide(bounds, margin, test.detectable),
    )  # fmt: skip


def change_bounds(pairs: Pairs, rules: Rules) -> Interval:
    """The mean gain of the candidate; each bound is a one-sided 1 - alpha bound: exact for right/wrong answers, else by bootstrap."""
    if pairs.measure.binary:
        return grouped_bounds(*pairs.right, pairs.clusters, rules.alpha, rules.resamples, rules.seed)
    seen = [*pairs.baseline, *pairs.candidate]
    reach = 1.0 if pairs.measure.unit == "share" else max(seen) - min(seen)
    gains, weights = by_group(pairs.gains, pairs.weights, pairs.clusters)
    return mean_bounds(gains, weights, rules.alpha, rules.resamples, rules.seed, reach)


@dataclass(frozen=True)
class _Test:
    p: float
    detectable: float


def _test(pairs: Pairs, rules: Rules) -> _Test:
    """Whether there is any difference, and the smallest margin that an equal candidate would pass on items like these."""
    if pairs.measure.binary:
        flips = count_flips(*pairs.right)
        return _Test(mcnemar_p(flips), minimum_detectable(flips.items, flips.rate, rules.alpha, rules.power))
    spread = weighted_spread(pairs.gains, pairs.weights)
    detectable = detectable_mean(spread.deviation, spread.items, rules.alpha, rules.power)
    return _Test(sign_flip_p(pairs.gains, pairs.weights, rules.resamples, rules.seed), detectable)


def correct(comparisons: Mapping[str, MeasureComparison]) -> dict[str, MeasureComparison]:
    """The same with Holm's correction (1979) over all measures of the candidate."""
    adjusted = holm([found.p for found in comparisons.values()])
    return {
        name: found.model_copy(update={"p_holm": p})
        for (name, found), p in zip(comparisons.items(), adjusted, strict=True)
    }


def noise_floor(pairs: Pairs, model: str) -> NoiseFloor:
    """How far the baseline lies from itself."""
    gains = pairs.gains
    return NoiseFloor(
        model=model, n=len(gains), difference=weighted_mean(gains, pairs.weights), flip_rate=sum(gain != 0 for gain in gains) / len(gains)
    )  # fmt: skip


def list_flips(measure: Measure, items: Sequence[ItemScore], baseline: str, candidate: str) -> list[Flip]:
    """Every item of a binary measure on which the candidate differs from the baseline."""
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
