"""The verdict file: measures of all models, comparisons with the baseline, the decision."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.formats.records import Figure, Machine, Record, Share
from tasks.shared.formats.scores import Measure, Role

Decision = Literal["ship", "do not ship", "not enough data"]
Mode = Literal["fixed", "adaptive"]
"""fixed: one test at one number of items.  adaptive: evidence that may be looked at after every batch."""
Answer = Literal["yes", "no", "unknown"]
"""Answer to "is the candidate non-inferior?".  yes: shown.  no: refuted, or not shown by data with enough power.  unknown: too few items."""


def interval_name(alpha: float, mode: Mode, word: str = "intervals") -> str:
    """Return the name of a verdict's intervals, "90 % intervals" or "90 % anytime intervals"."""
    return f"{100 * (1 - 2 * alpha):.3g} % {'anytime ' if mode == 'adaptive' else ''}{word}"


class Score(Record):
    """Mean over n items with its 95 % interval: Wilson for proportions, bootstrap for amounts."""

    value: float
    low: float
    high: float
    n: Annotated[int, Field(gt=0)]


class Spread(Record):
    """Median and range over repeats."""

    median: float
    low: float
    high: float


class ModelMeasures(Record):
    """Description, cost and scores of one model."""

    role: Role
    kind: Literal["model", "engine"]
    format: str
    """Weights as stored, such as "bfloat16 safetensors"."""
    engine: str
    """Engine that generated the answers."""
    speed_engine: str = ""
    """Engine that its speed was measured in; empty if it was not measured."""
    digest: str = ""
    """Digest of its files."""
    made_from: str = ""
    """Model of this verdict that it was made from; empty for a source, or if unknown."""
    parameters: int | None
    size_bytes: int
    """Bytes of its weights on disk."""
    scores: dict[str, Score]
    """By measure."""
    slices: dict[str, dict[str, dict[str, Score]]] = Field(default_factory=dict)
    """By dimension ("kind"), then value ("faq"), then measure; slices without items are absent."""
    figures: dict[str, Figure] = Field(default_factory=dict)
    """Figures about the whole model: speed, memory, perplexity, cost (see FIGURES)."""
    failures: dict[str, str] = Field(default_factory=dict)
    """By measuring step: reason why this model has no values from it."""

    def _spread(self, name: str) -> Spread | None:
        found = self.figures.get(name)
        if found is None:
            return None
        low, high = found.value if found.low is None else found.low, found.value if found.high is None else found.high
        return Spread(median=found.value, low=low, high=high)

    @property
    def tokens_per_second(self) -> Spread | None:
        """Decode speed of one stream in `speed_engine`; not comparable between engines."""
        return self._spread("tokens_per_second")

    @property
    def speed_ratio(self) -> Spread | None:
        """Decode speed relative to the baseline's, in the same engine and paired by round."""
        return self._spread("speed_ratio")

    @property
    def time_to_first_token_s(self) -> Spread | None:
        """Time from the request to the first token."""
        return self._spread("time_to_first_token_s")

    @property
    def peak_memory_bytes(self) -> int | None:
        """Peak resident memory of a process that loads and serves the model."""
        return int(found.value) if (found := self.figures.get("peak_memory_bytes")) else None

    @property
    def perplexity(self) -> float | None:
        """Perplexity per token."""
        return found.value if (found := self.figures.get("perplexity")) else None


FIGURES = {
    "perplexity": "perplexity per token",
    "perplexity_per_byte": "perplexity per byte",
    "tokens_scored": "tokens scored for perplexity",
    "tokens_per_second": "decode speed, one stream",
    "tokens_per_second_batch_8": "decode speed, 8 streams together",
    "speed_ratio": "decode speed against the baseline in the same engine, one stream",
    "speed_ratio_batch_8": "decode speed against the baseline in the same engine, 8 streams together",
    "parent_ratio": "decode speed against the model that it was made from, in the same engine, one stream",
    "parent_ratio_batch_8": "decode speed against the model that it was made from, in the same engine, 8 streams together",
    "time_to_first_token_s": "time to first token",
    "time_per_token_s": "time per token",
    "end_to_end_s": "one answer end to end, tokenization included",
    "end_to_end_s_batch_8": "8 answers together end to end, tokenization included",
    "prompt_tokens": "tokens of the timed prompt",
    "answer_tokens": "tokens of the timed answer",
    "load_s": "time to load",
    "peak_memory_bytes": "peak memory",
    "peak_device_memory_bytes": "peak memory of the accelerator",
    "size_bytes": "weights on disk",
    "energy_wh_per_1000": "energy for 1,000 answers",
    "cost_per_1000": "cost of 1,000 answers",
    "cost_per_point": "cost of 1,000 answers per quality point",
    "price_of_point": "savings on 1,000 answers per quality point lost, or extra cost per point gained",
    "findings_address": "answers with an invented address",
    "findings_number": "answers with an invented number",
    "findings_contradiction": "answers with a quantity that contradicts the fact",
    "findings_unsupported": "answers with too little support in the sources",
    "findings_remembered": "answers with the right fact although the prompt lacks it",
    "judge_agreement": "judge: same choice in both orders",
    "judge_prefers_first": "judge: choices of the first answer",
}
"""Titles of the known figures by name; a step may add others."""


class Gate(Record):
    """A measure of the verdict, the step that measured it, and the allowed loss.

    margin: in the measure's unit, or as a share of the baseline's value if `relative`; None if it does not decide.
    """

    measure: Measure
    step: str
    margin: float | None = None
    relative: bool = False


class Wealth(Record):
    """Evidence of an adaptive comparison: the wealth of bets that started with 1, at most 1e12.

    now, most: evidence that less than the margin is lost, after the last item and at its largest.  loss: the largest evidence that
    something is lost.  needed: evidence that decides.
    """

    now: float
    most: float
    needed: float
    loss: float
    units: Annotated[int, Field(gt=0)]
    """Items, or groups of dependent items, in the order in which they were asked."""
    decided_at: int | None = None
    """Units after which it was decided; null if it was not, or if the measure decides nothing."""


class MeasureComparison(Record):
    """A candidate against the baseline by one measure on the same n items.

    difference, low, high: in the measure's unit, signed so that above zero the candidate is better than the baseline, even if
    lower values of the measure are better.
    """

    n: Annotated[int, Field(gt=0)]
    baseline: float
    candidate: float
    difference: float
    low: float
    """Bounds at confidence 1 - 2 alpha, so that each is a one-sided bound at 1 - alpha."""
    high: float
    p: Share
    """Two-sided p-value of no difference: McNemar's exact test of flips, or sign flips of the items' differences."""
    p_holm: Share
    """`p` after Holm's correction over all measures of this candidate; its slices are corrected among themselves."""
    effect: float
    """Cohen's g of the flips (0.5: all in one direction); for amounts, mean over standard deviation of the differences."""
    to_wrong: int
    """Items that the baseline gets right and the candidate wrong; for amounts, items on which the candidate is worse."""
    to_right: int
    flip_rate: Share
    retention: float | None
    """candidate / baseline; null if the baseline is zero or lower values of the measure are better."""
    retention_low: float | None
    retention_high: float | None
    margin: float | None
    """In the measure's unit; null if the measure does not decide."""
    detectable: float
    """Smallest margin at which an equal candidate passes with the planned power, at the observed rate of flips."""
    answer: Answer
    """Yes also for measures that do not decide."""
    wealth: Wealth | None = None
    """Of an adaptive comparison, whose bounds and p-value are valid at any number of looks; null for the fixed test."""

    @property
    def non_inferior(self) -> bool:
        """Return True if this measure does not keep the candidate from shipping."""
        return self.answer == "yes"


class SliceComparison(Record):
    """A candidate against the baseline by one measure within one slice.

    A loss beyond the slice margin, if shown, keeps the candidate from shipping.
    """

    dimension: str
    value: str
    measure: str
    n: Annotated[int, Field(gt=0)]
    baseline: float
    candidate: float
    difference: float
    """In favor of the candidate."""
    low: float
    high: float
    p: Share
    """One-sided p-value of a candidate that is not worse on this slice."""
    p_holm: Share
    margin: float
    detectable: float
    """Smallest true loss that would be found on this slice with the planned power."""
    harmed: bool


class Comparison(Record):
    """Decision on a candidate and its grounds.  reasons: objections, most important first."""

    decision: Decision
    reasons: list[str] = Field(default_factory=list)
    measures: dict[str, MeasureComparison]
    slices: list[SliceComparison] = Field(default_factory=list)


class Flip(Record):
    """An item on which candidate and baseline disagree."""

    candidate: str
    id: str
    kind: str
    measure: str
    direction: Literal["to_wrong", "to_right"]
    question: str
    baseline_answer: str
    candidate_answer: str
    wanted: str


class NoiseFloor(Record):
    """Distance of the baseline from its repeat: evaluated again, or trained with another seed."""

    model: str
    n: Annotated[int, Field(gt=0)]
    difference: float
    flip_rate: Share


class Cliff(Record):
    """The first model whose loss is shown and more than twice the larger ones' trend.

    loss, expected: measured, and by the trend; in the measure's unit.  before: the next larger model of the frontier.
    """

    model: str
    before: str
    times_smaller: float
    loss: float
    expected: float


class TestSplit(Record):
    """Size of the test split by measure.

    minimum_detectable: smallest margin that could be decided with the planned power at the planned rate of flips.
    """

    __test__ = False
    items: dict[str, int]
    minimum_detectable: dict[str, float]


class Verdict(Record):
    """Content of verdict.json."""

    baseline: str
    reference: str | None
    decision: Decision
    shipped: str | None
    """Smallest candidate that may ship; null if none may."""
    gates: dict[str, Gate]
    """By measure."""
    mode: Mode = "fixed"
    alpha: float
    power: float
    test: TestSplit
    models: dict[str, ModelMeasures]
    comparisons: dict[str, Comparison]
    noise: dict[str, list[NoiseFloor]] = Field(default_factory=dict)
    """By measure."""
    cliffs: dict[str, Cliff] = Field(default_factory=dict)
    """By measure; measures without one are absent."""
    flips: list[Flip]
    machine: Machine
    versions: dict[str, str]
    notes: list[str]

    @property
    def margin(self) -> dict[str, float]:
        """Margins of the measures that decide, by measure."""
        return {name: gate.margin for name, gate in self.gates.items() if gate.margin is not None}

    @property
    def proposed(self) -> dict[str, Comparison]:
        """Comparisons of the candidates that may be shipped, without parents, which only explain."""
        return {name: found for name, found in self.comparisons.items() if self.models[name].role != "parent"}


def read_verdict(path: Path) -> Verdict:
    """Read verdict.json.  Raises DataError that names the file and the first bad key."""
    if not path.is_file():
        raise DataError(str(path), "no such file", "a verdict", "run the evaluate step")
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(
            str(path), f"{place}: {first['msg']}", "the schema of tasks/shared/formats/verdict.py"
        ) from error
