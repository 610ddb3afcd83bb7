"""A company's knowledge base: YAML files of articles with facts, and of topics to refuse.

The built-in one (Fenwick & Lark, an invented maker of espresso machines) is in tasks/curate/shop/knowledge.  Your own folder
has the same format; files are read in order of name, and their names are free.  Loading checks every entry.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article
from tasks.shared.formats.targets import Words
from tasks.shared.text.fact_matching import normalize, refuses, states_fact

BUILT_IN = Path(__file__).parent / "knowledge"
Label = Annotated[str, Field(pattern=r"^[a-z]+$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Accept = Annotated[tuple[Annotated[tuple[Words, ...], Field(min_length=1)], ...], Field(min_length=1)]
Texts = Annotated[tuple[Words, ...], Field(min_length=1)]
NOT_COVERED = (
    "I'm sorry, I can't help with that from what I have here; please ask our team.",
    "I can't help with this one; our team can look it up for you.",
)


class Strict(BaseModel):
    """Base of all entries: frozen, with unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FirstStep(Strict):
    """First step of troubleshooting, which the bot suggests before the fact itself."""

    answers: Texts
    accept: Accept


class Fact(Strict):
    """One checkable statement of an article, and the questions that ask for it."""

    id: Name
    kind: Literal["faq", "troubleshoot", "edge"]
    gold: Texts
    """Wordings of the answer; each states the fact."""
    accept: Accept
    """Groups of alternatives: an answer states the fact if it contains one string of every group."""
    questions: Texts
    first: FirstStep | None = None
    followups: tuple[Words, ...] = ()
    """Troubleshooting only: user turns which say that the first step did not help."""

    @model_validator(mode="after")
    def _troubleshooting_is_complete(self) -> Self:
        needed = self.kind == "troubleshoot"
        if needed != (self.first is not None) or needed != (len(self.followups) >= 4):
            raise ValueError("`first` and at least 4 `followups` belong to kind troubleshoot, and only to it")
        return self


class Entry(Strict):
    """One article with its facts."""

    id: Name
    title: Words
    intent: Label
    text: Words
    held_out: bool = False
    facts: Annotated[tuple[Fact, ...], Field(min_length=1)]

    @property
    def article(self) -> Article:
        """The article as it is written next to a corpus."""
        return Article(id=self.id, title=self.title, topic=self.intent, text=self.text, held_out=self.held_out)


class Refusal(Strict):
    """One topic that the bot refuses."""

    id: Name
    intent: Label
    answers: Texts
    questions: Texts


class Company(Strict):
    """The company that runs the bot."""

    name: Words
    system: Words
    """The system message of every conversation."""
    not_covered: Texts = NOT_COVERED
    """Answers to a question that the passages in the prompt do not cover; each reads as a refusal."""


class _File(Strict):
    company: Company | None = None
    articles: tuple[Entry, ...] = ()
    refusals: tuple[Refusal, ...] = ()


class Knowledge(Strict):
    """A whole knowledge base."""

    company: Company
    articles: tuple[Entry, ...]
    refusals: tuple[Refusal, ...]

    @property
    def intents(self) -> list[str]:
        """All intent labels, sorted."""
        return sorted({item.intent for item in self.articles} | {item.intent for item in self.refusals})


def load_knowledge(folder: Path = BUILT_IN) -> Knowledge:
    """Read all *.yaml files of a folder, in order of name.

    Raises DataError that lists every problem of every file.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise DataError(
            str(folder),
            "no *.yaml file" if folder.is_dir() else "no such folder",
            "a folder of knowledge-base files",
            f"start from a copy of {BUILT_IN}",
        )
    problems: list[str] = []
    files = [found for path in paths if (found := _read_file(path, problems)) is not None]
    companies = [found.company for found in files if found.company is not None]
    articles = tuple(entry for found in files for entry in found.articles)
    refusals = tuple(refusal for found in files for refusal in found.refusals)
    if not problems and len(companies) != 1:
        problems.append(f"{len(companies)} entries `company` (name, system) instead of exactly one")
    if not problems and not articles:
        problems.append("no articles")
    problems.extend(_contradictions(articles, refusals))
    problems.extend(
        f"company: not_covered does not refuse: {text!r}"
        for company in companies
        for text in company.not_covered
        if not refuses(text)
    )
    if problems:
        raise DataError(
            str(folder),
            f"{len(problems)} problems\n    " + "\n    ".join(problems),
            "a consistent knowledge base",
            "correct these entries",
        )
    return Knowledge(company=companies[0], articles=articles, refusals=refusals)


def _read_file(path: Path, problems: list[str]) -> _File | None:
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except UnicodeDecodeError as error:
        problems.append(f"{path.name}: not UTF-8 (byte {error.start})")
    except yaml.YAMLError as error:
        problems.append(f"{path.name}: not YAML: {' '.join(str(error).split())}")
    except ValidationError as error:
        for item in error.errors():
            problems.append(f"{path.name}: {'.'.join(map(str, item['loc'])) or 'top level'}: {item['msg']}")
    return None


def _contradictions(articles: tuple[Entry, ...], refusals: tuple[Refusal, ...]) -> Iterator[str]:
    yield from _repeats("id", [item.id for item in articles] + [item.id for item in refusals])
    questions = [text for entry in articles for fact in entry.facts for text in fact.questions]
    questions += [text for refusal in refusals for text in refusal.questions]
    yield from _repeats("question", [re.sub(r"[^\w ]", "", normalize(text)) for text in questions])
    article_intents = {entry.intent for entry in articles}
    for entry in articles:
        yield from _repeats(f"{entry.id}: fact id", [fact.id for fact in entry.facts])
        for fact in entry.facts:
            yield from _fact_problems(entry, fact)
    for refusal in refusals:
        yield from (f"{refusal.id}: answer does not refuse: {text!r}" for text in refusal.answers if not refuses(text))
        if refusal.intent in article_intents:
            yield f"{refusal.id}: intent {refusal.intent!r} is also the intent of an article"


def _fact_problems(entry: Entry, fact: Fact) -> Iterator[str]:
    place = f"{entry.id}.{fact.id}"
    parts = [("gold", fact.gold, fact.accept)]
    if fact.first is not None:
        parts.append(("first.answers", fact.first.answers, fact.first.accept))
    for key, answers, accept in parts:
        if not states_fact(entry.text, accept):
            yield f"{place}: the text does not state {key}'s accept groups {[list(group) for group in accept]}"
        for text in answers:
            if not states_fact(text, accept):
                yield f"{place}: {key} does not state its accept groups: {text!r}"
            if refuses(text):
                yield f"{place}: {key} reads as a refusal: {text!r}"
            if "\n" in text:
                yield f"{place}: {key} has a line break: {text!r}"


def _repeats(name: str, values: list[str]) -> Iterator[str]:
    yield from (f"{name} appears {count} times: {value!r}" for value, count in Counter(values).items() if count > 1)
