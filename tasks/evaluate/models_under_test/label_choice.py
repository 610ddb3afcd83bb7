"""Label of a row: the most likely of the known ones, or the one that the answer says.

likeliest: the label with the highest log-likelihood where an answer would begin (`Session.choose`).  It is the model's own choice even
where its answer is no known label.  It costs a pass over the prompts besides the answers, except for rows whose answer proves it
(tasks/shared/engines/label_proof.py).
written: read from the answer, at no cost; an answer that says no known label has none.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from tasks.evaluate.models_under_test.model_under_test import Messages, RowPrompts
from tasks.shared.engines.labels import end_of_turn
from tasks.shared.engines.protocol import Choices, Session
from tasks.shared.model.generation import Written
from tasks.shared.text.answer_format import split_answer
from tasks.shared.text.reasoning import reasoning_prefix, split_reasoning

LabelMethod = Literal["likeliest", "written"]
LabelLayout = Literal["first_line", "alone"]
"""Place of a label in an answer: its first line, or all of it."""
PROVEN = "likeliest label by the probabilities of the answer itself"
WRITTEN = "the label that the answer says; none where it says no known label"


def written_choices(written: Sequence[Written], labels: Sequence[str], layout: LabelLayout) -> Choices:
    """Return the label that each answer says after its reasoning; empty for an unknown one."""
    known = frozenset(labels)
    said = [_said(found.text, layout) for found in written]
    return Choices([label if label in known else "" for label in said], None, WRITTEN)


def _said(text: str, layout: LabelLayout) -> str:
    """Return the first line after the reasoning, or all that follows it."""
    label, rest = split_answer(text)
    return label or rest if layout == "first_line" else split_reasoning(text)[1].strip()


def likeliest_choices(
    session: Session, contexts: Sequence[str], labels: Sequence[str], layout: LabelLayout, proven: Sequence[str] = ()
) -> Choices:
    """Return the most likely label after each rendered context.

    layout: what ends a label, a line break or the end of the turn.  proven: labels known already, "" for the others; empty if none is.
    """
    end = label_end(session, layout)
    if not any(proven):
        return session.choose(contexts, labels, end)
    open_ = [index for index, label in enumerate(proven) if not label]
    if not open_:
        return Choices(list(proven), None, PROVEN)
    found = session.choose([contexts[index] for index in open_], labels, end)
    known = dict(zip(open_, found.labels, strict=True))
    return Choices(
        [known.get(index, label) for index, label in enumerate(proven)],
        None,
        f"{PROVEN}; where these do not decide, {found.method}",
    )


def label_end(session: Session, layout: LabelLayout) -> str:
    """Return what ends a label: a line break, or the end of the turn."""
    return "\n" if layout == "first_line" else end_of_turn(session.render)


def proven_choices(written: Sequence[Written]) -> list[str]:
    """Return the labels that answers prove, "" for the others.

    After reasoning the label stands elsewhere, so what was computed at the start of such an answer does not count.
    """
    return ["" if reasoning_prefix(found.text) else found.label for found in written]


def same_prompts(question: RowPrompts) -> bool:
    """Return True if label and answer follow the same prompt."""
    return question.label_messages == question.answer_messages


def choice_contexts(
    render: Callable[[Messages, str], str], prompts: Sequence[RowPrompts], written: Sequence[Written]
) -> list[str]:
    """Return the texts after which labels are scored: prompt, plus the model's own reasoning.

    A model trained to reason first has never seen a label right after the prompt.  No tools and no reasoning are added where label and
    answer have different prompts (a reference), and no reasoning where no answer is generated.
    """
    return [
        render(question.label_messages, question.tools) + reasoning_prefix(found.text)
        if same_prompts(question)
        else render(question.label_messages, "")
        for question, found in zip(prompts, written, strict=True)
    ]
