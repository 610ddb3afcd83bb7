"""The grade of an answer by a target, and its canonical form for votes.

`grade` decides the measures of evaluation, whether a teacher's sample is accepted, and which prompts are hard; `canonical` which samples
agree.  Answers with equal canonical forms have equal grades.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.shared.formats.targets import (
    Call,
    Choice,
    Decline,
    Facts,
    Json,
    Label,
    Labels,
    NoCall,
    Number,
    Target,
    Text,
)  # fmt: skip
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import Answer
from tasks.shared.grading.calls import canonical_call, canonical_calls
from tasks.shared.grading.choices import chosen_option
from tasks.shared.grading.json_values import canonical_answer, json_exact
from tasks.shared.grading.labels import canonical_label, labels_in, plain_label, same_label
from tasks.shared.grading.numbers import nearest_reading
from tasks.shared.grading.texts import matches_reference
from tasks.shared.text.fact_matching import contains, declines, normalize, states_fact


def grade(target: Target, answer: Answer, task: Task) -> float:
    """Return the grade of an answer by one target, 0..1; 1 is right.

    task: the row's; it says how answers decline and which labels there are.
    """
    return float(_GRADES[type(target)](target, answer, task))


def canonical(target: Target, answer: Answer, task: Task) -> str:
    """Return an answer's statement about a target, in a form that agreeing answers share.

    "" if it states nothing of this kind: no number, no JSON, none of the facts.
    """
    return _CANONICAL[type(target)](target, answer, task)


def grade_key(key: Sequence[Target], answer: Answer, task: Task) -> float:
    """Return the lowest grade over an answer key; 1.0 for an empty key.

    With calls in the key, the answer must make these calls and no others.
    """
    wanted = [target for target in key if isinstance(target, Call)]
    if wanted and canonical_calls(answer.calls) != canonical_calls(wanted):
        return 0.0
    return min((grade(target, answer, task) for target in key), default=1.0)


def stated_label(answer: Answer) -> str:
    """Return the label of an answer: the most likely one if that was measured, or as written."""
    return answer.choice or answer.label


def stated_labels(answer: Answer, target: Labels, task: Task) -> frozenset[str]:
    """Return the labels that an answer lists, in their plain forms."""
    return labels_in(answer.label, (*task.labels, *target.labels))


def _label(target: Label, answer: Answer, task: Task) -> bool:
    return same_label(stated_label(answer), target.label, task.labels)


def _labels(target: Labels, answer: Answer, task: Task) -> bool:
    return stated_labels(answer, target, task) == {plain_label(label) for label in target.labels}


def _canonical_facts(target: Facts, answer: Answer, task: Task) -> str:
    groups = enumerate(target.groups)
    return ",".join(str(index) for index, group in groups if any(contains(answer.text, phrase) for phrase in group))


def _number(target: Number, answer: Answer, task: Task) -> bool:
    found = nearest_reading(answer.text, target.value)
    return found is not None and abs(found - target.value) <= target.tolerance


def _canonical_number(target: Number, answer: Answer, task: Task) -> str:
    found = nearest_reading(answer.text, target.value)
    return "" if found is None else f"{found + 0.0:.15g}"


def _choice(target: Choice, answer: Answer, task: Task) -> bool:
    return chosen_option(answer.choice or answer.text, target.options) == target.right


def _canonical_choice(target: Choice, answer: Answer, task: Task) -> str:
    found = chosen_option(answer.choice or answer.text, target.options)
    return "" if found is None else str(found)


_GRADES: Mapping[type[Any], Callable[[Any, Answer, Task], float | bool]] = {
    Label: _label,
    Labels: _labels,
    Facts: lambda target, answer, task: states_fact(answer.text, target.groups),
    Decline: lambda target, answer, task: declines(answer.text, task.refusals),
    Text: lambda target, answer, task: matches_reference(answer.text, target.references),
    Number: _number,
    Json: lambda target, answer, task: json_exact(answer.text, target),
    Call: lambda target, answer, task: canonical_call(target) in map(canonical_call, answer.calls),
    NoCall: lambda target, answer, task: not answer.calls,
    Choice: _choice,
}
_CANONICAL: Mapping[type[Any], Callable[[Any, Answer, Task], str]] = {
    Label: lambda target, answer, task: canonical_label(stated_label(answer), task.labels),
    Labels: lambda target, answer, task: "\n".join(sorted(stated_labels(answer, target, task))),
    Facts: _canonical_facts,
    Decline: lambda target, answer, task: "declines" if declines(answer.text, task.refusals) else "answers",
    Text: lambda target, answer, task: normalize(answer.text),
    Number: _canonical_number,
    Json: lambda target, answer, task: canonical_answer(answer.text, target),
    Call: lambda target, answer, task: canonical_calls(answer.calls),
    NoCall: lambda target, answer, task: canonical_calls(answer.calls),
    Choice: _canonical_choice,
}
