"""Reasoning before an answer, marked as reasoning models mark it: <think>, the reasoning, </think>, then the answer.

The form is the one of Qwen3's and DeepSeek's chat templates, blank line included.  The marks are plain text, so that any tokenizer
has them and no vocabulary grows.  Whoever grades an answer takes the reasoning off.
"""

OPEN, CLOSE = "<think>", "</think>"


def join_reasoning(reasoning: str, answer: str) -> str:
    """The assistant's message: the reasoning between its marks, then the answer; the answer alone if there is no reasoning."""
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}" if reasoning else answer


def split_reasoning(content: str) -> tuple[str, str]:
    """Reasoning and answer of an assistant's message.

    A reasoning that never ends leaves no answer.  One without its first mark counts too: some chat templates end a prompt with it.
    """
    before, closed, after = content.partition(CLOSE)
    if not closed and not content.lstrip().startswith(OPEN):
        return "", content.strip()
    return before.strip().removeprefix(OPEN).strip(), after.strip()


def reasoning_prefix(content: str) -> str:
    """The reasoning as it stands before the answer, marks and line break included; "" if there is none, or it never ends."""
    before, closed, after = content.partition(CLOSE)
    return before + closed + after[: len(after) - len(after.lstrip())] if closed else ""
