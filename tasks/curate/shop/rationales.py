"""Reasoning derived from the knowledge base: the article, the step tried, the next step.

Only troubleshooting rows get reasoning, because only they have more than one step.  It contains nothing but the article's
title and the strings that identify a step (`accept`).
"""

from collections.abc import Sequence

from tasks.curate.shop.phrasings import Topic


def derive_reasoning(topic: Topic, first: bool) -> str:
    """Reasoning of a troubleshooting row; "" for every other kind.

    first: True if no step was tried yet.
    """
    if topic.article is None or not topic.first_answers:
        return ""
    step = _step_name(topic.first_accept)
    place = f"The article is: {topic.article.title}."
    if first:
        return f"{place} Nothing was tried yet. So the first step comes: {step}."
    return f"{place} Its first step, {step}, was tried and did not help. So the second step comes: {_step_name(topic.accept)}."


def _step_name(accept: Sequence[Sequence[str]]) -> str:
    return ", ".join(group[0] for group in accept)
