"""Asking in rounds: who is asked how much, in which order, and how a grown test split goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.evaluate.grading.replies import Reply
from tasks.evaluate.models_under_test.groups import Replies
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, tuned_prompts
from tasks.evaluate.verdict.adaptive import Test, assess
from tasks.evaluate.verdict.asking import Asked, Prompts, ask_in_rounds, kept_scale, order_rows
from tasks.evaluate.verdict.stopping import Rounds, count_slices, heaviest_groups, round_ends, row_order
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.scores import ItemScore, read_scores, write_scores
from tasks.shared.isolation import Failure
from tests.score_samples import FACT, items_of, write_step_scores

ROWS = [
    Row(
        id=f"r{index}", group=f"g{index}", tags={"kind": "rare" if index % 10 == 0 else "usual"},
        messages=(Message(role="user", content=f"Question {index}?"), Message(role="assistant", content="Yes.")),
    )
    for index in range(200)
]  # fmt: skip
ONE = {"fact": 1.0}
TAGS = {row.id: row.tags for row in ROWS}
Answers = Callable[[int], bool]


def model(name: str, role: Any = "candidate") -> ModelUnderTest:
    return ModelUnderTest(name, role, "model", Path(name), "transformers", "float32")


def ask_models(
    answers: dict[str, Answers], rows: Sequence[Row] = ROWS, **settings: Any
) -> tuple[Asked, list[list[str]]]:
    """Ask models whose answer to the n-th row they are asked is right or wrong; `dies` fails in its third round."""
    models = [model(name, "baseline" if name == "tuned" else "candidate") for name in answers]
    calls: list[list[str]] = []

    def ask(open_models: Sequence[ModelUnderTest], prompts: Prompts) -> Replies:
        calls.append([one.name for one in open_models])
        found: dict[str, list[Reply] | Failure] = {
            one.name: Failure("out of memory")
            if one.name == "dies" and len(calls) == 3
            else [Reply("", prompt.row.id) for prompt in prompts[one.name]]
            for one in open_models
        }
        return Replies(found, {})

    def grade(prompts: Prompts, replies: Replies) -> list[ItemScore]:
        longest = max(prompts.values(), key=len)
        return [
            ItemScore(
                measure="fact", id=prompt.row.id, cluster=prompt.row.group, tags=TAGS[prompt.row.id],
                values={name: float(answers[name](place)) for name, own in replies.sound.items() if place < len(own)},
            )
            for place, prompt in enumerate(longest)
        ]  # fmt: skip

    rounds = Rounds(**({"margins": {"fact": 0.05}, "size": 16, "slice_items": 0} | settings))
    prompts = {one.name: tuned_prompts(rows) for one in models}
    available = count_slices([("fact", row.tags) for row in rows], rounds.slice_tags)
    return ask_in_rounds(models, rows, prompts, ask, grade, {"fact": FACT}, available, ONE, rounds), calls


def test_each_candidate_is_asked_until_it_is_decided() -> None:
    answers: dict[str, Answers] = {
        "tuned": lambda place: True, "equal": lambda place: True, "bad": lambda place: False, "dies": lambda place: True,
    }  # fmt: skip
    asked, calls = ask_models(answers)
    counts = asked.summary(ROWS, ONE).counts
    assert counts["bad"] == 16 and counts["equal"] == counts["tuned"] == 96, "83 items without a flip, in rounds to 96"
    assert calls == [
        ["tuned", "equal", "bad", "dies"],
        ["tuned", "equal", "dies"],
        ["tuned", "equal", "dies"],
        ["tuned", "equal"],
    ]
    assert isinstance(asked.replies.found["dies"], Failure) and len(asked.replies.sound["equal"]) == 96
    assert (
        list(asked.summary(ROWS, ONE).rows) == [row.id for row in ROWS[:96]]
        and asked.summary(ROWS, ONE).available == 200
    )


def test_protected_slices_and_several_candidates_keep_a_model_longer() -> None:
    equal: dict[str, Answers] = {"tuned": lambda place: True, "equal": lambda place: True}
    assert ask_models(equal, slice_tags=("kind",), slice_items=15)[0].summary(ROWS, ONE).counts["equal"] == 160
    for familywise in (True, "fdr"):
        both = {**equal, "other": equal["equal"]}
        assert ask_models(both, familywise=familywise)[0].summary(ROWS, ONE).counts["equal"] == 160
    late: dict[str, Answers] = {"tuned": lambda place: True, "late": lambda place: place < 83}
    assert ask_models(late)[0].summary(ROWS, ONE).counts["late"] == 96, "what 83 items showed stands"
    hard: dict[str, Answers] = {"tuned": lambda place: True, "odd": lambda place: place % 25 > 0}
    assert ask_models(hard)[0].summary(ROWS, ONE).counts == {"tuned": 200, "odd": 200}
    assert ask_models({"tuned": lambda place: True})[0].summary(ROWS, ONE).counts == {"tuned": 200}, (
        "nobody to decide on"
    )


def test_a_decision_stands_when_heavier_groups_follow() -> None:
    draw = np.random.default_rng(0)
    weights = [1.0] * 150 + list(draw.integers(1, 9, 70).astype(float))
    test, stood, moved = Test(0.05, 0.05, 0.06), 0, 0
    for _ in range(20):
        gains = draw.choice([-1.0, 1.0, 0.0], len(weights), p=[0.02, 0.02, 0.96])
        for largest in (8.0, 0.0):
            early, late = (
                assess(gains[:end], [1.0] * end, weights[:end], test, largest).wealth.decided_at for end in (150, 220)
            )
            stood += bool(largest) and late is not None
            assert not largest or early in (None, late)
            moved += not largest and early is not None and early != late
    assert stood and moved, "without the scale of the whole split it would not"
    found = heaviest_groups([("fact", "a", 1.0), ("fact", "a", 1.0), ("fact", "b", 1.0), ("label", "a", 1.5)])
    assert found == {"fact": 2.0, "label": 1.5}


def test_rounds_double_and_keep_groups_whole() -> None:
    assert list(round_ends(200, 16, [row.group for row in ROWS])) == [16, 32, 64, 96, 160, 200]
    assert list(round_ends(9, 2, ["a", "b", "b", "c", "d", "e", "f", "f", "f"])) == [3, 5, 9]
    order = row_order({"1": "a", "2": "b", "3": "a", "4": ""}, seed=0)
    assert abs(order.index("1") - order.index("3")) == 1
    ids = [row.id for row in order_rows(ROWS, Rounds(), seed=0)]
    assert ids == [row.id for row in order_rows(ROWS[::-1], Rounds(), seed=0)], "the file's order does not matter"
    assert sorted(ids) == sorted(TAGS) and ids != [row.id for row in order_rows(ROWS, Rounds(), seed=1)]


def test_a_grown_test_split_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = order_rows(ROWS[50:100], Rounds(), seed=0)
    asked, _ = ask_models({"tuned": lambda place: True, "odd": lambda place: place % 20 > 0}, first)
    scores = write_step_scores(tmp_path / "earlier", {"fact": FACT}, items_of("fact", {"tuned": [1.0]}))
    more = Rounds(after=str(scores.path))
    with pytest.raises(ConfigError, match="not asked in rounds"):
        order_rows(ROWS, more, seed=0)
    found = read_scores(scores.path)
    write_scores(scores.path, found.summary.model_copy(update={"asking": asked.summary(first, ONE)}), found.items)
    grown = order_rows(ROWS, more, seed=5)
    assert grown[:50] == first and len(grown) == 200
    changed = ROWS[60].model_copy(update={"weight": 2.0})
    for rows in ([row for row in ROWS if row.id != "r60"], [changed if row.id == "r60" else row for row in ROWS]):
        with pytest.raises(DataError, match="1 of its 50 rows are missing from the test split or were changed: r60"):
            order_rows(rows, more, seed=0)
    assert kept_scale({"fact": 0.5}, more) == ONE
    with pytest.raises(DataError, match=r"heavier groups than in the earlier test split: fact \(2, not 1\)"):
        kept_scale({"fact": 2.0}, more)
    with pytest.raises(DataError, match="1 new rows belong to groups that were asked already: new"):
        order_rows([*ROWS, ROWS[60].model_copy(update={"id": "new"})], more, seed=0)


def test_a_forecast_counts_the_rounds_of_an_equal_candidate() -> None:
    rounds = Rounds(margins={"label": 0.05, "perplexity": 3.0}, size=64)
    assert rounds.likely_rows(600) == (384, 4), "64, 128, 256, 384: 336 items are needed"
    assert rounds.likely_rows(100) == (100, 2) and rounds.likely_rows(0) == (0, 1)
    assert Rounds(margins={"perplexity": 3.0}).likely_rows(600) == Rounds().likely_rows(600) == (600, 1)
