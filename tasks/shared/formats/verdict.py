"""The verdict file: what was measured of each model, how each candidate compares with the baseline, and the decision."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.formats.records import Figure, Machine, Record, Share
from tasks.shared.formats.scores import Measure, Role

Decision = Literal["ship", "do not ship", "not enough data"]
Answer = Literal["yes", "no", "unknown"]
"""Whether a candidate is non-inferior.  yes: shown.  no: shown not to be, or the data would have shown it.  unknown: too few items."""


class Score(Record):
    """A mean over n items with its 95 % interval: Wilson's for a proportion, bootstrap for an amount."""

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
    """One model: what it is, what it costs, how well it answers."""

    role: Role
    kind: Literal["model", "engine"]
    format: str
    """Weights as stored, such as "bfloat16 safetensors"."""
    engine: str
    """What the answers were made with."""
    speed_engine: str = ""
    """What its speed was measured in; empty where it was not measured."""
    digest: str = ""
    """Of its files."""
    made_from: str = ""
    """The model of this verdict that it was made from; empty for a source, or where nobody knows."""
    parameters: int | None
    size_bytes: int
    """Weights on disk."""
    scores: dict[str, Score]
    """By measure."""
    slices: dict[str, dict[str, dict[str, Score]]] = Field(default_factory=dict)
    """By dimension ("kind"), then value ("faq"), then measure; slices without items are absent."""
    figures: dict[str, Figure] = Field(default_factory=dict)
    """Numbers about the whole model: speed, memory, perplexity, cost (see FIGURES)."""
    failures: dict[str, str] = Field(default_factory=dict)
    """By measuring step: why this model has no values there."""

    def _spread(self, name: str) -> Spread | None:
        found = self.figures.get(name)
        if found is None:
            return None
        low, high = found.value if found.low is None else found.low, found.value if found.high is None else found.high
        return Spread(median=found.value, low=low, high=high)

    @property
    def tokens_per_second(self) -> Spread | None:
        """Decode speed of one stream, in `speed_engine`: models in different engines do not compare by it."""
        return self._spread("tokens_per_second")

    @property
    def speed_ratio(self) -> Spread | None:
        """Decode speed over the baseline's, in the same engine, round by round."""
        return self._spread("speed_ratio")

    @property
    def time_to_first_token_s(self) -> Spread | None:
        """From the request to the first token."""
        return self._spread("time_to_first_token_s")

    @property
    def peak_memory_bytes(self) -> int | None:
        """Peak resident memory of a process that loads and serves it."""
        return int(found.value) if (found := self.figures.get("peak_memory_bytes")) else None

    @property
    def perplexity(self) -> float | None:
        """Per token."""
        return found.value if (found := self.figures.get("perplexity")) else None


FIGURES = {
    "perplexity": "perplexity per token",
    "perplexity_per_byte": "perplexity per byte",
    "tokens_scored": "tokens that perplexity was taken over",
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
    "cost_per_point": "cost of 1,000 answers over each quality point that it has",
    "price_of_point": "saved on 1,000 answers by each quality point that it lost, or paid for each that it gained",
    "findings_address": "answers with an invented address",
    "findings_number": "answers with an invented number",
    "findings_contradiction": "answers with another quantity than the fact's",
    "findings_unsupported": "answers whose words have too little support",
    "findings_remembered": "answers with the right fact, which the prompt lacks",
    "judge_agreement": "judge: same choice in both orders",
    "judge_prefers_first": "judge: choices of what stands first",
}
"""Names that figures have, and what they are in words; others may stand beside them."""


class Gate(Record):
    """One measure of the verdict: what it is, which step measured it, and the loss that is allowed.

    margin: in the measure's own unit, or as a share of the baseline's value if `relative`; None: watched, decides nothing.
    """

    measure: Measure
    step: str
    margin: float | None = None
    relative: bool = False


class MeasureComparison(Record):
    """One measure of a candidate against the baseline on the same n items.

    difference, low, high: in favor of the candidate, in the measure's unit: above zero is better than the baseline, whether
    the measure counts what is good or what is bad.
    """

    n: Annotated[int, Field(gt=0)]
    baseline: float
    candidate: float
    difference: float
    low: float
    """Bounds at confidence 1 - 2 alpha, so each is a one-sided 1 - alpha bound."""
    high: float
    p: Share
    """That there is no difference, two-sided: McNemar's exact test of flips, or sign flips of the items' differences."""
    p_holm: Share
    """The same after Holm's correction over all measures of this candidate; its slices are corrected among themselves."""
    effect: float
    """Cohen's g of the flips (0.5 is: all one way); for amounts, mean over standard deviation of the differences."""
    to_wrong: int
    """Items that the baseline has right and the candidate wrong; for amounts, items on which the candidate is worse."""
    to_right: int
    flip_rate: Share
    retention: float | None
    """candidate / baseline; null when the baseline is at zero, or the measure counts what is bad."""
    retention_low: float | None
    retention_high: float | None
    margin: float | None
    """In the measure's unit; null when it decides nothing."""
    detectable: float
    """The smallest margin at which an equal candidate passes with the asked power, with as many flips as were seen."""
    answer: Answer
    """Yes also for what decides nothing."""

    @property
    def non_inferior(self) -> bool:
        """Whether it may ship as far as this measure goes."""
        return self.answer == "yes"


class SliceComparison(Record):
    """One measure within one slice: a candidate does not ship when a loss beyond the slice margin is shown there."""

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
    """One-sided: that the candidate is not worse here."""
    p_holm: Share
    margin: float
    detectable: float
    """The smallest true loss that would be found here with the asked power."""
    harmed: bool


class Comparison(Record):
    """A candidate's decision and what it rests on.  reasons: what stands in the way, in words, the weightiest first."""

    decision: Decision
    reasons: list[str] = Field(default_factory=list)
    measures: dict[str, MeasureComparison]
    slices: list[SliceComparison] = Field(default_factory=list)


class Flip(Record):
    """An item on which candidate and baseline differ."""

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
    """How far the baseline lies from itself: asked again, or made again with another seed."""

    model: str
    n: Annotated[int, Field(gt=0)]
    difference: float
    flip_rate: Share


class TestSplit(Record):
    """Items by measure, and the smallest margin that each could decide with the asked power, by the planned share of flips."""

    __test__ = False
    items: dict[str, int]
    minimum_detectable: dict[str, float]


class Verdict(Record):
    """The whole file."""

    baseline: str
    reference: str | None
    decision: Decision
    shipped: str | None
    """The smallest candidate that may ship."""
    gates: dict[str, Gate]
    """By measure."""
    alpha: float
    power: float
    test: TestSplit
    models: dict[str, ModelMeasures]
    comparisons: dict[str, Comparison]
    noise: dict[str, list[NoiseFloor]] = Field(default_factory=dict)
    """By measure."""
    flips: list[Flip]
    machine: Machine
    versions: dict[str, str]
    notes: list[str]

    @property
    def margin(self) -> dict[str, float]:
        """The margins of the measures that decide."""
        return {name: gate.margin for name, gate in self.gates.items() if gate.margin is not None}


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
