"""Judge prompts and verdict parsing."""

import pytest

from tasks.evaluate.grading.preference import (
    INSTRUCTIONS,
    Judgment,
    Pair,
    agreement,
    first_position_share,
    read_opinion,
)
from tasks.shared.formats.scores import ItemScore

ITEM = ItemScore(
    measure="fact", id="a", question="How long?", wanted="45 days.", values={"tuned": 1.0, "int4": 0.0}, answers={"tuned": "45 days", "int4": "9 days"}
)  # fmt: skip


def test_the_swap_swaps_the_answers_and_nothing_else() -> None:
    plain, swapped = (Pair(ITEM, "tuned", "int4", ITEM.question).messages("Judge!", order) for order in (False, True))
    assert plain[0] == swapped[0] == {"role": "system", "content": "Judge!"}
    assert (
        plain[1]["content"]
        == "Question:\nHow long?\n\nReference answer:\n45 days.\n\nAnswer A:\n45 days\n\nAnswer B:\n9 days"
    )
    assert swapped[1]["content"].endswith("Answer A:\n9 days\n\nAnswer B:\n45 days")
    assert all(f"Verdict: {word}" in INSTRUCTIONS for word in ("A", "B", "tie"))


@pytest.mark.parametrize(
    ("text", "plain", "swapped"),
    [
        ("Both are fine. Verdict: A", "baseline", "rival"),
        ("**Verdict:** B.", "rival", "baseline"),
        ("Verdict: [[B]]", "rival", "baseline"),
        ("The verdict is answer A.", "baseline", "rival"),
        ("Verdict: A would be hasty.\nVerdict: B", "rival", "baseline"),
        ("Verdict: tie", "tie", "tie"),
        ("verdict: a tie", "tie", "tie"),
        ("B", "rival", "baseline"),
        (" Answer A. ", "baseline", "rival"),
        ("A is a better answer", "unreadable", "unreadable"),
        ("Verdict: both", "unreadable", "unreadable"),
        ("", "unreadable", "unreadable"),
    ],
)
def test_a_verdict_is_read(text: str, plain: str, swapped: str) -> None:
    assert (read_opinion(text, swapped=False), read_opinion(text, swapped=True)) == (plain, swapped)


def test_only_both_orders_make_a_win() -> None:
    assert Judgment(("rival", "rival")).value == 1.0
    assert Judgment(("baseline", "baseline")).value == 0.0
    for opinions in (("rival", "baseline"), ("tie", "rival"), ("tie", "tie"), ("unreadable", "rival"), ()):
        assert Judgment(opinions).value == 0.5  # type: ignore[arg-type]


def test_a_judge_that_takes_the_first_place_agrees_never() -> None:
    first = [Judgment(("baseline", "rival"))] * 3
    assert (agreement(first), first_position_share(first)) == (0.0, 1.0)
    fair = [Judgment(("rival", "rival")), Judgment(("baseline", "baseline"))]
    assert (agreement(fair), first_position_share(fair)) == (1.0, 0.5)
    unread = [Judgment(("unreadable", "tie")), Judgment()]
    assert agreement(unread) is None and first_position_share(unread) is None
