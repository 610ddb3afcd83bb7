"""Answers that start with a label line: the layout `first_line`; reasoning may come before."""

from tasks.shared.text.reasoning import split_reasoning


def join_answer(label: str, text: str) -> str:
    """Join an assistant's message: the label on the first line, then the text."""
    return f"{label}\n{text}"


def split_answer(content: str) -> tuple[str, str]:
    """Split an assistant's message into label and text, without reasoning.

    The label is empty if there is only one line.
    """
    first, separator, rest = split_reasoning(content)[1].partition("\n")
    return (first.strip(), rest.strip()) if separator else ("", first.strip())
