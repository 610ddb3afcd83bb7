"""Topics of a knowledge base, their phrasings split into train, calibration and test."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from tasks.curate.shop.knowledge import Knowledge
from tasks.shared.formats.articles import Article
from tasks.shared.formats.rows import SPLITS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phrasing:
    """One wording of a question, and the name of its group."""

    group: str
    text: str


@dataclass(frozen=True)
class Topic:
    """One fact, or one kind of request to refuse."""

    id: str
    kind: Literal["faq", "troubleshoot", "edge", "refuse"]
    intent: str
    answers: tuple[str, ...]
    accept: tuple[tuple[str, ...], ...]
    phrasings: tuple[Phrasing, ...]
    article: Article | None = None
    followups: tuple[str, ...] = ()
    first_answers: tuple[str, ...] = ()
    first_accept: tuple[tuple[str, ...], ...] = ()

    @property
    def held_out(self) -> bool:
        """True if only the test split may ask about the topic."""
        return self.article is not None and self.article.held_out


def topics_of(knowledge: Knowledge, articles: int = 0) -> list[Topic]:
    """All topics of a knowledge base.

    articles: number of training articles to keep; 0 for all.  A held-out article is used only if a kept article has its intent,
    because a model cannot choose a label that it has never seen.
    """
    kept = choose_articles(knowledge, articles)
    known = {entry.intent for entry in knowledge.articles if entry.id in kept}
    unlabeled = {entry.id for entry in knowledge.articles if entry.held_out and entry.intent not in known}
    if unlabeled:
        log.info("left out, because no training article has their intent: %s", ", ".join(sorted(unlabeled)))
    facts = [
        Topic(
            id=f"{entry.id}.{fact.id}",
            kind=fact.kind,
            intent=entry.intent,
            answers=fact.gold,
            accept=fact.accept,
            phrasings=_number(f"{entry.id}.{fact.id}", fact.questions),
            article=entry.article,
            followups=fact.followups,
            first_answers=fact.first.answers if fact.first else (),
            first_accept=fact.first.accept if fact.first else (),
        )
        for entry in knowledge.articles
        for fact in entry.facts
        if entry.id in kept or (entry.held_out and entry.id not in unlabeled)
    ]
    refusals = [
        Topic(item.id, "refuse", item.intent, item.answers, (), _number(f"refuse.{item.id}", item.questions))
        for item in knowledge.refusals
    ]
    return facts + refusals


def choose_articles(knowledge: Knowledge, count: int) -> set[str]:
    """Ids of the articles to train on.

    count: their number; 0 for all.  One article for each intent of the held-out articles comes first, the others are spread
    evenly over the knowledge base.
    """
    trained = [entry for entry in knowledge.articles if not entry.held_out]
    if not 0 < count < len(trained):
        return {entry.id for entry in trained}
    first = {entry.intent: entry.id for entry in reversed(trained)}
    wanted = dict.fromkeys(entry.intent for entry in knowledge.articles if entry.held_out)
    needed = [first[intent] for intent in wanted if intent in first][:count]
    others = [entry.id for entry in trained if entry.id not in needed]
    rest = count - len(needed)
    return {*needed, *(others[index * len(others) // rest] for index in range(rest))}


def share_out(topic: Topic, seed: int, test: float, calibration: float) -> dict[Split, Topic]:
    """Split a topic's phrasings and follow-ups, so that no wording is in two splits.

    test, calibration: fractions of the phrasings, rounded, at least one phrasing each.  A held-out topic is in the test split only.
    """
    if topic.held_out:
        return {"test": topic}
    phrasings = _cut(topic.phrasings, Random(f"{seed}/{topic.id}/phrasings"), test, calibration)
    followups = _cut(topic.followups, Random(f"{seed}/{topic.id}/followups"), test, calibration)
    return {split: replace(topic, phrasings=phrasings[split], followups=followups[split]) for split in SPLITS}


def _cut(items: Sequence[Any], rng: Random, test: float, calibration: float) -> dict[Split, tuple[Any, ...]]:
    mixed = rng.sample(list(items), len(items))
    first = max(1, round(len(mixed) * test))
    second = first + max(1, round(len(mixed) * calibration))
    return {"test": tuple(mixed[:first]), "calibration": tuple(mixed[first:second]), "train": tuple(mixed[second:])}


def _number(name: str, questions: Sequence[str]) -> tuple[Phrasing, ...]:
    return tuple(Phrasing(f"{name}#{i:02d}", text) for i, text in enumerate(questions, start=1))
