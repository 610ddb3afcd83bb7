"""Prompts for the teacher: rows to ask, their order, and the messages to send."""

import logging
from collections.abc import Mapping, Sequence

from tasks.shared.formats.articles import Article
from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Task
from tasks.traces.defaults import is_sentence, rules_of, stops_of
from tasks.traces.filter import Evidence
from tasks.traces.prompt import (
    can_ask,
    choose_examples,
    choose_refusals,
    narrow_sources,
    rank_of,
    sources,
    teacher_messages,
    tools_of,
)
from tasks.traces.settings import TeacherSettings
from tasks.traces.teacher import Job

log = logging.getLogger(__name__)


def make_jobs(
    settings: TeacherSettings,
    rows: Sequence[Row],
    tasks: Mapping[str, Task],
    articles: Mapping[str, Article] | None,
    seed: int,
) -> list[Job]:
    """Return the prompts to send, sorted by task and label, refusals last.

    Neighboring prompts share examples or articles, which the endpoint then finds cached.  With a budget they are in a seeded
    order instead, so that those before the cap are a fair sample.
    """
    answered = choose_examples(rows, settings.examples, seed)
    refused = [row for row in rows if row.declines]
    known = {name: _with_labels(name, tasks[name], rows) for name in tasks}
    chosen = sorted(choose_rows(settings, rows, seed), key=lambda row: (row.declines, row.task, row.label))
    if settings.budget.limited:
        chosen.sort(key=lambda row: rank_of(seed, row))
    jobs = []
    for row in chosen:
        shown = choose_refusals(row, refused, settings.examples, seed) if row.declines else answered
        jobs.append(_make_job(settings, row, known[row.task], shown, articles))
    return jobs


def choose_rows(settings: TeacherSettings, rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows to send to the teacher, in the order of the corpus.

    A row without a gold answer has nothing to keep, so `gold_ratio` does not count it.
    """
    ranked = sorted(rows, key=lambda row: rank_of(seed, row))
    answered = [row for row in ranked if row.answered]
    keep = {row.id for row in answered[: round(settings.gold_ratio * len(answered))]}
    wanted = [row for row in ranked if row.id not in keep]
    asked = [row for row in wanted if can_ask(row)]
    if len(asked) < len(wanted):
        log.warning("%d rows cannot be asked: no user or tool turn comes before their answer", len(wanted) - len(asked))
    chosen = {row.id for row in (asked[: settings.max_prompts] if settings.max_prompts else asked)}
    return [row for row in rows if row.id in chosen]


def _make_job(
    settings: TeacherSettings, row: Row, task: Task, shown: Sequence[Row], articles: Mapping[str, Article] | None
) -> Job:
    tools_of(row)  # a broken list is an error now, not after the first answers are paid
    hinted = [hints(settings, row, number) for number in range(settings.samples)]
    reason = settings.reasoning.ask == "request"
    chats = [teacher_messages(row, task, shown, settings.examples, articles, hint, reason) for hint in hinted]
    # A refusal may state any gold reason of the same policy.
    alike = [other.answer for other in shown if row.declines]
    narrow, wide = ("\n".join([text, *alike]) for text in (narrow_sources(row, task), sources(row, task, articles)))
    evidence = Evidence(accept=row.facts, narrow=narrow, wide=wide, refusal=row.declines)
    rules, stop = rules_of(row, task, settings.limits), stops_of(task, settings.stop)
    return Job(row, task, chats, hinted, evidence, rules, stop, settings.sampling(task))


def hints(settings: TeacherSettings, row: Row, number: int) -> bool:
    """Return True if the prompt of this sample states the fact."""
    return (
        bool(row.facts)
        and not row.declines
        and (settings.hint == "always" or (settings.hint == "retry" and number > 0))
    )


def _with_labels(name: str, task: Task, rows: Sequence[Row]) -> Task:
    """The task with the labels of its rows if it names none: the teacher has to know them."""
    if task.labels or task.type != "classification" or is_sentence(task):
        return task
    labels = sorted({row.label for row in rows if row.task == name and row.label})
    return task.model_copy(update={"labels": tuple(labels)})
