"""A user's own files: conversations stay verbatim, one file or three, and what is set aside is counted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.curate.jsonl import Jsonl, read_split
from tasks.curate.reading.preview import rows_in, tokens_in
from tasks.curate.support import Support
from tasks.distill.sft import SFT
from tasks.shared.errors import ConfigError, DataError, ErrorList
from tasks.shared.forecast import START_S, Dimensions, Rows, Size, Workload
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Compute, Inputs, Metrics, StepRun
from tests.chat_files import chat, question, write
from tests.settings_case import Case, Change

SPLITS = ("train", "calibration", "test")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "train": write(
            tmp_path / "train.jsonl",
            chat("How long do I have to return it?", "You have 45 days."),
            chat("May I sue you?", "I can't help with that."),
            chat("Is the lamp still made?", "Sure!\nIt is."),
        ),
        "calibration": write(tmp_path / "calibration.jsonl", chat("Where is my parcel?", "It comes tomorrow.")),
        "test": write(tmp_path / "test.jsonl", chat("what's the refund period", "45 days.", intent="return")),
    }


def call(out: Path, seed: int = 0, **settings: object) -> Metrics:
    out.mkdir()
    return Jsonl(**settings)(Inputs({}), out, StepRun("corpus", seed, out))


def corpus(out: Path) -> dict[str, list[Row]]:
    return {split: read_rows(out / f"{split}.jsonl") for split in SPLITS}


def card(out: Path) -> dict:
    return json.loads((out / "card.json").read_text("utf-8"))


def test_plain_chats_are_taken_verbatim(files, tmp_path: Path) -> None:
    metrics = call(tmp_path / "out", **files)
    assert (metrics["train"], metrics["calibration"], metrics["test"], metrics["quarantined"]) == (3, 1, 1, 0)
    first, second, third = read_rows(tmp_path / "out" / "train.jsonl")
    assert (first.id, first.key, first.answer, first.group) == (
        "train-00001", (), "You have 45 days.", "how long do i have to return it?"
    )  # fmt: skip
    assert not second.declines and third.answer == "Sure!\nIt is." and first.task == "chat"
    test = read_rows(tmp_path / "out" / "test.jsonl")[0]
    assert (test.tags, test.source.file, test.source.line) == ({"intent": "return"}, "test.jsonl", 1)
    assert card(tmp_path / "out")["labels"] == [] and not (tmp_path / "out" / "quarantine.jsonl").exists()
    assert (tmp_path / "out" / "articles.jsonl").read_text() == ""
    assert card(tmp_path / "out")["reading"]["formats"] == {"OpenAI chat": 5}


def test_the_support_corpus_reads_back_unchanged(tmp_path: Path) -> None:
    made = tmp_path / "corpus"
    made.mkdir()
    Support(train_size=60, calibration_size=60, test_size=60)(Inputs({}), made, StepRun("corpus", 0, made))
    names = (*SPLITS, "articles")
    call(tmp_path / "out", **{name: str(made / f"{name}.jsonl") for name in names})
    for name in (*names, "tasks"):
        file = f"{name}.json" if name == "tasks" else f"{name}.jsonl"
        assert (tmp_path / "out" / file).read_bytes() == (made / file).read_bytes()


def test_problems_of_all_files_are_reported_together(files, tmp_path: Path) -> None:
    Path(files["train"]).write_bytes(b'{"messages": []}\n{broken\n\xff\xfe\n' + b'{"x": 1}\n')
    Path(files["test"]).write_text("", encoding="utf-8")
    with pytest.raises(ErrorList) as caught:
        call(tmp_path / "out", **files)
    text = str(caught.value)
    assert "4 of 4 records cannot be read" in text and "test.jsonl: no rows" in text
    assert all(words in text for words in ("no messages", "not JSON", "not UTF-8", "columns x"))
    assert not list((tmp_path / "out").iterdir())


def test_missing_paths_and_wrong_settings(files, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file given"):
        call(tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        call(tmp_path / "b", **{**files, "test": str(tmp_path / "nowhere.jsonl")})
    for settings, words in (
        ({"map": {"usr": "q"}}, "did you mean 'user'"),
        ({"map": {"assistant": "q"}}, "user is missing"),
        ({"map": {"messages": [{"alien": "q"}]}}, "messages is a column"),
        ({"task": {"type": "sorting"}}, "type: Input should be"),
        ({"tasks": {"a": {}}}, "map: {task: COLUMN}"),
        ({"encoding": "klingon"}, "not an encoding"),
        ({"test_share": 0.7, "calibration_share": 0.4}, "leave nothing for train"),
    ):
        with pytest.raises(ValueError, match=words):
            Jsonl(**settings)


def test_one_file_is_split_by_group_and_label_and_added_rows_move_none(tmp_path: Path) -> None:
    rows = [chat(question(number), f"label {number % 5}", who=f"c{number // 3}") for number in range(240)]
    settings = {"task": {"type": "classification"}, "map": {"group": "who"}}
    call(tmp_path / "out", path=write(tmp_path / "rows.jsonl", *rows), **settings)
    splits = corpus(tmp_path / "out")
    assert sum(map(len, splits.values())) == 240 and 12 <= len(splits["test"]) <= 40
    groups = {split: {row.group for row in found} for split, found in splits.items()}
    assert not groups["train"] & groups["test"] and not groups["calibration"] & groups["test"]
    assert (
        {row.label for row in splits["test"]}
        == {row.label for row in splits["train"]}
        == {f"label {n}" for n in range(5)}
    )
    assert read_tasks(tmp_path / "out")["classification"].layout == "alone"
    more = [chat(question(number), f"label {number % 5}", who=f"c{number // 3}") for number in range(240, 330)]
    call(tmp_path / "more", path=write(tmp_path / "more.jsonl", *more, *rows), **settings)
    before = {row.messages[0].content: split for split, found in splits.items() for row in found}
    after = {row.messages[0].content: split for split, found in corpus(tmp_path / "more").items() for row in found}
    assert {text: after[text] for text in before} == before
    call(tmp_path / "other", seed=1, path=str(tmp_path / "rows.jsonl"), **settings)
    assert {row.id for row in corpus(tmp_path / "other")["test"]} != {row.id for row in splits["test"]}


def test_splits_without_a_file_are_taken_from_the_others(files, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", *[chat(question(number), "x") for number in range(60)])
    call(tmp_path / "a", train=pool, test=files["test"])
    taken = card(tmp_path / "a")["taken_from_train"]
    assert list(taken) == ["calibration"] and len(corpus(tmp_path / "a")["train"]) == 60 - taken["calibration"]
    call(tmp_path / "b", path=pool, train=files["train"])
    splits = corpus(tmp_path / "b")
    assert [row.id for row in splits["train"][:3]] == ["train-00001", "train-00002", "train-00003"]
    assert all(row.id.startswith("row-") for row in splits["test"])
    with pytest.raises(DataError, match="1 groups of rows"):
        call(tmp_path / "c", path=files["test"])


def test_copies_of_the_test_leave_training_and_are_counted(files, tmp_path: Path) -> None:
    extra = chat("Until when may unused goods be sent back to the shop in their box?", "45 days.")
    write(Path(files["test"]), chat("How long do I have to return itt?", "45 days."), extra)
    metrics = call(tmp_path / "drop", **files)
    assert (metrics["train"], metrics["near_copies_dropped"], metrics["test_rows_with_copies"]) == (2, 1, 1)
    overlap = card(tmp_path / "drop")["overlap"]
    assert overlap["max"] < 0.5 < overlap["before"]["max"] and overlap["dropped_by_split"]["train"] == 1
    call(tmp_path / "test", **files, on_overlap="drop_test")
    assert [row.id for row in corpus(tmp_path / "test")["test"]] == ["test-00002"]
    call(tmp_path / "move", **files, on_overlap="move")
    moved = corpus(tmp_path / "move")
    assert [row.id for row in moved["train"]][-1] == "test-00001" and len(moved["test"]) == 1
    with pytest.raises(DataError, match=r"(?s)1 of 2 conversations copy.*test-00001 \(0.9.*on_overlap=drop_train"):
        call(tmp_path / "stop", **files, on_overlap="stop")


def test_questions_of_one_template_are_no_copies_to_drop(tmp_path: Path) -> None:
    asked = "I buy {} kettles at {} euros and {} lamps at {} euros in the shop today. Delivery is {} euros. What do I pay in all?"
    rows = [chat(asked.format(n, n * 7 % 90, n * 3 % 80, n * 11 % 70, n * 5 % 60), f"{n} euros.") for n in range(80)]
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match=r"(?s)train split: \d+ of \d+ rows .*one template.*max_similarity=1"):
        call(tmp_path / "out", path=path)
    call(tmp_path / "whole", path=path, max_similarity=1)
    assert sum(map(len, corpus(tmp_path / "whole").values())) == 80


def test_the_forecast_counts_lines_of_a_large_file_by_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(chat(question(n), "x" * 900) for n in range(2500)))
    assert Path(path).stat().st_size > 2 << 20
    assert rows_in(path) == pytest.approx(2500, rel=0.02)


def test_longer_conversations_are_forecast_to_need_more_memory_and_time_in_training(tmp_path: Path) -> None:
    """Through the plan's rows, and no further than the training's own limit."""
    size = Size(134_515_008, 269e6, 28_311_552, Dimensions(30, 576, 1536, 9, 576, 192, 49_152))
    memory, seconds = {}, {}
    for name, words in (("short", 20), ("long", 300), ("endless", 3000)):
        path = write(tmp_path / f"{name}.jsonl", *(chat(question(n), "word " * words) for n in range(40)))
        rows = Jsonl(path=path).forecast(Workload({}, Rows(), Compute(), 1e11)).rows
        assert rows is not None
        found = SFT().forecast(Workload({"model": (size,)}, rows, Compute(), 1e11))
        memory[name], seconds[name] = found.memory, found.seconds
    mean, longest = tokens_in(str(tmp_path / "long.jsonl"))
    assert longest == pytest.approx(1500 / 4 + 25, rel=0.2) and 0.95 * longest < mean <= longest
    assert tokens_in(str(tmp_path / "none.jsonl")) == tokens_in("") == (Rows().tokens, Rows().longest)
    assert seconds["long"] - START_S > 5 * (seconds["short"] - START_S)
    assert memory["short"] < 0.8 * memory["long"] < memory["endless"]
    assert memory["endless"] == SFT().forecast(Workload({"model": (size,)}, Rows(40, 40, 512), Compute(), 1e11)).memory


def test_the_forecast_counts_records_of_other_formats(tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    lines = ["text,label", *(f'"{question(n)}\nPlease.",label {n % 3}' for n in range(90))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), "utf-8")
    parquet.write_table(pa.table({"text": [question(n) for n in range(70)]}), tmp_path / "rows.parquet")
    rows = "".join(json.dumps(chat(question(n), "word " * 300)) + "\n" for n in range(2500))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:2000])
    counted = {name: rows_in(str(tmp_path / name)) for name in ("rows.csv", "rows.parquet", "torn.jsonl.gz")}
    assert counted == {"rows.csv": 90, "rows.parquet": 70, "torn.jsonl.gz": 1}
    mean, longest = tokens_in(str(tmp_path / "rows.parquet"))
    assert 5 < mean <= longest < 40, "a question each"
    assert rows_in(str(tmp_path / "rows.jsonl.gz")) == pytest.approx(2500, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "stated"),
    [
        ({"task": {"type": "classification"}}, False),
        ({"task": {"type": "qa", "layout": "first_line"}}, False),
        ({"task": {"type": "chat"}}, True),
        ({"task": {"type": "classification"}, "map": {"user": "q", "label": "topic"}}, True),
    ],
)
def test_labels_that_no_answer_states_are_refused_once(
    tmp_path: Path, settings: dict[str, object], stated: bool
) -> None:
    rows = ({"q": question(n), "a": f"Answer {n}", "topic": f"label {n % 3}"} for n in range(60))
    path, columns = write(tmp_path / "rows.jsonl", *rows), {"user": "q", "assistant": "a", "label": "topic"}
    settings = {"map": columns, **settings}
    if stated:
        call(tmp_path / "out", path=path, **settings)
        return
    with pytest.raises(
        DataError, match=r"none of 60 answers states its label; first: line 1, label 'label 0', answer 'Answer 0'"
    ):
        call(tmp_path / "out", path=path, **settings)


def test_unknown_articles_and_repeated_ids(files, tmp_path: Path) -> None:
    row = {
        "id": "one",
        "kind": "faq",
        "intent": "return",
        "article": "lost",
        "group": "g",
        **chat("Is it late?", "return\nYes, it is."),
    }
    Path(files["train"]).write_text(json.dumps(row) + "\n" + json.dumps(row), encoding="utf-8")
    articles = write(tmp_path / "articles.jsonl", {"id": "known", "title": "T", "intent": "return", "text": "t"})
    with pytest.raises(DataError, match="missing: lost"):
        call(tmp_path / "out", **files, articles=articles)
    call(tmp_path / "two", **files)
    assert [found.id for found in corpus(tmp_path / "two")["train"]] == ["one", "one-2"]
    assert card(tmp_path / "two")["reading"]["ids_made_unique"] == 1


def test_a_quarantine_is_kept_and_counted(files, tmp_path: Path) -> None:
    with Path(files["train"]).open("ab") as stream:
        stream.write(b"{broken\n")
    assert call(tmp_path / "out", **files)["quarantined"] == 1
    (entry,) = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert (entry["file"], entry["line"]) == ("train.jsonl", 4)
    assert card(tmp_path / "out")["reading"]["records"]["train"] == {"read": 4, "rows": 3}


def test_rows_of_one_file(files) -> None:
    rows = read_split("train", files["train"], "support")
    assert [row.task for row in rows] == ["support"] * 3 and rows[0].id == "train-00001"
    with pytest.raises(DataError, match="no file given"):
        read_split("test", "")


GROWTH = """
import resource, sys
from pathlib import Path
from tasks.curate.jsonl import Jsonl
from tasks.shared.technique import Inputs, StepRun
def run(path, out):
    Path(out).mkdir()
    Jsonl(path=path, max_test=500)(Inputs({}), Path(out), StepRun("corpus", 0, Path(out)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small = run(sys.argv[1], sys.argv[3])
print(run(sys.argv[2], sys.argv[4]) - small)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Peak memory of a file of 64 MB, above that of 1 MB, in MB."""
    filler = "lorem ipsum dolor sit amet " * 70
    for name, count in (("small", 500), ("large", 32_000)):
        with (tmp_path / f"{name}.jsonl").open("w") as stream:
            for number in range(count):
                stream.write(json.dumps(chat(question(number), filler)) + "\n")
    assert (tmp_path / "large.jsonl").stat().st_size > 6e7
    arguments = [str(tmp_path / name) for name in ("small.jsonl", "large.jsonl", "a", "b")]
    shown = subprocess.run(
        [sys.executable, "-c", GROWTH, *arguments], capture_output=True, text=True, check=True, cwd=PROJECT, timeout=600
    )
    assert float(shown.stdout) < 40


CHANGES = {
    "path": Change(lambda case: str(case.folder / "path.jsonl")),
    "train": Change(lambda case: str(case.folder / "other_train.jsonl")),
    "calibration": Change(lambda case: str(case.folder / "other_calibration.jsonl")),
    "test": Change(lambda case: str(case.folder / "other_test.jsonl")),
    "map": Change({"tags": []}),
    "task": Change({"type": "qa"}),
    "tasks": Change(
        {"en": {"type": "summarization"}}, given={"map": {"task": "lang"}, "tasks": {"en": {"type": "qa"}}}
    ),
    "encoding": Change("cp1252"),
    "max_quarantined": Change(0.0, refused="cannot be read"),
    "max_line_mb": Change(1),
    "test_share": Change(0.5, given={"test": ""}),
    "calibration_share": Change(0.5, given={"calibration": ""}),
    "max_test": Change(1, given={"test": "", "test_share": 0.5}),
    "max_calibration": Change(1, given={"calibration": "", "calibration_share": 0.5}),
    "max_similarity": Change(0.6),
    "on_overlap": Change("drop_test"),
    "articles": Change(lambda case: str(case.folder / "articles.jsonl")),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    texts = {"calibration": "Is there a parcel?", "test": "Do you ship on Sundays?"}
    for split, text in texts.items():
        for prefix, answer in (("", "We do."), ("other_", "We do not.")):
            write(
                folder / f"{prefix}{split}.jsonl",
                chat(text, answer, lang="en"),
                chat(f"{text} Ünder all", answer, lang="en"),
            )
    rows = [chat(question(number), "ä", lang="en") for number in range(12)] + [chat(texts["test"], "x", lang="en")]
    for name in ("train", "other_train"):
        long = [chat("long", "x" * 1_200_000, lang="en")] if name == "train" else []
        write(folder / f"{name}.jsonl", *rows, *long)
        with (folder / f"{name}.jsonl").open("ab") as stream:
            stream.write(json.dumps(chat("Grün?", "ä", lang="en"), ensure_ascii=False).encode() + b"\n{a\n{b\n")
    write(folder / "path.jsonl", *(chat(question(number), "y", lang="en") for number in range(20, 30)))
    write(folder / "articles.jsonl", {"id": "known", "title": "T", "intent": "return", "text": "t"})
    given = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    yield Case(folder, Inputs({}), {**given, "max_quarantined": 0.5})
