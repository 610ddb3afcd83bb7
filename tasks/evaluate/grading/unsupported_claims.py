"""What an answer states that its prompt does not hold."""

from dataclasses import dataclass

from tasks.evaluate.grading.answers import gold_text
from tasks.shared.formats.rows import Row
from tasks.shared.text.chat import refuses, states_fact
from tasks.shared.text.grounding import DECLINING, content_words, invented_addresses, invented_numbers
from tasks.shared.text.overlap import user_text
from tasks.shared.text.quantities import contradictions

FINDINGS = ("address", "number", "contradiction", "unsupported", "remembered")
"""In the order in which they are looked for; the first one is reported.

address: a mail or web address that is nowhere.  number: a number that is nowhere.  contradiction: instead of the fact, another
quantity of its kind, wherever it comes from.  unsupported: too few of the content words are anywhere.
remembered: the right fact, where the prompt lacks it: from training.
"""
COURTESY = (
    "sorry apologize apologize apologies confusion understand hear happy glad welcome hope feel free know question answer article information "
    "policy customer service support team contact details anything further looking"
)
"""Words that say nothing about the matter."""


@dataclass(frozen=True)
class Finding:
    """The first finding of an answer, what it is about, and whether it counts as an invention; an empty name is none."""

    name: str = ""
    detail: str = ""
    invented: bool = False

    def words(self) -> str:
        """For people: "[number: 14]"."""
        return f"[{self.name}: {self.detail}]" if self.name else ""


def find_invention(
    text: str, row: Row, prompt: str, support: float, *, answer_given: bool, memory_counts: bool
) -> Finding:
    """The first finding of an answer to `row`.

    prompt: article and turns.  support: smallest allowed fraction of content words with a source, 0..1.
    answer_given: the article states the fact.  memory_counts: telling it is an invention where it does not.
    Sources are the prompt, the fact's accepted strings and the gold answer, whose wording nobody can be blamed for.
    """
    fact = "\n".join(phrase for group in row.accept for phrase in group)
    sources = "\n".join([prompt, fact, gold_text(row)])
    if addresses := invented_addresses(text, sources):
        return Finding("address", ", ".join(addresses), True)
    if found := sorted(invented_numbers(text, sources)):
        return Finding("number", ", ".join(found), True)
    if wrong := contradictions(text, row.accept, user_text(row)):
        return Finding("contradiction", ", ".join(wrong), True)
    share, strange = content_words(text, f"{sources}\n{COURTESY}" + (f"\n{DECLINING}" if refuses(text) else ""))
    if share < support:
        return Finding("unsupported", ", ".join(strange), True)
    if not answer_given and states_fact(text, row.accept):
        return Finding("remembered", "the fact that the prompt lacks", memory_counts)
    return Finding()
