"""Sentences of a text, cut after full stops, question and exclamation marks."""

import re

_END = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text in their order, each with its mark."""
    return _END.split(text)
