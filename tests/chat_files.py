"""Files of plain chats, as a user brings them."""

import json
from pathlib import Path

WORDS = "kettle lamp parcel shade filter lid handle cable switch glass wood color price week courier shelf gift broken"


def chat(question: str, answer: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write(file: Path, *rows: dict) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def question(number: int) -> str:
    """A question that shares few words with those of other numbers."""
    words = WORDS.split()
    return " ".join(words[(number * step + number // 7) % len(words)] + str(number) for step in (1, 3, 5, 7, 11)) + "?"
