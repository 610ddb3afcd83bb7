"""Excerpts of articles in a prompt."""

from random import Random

from tasks.curate.shop.passages import excerpt
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
