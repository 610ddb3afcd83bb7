"""Knowledge-base articles of a corpus, and the format of an article in a prompt."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from tasks.shared.formats.rows import parse_lines

_HEAD, _ASK = "Article: ", "\n\nQuestion: "


class Article(BaseModel):
    """A knowledge-base article on one topic."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(min_length=1)]
    title: str
    topic: str = Field(default="", validation_alias=AliasChoices("topic", "intent"))
    """What it is about, such as the label of its questions; may be empty.  Earlier corpora call it `intent`."""
    text: str
    held_out: bool = False
    """Never in training; only test questions use it, with its text in the prompt."""


def write_articles(path: Path, articles: Iterable[Article]) -> None:
    """Write articles as JSON lines, UTF-8."""
    path.write_text("".join(article.model_dump_json() + "\n" for article in articles), encoding="utf-8")


def read_articles(path: Path) -> dict[str, Article]:
    """Read the articles of a JSON-lines file, by id; the file may be empty.

    Raises DataError that lists every bad line.
    """
    articles = parse_lines(path, lambda text, _: Article.model_validate_json(text))
    return {article.id: article for article in articles}


def with_article(question: str, *articles: Article) -> str:
    """Format a user turn with its articles: title and text of each, then the question."""
    shown = "\n\n".join(f"{_HEAD}{article.title}\n{article.text}" for article in articles)
    return f"{shown}{_ASK}{question}"


def question_of(content: str) -> str:
    """Extract the question from a turn made by `with_article`; return other turns unchanged."""
    return content.rpartition(_ASK)[2] if content.startswith(_HEAD) and _ASK in content else content
