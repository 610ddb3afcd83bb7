"""Format of an answer.

The first line of an answer is the intent, the rest is the text; reasoning may precede them.
"""

from tasks.shared.text.reasoning import split_reasoning


def join_answer(intent: str, text: str) -> str:
    """Join an assistant's message: the intent on the first line, then the answer."""
    return f"{intent}\n{text}"


def split_answer(content: str) -> tuple[str, str]:
    """Split an assistant's message into intent and answer, without reasoning.

    The intent is empty if there is only one line.
    """
    first, separator, rest = split_reasoning(content)[1].partition("\n")
    return (first.strip(), rest.strip()) if separator else ("", first.strip())
