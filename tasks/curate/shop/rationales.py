"""Reasoning that a knowledge base itself gives: which article it is, which step was done, hence which comes next.

Only troubleshooting has more than one step; for all other rows there is nothing to derive, and they get no reasoning.  It says
nothing that is not in the article: its title and the strings by which a step is known (`accept`).
"""

from collections.abc import Sequence

from tasks.curate.shop.phrasings import Topic


def derive_reasoning(topic: Topic, first: bool) -> str:
    """The reasoning of a troubleshooting row; "" for every other kind.  first: no step was tried yet."""
    if topic.article is None or not topic.first_answers:
        return ""
    step = _named(topic.first_accept)
    place = f"The article is: {topic.article.title}."
    if first:
        return f"{place} Nothing was tried yet. So the first step comes: {step}."
    return (
        f"{place} Its first step, {step}, was tried and did not help. So the second step comes: {_named(topic.accept)}."
    )


def _named(accept: Sequence[Sequence[str]]) -> str:
    return ", ".join(group[0] for group in accept)
