"""Strings that end an answer."""

from collections.abc import Sequence


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before its first stop string; also return whether there was one."""
    places = [place for string in stop if string and (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
