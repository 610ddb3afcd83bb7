"""The wall: copies are found through instructions and edits, and what remains has none."""

import json
import random
from pathlib import Path

import pytest

from tasks.curate.splitting.settings import SplitSettings
from tasks.curate.splitting.splits import check_loss
from tasks.curate.splitting.wall import build_wall, decide
from tasks.shared.errors import DataError
from tests.chat_files import question

HEAD = "Below is a message of a customer. Decide whether the customer is satisfied. Answer with one word. Message: "


def rows(file: Path, texts: list[str], groups: list[str] | None = None) -> Path:
    lines = [
        json.dumps(
            {
                "id": f"{file.stem}-{place}",
                "group": (groups or texts)[place],
                "messages": [{"role": "user", "content": text}],
            }
        )
        for place, text in enumerate(texts)
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def files(folder: Path, train: list[str], test: list[str], calibration: list[str] | None = None) -> dict[str, Path]:
    return {
        "train": rows(folder / "train", train),
        "calibration": rows(folder / "calibration", calibration or [question(900)]),
        "test": rows(folder / "test", test),
    }


def random_texts(count: int, draw: random.Random) -> list[str]:
    """Texts of 25 words of random letters."""
    return [" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(25)) for _ in range(count)]


def edited(text: str, edits: int, draw: random.Random) -> str:
    letters = list(text)
    for _ in range(edits):
        letters[draw.randrange(len(letters))] = draw.choice("abcdefghij")
    return "".join(letters)


def test_planted_copies_are_found_below_an_instruction(tmp_path: Path) -> None:
    draw = random.Random(5)
    train = random_texts(120, draw)
    planted = [edited(train[number], number % 5, draw) for number in range(30)]
    other = random_texts(40, draw)
    wall = build_wall(files(tmp_path, [HEAD + text for text in train], [HEAD + text for text in planted + other]), 0.5)
    assert wall.affixes.before and wall.copied == set(range(30))
    decision = decide(wall, SplitSettings())
    assert decision.dropped["train"] == set(range(30)) and not decision.dropped["test"] and not decision.moved
    assert decision.overlap["max"] <= 0.5 < decision.overlap["before"]["max"]
    assert decision.overlap["share_with_copies"] == round(30 / 70, 4)


def test_every_action_leaves_no_copy(tmp_path: Path) -> None:
    train, test = [question(number) for number in range(50)], [question(3) + "!", question(700), question(701)]
    for action, dropped, moved in (
        ("drop_train", {"train": {3}}, set()),
        ("drop_test", {"test": {0}}, set()),
        ("move", {}, {0}),
    ):
        decision = decide(build_wall(files(tmp_path, train, test), 0.5), SplitSettings(on_overlap=action))
        assert {split: places for split, places in decision.dropped.items() if places} == dropped
        assert decision.moved == moved and decision.overlap["max"] < 0.5
    with pytest.raises(DataError, match="1 of 3 conversations copy"):
        decide(build_wall(files(tmp_path, train, test), 0.5), SplitSettings(on_overlap="stop"))
    with pytest.raises(DataError, match="all 1 test rows are copies"):
        decide(build_wall(files(tmp_path, train, test[:1]), 0.5), SplitSettings(on_overlap="drop_test"))


def test_rows_of_a_group_are_copies_of_each_other(tmp_path: Path) -> None:
    found = files(tmp_path, [question(1), question(2)], [question(800), question(801)])
    rows(found["train"], [question(1), question(2)], ["ann", "bob"])
    rows(found["test"], [question(800), question(801)], ["ann", "cy"])
    wall = build_wall(found, 0.5)
    assert [(copy.split, copy.id, copy.test, copy.similarity) for copy in wall.copies] == [("train", "train-0", 0, 1.0)]


def test_moved_rows_take_their_near_copies_along(tmp_path: Path) -> None:
    long = "Could you please tell me how many days I have got to return the blue kettle that I bought from your shop last {}?"
    test = [question(5) + "!", long.format("March"), long.format("April") + " Thanks", question(600)]
    wall = build_wall(
        files(tmp_path, [question(5), long.format("March") + " Please", *map(question, range(10, 40))], test), 0.5
    )
    assert decide(wall, SplitSettings(on_overlap="move")).moved == {0, 1, 2}


def test_a_wall_that_takes_most_rows_is_refused_with_the_way_out() -> None:
    check_loss("train", 19, 0)
    check_loss("train", 500, 500)
    with pytest.raises(DataError, match=r"(?s)train split: 60 of 99 rows .*one template.*max_similarity=1"):
        check_loss("train", 60, 39)
