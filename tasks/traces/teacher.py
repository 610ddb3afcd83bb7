"""A teacher that answers prompts: sample, judge and store until an answer is accepted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.shared.engines.openai_endpoint import Endpoint
from tasks.shared.engines.sample_store import Sample, SampleStore, request_digest
from tasks.shared.formats.rows import Row
from tasks.traces.filter import ACCEPTED, Evidence, Limits, close_sentence, judge
from tasks.traces.reasoning import Reasoning, judge_reasoning, split_reply


@dataclass(frozen=True)
class Job:
    """One prompt for the teacher.

    chats: one for each sample, in order.  hinted: by chat, True if it states the fact.
    evidence: the texts that the answers are checked against.
    """

    row: Row
    chats: Sequence[Sequence[Mapping[str, str]]]
    hinted: Sequence[bool]
    evidence: Evidence


@dataclass(frozen=True)
class Teacher:
    """A teacher behind an endpoint, with the filter for its answers.

    model: name of the model in digests.  sampling: the request's settings for a row and a sample number.
    stop: strings that end an answer.
    """

    endpoint: Endpoint
    store: SampleStore
    model: str
    sampling: Callable[[Row, int], Mapping[str, Any]]
    limits: Limits
    reasoning: Reasoning
    stop: Sequence[str]

    async def answer(self, job: Job) -> list[Sample]:
        """Return the judged samples of one prompt, the accepted one last.

        Stored samples are not requested again.
        """
        tried: list[Sample] = []
        for number in range(len(job.chats)):
            sample = await self._sample(job, number)
            rejection = self._judge(sample, job.evidence)
            tried.append(sample.model_copy(update={"rejection": rejection, "hinted": job.hinted[number]}))
            if tried[-1].rejection == ACCEPTED:
                break
        return tried

    def _judge(self, sample: Sample, evidence: Evidence) -> str:
        reply = split_reply(sample, self.reasoning.wanted, self.stop)
        rejection = judge(close_sentence(reply.text), reply.finish_reason, evidence, self.limits)
        if rejection != ACCEPTED or not self.reasoning.wanted:
            return rejection
        return judge_reasoning(reply.reasoning, evidence, self.reasoning.max_words)

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
