"""Answers of a teacher behind an OpenAI-compatible endpoint, by the rows' answer keys."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, SecretStr
from pydantic.dataclasses import dataclass

from tasks.shared.engines.embedded_server import serve_embedded
from tasks.shared.engines.endpoint_settings import check_url, read_key
from tasks.shared.engines.openai_endpoint import connect, for_each
from tasks.shared.engines.registry import Needs
from tasks.shared.engines.sample_store import Sample, SampleStore, answer_file
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.forecast import REQUEST_S, Forecast, Workload, forecast_light
from tasks.shared.formats.articles import read_articles
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.progress import progress_bar
from tasks.shared.technique import WEIGHTS, Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream
from tasks.traces.account import effort
from tasks.traces.budget import CapReached, Purse
from tasks.traces.jobs import make_jobs
from tasks.traces.outcome import Outcome
from tasks.traces.settings import TeacherSettings
from tasks.traces.teacher import Job, Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class OpenAI(TeacherSettings):
    """Training answers from a teacher: of each prompt the first accepted sample.

    With `vote`, the accepted sample that says what most of them say.

    Samples of a prompt are requested one after another until one is accepted, so that each retry finds its prompt in the
    endpoint's cache.  Taking the first accepted answer, and not for example the shortest, keeps the teacher's variety.
    With `reasoning`, answers come with the teacher's reasoning, which is filtered too; an answer without reasoning is dropped.
    Prompts and answers are verbatim; only where the task's layout has a label line is it added, from the answer key.
    Each request has its own seed, from the recipe's seed, the prompt and the sample number; llama.cpp with continuous batching
    is still not reproducible bit by bit, because sums depend on the other requests of a batch.
    """

    spec: ClassVar[Spec] = Spec(
        summary="Answers of a teacher behind an OpenAI-compatible endpoint or in llama.cpp; keeps those that its answer key, form or a judge accepts",
        ports={"teacher": Port(WEIGHTS, optional=True), "prompts": Port((Kind.CORPUS,))},
        produces=Kind.TRACES,
        libraries=("xllamacpp", "httpx", "tenacity"),
        unkeyed=frozenset({"api_key_env", "concurrency", "timeout_s", "max_attempts", "embedded.port"}),
        retries=2,
    )
    """The unkeyed settings say how the answers are fetched.

    concurrency is among them although continuous batching makes llama.cpp's last bits depend on what shares a batch: which
    requests do is a matter of timing, so a repeat at the same value differs just as much (of 12 answers of a tiny model,
    3 between two runs at 4; 3 or 4 between runs at 4 and at 8), and a key with it would promise what it cannot hold.
    Seeds belong to prompt and sample, so it changes no distribution.  And who lowers it because the endpoint answered 429
    must not pay for every answer again.
    """

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error if there is no teacher."""
        if not self.base_url and not inputs.get("teacher"):
            yield no_teacher(where)

    def engine_needs(self) -> Needs:
        """llama.cpp for a teacher on this machine; nothing of one behind an endpoint."""
        return Needs(engines=("llama.cpp",), ports=() if self.base_url else ("teacher",))

    def forecast(self, work: Workload) -> Forecast:
        """Seconds per request; the embedded server holds the teacher as it is on disk."""
        asked = min(self.max_prompts or work.rows.train, work.rows.train) * self.samples
        held = 0.0 if self.base_url else work.size("teacher").bytes
        return forecast_light(10 + asked * REQUEST_S, held=held)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write train.jsonl, samples.jsonl, usage.json and card.json to `out`.

        Each answer is kept as it arrives, by the content of its request: a later run asks only what no run has asked.
        Raises EndpointError, ConfigError, DataError, ModelError or MachineError.
        """
        corpus = inputs.one("prompts").path
        rows = read_rows(corpus / "train.jsonl")
        tasks = read_tasks(corpus, {row.task for row in rows})
        file = corpus / "articles.jsonl"
        articles = read_articles(file) if self.article_in_prompt and file.is_file() else None
        key = read_key(self.api_key_env)
        jobs = make_jobs(self, rows, tasks, articles, run.seed)
        self._say_what_is_asked(run.step, rows, jobs)
        judged: dict[str, list[Sample]] = {}
        purse = Purse(self.budget, self.prices)
        started = time.monotonic()
        with self._endpoint(inputs, run) as (url, identity), SampleStore(answer_file(run, identity)) as store:
            judgments, capped = asyncio.run(self._ask(jobs, judged, store, purse, url, identity, key, run.seed))
        outcome = Outcome(self, rows, {job.row.id: job for job in jobs}, judged, judgments, capped)
        outcome.check(run.step, purse)
        figures = outcome.write(out)
        return {**figures, **effort([*outcome.samples, *judgments], store.added, time.monotonic() - started)}

    def _say_what_is_asked(self, step: str, rows: Sequence[Row], jobs: Sequence[Job]) -> None:
        """Warn if no prompt is sent; raise DataError if that is not what the settings say."""
        if jobs:
            log.info("%d of %d rows are sent to the teacher", len(jobs), len(rows))
        elif self.gold_ratio < 1:
            got = f"none of {len(rows)} rows can be asked with gold_ratio {self.gold_ratio:g}"
            raise DataError(
                step, got, "a row that ends with a user turn before its answer", "check the corpus, or lower gold_ratio"
            )
        else:
            log.warning("%s: gold_ratio is 1, so the teacher is never asked: the traces are the gold answers", step)

    async def _ask(
        self,
        jobs: Sequence[Job],
        judged: dict[str, list[Sample]],
        store: SampleStore,
        purse: Purse,
        url: str,
        identity: str,
        key: SecretStr | None,
        seed: int,
    ) -> tuple[list[Sample], CapReached | None]:
        """Fill `judged` with the judged samples of each job, by row id.

        Returns the judge's replies, and the error that ended the requests at the cap, if any.
        """
        async with connect(url, self.model, key, **self.request_limits) as endpoint:
            teacher = Teacher(
                endpoint, store, purse, identity, seed if self.send_seed else None, self.extra_body, self.reasoning, self.accept, self.vote
            )  # fmt: skip
            with progress_bar("asking the teacher", len(jobs)) as advance:

                async def answer(job: Job) -> None:
                    await teacher.answer(job, judged.setdefault(job.row.id, []))
                    advance()

                try:
                    await for_each(jobs, answer, self.concurrency)
                except CapReached as capped:
                    return teacher.judgments, capped
        return teacher.judgments, None

    @contextmanager
    def _endpoint(self, inputs: Inputs, run: StepRun) -> Iterator[tuple[str, str]]:
        """Base URL, and the identity of the model in digests."""
        if self.base_url:
            yield self.base_url, f"{check_url(self.base_url)} {self.model}"
            return
        teacher = inputs.get("teacher")
        if teacher is None:
            raise no_teacher(f"steps.{run.step}")
        with serve_embedded(
            teacher.path, self.embedded, threads=run.compute.threads, parallel=self.concurrency, digest=teacher.digest
        ) as found:
            yield found


def no_teacher(where: str) -> ConfigError:
    """Return the error for a missing teacher.  where: place of the step in the recipe."""
    got, fix = "missing, and base_url is empty", "set inputs.teacher, or base_url and model"
    return ConfigError(f"{where}.inputs.teacher", got, "a GGUF to run here, or an endpoint", fix)
