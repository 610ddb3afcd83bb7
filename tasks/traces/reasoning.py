"""A teacher's reasoning before its answer: requested, split from the reply, checked."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.formats.articles import Article
from tasks.shared.formats.rows import Row
from tasks.shared.text.fact_matching import refuses
from tasks.shared.text.grounding import invented_addresses, invented_numbers
from tasks.shared.text.quantities import contradictions
from tasks.shared.text.reasoning import CLOSE, OPEN
from tasks.shared.text.repetition import repeats
from tasks.traces.defaults import Rules
from tasks.traces.filter import ACCEPTED, Evidence, loops

FORM = (
    f"First write between {OPEN} and {CLOSE}, in one or two short sentences, how one comes to the answer. Then answer."
)
"""Part of a user turn, before the request for an answer."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reasoning:
    """Settings of the teacher's reasoning, for techniques that train on it (`distill/cot`)."""

    ask: Literal["none", "request", "native"] = "none"
    """none: answers only.  request: the prompt requests a short reasoning between marks, and the worked examples show one.
    native: the reasoning that a reasoning model returns by itself, as `reasoning_content` or before </think>."""
    tokens: Annotated[int, Field(ge=1)] = 150
    """Most tokens of the reasoning, in addition to `max_tokens`."""
    max_words: Annotated[int, Field(ge=0)] = 80
    """Most words of the reasoning; 0 is no limit.  Longer reasoning is dropped with its answer: a small student cannot learn it."""

    @property
    def wanted(self) -> bool:
        """True if answers come with reasoning."""
        return self.ask != "none"


def judge_reasoning(reasoning: str, evidence: Evidence, rules: Rules, max_words: int) -> str:
    """Return the reason for rejecting a reasoning; "" if it is accepted.

    It must not loop.  Where answers are checked against their sources, it must not contain invented numbers or addresses
    either, and must not contradict the answer (another quantity in place of the fact, or a refusal of an answerable question).
    No rule checks that its steps follow from each other.
    """
    if not reasoning:
        return "no reasoning"
    if max_words and len(reasoning.split()) > max_words:
        return "reasoning: too long"
    if loops(reasoning) or (repeats(reasoning) and not rules.repetition) or OPEN in reasoning:
        return "reasoning: form"
    if rules.inventions:
        return ACCEPTED
    if invented_numbers(reasoning, evidence.wide) or invented_addresses(reasoning, evidence.wide):
        return "reasoning: invents"
    refuses_an_answer = not evidence.refusal and refuses(reasoning) and not refuses(evidence.narrow)
    return (
        "reasoning: contradicts"
        if refuses_an_answer or contradictions(reasoning, evidence.accept, evidence.narrow)
        else ACCEPTED
    )


def example_reasoning(example: Row, articles: Mapping[str, Article] | None) -> str:
    """Reasoning of a worked example: the row's own, or one step from its article and fact."""
    if example.reasoning:
        return example.reasoning
    if example.declines:
        return "Our policy does not allow this."
    fact = ", ".join(group[0] for group in example.facts)
    title = articles[example.evidence].title if articles and example.evidence in articles else ""
    return f"The article is: {title}. It says: {fact}." if title else f"What is known about this: {fact}."
