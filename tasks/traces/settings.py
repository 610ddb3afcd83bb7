"""Settings of the teacher's answers."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.engines.embedded_server import Embedded
from tasks.shared.engines.endpoint_settings import EndpointSettings
from tasks.shared.errors import ConfigError
from tasks.shared.formats.tasks import Task
from tasks.traces.acceptance import Accept
from tasks.traces.budget import Budget, Prices
from tasks.traces.defaults import Limits, length_of, stops_of
from tasks.traces.reasoning import Reasoning


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class TeacherSettings(EndpointSettings):
    """Settings of the teacher's answers, wherever the teacher runs."""

    base_url: str = ""
    """Endpoint up to and including /v1; empty to run the teacher's GGUF in llama.cpp on this machine."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight; the embedded server gets as many slots, so that a next sample finds its prompt cached."""
    samples: Annotated[int, Field(ge=1)] = 2
    """Most answers to request for a prompt until one is accepted."""
    vote: bool = False
    """Request all `samples`, and keep an accepted one that says what most of them say (self-consistency)."""
    temperature: Annotated[float, Field(ge=0)] = 0.3
    """Sampling temperature; 0 with several samples is refused, as it would repeat the same answer."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Probability mass of nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """Most tokens of one answer; an answer that reaches this limit is dropped.  0 takes the limit of the row's task (60 for one
    sentence)."""
    stop: tuple[str, ...] | None = None
    """Strings that end an answer (most endpoints allow four); null takes those of the row's task.  Without any, a sentence task
    has a line break and ". ", because weak teachers ramble.  They do not end the reasoning before an answer."""
    send_seed: bool = True
    """Send `seed` with a request; false for endpoints that reject it."""
    article_in_prompt: bool = True
    """Put the article into the prompt."""
    examples: Annotated[int, Field(ge=0)] = 2
    """Worked examples in the prompts of tasks that are answered in one sentence; other prompts are sent as they are."""
    hint: Literal["never", "retry", "always"] = "retry"
    """When to state the fact in the prompt, so that the teacher only words it: weak teachers rarely find it themselves."""
    accept: Accept = "key"
    """key: keep answers that the row's answer key grades 1 and the sources support; of rows without a key, all of good form.
    judge: the same, and the teacher's model must say yes to each answer.  always: keep all of good form."""
    gold_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Fraction of the answered training prompts that keep the gold answer of the corpus, chosen by seed."""
    when_rejected: Literal["gold", "drop"] = "gold"
    """gold: a prompt without an accepted answer keeps its gold answer.  drop: its row is left out, as is any without a gold one."""
    max_prompts: Annotated[int, Field(ge=0)] = 0
    """Most prompts to send to the teacher, chosen by seed; the rest keep their gold answer.  0 sends all."""
    min_acceptance: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Smallest fraction of the prompts sent that must get an accepted answer, at least one; less fails.  0 takes any."""
    budget: Budget = field(default_factory=Budget)
    """Caps on what the answers may cost."""
    when_capped: Literal["fail", "publish"] = "fail"
    """fail: the step ends with an error at the cap.  publish: it writes what there is, marked as incomplete.  All answers are kept
    either way."""
    reasoning: Reasoning = field(default_factory=Reasoning)
    """The teacher's reasoning, stored in the rows next to the answers."""
    limits: Limits = field(default_factory=Limits)
    """Limits of the filter."""
    prices: Prices = field(default_factory=Prices)
    """Prices, for the cost in usage.json."""
    embedded: Embedded = field(default_factory=Embedded)
    """The embedded server."""

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that cannot work together."""
        super().__post_init__()
        different = 2 if self.hint == "retry" else 1
        if self.temperature == 0 and self.samples > different:
            got = f"{self.samples}, but temperature 0 with hint {self.hint!r} repeats the same answer"
            raise ConfigError("samples", got, f"{different}, or a temperature above 0", f"samples: {different}")
        if self.vote and self.samples < 3:
            raise ConfigError("vote", f"{self.samples} samples", "three or more to choose from", "samples: 5")
        if self.budget.money and not (self.prices.input or self.prices.output):
            raise ConfigError(
                "budget.money",
                "no prices",
                "prices.input and prices.output",
                "prices: {input: 0.15, output: 0.6}, per million tokens",
            )

    def room(self, task: Task) -> int:
        """Most tokens of a whole reply: answer and reasoning."""
        return length_of(task, self.max_tokens) + (self.reasoning.tokens if self.reasoning.wanted else 0)

    def sampling(self, task: Task) -> dict[str, Any]:
        """Sampling settings of a request, without its seed."""
        body: dict[str, Any] = {"max_tokens": self.room(task), "temperature": self.temperature, "top_p": self.top_p}
        stop = stops_of(task, self.stop)
        if stop and not self.reasoning.wanted:
            body["stop"] = list(stop)
        return body
