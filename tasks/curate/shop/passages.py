"""Passages in a prompt, as a search returns them: the right article among others, or none."""

from collections.abc import Sequence
from random import Random

from tasks.curate.shop.phrasings import Topic
from tasks.shared.formats.articles import Article
from tasks.shared.text.fact_matching import states_fact
from tasks.shared.text.sentences import sentences

NEAR_RATE = 0.5
"""Fraction of distractors taken from articles with the topic's own intent, where there are any: these are the hard ones."""


def choose_passages(
    topic: Topic, covered: bool, count: int, articles: Sequence[Article], rng: Random, length: int = 0
) -> list[Article]:
    """Return the articles of a prompt in random order.

    covered: True if the topic's own article is among them.  count: their number; fewer if there are no more articles.
    articles: those that the split may show.  None but the topic's own states one of its answers.
    length: number of sentences of an excerpt of each; 0 for whole articles.  That of the topic's own article states its answers.
    """
    own = topic.article
    shown = [excerpt(own, length, (*topic.first_accept, *topic.accept), rng)] if covered and own else []
    others = [article for article in articles if not (own and article.id == own.id) and not _answers(article, topic)]
    while others and len(shown) < count:
        near = [article for article in others if article.topic == topic.intent]
        chosen = rng.choice(near if near and rng.random() < NEAR_RATE else others)
        others.remove(chosen)
        shown.append(excerpt(chosen, length, (), rng))
    rng.shuffle(shown)
    return shown


def excerpt(article: Article, count: int, accept: Sequence[Sequence[str]], rng: Random) -> Article:
    """Return the article with a few consecutive sentences of its text, as a search returns.

    count: their number, or more if only more state the facts; 0 for the whole article.
    accept: facts to state, as in `states_fact`; may be empty.
    """
    stated = sentences(article.text)
    for size in range(min(count, len(stated)) or len(stated), len(stated) + 1):
        texts = (" ".join(stated[start : start + size]) for start in range(len(stated) - size + 1))
        fitting = [text for text in texts if not accept or states_fact(text, accept)]
        if fitting:
            return article.model_copy(update={"text": rng.choice(fitting) if len(fitting) > 1 else fitting[0]})
    return article


def _answers(article: Article, topic: Topic) -> bool:
    return any(accept and states_fact(article.text, accept) for accept in (topic.accept, topic.first_accept))
