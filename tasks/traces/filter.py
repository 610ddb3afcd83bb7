"""Rejection filter for a teacher's answers: accept one for training, or name its defect."""

import json
import re
from dataclasses import dataclass

from tasks.shared.formats.rows import ToolCall
from tasks.shared.formats.tasks import Task
from tasks.shared.text.fact_matching import declines, normalize, refuses, states_fact
from tasks.shared.text.grounding import DECLINING, invented_addresses, invented_numbers, support
from tasks.shared.text.repetition import repeats
from tasks.traces.defaults import Rules
from tasks.traces.reply import Reply

ACCEPTED = ""
MARKUP = re.compile(
    r"<\||\|>|</?\w+>|\[/?INST\]|```|\*\*|^\s*(?:#|[-*] )"
    r"|^\s*(?:question|article|answer|customer|user|assistant|system|agent|bot|policy)\s*:|\b(?:question|article|answer)\s*:"
    r"|\b(?:the|this|our) article\b|\b(?:I am|I'm|as) an? (?:AI|language model)",
    re.IGNORECASE | re.MULTILINE,
)
TEMPLATE = re.compile(r"<\|\w+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
"""Marks of chat templates, which belong into no answer."""
NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|without|cannot|\w+n't)\b", re.IGNORECASE)
LOOP = 4
"""Times that a text must end with the same passage to count as an endless loop."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Texts that an answer is checked against.

    accept: groups of strings; the answer must contain one string of each group.
    narrow: question, gold answer and accepted strings.
    wide: narrow and the article.
    refusal: True if the correct answer declines.
    """

    accept: tuple[tuple[str, ...], ...]
    narrow: str
    wide: str
    refusal: bool = False


def judge_form(reply: Reply, rules: Rules, tools: frozenset[str] = frozenset()) -> str:
    """Return the reason for rejecting a reply by its form, in a word or two; "" for none.

    tools: names of the tools that the reply may call.
    """
    if rejection := _judge_end(reply):
        return rejection
    return _judge_calls(reply.calls, tools) if reply.calls else _judge_text(reply.text, rules)


def _judge_end(reply: Reply) -> str:
    if reply.finish_reason == "content_filter":
        return "content filter"
    if not reply.text.strip() and not reply.calls:
        return "only reasoning" if reply.thought else "empty"
    if reply.finish_reason == "length":
        return "unfinished"
    return ACCEPTED if reply.finish_reason in ("stop", "tool_calls") else f"ended by {reply.finish_reason}"


def _judge_text(text: str, rules: Rules) -> str:
    words = text.split()
    if len(words) < rules.min_words:
        return "too short"
    if rules.max_words and len(words) > rules.max_words:
        return "too long"
    if "\n" in text.strip() and not rules.line_breaks:
        return "line break"
    if MARKUP.search(text) and not rules.markup:
        return "markup"
    if TEMPLATE.search(text):
        return "template mark"
    return "repeats" if loops(text) or (repeats(text) and not rules.repetition) else ACCEPTED


def _judge_calls(calls: tuple[ToolCall, ...], tools: frozenset[str]) -> str:
    for call in calls:
        if call.name not in tools:
            return "unknown tool"
        try:
            good = isinstance(json.loads(call.arguments), dict)
        except (ValueError, RecursionError):
            good = False
        if not good:
            return "broken call"
    return ACCEPTED


def loops(text: str) -> bool:
    """Return True if the text ends in an endless loop.

    That is a passage of 2 to 200 characters, LOOP times or more, and over 40 characters or more.
    """
    text = text.rstrip()
    for size in range(2, min(200, len(text) // LOOP) + 1):
        times = max(LOOP, -(-40 // size))
        passage = text[-size:]
        if size * times <= len(text) and len(set(passage.strip())) > 1 and text.endswith(passage * times):
            return True
    return False


def judge_grounding(text: str, evidence: Evidence, rules: Rules, task: Task) -> str:
    """Return the reason for rejecting an answer by its sources; "" if it is accepted.

    The order is hallucination, fact.  A refusal is checked against `narrow` alone, so that it cannot state the reason of another
    refusal.
    """
    if not rules.inventions:
        if invented_numbers(text, evidence.wide):
            return "number"
        if invented_addresses(text, evidence.wide):
            return "address"
    return (
        _judge_refusal(text, evidence, rules, task) if evidence.refusal else _judge_answer(text, evidence, rules, task)
    )


def _judge_refusal(text: str, evidence: Evidence, rules: Rules, task: Task) -> str:
    if not declines(text, task.refusals):
        return "no refusal"
    return ACCEPTED if support(text, f"{evidence.narrow}\n{DECLINING}") >= rules.support else "unsupported"


def _judge_answer(text: str, evidence: Evidence, rules: Rules, task: Task) -> str:
    if not rules.refusals and declines(text, task.refusals) and not refuses(evidence.narrow):
        return "refuses"
    if evidence.accept and not states_fact(text, evidence.accept):
        return "fact"
    if not rules.other_numbers and invented_numbers(text, evidence.narrow):
        return "other number"
    if not rules.negations and NEGATION.search(normalize(text)) and not NEGATION.search(normalize(evidence.narrow)):
        return "negation"
    return ACCEPTED if support(text, evidence.wide) >= rules.support else "unsupported"
