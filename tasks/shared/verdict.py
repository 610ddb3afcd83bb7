"""The verdict file: what was measured of each model, how each candidate compares with the baseline, and the decision."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import DataError

MEASURES: tuple[str, ...] = ("intent", "fact", "refusal")
"""The measures that the decision rests on."""
Decision = Literal["ship", "do not ship"]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Base of every part: no unknown keys, no NaN or infinity, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Score(Record):
    """A proportion of n items with its 95 % Wilson interval."""

    value: Share
    low: Share
    high: Share
    n: Annotated[int, Field(gt=0)]


class Spread(Record):
    """Median and range over repeats."""

    median: float
    low: float
    high: float


class ModelMeasures(Record):
    """One model: what it is, what it costs, how well it answers."""

    role: Literal["baseline", "candidate", "reference"]
    kind: Literal["model", "engine"]
    format: str
    """Weights as stored, such as "bfloat16 safetensors"."""
    engine: Literal["transformers", "llama.cpp"]
    """What the answers were made with."""
    parameters: int | None
    size_bytes: int
    """Weights on disk."""
    peak_memory_bytes: int | None
    """Peak resident memory of a process that loads and serves it in `speed_engine`."""
    time_to_first_token_s: Spread | None
    tokens_per_second: Spread | None
    """Decode speed of one stream."""
    speed_engine: str
    """What memory and speed were measured in, such as "llama.cpp (f16 GGUF)"."""
    perplexity: float | None
    """Per token of the gold answers; null where the engine gives no log-probabilities of a prompt."""
    scores: dict[str, Score]
    """By measure: intent, fact, refusal (correct refusals), over_refusal (answerable questions refused)."""
    by_kind: dict[str, dict[str, Score]]
    """The same by row kind, with "grounded" for the rows that carry their article; kinds without items are absent."""


class MeasureComparison(Record):
    """One measure of a candidate against the baseline on the same n items; difference = candidate - baseline."""

    n: Annotated[int, Field(gt=0)]
    baseline: Share
    candidate: Share
    difference: float
    low: float
    """Bounds of the paired bootstrap interval at confidence 1 - 2 alpha, so each is a one-sided 1 - alpha bound."""
    high: float
    p_mcnemar: Share
    to_wrong: int
    """Items that the baseline has right and the candidate wrong."""
    to_right: int
    flip_rate: Share
    retention: float | None
    """candidate / baseline; null when the baseline has nothing right."""
    retention_low: float | None
    retention_high: float | None
    margin: float
    non_inferior: bool
    """low > -margin."""


class Comparison(Record):
    """A candidate's decision: ship when every measure is non-inferior."""

    decision: Decision
    measures: dict[str, MeasureComparison]


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


class TestSplit(Record):
    """Items of the test split: all, and by measure; the smallest true loss that each measure could tell apart."""

    __test__ = False
    items: int
    intent: int
    fact: int
    refusal: int
    minimum_detectable: dict[str, float]


class Machine(Record):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    platform: str


class Verdict(Record):
    """The whole file."""

    baseline: str
    reference: str | None
    decision: Decision
    shipped: str | None
    """The smallest candidate that may ship."""
    margin: dict[str, float]
    alpha: float
    test: TestSplit
    models: dict[str, ModelMeasures]
    comparisons: dict[str, Comparison]
    flips: list[Flip]
    machine: Machine
    versions: dict[str, str]
    notes: list[str]


class ItemAnswer(Record):
    """What one model made of an item."""

    correct: bool
    answer: str


class Item(Record):
    """One line of items.jsonl: one test item under one measure, for every model (the reference included)."""

    id: str
    kind: str
    grounded: bool
    measure: str
    models: dict[str, ItemAnswer]


def read_verdict(path: Path) -> Verdict:
    """Read verdict.json.  Raises DataError that names the file and the first bad key."""
    if not path.is_file():
        raise DataError(str(path), "no such file", "a verdict", "run the evaluate step")
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(str(path), f"{place}: {first['msg']}", "the schema of tasks/shared/verdict.py") from error
