"""Knowledge-base articles beside a corpus, and the one form in which an article stands in a prompt."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tasks.shared.formats.rows import parse_lines

_HEAD, _ASK = "Article: ", "\n\nQuestion: "


class Article(BaseModel):
    """What the company says about one matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(min_length=1)]
    title: str
    intent: str
    text: str
    held_out: bool = False
    """Never in training; asked only in the test, with the text in the prompt."""


def write_articles(path: Path, articles: Iterable[Article]) -> None:
    """Write articles as JSON lines, UTF-8."""
    path.write_text("".join(article.model_dump_json() + "\n" for article in articles), encoding="utf-8")


def read_articles(path: Path) -> dict[str, Article]:
    """Articles of a JSON-lines file by id; an empty file gives none.  Raises DataError that lists every bad line."""
    articles = parse_lines(path, lambda text, _: Article.model_validate_json(text))
    return {article.id: article for article in articles}


def with_article(question: str, article: Article) -> str:
    """A user turn that carries its article: title, text, then the question."""
    return f"{_HEAD}{article.title}\n{article.text}{_ASK}{question}"


def question_of(content: str) -> str:
    """The words of the user in a turn made by `with_article`; any other turn comes back unchanged."""
    return content.rpartition(_ASK)[2] if content.startswith(_HEAD) and _ASK in content else content
