"""Texts of a domain: rendered conversations, articles, the user's files; no test split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.shared.formats.articles import read_articles, with_article
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.model.calibration import CALIBRATION_FILE
from tasks.shared.model.prompts import render
from tasks.shared.text.files import read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINING_FILE = "train.jsonl"
ARTICLE_FILE = "articles.jsonl"
PIECE_BYTES = 4096
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Passage:
    """Texts on one topic.

    topic: id of the article, or the phrasing group of a conversation without an article; empty for files.
    spoken: text about the topic, without the words that all conversations share.
    """

    topic: str
    texts: tuple[str, ...]
    spoken: str = ""


def domain(
    tokenizer: "PreTrainedTokenizerBase", folders: Iterable[Path], files: Iterable[Path], articles: bool
) -> list[Passage]:
    """Read passages of corpora, traces and the user's files, without repeats.

    Reads the training and calibration rows of corpora and traces.
    articles: also read the corpora's articles, except those held out for the test.
    Raises DataError for a file with bad lines or that cannot be read.
    """
    found: list[Passage] = []
    for folder in folders:
        splits = [folder / name for name in (TRAINING_FILE, CALIBRATION_FILE) if (folder / name).is_file()]
        found += [
            conversation(tokenizer, row) for split in splits or [folder / TRAINING_FILE] for row in read_rows(split)
        ]
        if articles and (folder / ARTICLE_FILE).is_file():
            known = read_articles(folder / ARTICLE_FILE).values()
            shown = [(each.id, with_article(each.title, each)) for each in known if not each.held_out]
            found += [
                Passage(name, (render(tokenizer, [{"role": "user", "content": text}]),), text) for name, text in shown
            ]
    for file in files:
        found += [Passage("", (document.text,)) for document in read_texts(file, PIECE_BYTES)]
    return list(dict.fromkeys(found))


def conversation(tokenizer: "PreTrainedTokenizerBase", row: Row) -> Passage:
    """Return a row in all forms that are tokenized: whole conversation, prompt, answer, label."""
    whole = render(tokenizer, row.chat, add_generation_prompt=False, tools=row.tools)
    spoken = "\n".join(message.content for message in row.messages if message.role != "system")
    return Passage(
        row.evidence or row.group,
        (whole, render(tokenizer, row.prompt, tools=row.tools), row.answer, row.label),
        spoken,
    )


def without_every_tenth(passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """Split passages into those for choosing tokens and those for checking the choice.

    Every tenth topic, at least one, is held out for the check; none if there are fewer than two topics.
    """
    topics = sorted({passage.topic for passage in passages if passage.topic})
    held = set(topics[::HELD_OUT_EVERY]) if len(topics) > 1 else set()
    return [each for each in passages if each.topic not in held], [each for each in passages if each.topic in held]
