"""Answers of a teacher behind an OpenAI-compatible endpoint, filtered by the article."""

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

from tasks.shared.engines.endpoint_settings import EndpointSettings, read_key
from tasks.shared.engines.engine import find_weights
from tasks.shared.engines.llama_server import serve
from tasks.shared.engines.openai_endpoint import connect, for_each
from tasks.shared.engines.sample_store import Sample, SampleStore
from tasks.shared.errors import ConfigError, DataError, ModelError
from tasks.shared.forecast import REQUEST_S, Forecast, Workload, forecast_light
from tasks.shared.formats.articles import Article, read_articles
from tasks.shared.formats.rows import Message, Row, read_rows, write_rows
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun
from tasks.shared.text.answer_format import join_answer
from tasks.traces.account import card, effort, usage
from tasks.traces.filter import ACCEPTED, Evidence, Limits, close_sentence
from tasks.traces.prompt import choose_examples, choose_refusals, narrow_sources, rank, sources, teacher_messages
from tasks.traces.reasoning import Reasoning, split_reply
from tasks.traces.teacher import Job, Teacher

STRICT = ConfigDict(extra="forbid")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prices:
    """Prices of the endpoint, all in the same currency."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million answer tokens."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Embedded:
    """Settings of llama.cpp's server, used when `base_url` is empty.

    It decodes `concurrency` answers at once.
    """

    context: Annotated[int, Field(ge=256)] = 1536
    """Context length: most tokens of one prompt and its answer."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Loopback port; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class OpenAI(EndpointSettings):
    """Training answers from a teacher: the first sample of each prompt that passes the filter.

    Samples of a prompt are requested one after another until one is accepted, so that each retry finds its prompt in the
    endpoint's cache.  Taking the first accepted answer, and not for example the shortest, keeps the teacher's variety.
    With `reasoning`, answers come with the teacher's reasoning, which is filtered too; an answer without reasoning is dropped.
    The teacher writes the answer's text only; the intent is from the corpus.  Rows without a fact to check (an empty `accept`
    and no refusal) keep their gold answer.  Each sample has its own seed, from the recipe's seed, row and sample number;
    llama.cpp with continuous batching is still not reproducible bit by bit, because sums depend on the other requests of a batch.
    """

    base_url: str = ""
    """Endpoint up to and including /v1; empty to run the teacher's GGUF in llama.cpp on this machine."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight; the embedded server gets as many slots, so that a next sample finds its prompt cached."""
    samples: Annotated[int, Field(ge=1)] = 2
    """Most answers to request for a prompt until one is accepted."""
    temperature: Annotated[float, Field(ge=0)] = 0.3
    """Sampling temperature; 0 with several samples is refused, as it would repeat the same answer."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Probability mass of nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1)] = 60
    """Most tokens of one answer; an answer that reaches this limit is dropped."""
    stop: tuple[str, ...] = ("\n", ". ")
    """Strings that end an answer (most endpoints allow four).  The default keeps one sentence, because weak teachers ramble.
    They do not end the reasoning before an answer."""
    send_seed: bool = True
    """Send `seed` with a request; false for endpoints that reject it."""
    article_in_prompt: bool = True
    """Put the article into the prompt."""
    examples: Annotated[int, Field(ge=0)] = 2
    """Worked examples in the prompt."""
    hint: Literal["never", "retry", "always"] = "retry"
    """When to state the fact in the prompt, so that the teacher only words it: weak teachers rarely find it themselves."""
    gold_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Fraction of the training prompts that keep the gold answer of the corpus, chosen by seed."""
    when_rejected: Literal["gold", "drop"] = "gold"
    """gold: a prompt without an accepted answer keeps its gold answer.  drop: its row is left out."""
    max_prompts: Annotated[int, Field(ge=0)] = 0
    """Most prompts to send to the teacher, chosen by seed; the rest keep their gold answer.  0 sends all."""
    reasoning: Reasoning = field(default_factory=Reasoning)
    """The teacher's reasoning, stored in the rows next to the answers."""
    limits: Limits = field(default_factory=Limits)
    """Limits of the filter."""
    prices: Prices = field(default_factory=Prices)
    """Prices, for the cost in usage.json."""
    embedded: Embedded = field(default_factory=Embedded)
    """The embedded server."""

    spec: ClassVar[Spec] = Spec(
        summary="Answers of a teacher behind an OpenAI-compatible endpoint or in llama.cpp; keeps those that agree with the article",
        ports={"teacher": Port((Kind.MODEL,), optional=True), "prompts": Port((Kind.CORPUS,))},
        produces=Kind.TRACES,
        libraries=("xllamacpp", "httpx", "tenacity"),
        unkeyed=frozenset({"api_key_env", "concurrency", "timeout_s", "max_attempts", "embedded.port"}),
        retries=2,
    )
    """The unkeyed settings say how the answers are fetched.

    concurrency is among them although continuous batching makes llama.cpp's last bits depend on what shares a batch: which
    requests do is a matter of timing, so a repeat at the same value differs just as much (of 12 answers of a tiny model,
    3 between two runs at 4; 3 or 4 between runs at 4 and at 8), and a key with it would promise what it cannot hold.
    Seeds belong to row and sample, so it changes no distribution.  And who lowers it because the endpoint answered 429
    must not pay for every answer again.
    """

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that cannot work together."""
        super().__post_init__()
        different = 2 if self.hint == "retry" else 1
        if self.temperature == 0 and self.samples > different:
            got = f"{self.samples}, but temperature 0 with hint {self.hint!r} repeats the same answer"
            raise ConfigError("samples", got, f"{different}, or a temperature above 0", f"samples: {different}")

    def forecast(self, work: Workload) -> Forecast:
        """Seconds per request; the embedded server holds the teacher as it is on disk."""
        asked = min(self.max_prompts or work.rows.train, work.rows.train) * self.samples
        held = 0.0 if self.base_url else work.size("teacher").bytes
        return forecast_light(10 + asked * REQUEST_S, held=held)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write train.jsonl, samples.jsonl, usage.json and card.json to `out`.

        Each answer is stored in `run.scratch` as it arrives, so a run after a kill or a failure requests only the missing ones.
        Raises EndpointError, ConfigError, DataError, ModelError or MachineError.
        """
        corpus = inputs.one("prompts").path
        rows = read_rows(corpus / "train.jsonl")
        articles = read_articles(corpus / "articles.jsonl") if self.article_in_prompt else None
        key = read_key(self.api_key_env)
        jobs = self._jobs(rows, articles, run.seed)
        judged: dict[str, list[Sample]] = {}
        started = time.monotonic()
        with SampleStore(run.scratch / "samples.jsonl") as store, self._endpoint(inputs, run) as (url, model):
            asyncio.run(self._ask(jobs, judged, store=store, url=url, model=model, key=key, seed=run.seed))
        return self._write(out, rows, judged, time.monotonic() - started, store.added)

    async def _ask(
        self,
        jobs: Sequence[Job],
        judged: dict[str, list[Sample]],
        *,
        store: SampleStore,
        url: str,
        model: str,
        key: SecretStr | None,
        seed: int,
    ) -> None:
        """Fill `judged` with the judged samples of each job, by row id."""
        async with connect(url, self.model, key, **self.request_limits) as endpoint:
            teacher = Teacher(
                endpoint, store, model, lambda row, number: self.sampling(row, number, seed), self.limits, self.reasoning, self.stop
            )  # fmt: skip
            with progress_bar("asking the teacher", len(jobs)) as advance:

                async def answer(job: Job) -> None:
                    judged[job.row.id] = await teacher.answer(job)
                    advance()

                await for_each(jobs, answer, self.concurrency)

    def _jobs(self, rows: Sequence[Row], articles: Mapping[str, Article] | None, seed: int) -> list[Job]:
        """Prompts for the teacher, sorted by intent, refusals last.

        Neighboring prompts share examples or articles, which the endpoint then finds cached.
        """
        answered = choose_examples(
            [
                row
                for row in rows
                if row.evidence and row.tags.get("grounded") != "yes" and row.tags.get("kind") == "faq"
            ],
            self.examples,
            seed,
        )
        refused = [row for row in rows if row.declines]
        jobs = []
        for row in sorted(self._choose(rows, seed), key=lambda row: (row.declines, row.label)):
            shown = choose_refusals(row, refused, self.examples, seed) if row.declines else answered
            hinted = [self._hinted(row, number) for number in range(self.samples)]
            reason = self.reasoning.ask == "request"
            chats = [teacher_messages(row, shown, self.examples, articles, hint, reason) for hint in hinted]
            # A refusal may state any gold reason of the same policy.
            alike = [other.answer for other in shown if row.declines]
            narrow, wide = ("\n".join([text, *alike]) for text in (narrow_sources(row), sources(row, articles)))
            evidence = Evidence(accept=row.facts, narrow=narrow, wide=wide, refusal=row.declines)
            jobs.append(Job(row, chats, hinted, evidence))
        return jobs

    def _choose(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Rows to send to the teacher, in the order of the corpus."""
        ranked = sorted(rows, key=lambda row: rank(seed, row.id))[round(self.gold_ratio * len(rows)) :]
        checkable = [row for row in ranked if row.facts or row.declines]
        chosen = {row.id for row in (checkable[: self.max_prompts] if self.max_prompts else checkable)}
        return [row for row in rows if row.id in chosen]

    def _hinted(self, row: Row, number: int) -> bool:
        return not row.declines and (self.hint == "always" or (self.hint == "retry" and number > 0))

    @contextmanager
    def _endpoint(self, inputs: Inputs, run: StepRun) -> Iterator[tuple[str, str]]:
        """Base URL, and the name of the model in digests."""
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
        """Sampling settings of a request, without model and messages."""
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
        judged: Mapping[str, Sequence[Sample]],
        seconds: float,
        fresh: Sequence[Sample],
    ) -> Metrics:
        traced = [self._trace(row, judged.get(row.id)) for row in rows]
        kept = [row for row in traced if row is not None]
        if not kept:
            got = "no answer was accepted, so `when_rejected: drop` leaves no row"
            raise DataError(str(out), got, "at least one row", "when_rejected: gold")
        write_rows(out / "train.jsonl", kept)
        samples = [sample for row in rows for sample in judged.get(row.id, ())]
        (out / "samples.jsonl").write_text("".join(sample.line() for sample in samples), encoding="utf-8")
        used = usage(samples, self.prices.input, self.prices.output)
        counts = card(rows, kept, judged)
        for name, content in (("usage.json", used), ("card.json", counts)):
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        log.info(
            "%d of %d prompts answered by the teacher; dropped: %s",
            counts["teacher"],
            counts["prompts_asked"],
            counts["samples_dropped"],
        )
        figures = {name: counts[name] for name in ("rows", "teacher", "gold", "prompts_asked")}
        figures |= {name: used[name] for name in ("requests", "prompt_tokens", "completion_tokens", "cost")}
        return {**figures, **effort(samples, fresh, seconds), "acceptance": counts["acceptance"]["all"]}

    def _trace(self, row: Row, samples: Sequence[Sample] | None) -> Row | None:
        if samples is None:
            return row
        accepted = next((sample for sample in samples if sample.rejection == ACCEPTED), None)
        if accepted is None:
            return row if self.when_rejected == "gold" else None
        reply = split_reply(accepted, self.reasoning.wanted, self.stop)
        answer = Message(
            role="assistant",
            content=join_answer(row.label, close_sentence(reply.text)),
            reasoning=reply.reasoning or row.reasoning,
        )
        return row.with_answer(answer, origin="teacher")


def _gguf(path: Path) -> Path:
    """Return the GGUF file for the embedded server: `path` itself, or the only one in it."""
    found = find_weights(path, llama=True)
    if found.fault:
        fix = "give a GGUF as the teacher, or serve this model elsewhere and set base_url"
        raise ModelError(str(path), f"{found.fault} for the embedded server", "one .gguf file", fix)
    return found.path
