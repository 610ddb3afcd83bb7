"""What a domain's texts are: every form in which rows are tokenized, and nothing of the test."""

from pathlib import Path

import pytest

from tasks.prune.tokens.texts import Passage, domain, without_every_tenth
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, write_articles
from tasks.shared.formats.rows import read_rows, write_rows
from tests.tiny_llama import build_tokenizer, write_corpus


def corpus(folder: Path) -> Path:
    """Rows in all three splits that can be told apart, two articles, one held out."""
    rows = read_rows(write_corpus(folder) / "calibration.jsonl")
    for split in ("train", "calibration", "test"):
        marked = rows[0].messages[-1].model_copy(update={"content": f"returns\nOnly in {split}."})
        write_rows(
            folder / f"{split}.jsonl", [rows[0].model_copy(update={"messages": (*rows[0].messages[:-1], marked)})]
        )
    articles = [Article(id=name, title=name, topic="returns", text="Text.", held_out=name == "secret") for name in ("open", "secret")]  # fmt: skip
    write_articles(folder / "articles.jsonl", articles)
    return folder


def test_training_and_calibration_are_read_and_the_test_is_not(tmp_path: Path) -> None:
    folder, tokenizer = corpus(tmp_path / "corpus"), build_tokenizer()
    text = "\n".join(text for passage in domain(tokenizer, [folder], [], articles=True) for text in passage.texts)
    assert "Only in train." in text and "Only in calibration." in text and "Article: open" in text
    assert "Only in test." not in text and "secret" not in text
    without = domain(tokenizer, [folder], [], articles=False)
    assert not any("Article: open" in text for passage in without for text in passage.texts)


def test_a_row_is_read_whole_as_a_question_and_as_an_answer(tmp_path: Path) -> None:
    (passage,) = [
        each for each in domain(build_tokenizer(), [corpus(tmp_path / "c")], [], False) if "train" in each.texts[0]
    ]
    whole, asked, answer, intent = passage.texts
    assert whole.startswith(asked) and asked.endswith("<|im_start|>assistant\n")
    assert answer == "returns\nOnly in train." and intent == "returns" and passage.topic == "g0"


def test_the_users_files_are_read_and_what_stands_twice_once(tmp_path: Path) -> None:
    file = tmp_path / "manual.md"
    file.write_text("Descale the kettle.\n", "utf-8")
    assert domain(build_tokenizer(), [], [file, file], False) == [Passage("", ("Descale the kettle.\n",))]


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl"):
        domain(build_tokenizer(), [tmp_path], [], False)


def test_a_tenth_of_the_topics_is_kept_apart_whole() -> None:
    passages = [Passage(f"t{number % 20:02d}", (str(number),)) for number in range(60)] + [Passage("", ("file",))]
    known, unseen = without_every_tenth(passages)
    assert {passage.topic for passage in unseen} == {"t00", "t10"}
    assert len(known) == 55 and not {passage.topic for passage in known} & {"t00", "t10"}


def test_an_article_is_kept_apart_with_the_rows_about_it(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    rows = [row.model_copy(update={"evidence": "open"}) for row in read_rows(folder / "train.jsonl")]
    write_rows(folder / "train.jsonl", rows)
    known, unseen = without_every_tenth(domain(build_tokenizer(), [folder], [], articles=True))
    assert [passage.topic for passage in known] == ["open", "open"] and {passage.topic for passage in unseen} == {"g0"}
    assert any("Article: open" in passage.spoken for passage in known)


def test_one_topic_cannot_be_kept_apart() -> None:
    assert without_every_tenth([Passage("t", ("a",)), Passage("", ("b",))])[1] == []
