"""Acceptance of replies by form, answer key or judge, and votes between accepted replies."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tasks.shared.formats.rows import Row
from tasks.shared.formats.targets import Call, Facts, Json, Label, Labels, NoCall, Number, Target, Text
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import Answer, read_answer
from tasks.shared.grading.grade import canonical, grade, grade_key
from tasks.traces.defaults import Rules
from tasks.traces.filter import ACCEPTED, Evidence, judge_form, judge_grounding
from tasks.traces.prompt import tool_names
from tasks.traces.reply import Reply, message_of

Accept = Literal["key", "always", "judge"]
REASONS = {"facts": "fact", "decline": "no refusal", "call": "wrong call", "no_call": "call"}
"""Reasons for rejection by type of target; any other is "wrong" and the type."""
VOTES: dict[str, Target] = {
    "classification": Label(label="-"), "extraction": Json(value="{}"), "reasoning": Number(value=0.0), "tools": NoCall(),
}  # fmt: skip
"""Targets whose canonical form is compared where a row has no key, by type of task."""


def decidable(row: Row, task: Task) -> list[Target]:
    """Return the targets of a row's key that a reply can be graded by.

    A reference text is one of many right wordings.  A label outside of the answer's layout is no part of the answer.
    """
    shown = task.layout != "none" or task.type == "classification"
    return [
        target
        for target in row.key
        if not isinstance(target, Text) and (shown or not isinstance(target, Label | Labels))
    ]


def accepted_by(row: Row, task: Task, accept: Accept) -> str:
    """Return what decides about a row's replies: "judge", "key" or "form"."""
    if accept == "judge":
        return "judge"
    return "key" if accept == "key" and decidable(row, task) else "form"


def judge_reply(row: Row, task: Task, reply: Reply, evidence: Evidence, rules: Rules, accept: Accept) -> str:
    """Return the reason for rejecting a reply, in a word or two; "" if it is accepted.

    accept: "always" looks at the form only; otherwise the sources and the answer key must agree as well.
    """
    rejection = judge_form(reply, rules, tool_names(row))
    if rejection != ACCEPTED or accept == "always":
        return rejection
    if reply.text and (rejection := judge_grounding(reply.text, evidence, rules, task)) != ACCEPTED:
        return rejection
    return judge_key(row, task, answer_of(row, task, reply))


def judge_key(row: Row, task: Task, answer: Answer) -> str:
    """Return the reason of the first target that an answer misses; "" if it misses none."""
    targets = decidable(row, task)
    for target in targets:
        if grade(target, answer, task) < 1.0:
            return REASONS.get(target.type, f"wrong {target.type}")
    calls = [target for target in targets if isinstance(target, Call)]
    return ACCEPTED if grade_key(calls, answer, task) == 1.0 else "wrong call"


def answer_of(row: Row, task: Task, reply: Reply) -> Answer:
    """Return the answer that a reply becomes, in the parts that grades read."""
    message = message_of(row, task, reply)
    done = reply.finish_reason != "length"
    return read_answer(message.content, task, done, message.reasoning, message.tool_calls)


def ballot(row: Row, task: Task, reply: Reply) -> str:
    """Return the canonical form of a reply, by which votes are counted.

    "" for tasks whose answers have none: then the first accepted reply wins.
    """
    dummy = VOTES.get(task.type)
    targets = decidable(row, task) or ([dummy] if dummy else [])
    answer = answer_of(row, task, reply)
    return "\n".join(canonical(target, answer, task) for target in targets if not isinstance(target, Facts))


def elect(ballots: Sequence[str]) -> tuple[int, float]:
    """Return the index of the first ballot of the most frequent kind, and that kind's share.

    The kind that comes first wins a tie.
    """
    counts = Counter(ballots)
    winner = max(range(len(ballots)), key=lambda index: (counts[ballots[index]], -index))
    return winner, counts[ballots[winner]] / len(ballots)
