"""A teacher that answers prompts: sample, judge and store until an answer is accepted."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.shared.engines.openai_endpoint import Endpoint
from tasks.shared.engines.sample_store import Sample, SampleStore, request_digest
from tasks.shared.errors import RefusedError
from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Task
from tasks.traces.acceptance import Accept, accepted_by, judge_reply
from tasks.traces.budget import Purse
from tasks.traces.defaults import Rules
from tasks.traces.filter import ACCEPTED, Evidence
from tasks.traces.llm_judge import judge_messages, judge_sampling, read_decision
from tasks.traces.prompt import rank, tools_of
from tasks.traces.reasoning import Reasoning, judge_reasoning
from tasks.traces.reply import Reply, split_reply

REFUSED = "refused"
"""Rejection of a request that the endpoint refuses for good."""
PATIENCE = 8
"""Refused requests, with no answer among them, after which the endpoint is not asked any more."""


@dataclass(frozen=True)
class Job:
    """One prompt for the teacher.

    chats: one for each sample, in order.  hinted: by chat, True if it states the fact.
    evidence: the texts that the answers are checked against.  rules: limits of the filter.
    stop: strings that end an answer.  sampling: settings of a request, without the seed.
    """

    row: Row
    task: Task
    chats: Sequence[Sequence[Mapping[str, Any]]]
    hinted: Sequence[bool]
    evidence: Evidence
    rules: Rules
    stop: Sequence[str]
    sampling: Mapping[str, Any]


@dataclass
class Teacher:
    """A teacher behind an endpoint, with the filter for its answers.

    identity: the model in digests.  seed: of the run; None sends none.  extra: fields of each request.
    vote: take all samples of a prompt, not only those up to the first accepted one.
    judgments: the replies of the judge so far.
    """

    endpoint: Endpoint
    store: SampleStore
    purse: Purse
    identity: str
    seed: int | None
    extra: Mapping[str, Any]
    reasoning: Reasoning
    accept: Accept
    vote: bool = False
    judgments: list[Sample] = field(default_factory=list)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _paid: set[str] = field(default_factory=set)
    _refused: int = 0
    _answered: bool = False

    async def answer(self, job: Job, tried: list[Sample]) -> None:
        """Add the judged samples of one prompt to `tried`, up to the first accepted one.

        For a vote, all of them.

        Stored samples are not requested again.  Raises CapReached if the budget does not allow the next one.
        """
        for number in range(len(job.chats)):
            try:
                sample = await self._sample(job, number)
            except RefusedError as error:
                tried.append(self._refusal(error, job, number))
                return
            rejection, note = await self._judge(job, sample)
            update = {"rejection": rejection, "note": note, "hinted": job.hinted[number]}
            tried.append(sample.model_copy(update=update))
            if rejection == ACCEPTED and not self.vote:
                return

    def _refusal(self, error: RefusedError, job: Job, number: int) -> Sample:
        self._refused += 1
        if self._refused >= PATIENCE and not self._answered:
            raise error
        return Sample(
            row=job.row.id, sample=number, digest="", text="", finish_reason=REFUSED, rejection=REFUSED, note=error.got
        )

    async def _judge(self, job: Job, sample: Sample) -> tuple[str, str]:
        """Reason for rejecting a sample and its details."""
        reply = split_reply(sample, job.task, self.reasoning.wanted, job.stop)
        rejection = judge_reply(job.row, job.task, reply, job.evidence, job.rules, self.accept)
        if rejection == ACCEPTED and self.reasoning.wanted:
            rejection = judge_reasoning(reply.reasoning, job.evidence, job.rules, self.reasoning.max_words)
        if rejection != ACCEPTED or accepted_by(job.row, job.task, self.accept) != "judge":
            return rejection, ""
        return await self._ask_judge(job, reply)

    async def _ask_judge(self, job: Job, reply: Reply) -> tuple[str, str]:
        chat = judge_messages(job.row, job.task, reply)
        try:
            decision = await self._obtain(job.row, 0, chat, judge_sampling(self.extra), "")
        except RefusedError as error:
            return "judge: refused", error.got
        self.judgments.append(decision)
        good = read_decision(decision.text)
        return (ACCEPTED if good else "judge: no" if good is False else "judge: unreadable"), decision.text[:200]

    async def _sample(self, job: Job, number: int) -> Sample:
        chat, tools = job.chats[number], job.row.tools
        sampling = {**job.sampling, **self.extra}
        if self.seed is not None:
            content = request_digest("", chat, {}, tools)
            sampling["seed"] = rank(self.seed, f"{content}#{number}") % 2**31
        sample = await self._obtain(job.row, number, chat, sampling, tools)
        self._answered = True
        return sample

    async def _obtain(
        self, row: Row, number: int, chat: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], tools: str
    ) -> Sample:
        """Return the answer to a request: the stored one, or a new one that is then stored.

        Requests of the same content are sent once, also when several prompts make them at the same time.
        """
        digest = request_digest(self.identity, chat, sampling, tools, number)
        worst = self.purse.worst_case(chat, tools, int(sampling.get("max_tokens", 0)))
        async with self._locks.setdefault(digest, asyncio.Lock()):
            sample = self.store.find(row.id, number, digest)
            if sample is not None and digest in self._paid:
                return sample
            async with self.purse.reserve(worst) as held:
                if sample is None:
                    completion = await self.endpoint.chat(chat, sampling, tools_of(row) if tools else ())
                    sample = Sample(row=row.id, sample=number, digest=digest, **asdict(completion))
                    self.store.add(sample)
                held.paid = self.purse.cost(sample, worst)
                self._paid.add(digest)
        return sample
