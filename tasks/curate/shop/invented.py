"""Articles made up for one conversation, whose facts a model can only read.

Source: as changed numbers, Longpre et al. 2021, arXiv 2109.05052; here the article as a whole is new.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated, Self

import yaml
from pydantic import Field, TypeAdapter, model_validator

from tasks.curate.shop.knowledge import Strict, Texts
from tasks.curate.shop.phrasings import Phrasing, Topic
from tasks.shared.formats.articles import Article
from tasks.shared.formats.targets import Words

FILE = Path(__file__).parent / "invented.yaml"
SENTENCES = 3
"""Of an article, unless excerpts have a length of their own."""
NEAR_RATE = 0.5
"""Fraction of conversations with articles of one kind, which state the same facts with other values: these are the hard ones."""


class Statement(Strict):
    """A kind of fact: values, sentences that state it, questions for it, and their answers."""

    numbers: tuple[int, int] | None = None
    """Smallest and largest number, for `value`."""
    value: Words = "{}"
    values: tuple[Words, ...] = ()
    """In place of numbers."""
    says: Texts
    asks: Texts
    answers: Texts

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if (self.numbers is None) == (not self.values):
            raise ValueError("either `numbers` or `values`")
        if any("{value}" not in text for text in self.says + self.answers):
            raise ValueError("each of `says` and `answers` names {value}")
        return self

    def draw(self, rng: Random) -> str:
        """Return a value in words."""
        return self.value.format(rng.randint(*self.numbers)) if self.numbers else rng.choice(self.values)


class Subjects(Strict):
    """Subjects of one kind, and the facts that may be stated of any of them."""

    subjects: Texts
    facts: Annotated[tuple[Statement, ...], Field(min_length=SENTENCES)]


@cache
def load_invented() -> tuple[Subjects, ...]:
    """Read the kinds of subjects and their facts."""
    return TypeAdapter(tuple[Subjects, ...]).validate_python(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def invent(intents: Sequence[str], count: int, length: int, rng: Random) -> tuple[list[Article], list[Topic]]:
    """Return the articles of a prompt, and topics about them and about one more.

    The prompt does not hold that one: questions about it are to be declined.

    intents: labels of the articles, drawn for each; the one that is missing has the label of its kind, since nothing tells another.
    count: articles of the prompt; fewer if there are no more subjects.  length: sentences of each; 0 for three.
    """
    kinds = load_invented()
    count = min(count, min(len(kind.subjects) for kind in kinds) - 1)
    near = [rng.choice(kinds)] * (count + 1) if rng.random() < NEAR_RATE else rng.choices(kinds, k=count + 1)
    subjects: list[str] = []
    for kind in near:
        subjects.append(rng.choice([name for name in kind.subjects if name not in subjects]))
    common = rng.choice(near[0].facts)
    articles: list[Article] = []
    topics: list[Topic] = []
    for place, (kind, subject) in enumerate(zip(near, subjects, strict=True)):
        intent = rng.choice(intents) if place < count else intents[kinds.index(kind) % len(intents)]
        facts = rng.sample(kind.facts, min(length or SENTENCES, len(kind.facts)))
        if kind is near[0] and common not in facts:
            facts[rng.randrange(len(facts))] = common
        values = [fact.draw(rng) for fact in facts]
        text = " ".join(_fill(rng.choice(fact.says), subject, value) for fact, value in zip(facts, values, strict=True))
        article = Article(id=subject, title=_fill("{subject}", subject), topic=intent, text=text)
        articles.append(article)
        for fact, value in zip(facts, values, strict=True):
            topics.append(_topic(article, subject, kind.facts.index(fact), fact, value))
    return rng.sample(articles[:count], count), topics


def _topic(article: Article, subject: str, number: int, fact: Statement, value: str) -> Topic:
    name = f"{subject}.{number}"
    return Topic(
        id=name,
        kind="faq",
        intent=article.topic,
        answers=tuple(_fill(text, subject, value) for text in fact.answers),
        accept=((value,),),
        phrasings=tuple(Phrasing(f"{name}#{place}", _fill(text, subject)) for place, text in enumerate(fact.asks)),
        article=article,
    )


def _fill(text: str, subject: str, value: str = "") -> str:
    """Return the text with its names filled in; a sentence that starts with one gets a capital."""
    filled = text.replace("{subject}", subject).replace("{value}", value)
    return filled[:1].upper() + filled[1:] if text.startswith("{") else filled
