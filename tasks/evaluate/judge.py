"""LLM judge: pairwise preference over the baseline's answers, by a model at a URL or here."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, SecretStr
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.judgments import JUDGED, MEASURE, REFUSED, Judgments, figures_of, flat_metrics, make_items
from tasks.evaluate.grading.measures import FULL_TEXTS
from tasks.evaluate.grading.preference import (
    Judgment,
    Pair,
    read_opinion,
    request_of,
)
from tasks.evaluate.models_under_test.machine import describe_machine
from tasks.shared.engines.embedded_server import Embedded, serve_embedded
from tasks.shared.engines.endpoint_settings import EndpointSettings, read_key
from tasks.shared.engines.openai_endpoint import Endpoint, connect, for_each
from tasks.shared.engines.registry import Needs
from tasks.shared.engines.sample_store import Sample, SampleStore, request_digest
from tasks.shared.errors import ConfigError, DataError, EndpointError, RefusedError
from tasks.shared.forecast import REQUEST_S, Forecast, Workload, forecast_light
from tasks.shared.formats.rows import read_rows, spread
from tasks.shared.formats.scores import (
    EvaluationSummary,
    ItemScore,
    ModelSummary,
    Scores,
    current_name,
    read_scores,
    write_scores,
)
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.items import Items, ItemSources
from tasks.shared.progress import progress_bar
from tasks.shared.technique import WEIGHTS, Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

ORDERS = (False, True)
SELF_CONTRADICTION, FEWEST = 0.1, 16
"""Share of agreeing orders below which a judge is refused, and the pairs from which that is judged; random verdicts agree in a third."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class Judge(EndpointSettings):
    """Pairwise preference of an LLM judge (Zheng et al. 2023, arXiv 2306.05685, section 3).

    The judge is a model behind an endpoint, or the GGUF at the port `judge`, which llama.cpp runs on this machine.
    Every candidate's and repeat's answer is compared with the baseline's twice, in both orders, next to the gold answer if there is one.  It wins (1) or
    loses (0) only if both orders agree; anything else is a tie (0.5), which is also the baseline's value.  Equal answers tie without a
    request.  The notes report how often the orders agree, and how often the first answer wins: a judge that rarely agrees with itself
    cannot tell the answers apart.  References are left out.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature."""
    max_tokens: Annotated[int, Field(ge=1)] = 200
    """Length limit of one reply, tokens; a reply truncated before its verdict is unreadable, and the pair ties."""
    measure: str = ""
    """Measure of the earlier step whose items hold the answers to compare, as full texts; empty takes every item with a full text once."""
    limit: Annotated[int, Field(ge=0)] = 200
    """Items to judge, spread evenly; 0 takes all.  Each takes two requests per model."""
    instructions: str = ""
    """The judge's system prompt, which must ask for a last line "Verdict: A", "Verdict: B" or "Verdict: tie".  Empty takes a general one
    with the criteria of the row's task (`judge` in tasks.json)."""
    embedded: Embedded = field(default_factory=Embedded)
    """The embedded server."""

    spec: ClassVar[Spec] = Spec(
        summary="A judge model compares answers with the baseline's, in both orders",
        ports={
            "answers": Port((Kind.SCORES,)),
            "judge": Port(WEIGHTS, optional=True),
            "data": Port((Kind.CORPUS,), optional=True, wire="inputs"),
        },
        produces=Kind.SCORES,
        libraries=("xllamacpp", "httpx", "tenacity"),
        unkeyed=frozenset({"api_key_env", "concurrency", "timeout_s", "max_attempts", "embedded.port"}),
        retries=2,
        paper="Zheng et al. 2023, arXiv 2306.05685",
    )

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error if there is no judge."""
        if not self.base_url and not inputs.get("judge"):
            yield no_judge(f"{where}.base_url")

    def engine_needs(self) -> Needs:
        """llama.cpp for a judge on this machine; nothing of one behind an endpoint."""
        return Needs(engines=("llama.cpp",), ports=() if self.base_url else ("judge",))

    def forecast(self, work: Workload) -> Forecast:
        """Two requests per item, several in flight; an embedded judge is held as it is on disk."""
        held = 0.0 if self.base_url else work.size("judge").bytes
        return forecast_light(10 + 2 * work.test_rows(self.limit) * REQUEST_S, held=held)

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return the items: those of the measure whose answers are judged, up to the limit."""
        names = [current_name(self.measure)] if self.measure else FULL_TEXTS
        own = [sources.items[name] for name in names if name in sources.items]
        most = max((items.count for items in own), default=sources.rows)
        exact = bool(own) and all(items.exact for items in own) and len(own) == 1
        return {JUDGED: Items(min(self.limit or most, most), binary=False, exact=exact)}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Judge all pairs; write scores.json and items.jsonl.

        Opinions are stored in `run.scratch` as they arrive: after a kill, only the missing ones are requested.
        Raises DataError if the earlier step has no such answers; EndpointError if the judge is down (`retryable`), refuses every pair or
        never gives a verdict.  A pair that it refuses ties.
        """
        answers = read_scores(inputs.one("answers").path)
        baseline = baseline_of(answers.summary)
        items = spread(self._items(answers, baseline), self.limit)
        rivals = [
            name
            for name, model in answers.summary.models.items()
            if model.role in ("candidate", "repeat") and not model.failure
        ]
        requests, criteria = asked_of(inputs)
        pairs = [
            Pair(item, baseline, name, requests.get(item.id, item.question), criteria.get(item.id, ""))
            for name in rivals
            for item in items
            if name in item.answers
        ]
        key = read_key(self.api_key_env)
        with SampleStore(run.scratch / "opinions.jsonl") as store, self._endpoint(inputs, run) as (url, judge):
            different = {pair.key: pair for pair in pairs if pair.differs}
            samples = asyncio.run(self._request(list(different.values()), store, url, judge, key))
        found: dict[str, dict[str, Judgment]] = {name: {} for name in rivals}
        for pair in pairs:
            found[pair.rival][pair.item.id] = self._judgment(samples.get(pair.key, ()))
        replies = [sample for both in samples.values() for sample in both]
        self._check(found, replies)
        write_scores(out, self._summary(answers.summary, found, run), list(make_items(items, baseline, found)))
        return flat_metrics(items, found, replies)

    def _items(self, answers: Scores, baseline: str) -> list[ItemScore]:
        names = (
            [current_name(self.measure)]
            if self.measure
            else [name for name in FULL_TEXTS if name in answers.summary.measures]
        )
        known = [item for name in names for item in answers.items if item.measure == name and baseline in item.answers]
        items = list({item.id: item for item in reversed(known)}.values())[::-1]  # of several, the first measure's
        if not items:
            has = sorted({item.measure for item in answers.items if item.answers})
            got = f"step {answers.summary.step} has no answers under {self.measure or 'a measure of full texts'!r}"
            raise DataError(
                "measure", got, f"one of {', '.join(has)}" if has else "a step that stores answers", "correct `measure`"
            )
        return items

    @contextmanager
    def _endpoint(self, inputs: Inputs, run: StepRun) -> Iterator[tuple[str, str]]:
        """Yield the judge's base URL, and its name in digests of requests."""
        if self.base_url:
            yield self.base_url, f"{self.base_url} {self.model}"
            return
        judge = inputs.get("judge")
        if judge is None:
            raise no_judge("base_url")
        with serve_embedded(
            judge.path, self.embedded, threads=run.compute.threads, parallel=self.concurrency, digest=judge.digest
        ) as found:
            yield found

    async def _request(
        self, pairs: Sequence[Pair], store: SampleStore, url: str, judge: str, key: SecretStr | None
    ) -> dict[tuple[str, str], tuple[Sample, ...]]:
        """Return the judge's replies to each pair, in both orders, by the pair's key."""
        found: dict[tuple[str, str], tuple[Sample, ...]] = {}
        async with connect(url, self.model, key, **self.request_limits) as endpoint:
            with progress_bar("judging", len(pairs)) as advance:

                async def compare(pair: Pair) -> None:
                    replies = [await self._reply(pair, swapped, endpoint, store, judge) for swapped in ORDERS]
                    found[pair.key] = tuple(replies)
                    advance()

                await for_each(pairs, compare, self.concurrency)
        return found

    async def _reply(self, pair: Pair, swapped: bool, endpoint: Endpoint, store: SampleStore, judge: str) -> Sample:
        messages = pair.messages(self.instructions, swapped)
        sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra_body}
        digest = request_digest(judge, messages, sampling)
        if (stored := store.find(pair.item.id, int(swapped), digest)) is not None:
            return stored
        try:
            completion = await endpoint.chat(messages, sampling)
        except RefusedError as error:
            rejection = " ".join(str(error).split())
            log.warning("item %s cannot be judged: %s", pair.item.id, rejection)
            return Sample(
                row=pair.item.id,
                sample=int(swapped),
                digest=digest,
                text="",
                finish_reason=REFUSED,
                rejection=rejection,
            )
        sample = Sample(row=pair.item.id, sample=int(swapped), digest=digest, **asdict(completion))
        store.add(sample)
        return sample

    def _judgment(self, samples: Sequence[Sample]) -> Judgment:
        return Judgment(tuple(read_opinion(sample.text, bool(sample.sample)) for sample in samples))

    def _check(self, found: Judgments, samples: Sequence[Sample]) -> None:
        if samples and all(sample.finish_reason == REFUSED for sample in samples):
            raise EndpointError(
                self.model or "judge", f"it refused all of {len(samples)} requests; the last reason: {samples[-1].rejection}",
                "an endpoint that judges", "check the settings of the step against what the endpoint accepts",
            )  # fmt: skip
        opinions = [
            opinion for judged in found.values() for judgment in judged.values() for opinion in judgment.opinions
        ]
        if opinions and set(opinions) == {"unreadable"}:
            raise EndpointError(
                self.model or "judge", f"none of {len(opinions)} replies ends with a verdict", 'a last line "Verdict: A", "Verdict: B" or "Verdict: tie"',
                "use a model that follows instructions, raise max_tokens, fix `instructions`, or hold the replies to this form, as llama.cpp "
                "does with extra_body.grammar",
            )  # fmt: skip
        agree, pairs = agreed(found)
        if pairs >= FEWEST and agree < SELF_CONTRADICTION * pairs:
            raise EndpointError(
                self.model or "judge", f"the two orders of the answers agree in {agree} of {pairs} pairs",
                f"{SELF_CONTRADICTION:.0%} or more; a judge that contradicts itself ties everything, which hides every loss",
                "use a stronger judge, or leave this step out",
            )  # fmt: skip

    def _summary(self, summary: EvaluationSummary, found: Judgments, run: StepRun) -> EvaluationSummary:
        models = {
            name: ModelSummary(
                role=model.role, engine=model.engine, format=model.format, failure=model.failure, figures=figures_of(list(found.get(name, {}).values()))
            )
            for name, model in summary.models.items()
            if model.role != "reference"
        }  # fmt: skip
        judge = self.model or ("the endpoint's default model" if self.base_url else "run in llama.cpp on this machine")
        notes = [
            f"{JUDGED}: the judge is {judge}; a win or a loss needs both orders of the answers; equal answers tie without a request."
        ]
        unread = sum("unreadable" in judgment.opinions for judged in found.values() for judgment in judged.values())
        notes += (
            [f"{JUDGED}: {unread} pairs tie because the judge refused them or gave no readable verdict."]
            if unread
            else []
        )
        agree, pairs = agreed(found)
        if pairs and 2 * agree < pairs:
            notes.append(
                f"{JUDGED}: the two orders agree in {agree} of {pairs} pairs only; the others tie, which can hide a loss."
            )
        return EvaluationSummary(
            step=run.step, measures={JUDGED: MEASURE}, models=models, machine=describe_machine(),
            versions={name: version(name) for name in self.spec.libraries}, notes=notes,
        )  # fmt: skip


def agreed(found: Judgments) -> tuple[int, int]:
    """Return the number of pairs with one opinion in both orders, and of all readable pairs."""
    judged = [judgment for of_model in found.values() for judgment in of_model.values()]
    read = [pair.opinions for pair in judged if pair.opinions and "unreadable" not in pair.opinions]
    return sum(first == second for first, second in read), len(read)


def no_judge(where: str) -> ConfigError:
    """Return the error for a missing judge."""
    return ConfigError(
        where, "empty, and no model at the port `judge`", "the judge's endpoint, up to and including /v1, or a GGUF to run here",
        "set base_url or inputs.judge, or leave this step out",
    )  # fmt: skip


def asked_of(inputs: Inputs) -> tuple[dict[str, str], dict[str, str]]:
    """Return the requests of the corpus' rows and the criteria of their tasks, both by row id.

    Both are empty without a corpus.
    """
    corpus = inputs.get("data")
    if corpus is None:
        return {}, {}
    rows = read_rows(corpus.path / "test.jsonl")
    tasks = read_tasks(corpus.path, {row.task for row in rows})
    return {row.id: request_of(row) for row in rows}, {row.id: tasks[row.task].judge for row in rows}


def baseline_of(summary: EvaluationSummary) -> str:
    """Return the baseline's name.  Raises DataError unless the summary has exactly one."""
    found = [name for name, model in summary.models.items() if model.role == "baseline"]
    if len(found) != 1:
        raise DataError(
            f"step {summary.step}",
            f"{len(found)} baselines",
            "one",
            "use the scores of a step that evaluated all models",
        )
    return found[0]
