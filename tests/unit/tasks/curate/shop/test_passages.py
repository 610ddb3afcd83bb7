"""Excerpts of articles in a prompt."""

from random import Random

from tasks.curate.shop.changed_numbers import change_numbers
from tasks.curate.shop.passages import earlier_topic, excerpt
from tasks.curate.shop.phrasings import Phrasing, Topic
from tasks.shared.formats.articles import Article

TEXT = "Open the lid. Wait 5 minutes. Turn the key! Is it blue? Then press once."


def texts(count: int, *accept: tuple[str, ...]) -> set[str]:
    article = Article(id="key", title="The key", text=TEXT)
    return {excerpt(article, count, accept, Random(seed)).text for seed in range(40)}


def test_an_excerpt_states_the_facts_asked_for() -> None:
    assert texts(2, ("5 minutes", "five minutes")) == {"Open the lid. Wait 5 minutes.", "Wait 5 minutes. Turn the key!"}
    assert texts(1, ("lid",), ("key",)) == {"Open the lid. Wait 5 minutes. Turn the key!"}, (
        "longer where facts are apart"
    )


def test_an_excerpt_is_any_part_if_no_fact_is_asked_for() -> None:
    assert texts(4) == {"Open the lid. Wait 5 minutes. Turn the key! Is it blue?", TEXT.removeprefix("Open the lid. ")}


def test_an_article_stays_whole_without_a_limit_or_the_fact() -> None:
    assert texts(0) == texts(9) == texts(2, ("6 minutes",)) == {TEXT}


def topic(name: str, text: str = "", accept: str = "") -> Topic:
    article = Article(id=name, title=name, topic="x", text=text) if text else None
    accepted = ((accept,),) if accept else ()
    return Topic(
        name, "faq" if text else "refuse", "x", (f"It is {accept}.",), accepted, (Phrasing(name, "?"),), article
    )


def test_further_questions_have_an_answer_in_the_prompt_or_are_declined_on_purpose() -> None:
    key, door, refused = topic("key", TEXT, "5 minutes"), topic("door", "It opens at 8.", "8"), topic("no")
    shown = [key.article]
    for topics, uncovered, share, wanted in (
        ([key], 0.0, 0.2, {("key", True)}),
        ([door], 0.0, 0.2, None),
        ([door], 0.1, 0.2, {("door", False)}),
        ([key, door, refused], 0.0, 0.0, {("key", True)}),
        ([key, door, refused], 0.3, 0.3, {("key", True), ("door", False), ("no", True)}),
        ([], 0.5, 0.5, None),
    ):
        found = [earlier_topic(topics, shown, uncovered, share, Random(seed)) for seed in range(40)]
        if wanted is None:
            assert set(found) == {None}
        else:
            assert {(one[0].id, one[1]) for one in found if one} == wanted and None not in found


def test_numbers_stay_where_no_other_is_free_and_large_ones_are_quick() -> None:
    full = topic("clock", f"Until 4 pm. Not at {', '.join(f'{hour} pm' for hour in range(1, 12))}.", "4 pm")
    assert change_numbers(full, Random(0)) is full
    large = topic("large", "You win 40000000 points.", "40000000 points")
    changed = change_numbers(large, Random(0))
    assert changed.accept != large.accept and changed.accept[0][0] in changed.article.text
