"""Your own conversations as a corpus: three JSON-lines files, checked line by line and for overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from tasks.curate.shop.phrasings import SPLITS, Split
from tasks.curate.support import write_card
from tasks.shared.errors import DataError, ErrorList, StillroomError
from tasks.shared.formats.articles import Article, read_articles, write_articles
from tasks.shared.formats.rows import Message, Row, parse_lines, write_rows
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun
from tasks.shared.text.chat import join_answer, normalize, refuses, split_answer
from tasks.shared.text.overlap import check_overlap, user_text
from tasks.shared.text.reasoning import CLOSE, split_reasoning


class Chat(BaseModel):
    """A plain chat row: messages alone, and perhaps its intent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]
    intent: Annotated[str, Field(pattern=r"^\S+$")] | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Jsonl:
    """Reads rows of the corpus schema (corpus.schema.json) and plain chats, {"messages": [...]}, mixed freely.

    A line with an `id` must meet the whole schema.  In a plain chat these fields are filled in:
    id: split and line number.  intent: the row's `intent`; else the answer's first line if that is one word and more
    follows; else the setting `intent`, and the label is put before the answer.  kind: "refuse" if the answer declines,
    else "faq".  group: the user's words.  accept: empty, so the fact measure skips the row.  source: "gold".
    reasoning: what the answer has between <think> and </think>; it is taken off the answer.
    """

    train: str = ""
    """JSON-lines file of conversations to train on."""
    calibration: str = ""
    """JSON-lines file for pruning and quantization statistics."""
    test: str = ""
    """JSON-lines file to judge by."""
    articles: str = ""
    """JSON-lines file of articles ({"id", "title", "intent", "text", "held_out"}); empty for none."""
    intent: Annotated[str, Field(pattern=r"^\S+$")] = "support"
    """Label for plain chats that bring none; best one token of the model's vocabulary."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest character 5-gram Jaccard similarity of a test conversation to any other split's.  A little higher than in
    the support corpus, because a near-copy here stops the run instead of being replaced by another wording."""

    ports: ClassVar[Mapping[str, Port]] = {}
    produces: ClassVar[Kind] = Kind.CORPUS
    libraries: ClassVar[tuple[str, ...]] = ("pydantic",)

    def sources(self) -> tuple[Path, ...]:
        """Files outside the recipe's graph whose content decides the result."""
        return tuple(user_path(path) for path in (self.train, self.calibration, self.test, self.articles) if path)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the same files as the support corpus.  Raises ErrorList with the problems of all files at once."""
        rows, articles = self._read()
        known = [*rows["train"], *rows["calibration"]]
        overlap = check_overlap(rows["test"], known, self.max_similarity)
        for split in SPLITS:
            write_rows(out / f"{split}.jsonl", rows[split])
        write_articles(out / "articles.jsonl", articles.values())
        write_card(out, rows, {"articles": len(articles), "overlap": {**asdict(overlap), "dropped": 0}})
        sizes: Metrics = {split: len(rows[split]) for split in SPLITS}
        return sizes | {"overlap_max": round(overlap.max, 3), "overlap_median": round(overlap.median, 3)}

    def _read(self) -> tuple[dict[Split, list[Row]], dict[str, Article]]:
        errors: list[StillroomError] = []
        articles: dict[str, Article] = {}
        rows: dict[Split, list[Row]] = {}
        try:
            articles = read_articles(user_path(self.articles)) if self.articles else {}
        except DataError as error:
            errors.append(error)
        for split in SPLITS:
            try:
                rows[split] = read_split(split, getattr(self, split), self.intent)
            except DataError as error:
                errors.append(error)
        errors += _unknown_articles(rows, articles) if self.articles and articles else []
        errors += _repeated_ids(rows)
        if errors:
            raise errors[0] if len(errors) == 1 else ErrorList(errors)
        return rows, articles


def read_split(split: Split, path: str, intent: str) -> list[Row]:
    """Rows of one file, plain chats filled in.  Raises DataError: no path, no file, bad lines (all listed), no rows."""
    if not path:
        raise DataError(
            f"curate.{split}", "no file given", "the path of a JSON-lines file", f"{split}=path/to/{split}.jsonl"
        )
    file = user_path(path)
    if not file.is_file():
        raise DataError(
            f"curate.{split}={path}",
            "no such file",
            "a JSON-lines file",
            "check the path; relative ones start at the current folder or the project's",
        )
    rows = parse_lines(file, lambda text, number: _parse(text, f"{split}-{number:05d}", intent))
    if not rows:
        raise DataError(path, "no rows", "at least one conversation")
    return rows


def _parse(text: str, name: str, intent: str) -> Row:
    try:
        chat = Chat.model_validate_json(text)
    except ValidationError as error:
        whole = any(item["type"] == "extra_forbidden" and item["loc"] == ("id",) for item in error.errors())
        if not whole:
            raise
        return _answered(Row.model_validate_json(text))
    return fill_in(chat, name, intent)


def fill_in(chat: Chat, name: str, intent: str) -> Row:
    """A corpus row from a plain chat (see `Jsonl` for what is filled in)."""
    *before, last = chat.messages
    reasoning, spoken = split_reasoning(last.content)
    if not spoken:
        raise _bad_messages([last.content], f"the answer is nothing but reasoning: {CLOSE} and an answer are missing")
    first, rest = split_answer(spoken)
    labeled = len(first.split()) == 1 and bool(rest)
    label = chat.intent or (first if labeled else intent)
    answer = rest if labeled and first == label else spoken
    row = Row(
        id=name,
        kind="refuse" if refuses(answer) else "faq",
        intent=label,
        group=name,
        reasoning=reasoning,
        messages=(*before, Message(role=last.role, content=join_answer(label, answer))),
    )
    return _answered(row.model_copy(update={"group": normalize(user_text(row)) or name}))


def _answered(row: Row) -> Row:
    roles = [message.role for message in row.messages]
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk or len(talk) % 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(talk)):
        raise _bad_messages(
            roles, "after an optional system message, user and assistant must take turns, the assistant last"
        )
    return row


def _bad_messages(found: Sequence[str], reason: str) -> ValidationError:
    return ValidationError.from_exception_data(
        "row", [{"type": "value_error", "loc": ("messages",), "input": found, "ctx": {"error": ValueError(reason)}}]
    )


def _unknown_articles(rows: Mapping[Split, Sequence[Row]], articles: Mapping[str, Article]) -> list[StillroomError]:
    named = {row.article for found in rows.values() for row in found if row.article}
    lost = sorted(named - set(articles))
    if not lost:
        return []
    return [
        DataError(
            "articles",
            f"{len(lost)} articles that rows name are missing: {', '.join(lost[:5])}",
            "every article that a row names",
        )
    ]


def _repeated_ids(rows: Mapping[Split, Sequence[Row]]) -> list[StillroomError]:
    seen: set[str] = set()
    twice = [row.id for found in rows.values() for row in found if row.id in seen or seen.add(row.id)]  # type: ignore[func-returns-value]
    return (
        [DataError("id", f"{len(twice)} ids stand on several rows: {', '.join(twice[:5])}", "one id per row")]
        if twice
        else []
    )
