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
    topic: Topic,
    covered: bool,
    count: int,
    articles: Sequence[Article],
    rng: Random,
    length: int = 0,
    topics: Sequence[Topic] = (),
) -> list[Article]:
    """Return the articles of a prompt in random order.

    covered: True if the topic's own article is among them.  count: their number; fewer if there are no more articles.
    articles: those that the split may show.  None but the topic's own states one of its answers.
    length: number of sentences of an excerpt of each; 0 for whole articles.  That of the topic's own article states its answers, the
    others' state those of one of `topics` about them, if there is one.
    """
    own = topic.article
    shown = [excerpt(own, length, _facts(topic), rng)] if covered and own else []
    others = [article for article in articles if not (own and article.id == own.id) and not _answers(article, topic)]
    while others and len(shown) < count:
        near = [article for article in others if article.topic == topic.intent]
        chosen = rng.choice(near if near and rng.random() < NEAR_RATE else others)
        others.remove(chosen)
        told = [other for other in topics if length and other.article and other.article.id == chosen.id]
        facts = _facts(rng.choice(told)) if told else ()
        shown.append(excerpt(chosen, length, facts, rng))
    rng.shuffle(shown)
    return shown


def earlier_topic(
    topics: Sequence[Topic], shown: Sequence[Article], uncovered: float, refused: float, rng: Random
) -> tuple[Topic, bool] | None:
    """Choose a topic to ask about articles in a prompt; None if there is none.

    uncovered, refused: shares of topics that no article covers, and of requests to refuse; a kind without topics leaves its share to the
    others, and a share of 0 is never chosen.
    Returns the topic, and False if it is one that no article covers.  Troubleshooting is not chosen: its first steps would outnumber the
    second ones.
    """
    names = {article.id for article in shown}
    text = "\n".join(article.text for article in shown)
    refusals = [topic for topic in topics if topic.article is None]
    facts = [topic for topic in topics if topic.article and not topic.first_answers]
    stated = [
        topic for topic in facts if topic.article and topic.article.id in names and states_fact(text, topic.accept)
    ]
    absent = [
        topic
        for topic in facts
        if topic.article and topic.article.id not in names and not any(_answers(article, topic) for article in shown)
    ]
    kinds = [(refusals, refused), (absent, (1 - refused) * uncovered), (stated, (1 - refused) * (1 - uncovered))]
    found = [(kind, share) for kind, share in kinds if kind and share]
    if not found:
        return None
    (chosen,) = rng.choices([kind for kind, _ in found], [share for _, share in found])
    return rng.choice(chosen), chosen is not absent


def _facts(topic: Topic) -> tuple[tuple[str, ...], ...]:
    return (*topic.first_accept, *topic.accept)


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
