"""One teacher answering prompts: sample, judge, store, until an answer is accepted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.shared.engines.endpoint import Endpoint
from tasks.shared.engines.samples import Sample, SampleStore, request_digest
from tasks.shared.formats.rows import Row
from tasks.traces.filter import ACCEPTED, Evidence, Limits, close_sentence, judge
from tasks.traces.reasoning import Reasoning, judge_reasoning, take_apart


@dataclass(frozen=True)
class Job:
    """One prompt for the teacher.  chats: one for each sample, in order.  hinted: which of them tell the fact.  evidence: what the answers are held against."""

    row: Row
    chats: Sequence[Sequence[Mapping[str, str]]]
    hinted: Sequence[bool]
    evidence: Evidence


@dataclass(frozen=True)
class Teacher:
    """model: what stands for it in digests.  sampling: the request's settings for a row and a sample number."""

    endpoint: Endpoint
    store: SampleStore
    model: str
    sampling: Callable[[Row, int], Mapping[str, Any]]
    limits: Limits
    reasoning: Reasoning
    stop: Sequence[str]

    async def answer(self, job: Job) -> list[Sample]:
        """The samples of one prompt, judged, the accepted one last; stored ones are not asked for again."""
        tried: list[Sample] = []
        for number in range(len(job.chats)):
            sample = await self._sample(job, number)
            rejection = self._judge(sample, job.evidence)
            tried.append(sample.model_copy(update={"rejection": rejection, "hinted": job.hinted[number]}))
            if tried[-1].rejection == ACCEPTED:
                break
        return tried

    def _judge(self, sample: Sample, evidence: Evidence) -> str:
        said = take_apart(sample, self.reasoning.wanted, self.stop)
        rejection = judge(close_sentence(said.text), said.finish_reason, evidence, self.limits)
        if rejection != ACCEPTED or not self.reasoning.wanted:
            return rejection
        return judge_reasoning(said.reasoning, evidence, self.reasoning.max_words)

    async def _sample(self, job: Job, number: int) -> Sample:
        sampling = self.sampling(job.row, number)
        digest = request_digest(self.model, job.chats[number], sampling)
        stored = self.store.find(job.row.id, number, digest)
        if stored is not None:
            return stored
        completion = await self.endpoint.chat(job.chats[number], sampling)
        sample = Sample(row=job.row.id, sample=number, digest=digest, **asdict(completion))
        self.store.add(sample)
        return sample
