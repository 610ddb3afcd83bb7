"""A topic with other numbers, in article and answers alike, which a model can only read.

Source: Longpre et al. 2021, arXiv 2109.05052; Neeman et al. 2022, arXiv 2211.05655: training on passages whose facts were changed teaches
a model to prefer the passage to its memory.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tasks.curate.shop.phrasings import Topic
from tasks.shared.text.fact_matching import states_fact

_NUMBER = re.compile(r"(?<![\d.,:])\d+(?:\.\d\d?)?(?![\d:]|[.,]\d)")
_CLOCK = re.compile(r"\d ?[ap]m\b|\d[.:]\d\d\b", re.IGNORECASE)

Groups = tuple[tuple[str, ...], ...]


def change_numbers(topic: Topic, rng: Random) -> Topic:
    """Return the topic with other numbers, of similar size, in its accepted strings.

    A number changes wherever the article, the answers and the accepted strings write it in digits; accepted strings that write it otherwise
    are left out.  The topic stays as it is if it has no such number, or if article and answers would not state the same any more.
    """
    if topic.article is None:
        return topic
    taken = {found.group() for found in _NUMBER.finditer(topic.article.text)}
    changes: dict[str, str] = {}
    for group in topic.accept + topic.first_accept:
        found = _NUMBER.search(group[0])
        if found and found.group() not in {"1", *changes}:  # "1 year" has no plural
            free = _other_numbers(found.group(), taken, _CLOCK.search(group[0]) is not None)
            if not free:
                return topic
            changes[found.group()] = other = rng.choice(free)
            taken.add(other)
    changed = replace(
        topic,
        article=topic.article.model_copy(
            update={"title": _change(topic.article.title, changes), "text": _change(topic.article.text, changes)}
        ),
        answers=tuple(_change(text, changes) for text in topic.answers),
        accept=_change_groups(topic.accept, changes),
        first_answers=tuple(_change(text, changes) for text in topic.first_answers),
        first_accept=_change_groups(topic.first_accept, changes),
    )
    return changed if changes and _is_consistent(changed) else topic


def _other_numbers(number: str, taken: set[str], clock: bool) -> list[str]:
    """Numbers of similar size that the article does not hold; at most about a thousand."""
    whole, point, rest = number.partition(".")
    value = int(whole)
    low, high = (1, 12) if clock else (max(2, value // 2), 2 * value + 6)
    others = range(low, high, max(1, (high - low) // 1000))
    return [text for other in others if other != value and (text := f"{other}{point}{rest}") not in taken]


def _change(text: str, changes: dict[str, str]) -> str:
    return _NUMBER.sub(lambda found: changes.get(found.group(), found.group()), text)


def _change_groups(groups: Groups, changes: dict[str, str]) -> Groups:
    """Accepted strings with the changes made.

    Groups whose first string has a changed number keep only the strings that have one; others stay.
    """
    return tuple(
        tuple(text for phrase in group if (text := _change(phrase, changes)) != phrase)
        if _change(group[0], changes) != group[0]
        else group
        for group in groups
    )


def _is_consistent(topic: Topic) -> bool:
    parts: Sequence[tuple[Sequence[str], Groups]] = (
        (topic.answers, topic.accept),
        (topic.first_answers, topic.first_accept),
    )
    text = topic.article.text if topic.article else ""
    return all(
        states_fact(text, accept) and all(states_fact(answer, accept) for answer in answers)
        for answers, accept in parts
        if accept
    )
