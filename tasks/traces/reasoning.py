"""Reasoning that a teacher gives before its answer: how it is asked for, read out of a reply, and held against the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.engines.samples import Sample
from tasks.shared.formats.articles import Article
from tasks.shared.formats.rows import Row
from tasks.shared.text.chat import refuses
from tasks.shared.text.grounding import invented_addresses, invented_numbers
from tasks.shared.text.quantities import contradictions
from tasks.shared.text.reasoning import CLOSE, OPEN, split_reasoning
from tasks.shared.text.repetition import repeats
from tasks.traces.filter import ACCEPTED, Evidence

FORM = f"\n\nFirst write between {OPEN} and {CLOSE}, in one or two short sentences, how one comes to the answer. Then answer."
"""Goes before what the teacher is asked for."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reasoning:
    """Whether the teacher's reasoning is kept, for techniques that teach it (`distill/cot`)."""

    ask: Literal["none", "request", "native"] = "none"
    """none: answers only.  request: the prompt asks for a short reasoning in marks, and the worked examples show one.
    native: what a reasoning model gives by itself, as `reasoning_content` or before </think>."""
    tokens: Annotated[int, Field(ge=1)] = 150
    """Room for the reasoning in a reply, on top of `max_tokens`."""
    max_words: Annotated[int, Field(ge=1)] = 80
    """Longer reasoning is dropped with its answer: a small student cannot learn it, and has to write all of it."""

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return self.ask != "none"


@plain_dataclass(frozen=True)
class Spoken:
    """A reply taken apart."""

    text: str
    finish_reason: str
    reasoning: str = ""


def take_apart(sample: Sample, wanted: bool, stop: Sequence[str]) -> Spoken:
    """Answer and reasoning of a sample.

    stop: strings that end an answer.  An endpoint would end the reasoning at them, so it is not told them, and the answer is cut here.
    """
    if not wanted:
        return Spoken(sample.text, sample.finish_reason)
    before, answer = split_reasoning(sample.text)
    cuts = [place for text in stop if (place := answer.find(text)) >= 0]
    finish = "stop" if cuts else sample.finish_reason
    return Spoken(answer[: min(cuts)] if cuts else answer, finish, tidy(sample.reasoning or before))


def tidy(reasoning: str) -> str:
    """The reasoning in lines without blank ones and without spaces around them."""
    return "\n".join(" ".join(line.split()) for line in reasoning.splitlines() if line.strip())


def judge_reasoning(reasoning: str, evidence: Evidence, max_words: int) -> str:
    """Why this reasoning may not be trained on; "" if it may.

    It must invent nothing, must not end elsewhere than the answer (another quantity in place of the fact, a refusal of what is
    answered), and must not loop.  Whether its steps follow from each other no rule sees.
    """
    if not reasoning:
        return "no reasoning"
    if len(reasoning.split()) > max_words:
        return "reasoning: too long"
    if repeats(reasoning) or OPEN in reasoning:
        return "reasoning: form"
    if invented_numbers(reasoning, evidence.wide) or invented_addresses(reasoning, evidence.wide):
        return "reasoning: invents"
    strays = not evidence.refusal and refuses(reasoning) and not refuses(evidence.narrow)
    return (
        "reasoning: contradicts" if strays or contradictions(reasoning, evidence.accept, evidence.narrow) else ACCEPTED
    )


def example_reasoning(example: Row, articles: Mapping[str, Article] | None) -> str:
    """The reasoning of a worked example: the row's own, or the one step that its article and fact give."""
    if example.reasoning:
        return example.reasoning
    if example.kind == "refuse":
        return "Our policy does not allow this."
    fact = ", ".join(group[0] for group in example.accept)
    title = articles[example.article].title if articles and example.article in articles else ""
    return f"The article is: {title}. It says: {fact}." if title else f"What is known about this: {fact}."
