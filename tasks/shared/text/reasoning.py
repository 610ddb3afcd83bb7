"""Reasoning before an answer, between <think> and </think>.

The format is that of Qwen3's and DeepSeek's chat templates, blank line included.  The marks are plain text, so that every tokenizer
can encode them and no vocabulary grows.  Graders remove the reasoning from an answer.
"""

OPEN, CLOSE = "<think>", "</think>"


def join_reasoning(reasoning: str, answer: str) -> str:
    """Join an assistant's message: marked reasoning, if any, then the answer."""
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}" if reasoning else answer


def split_reasoning(content: str) -> tuple[str, str]:
    """Split an assistant's message into reasoning and answer.

    Reasoning without a closing mark leaves no answer.  The opening mark may be missing, since some chat templates end a prompt
    with it.
    """
    before, closed, after = content.partition(CLOSE)
    if not closed and not content.lstrip().startswith(OPEN):
        return "", content.strip()
    return before.strip().removeprefix(OPEN).strip(), after.strip()


def reasoning_prefix(content: str) -> str:
    """Text before the answer: reasoning with marks and line breaks; "" without a closing mark."""
    before, closed, after = content.partition(CLOSE)
    return before + closed + after[: len(after) - len(after.lstrip())] if closed else ""
