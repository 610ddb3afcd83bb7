"""Answers of a teacher behind an OpenAI-compatible endpoint, kept only where they agree with the article."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SecretStr
from pydantic.dataclasses import dataclass

from tasks.shared.engines.address import EndpointSettings, read_key
from tasks.shared.engines.endpoint import connect, for_each
from tasks.shared.engines.engine import find_weights
from tasks.shared.engines.llama_server import serve
from tasks.shared.engines.samples import Sample, SampleStore
from tasks.shared.errors import ConfigError, DataError, ModelError
from tasks.shared.formats.articles import Article, read_articles
from tasks.shared.formats.rows import Message, Row, read_rows, write_rows
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun
from tasks.shared.text.chat import join_answer
from tasks.traces.account import card, effort, usage
from tasks.traces.filter import ACCEPTED, Evidence, Limits, close_sentence
from tasks.traces.prompt import choose_examples, choose_refusals, narrow_sources, rank, sources, teacher_messages
from tasks.traces.reasoning import Reasoning, take_apart
from tasks.traces.teacher import Job, Teacher

STRICT = ConfigDict(extra="forbid")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prices:
    """What the endpoint charges, in any one currency."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million answer tokens."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Embedded:
    """llama.cpp's server, used when `base_url` is empty; it decodes `concurrency` answers together."""

    context: Annotated[int, Field(ge=256)] = 1536
    """Tokens of one prompt and its answer."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Loopback port; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class OpenAI(EndpointSettings):
    """Asks a teacher for every training answer, several times if need be, and keeps the first one that passes the filter.

    Samples of a prompt are asked one after another until one is accepted: an answer that passed needs no rival, and the
    next try finds its prompt in the endpoint's cache.  First accepted instead of, say, shortest keeps the teacher's variety.
    With `reasoning` it comes with the teacher's reasoning, which is filtered too; an answer without any is dropped.
    The teacher writes the answer's text only; the intent is the corpus'.  Rows with no fact to check by (nothing in
    `accept`, no refusal) keep their gold answer.  Every sample has a seed of its own from the recipe's seed, row and number;
    with continuous batching llama.cpp is still not reproducible bit by bit, because sums depend on what shares the batch.
    """

    base_url: str = ""
    """Endpoint up to and including /v1; empty to run the teacher's GGUF in llama.cpp on this machine."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight; the embedded server gets as many slots, so that a next sample finds its prompt cached."""
    samples: Annotated[int, Field(ge=1)] = 2
    """Answers to ask for, at most, until one is accepted."""
    temperature: Annotated[float, Field(ge=0)] = 0.3
    """Sampling temperature; with 0 more than one sample is pointless and refused."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus to sample from."""
    max_tokens: Annotated[int, Field(ge=1)] = 60
    """Most tokens of one answer; an answer cut off there is dropped."""
    stop: tuple[str, ...] = ("\n", ". ")
    """Strings that end an answer (at most four at most endpoints); the default keeps one sentence, since weak teachers ramble on.
    Reasoning before an answer is not ended by them."""
    send_seed: bool = True
    """Send `seed`; false for endpoints that refuse it."""
    article_in_prompt: bool = True
    """Put the article into the prompt."""
    examples: Annotated[int, Field(ge=0)] = 2
    """Worked examples in the prompt."""
    hint: Literal["never", "retry", "always"] = "retry"
    """When to tell the teacher the fact that its answer must state, so that it only words it: a weak teacher rarely finds it."""
    gold_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Fraction of the training prompts that keep the corpus' gold answer, chosen by seed."""
    when_rejected: Literal["gold", "drop"] = "gold"
    """What becomes of a prompt with no accepted answer."""
    max_prompts: Annotated[int, Field(ge=0)] = 0
    """Most prompts to send to the teacher, chosen by seed; the rest keep their gold answer.  0 sends all."""
    reasoning: Reasoning = field(default_factory=Reasoning)
    """The teacher's reasoning, kept in the rows beside the answers."""
    limits: Limits = field(default_factory=Limits)
    """What the filter accepts."""
    prices: Prices = field(default_factory=Prices)
    """Prices for the cost in usage.json."""
    embedded: Embedded = field(default_factory=Embedded)
    """The embedded server."""

    ports: ClassVar[Mapping[str, Port]] = {
        "teacher": Port((Kind.MODEL,), optional=True),
        "prompts": Port((Kind.CORPUS,)),
    }
    produces: ClassVar[Kind] = Kind.TRACES
    libraries: ClassVar[tuple[str, ...]] = ("xllamacpp", "httpx", "tenacity")
    unkeyed: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "concurrency", "timeout_s", "max_attempts", "embedded.port"}
    )
    """How the answers are fetched.

    concurrency is here although continuous batching makes llama.cpp's last bits depend on what shares a batch: which
    requests do is a matter of timing, so a repeat at the same value differs just as much (of 12 answers of a tiny model,
    3 between two runs at 4; 3 or 4 between runs at 4 and at 8), and a key with it would promise what it cannot hold.
    Seeds belong to row and sample, so it changes no distribution.  And who lowers it because the endpoint answered 429
    must not pay for every answer again.
    """
    retries: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that cannot work together."""
        super().__post_init__()
        different = 2 if self.hint == "retry" else 1
        if self.temperature == 0 and self.samples > different:
            got = f"{self.samples} with temperature 0 and hint {self.hint!r} gives the same answer again"
            raise ConfigError("samples", got, f"{different}, or a temperature above 0", f"samples: {different}")

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write train.jsonl, samples.jsonl, usage.json and card.json into `out`; what the answers took is in the metrics.

        Answers are kept in `run.scratch` as they come, so a killed run asks only for what is missing.
        Raises EndpointError, ConfigError, DataError, ModelError or MachineError; what was answered until then is kept.
        """
        corpus = inputs.one("prompts").path
        rows = read_rows(corpus / "train.jsonl")
        articles = read_articles(corpus / "articles.jsonl") if self.article_in_prompt else None
        key = read_key(self.api_key_env)
        jobs = self._jobs(rows, articles, run.seed)
        fates: dict[str, list[Sample]] = {}
        begun = time.monotonic()
        with SampleStore(run.scratch / "samples.jsonl") as store, self._endpoint(inputs, run) as (url, model):
            asyncio.run(self._ask(jobs, fates, store=store, url=url, model=model, key=key, seed=run.seed))
        return self._write(out, rows, fates, time.monotonic() - begun, store.added)

    async def _ask(
        self,
        jobs: Sequence[Job],
        fates: dict[str, list[Sample]],
        *,
        store: SampleStore,
        url: str,
        model: str,
        key: SecretStr | None,
        seed: int,
    ) -> None:
        """Fill `fates` with the judged samples of every job, by row id."""
        async with connect(url, self.model, key, **self.request_limits) as endpoint:
            teacher = Teacher(
                endpoint, store, model, lambda row, number: self.sampling(row, number, seed), self.limits, self.reasoning, self.stop
            )  # fmt: skip
            with progress_bar("asking the teacher", len(jobs)) as advance:

                async def answer(job: Job) -> None:
                    fates[job.row.id] = await teacher.answer(job)
                    advance()

                await for_each(jobs, answer, self.concurrency)

    def _jobs(self, rows: Sequence[Row], articles: Mapping[str, Article] | None, seed: int) -> list[Job]:
        """The prompts for the teacher, by intent and refusals last: neighbors share examples or articles, which the endpoint then finds cached."""
        answered = choose_examples(
            [row for row in rows if row.article and not row.grounded and row.kind == "faq"], self.examples, seed
        )
        refused = [row for row in rows if row.kind == "refuse"]
        jobs = []
        for row in sorted(self._choose(rows, seed), key=lambda row: (row.kind == "refuse", row.intent)):
            shown = choose_refusals(row, refused, self.examples, seed) if row.kind == "refuse" else answered
            hinted = [self._hinted(row, number) for number in range(self.samples)]
            reason = self.reasoning.ask == "request"
            chats = [teacher_messages(row, shown, self.examples, articles, hint, reason) for hint in hinted]
            alike = [
                other.answer for other in shown if row.kind == "refuse"
            ]  # any gold reason of the same policy will do
            narrow, wide = ("\n".join([text, *alike]) for text in (narrow_sources(row), sources(row, articles)))
            evidence = Evidence(accept=row.accept, narrow=narrow, wide=wide, refusal=row.kind == "refuse")
            jobs.append(Job(row, chats, hinted, evidence))
        return jobs

    def _choose(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """The rows to ask the teacher about, in the corpus' order."""
        ranked = sorted(rows, key=lambda row: rank(seed, row.id))[round(self.gold_ratio * len(rows)) :]
        checkable = [row for row in ranked if row.accept or row.kind == "refuse"]
        chosen = {row.id for row in (checkable[: self.max_prompts] if self.max_prompts else checkable)}
        return [row for row in rows if row.id in chosen]

    def _hinted(self, row: Row, number: int) -> bool:
        return row.kind != "refuse" and (self.hint == "always" or (self.hint == "retry" and number > 0))

    @contextmanager
    def _endpoint(self, inputs: Inputs, run: StepRun) -> Iterator[tuple[str, str]]:
        """Base URL, and what stands for the model in digests."""
        if self.base_url:
            yield self.base_url, self.model
            return
        teacher = inputs.get("teacher")
        if teacher is None:
            where, got = f"{run.step}.inputs.teacher", "missing, and base_url is empty"
            raise ConfigError(where, got, "a GGUF to run, or an endpoint", "set inputs.teacher or base_url")
        model = _gguf(teacher.path)
        settings = self.embedded
        with serve(
            model, threads=run.compute.threads, parallel=self.concurrency, context=settings.context, port=settings.port
        ) as url:
            yield url, f"{model.name}:{model.stat().st_size}"

    def sampling(self, row: Row, number: int, seed: int) -> dict[str, Any]:
        """Everything of a request but the model and the messages."""
        room = self.max_tokens + (self.reasoning.tokens if self.reasoning.wanted else 0)
        body: dict[str, Any] = {"max_tokens": room, "temperature": self.temperature, "top_p": self.top_p}
        if self.stop and not self.reasoning.wanted:
            body["stop"] = list(self.stop)
        if self.send_seed:
            body["seed"] = rank(seed, f"{row.id}#{number}") % 2**31
        return body

    def _write(
        self,
        out: Path,
        rows: Sequence[Row],
        fates: Mapping[str, Sequence[Sample]],
        seconds: float,
        fresh: Sequence[Sample],
    ) -> Metrics:
        traced = [self._trace(row, fates.get(row.id)) for row in rows]
        kept = [row for row in traced if row is not None]
        if not kept:
            got = "no answer was accepted, and `when_rejected: drop` leaves no row"
            raise DataError(str(out), got, "at least one", "when_rejected: gold")
        write_rows(out / "train.jsonl", kept)
        samples = [sample for row in rows for sample in fates.get(row.id, ())]
        (out / "samples.jsonl").write_text("".join(sample.line() for sample in samples), encoding="utf-8")
        used = usage(samples, self.prices.input, self.prices.output)
        told = card(rows, kept, fates)
        for name, content in (("usage.json", used), ("card.json", told)):
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        log.info(
            "%d of %d prompts answered by the teacher; dropped: %s",
            told["teacher"],
            told["prompts_asked"],
            told["samples_dropped"],
        )
        figures = {name: told[name] for name in ("rows", "teacher", "gold", "prompts_asked")}
        figures |= {name: used[name] for name in ("requests", "prompt_tokens", "completion_tokens", "cost")}
        return {**figures, **effort(samples, fresh, seconds), "acceptance": told["acceptance"]["all"]}

    def _trace(self, row: Row, samples: Sequence[Sample] | None) -> Row | None:
        if samples is None:
            return row
        accepted = next((sample for sample in samples if sample.rejection == ACCEPTED), None)
        if accepted is None:
            return row if self.when_rejected == "gold" else None
        said = take_apart(accepted, self.reasoning.wanted, self.stop)
        answer = Message(role="assistant", content=join_answer(row.intent, close_sentence(said.text)))
        messages, reasoning = (*row.messages[:-1], answer), said.reasoning or row.reasoning
        return row.model_copy(update={"source": "teacher", "messages": messages, "reasoning": reasoning})


def _gguf(path: Path) -> Path:
    """The GGUF file that the embedded server can run: `path` itself, or the only one in that folder."""
    found = find_weights(path, llama=True)
    if found.fault:
        fix = "give a GGUF as the teacher, or serve this model elsewhere and set base_url"
        raise ModelError(str(path), f"{found.fault} for the embedded server", "one .gguf file", fix)
    return found.path
