"""A corpus from your own conversations: JSON-lines files, checked for form and overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import write_corpus
from tasks.shared.errors import DataError, ErrorList, StillroomError
from tasks.shared.forecast import Forecast, Rows, Workload, forecast_light
from tasks.shared.formats.articles import Article, read_articles
from tasks.shared.formats.earlier_rows import EARLIER_TASK
from tasks.shared.formats.rows import SPLITS, Message, Row, Split, from_json, parse_lines, parse_row
from tasks.shared.formats.targets import Label
from tasks.shared.formats.tasks import Task
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Spec, StepRun
from tasks.shared.text.fact_matching import normalize
from tasks.shared.text.overlap import check_overlap, user_text


class Chat(BaseModel):
    """A plain chat row: messages, and optionally an intent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]
    intent: Annotated[str, Field(pattern=r"^\S+$")] | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Jsonl:
    """A corpus from your own JSON-lines files of conversations.

    A line is either a row of the corpus schema (corpus.schema.json) or a plain chat, {"messages": [...]}; a file may mix both.
    """

    train: str = ""
    """JSON-lines file of training conversations."""
    calibration: str = ""
    """JSON-lines file for pruning and quantization statistics."""
    test: str = ""
    """JSON-lines file of test conversations."""
    articles: str = ""
    """JSON-lines file of articles ({"id", "title", "intent", "text", "held_out"}); empty: no articles."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest character 5-gram Jaccard similarity between a test conversation and any conversation of another split.  Higher than in
    the support corpus, because a near-copy stops the run here, while the support corpus replaces it by another wording."""

    spec: ClassVar[Spec] = Spec(
        summary="Your own conversations, checked line by line; measures and refuses overlap of training and test",
        ports={},
        produces=Kind.CORPUS,
        libraries=("pydantic",),
    )

    def sources(self) -> tuple[Path, ...]:
        """User files whose content is part of the key."""
        return tuple(user_path(path) for path in (self.train, self.calibration, self.test, self.articles) if path)

    def forecast(self, work: Workload) -> Forecast:
        """A few seconds, and one row per line of the files."""
        return forecast_light(5, Rows(*(_count_lines(user_path(path)) for path in (self.train, self.test))))

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the same files as the support corpus.

        Raises ErrorList with the problems of all files at once.
        """
        rows, articles = self._read()
        known = [*rows["train"], *rows["calibration"]]
        overlap = check_overlap(rows["test"], known, self.max_similarity)
        more = {"articles": len(articles), "overlap": {**asdict(overlap), "dropped": 0}}
        write_corpus(out, rows, articles.values(), {EARLIER_TASK: Task(type="qa", layout="first_line")}, more)
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
                rows[split] = read_split(split, getattr(self, split))
            except DataError as error:
                errors.append(error)
        errors += _unknown_articles(rows, articles) if self.articles and articles else []
        errors += _repeated_ids(rows)
        if errors:
            raise errors[0] if len(errors) == 1 else ErrorList(errors)
        return rows, articles


def read_split(split: Split, path: str) -> list[Row]:
    """Read the rows of one file, with the missing fields of plain chats filled in.

    Raises DataError for a missing path, a missing file, an empty file, or bad lines (all of them listed).
    """
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
            "check the path; a relative path starts at the current folder or at the project",
        )
    rows = parse_lines(file, lambda text, number: _parse(text, f"{split}-{number:05d}"))
    if not rows:
        raise DataError(path, "no rows", "at least one conversation")
    return rows


def _parse(text: str, name: str) -> Row:
    content = from_json(text)
    if isinstance(content, dict) and ("id" in content or "kind" in content):
        return parse_row(text)[0]
    return fill_in(Chat.model_validate(content), name)


def fill_in(chat: Chat, name: str) -> Row:
    """Corpus row of a plain chat, messages verbatim."""
    key = (Label(label=chat.intent),) if chat.intent else ()
    row = Row(id=name, messages=chat.messages, key=key, group=name)
    return row.model_copy(update={"group": normalize(user_text(row)) or name})


def _unknown_articles(rows: Mapping[Split, Sequence[Row]], articles: Mapping[str, Article]) -> list[StillroomError]:
    named = {row.evidence for found in rows.values() for row in found if row.evidence}
    missing = sorted(named - set(articles))
    if not missing:
        return []
    return [
        DataError(
            "articles",
            f"{len(missing)} articles that rows refer to are missing: {', '.join(missing[:5])}",
            "every article that a row refers to",
            "add them to the articles file, or clear the rows' `article`",
        )
    ]


def _repeated_ids(rows: Mapping[Split, Sequence[Row]]) -> list[StillroomError]:
    seen: set[str] = set()
    repeated = [row.id for found in rows.values() for row in found if row.id in seen or seen.add(row.id)]  # type: ignore[func-returns-value]
    return (
        [
            DataError(
                "id", f"{len(repeated)} ids are used by several rows: {', '.join(repeated[:5])}", "a unique id per row"
            )
        ]
        if repeated
        else []
    )


def _count_lines(file: Path) -> int:
    """Lines of a file."""
    with file.open("rb") as stream:
        return sum(1 for _ in stream)
