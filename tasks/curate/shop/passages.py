"""Passages in a prompt, as a search returns them: the right article among others, or none."""

from collections.abc import Sequence
from random import Random

from tasks.curate.shop.phrasings import Topic
from tasks.shared.formats.articles import Article
from tasks.shared.text.fact_matching import states_fact

NEAR_RATE = 0.5
"""Fraction of distractors taken from articles with the topic's own intent, where there are any: these are the hard ones."""


def choose_passages(topic: Topic, covered: bool, count: int, articles: Sequence[Article], rng: Random) -> list[Article]:
    """Return the articles of a prompt in random order.

    covered: True if the topic's own article is among them.  count: their number; fewer if there are no more articles.
    articles: those that the split may show.  None but the topic's own states one of its answers.
    """
    shown = [topic.article] if covered and topic.article else []
    others = [article for article in articles if article != topic.article and not _answers(article, topic)]
    while others and len(shown) < count:
        near = [article for article in others if article.topic == topic.intent]
        chosen = rng.choice(near if near and rng.random() < NEAR_RATE else others)
        others.remove(chosen)
        shown.append(chosen)
    rng.shuffle(shown)
    return shown


def _answers(article: Article, topic: Topic) -> bool:
    return any(accept and states_fact(article.text, accept) for accept in (topic.accept, topic.first_accept))
