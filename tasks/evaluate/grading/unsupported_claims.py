"""Unsupported claims: rules that find statements in an answer without a source."""

from dataclasses import dataclass

from tasks.evaluate.grading.replies import gold_answer
from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Task
from tasks.shared.text.fact_matching import declines, states_fact
from tasks.shared.text.grounding import DECLINING, content_words, invented_addresses, invented_numbers
from tasks.shared.text.overlap import user_text
from tasks.shared.text.quantities import contradictions

FINDINGS = ("address", "number", "contradiction", "unsupported", "remembered")
"""Findings in the order of the checks; the first one is reported.

address: an e-mail or web address without a source.  number: a number without a source.  contradiction: another quantity of the
same kind in place of the fact, from any source.  unsupported: too few content words have a source.
remembered: the right fact although the prompt lacks it, recalled from training.
"""
COURTESY = (
    "sorry apologize apologize apologies confusion understand hear happy glad welcome hope feel free know question answer article information "
    "policy customer service support team contact details anything further looking"
)
"""Courtesy words, which need no source."""


@dataclass(frozen=True)
class Finding:
    """The first finding in an answer, and whether it counts as hallucination; no name if clean."""

    name: str = ""
    detail: str = ""
    hallucinated: bool = False

    def words(self) -> str:
        """Format for display: "[number: 14]"."""
        return f"[{self.name}: {self.detail}]" if self.name else ""


def find_unsupported_claim(
    text: str, row: Row, task: Task, prompt: str, support: float, *, answer_given: bool, memory_counts: bool
) -> Finding:
    """Return the first finding in an answer to `row`.

    prompt: article and turns.  support: smallest allowed share of content words with a source, 0..1.
    answer_given: the article states the fact.  memory_counts: recalling the fact counts as hallucination if the article lacks it.
    Sources are the prompt, the fact's accepted strings, and the gold answer, whose wording is always allowed.
    """
    fact = "\n".join(phrase for group in row.facts for phrase in group)
    sources = "\n".join([prompt, fact, gold_answer(row, task).text])
    if addresses := invented_addresses(text, sources):
        return Finding("address", ", ".join(addresses), True)
    if found := sorted(invented_numbers(text, sources)):
        return Finding("number", ", ".join(found), True)
    if wrong := contradictions(text, row.facts, user_text(row)):
        return Finding("contradiction", ", ".join(wrong), True)
    share, strange = content_words(
        text, f"{sources}\n{COURTESY}" + (f"\n{DECLINING}" if declines(text, task.refusals) else "")
    )
    if share < support:
        return Finding("unsupported", ", ".join(strange), True)
    if not answer_given and states_fact(text, row.facts):
        return Finding("remembered", "the fact that the prompt lacks", memory_counts)
    return Finding()
