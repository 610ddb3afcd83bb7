"""Figures of a first look: columns, lengths, labels, copies, test power, a teacher's cost."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.looking.sample import Sample
from tasks.curate.reading.drafts import as_text
from tasks.evaluate.verdict.power import minimum_detectable
from tasks.shared.errors import ModelError
from tasks.shared.formats.rows import Row, to_chat
from tasks.shared.text.affixes import Affixes, find_affixes
from tasks.shared.text.near_copies import is_copy
from tasks.shared.text.overlap import TextIndex, user_text

ALPHA, POWER, FLIPS = 0.05, 0.8, 0.06
"""Defaults of `evaluate/paired`: level, power, and share of answers that differ between two equally good models."""
TAIL = 5
"""Rows of a label up to which it is part of the tail."""
COMPARED = 2000
"""Most rows that are compared with each other for near-copies."""
SHOWN = 60
LANGUAGES = "py3langid"


def column_uses(record: Any, row: Row | None) -> list[tuple[str, str, str]]:
    """Return name, use and example of every column of a record.

    row: what the reader made of the record; None if it cannot be read.
    """
    if not isinstance(record, dict):
        return []
    found = []
    for name, value in record.items():
        example = " ".join(as_text(value).split())
        found.append((str(name), _use(str(name), value, row) if row else "?", example[:SHOWN]))
    return found


def _use(name: str, value: Any, row: Row) -> str:
    text = as_text(value).strip()
    if not text or text in {"[]", "{}"}:
        return "empty"
    if isinstance(value, list) and [message.content for message in row.messages] == value:
        return f"conversation, {len(row.messages)} turns"
    if isinstance(value, list | dict) and name not in {"tools", "functions"} and name not in row.tags:
        held = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
        if held and any(
            message.content and message.content in json.dumps(held, ensure_ascii=False) for message in row.messages
        ):
            return f"conversation, {len(row.messages)} turns"
    if text == row.id:
        return "id"
    uses: list[str] = [str(message.role) for message in row.messages if text == message.content.strip()]
    uses += [
        f"part of {message.role}" for message in row.messages if not uses and len(text) > 3 and text in message.content
    ]
    if text == row.label:
        uses.append("label")
    if text in (row.tags.get(name), row.tags.get("label")) or any(tag.startswith(f"{name}.") for tag in row.tags):
        uses.append("tag")
    if name in {"tools", "functions"} and row.tools:
        uses.append("tools")
    if text == row.group:
        uses.append("group")
    return ", ".join(dict.fromkeys(uses)) or _other_use(value, row)


def _other_use(value: Any, row: Row) -> str:
    if any(isinstance(value, list | int) and target.type == "choice" for target in row.key):
        return "options" if isinstance(value, list) else "right option"
    return "left out"


@dataclass(frozen=True)
class Lengths:
    """Lengths of prompts, answers and conversations, each sorted; unit: tokens or words."""

    unit: str
    prompt: list[int]
    answer: list[int]
    whole: list[int]


def measure_lengths(rows: Sequence[Row], tokenizer: str) -> Lengths:
    """Measure lengths in the tokens of a tokenizer, with its chat template if it has one.

    Without a tokenizer, in words.

    tokenizer: folder of a model or tokenizer; empty for none.
    Raises ModelError if the folder holds none.
    """
    count, unit = _counter(tokenizer) if tokenizer else ((lambda text: len(text.split())), "words")
    prompt, answer = [], []
    for row in rows:
        prompt.append(sum(count(message.content) for message in row.messages[: -1 if row.answered else None]))
        if row.answered:
            answer.append(count(row.answer) + count(row.reasoning))
    whole = [sum(count(message.content) + count(message.reasoning) for message in row.messages) for row in rows]
    if tokenizer and (templated := _templated(rows, tokenizer)):
        whole = templated
    return Lengths(unit, sorted(prompt), sorted(answer), sorted(whole))


def _load(folder: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(folder).expanduser().is_dir():
        raise ModelError(
            "--tokenizer", f"{folder}: no such folder", "the folder of a model or tokenizer", "check the path"
        )
    try:
        return AutoTokenizer.from_pretrained(str(Path(folder).expanduser()), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            "--tokenizer", f"{folder}: {reason}", "a folder that transformers can load a tokenizer from"
        ) from error


def _counter(folder: str) -> tuple[Callable[[str], int], str]:
    tokenizer = _load(folder)
    return (lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0), "tokens"


def _templated(rows: Sequence[Row], folder: str) -> list[int]:
    """Lengths of whole conversations as the chat template writes them.

    Empty if there is no template, or it refuses a row.
    """
    tokenizer = _load(folder)
    if not getattr(tokenizer, "chat_template", None):
        return []
    try:
        texts = [tokenizer.apply_chat_template(to_chat(row.messages), tokenize=False) for row in rows]
    except Exception:  # noqa: BLE001  a template is a program of the model's maker, which may raise anything
        return []
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def quantile(values: Sequence[int], share: float) -> int:
    """Value at a share of sorted values; 0 for none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0


@dataclass(frozen=True)
class Labels:
    """Labels by frequency, and those of the tail, with at most `TAIL` rows."""

    counts: list[tuple[str, int]]

    @property
    def tail(self) -> list[str]:
        """Rare labels."""
        return [label for label, count in self.counts if count <= TAIL]


def count_labels(rows: Sequence[Row]) -> Labels:
    """Count the labels of the answer keys."""
    found: Counter[str] = Counter()
    for target in (target for row in rows for target in row.key):
        if target.type == "label":
            found[target.label] += 1
        elif target.type == "labels":
            found.update(target.labels)
    return Labels(found.most_common())


@dataclass(frozen=True)
class Copies:
    """Rows, among `compared`, that ask the same as an earlier one, exactly or nearly."""

    compared: int
    exact: int
    near: int
    affixes: Affixes


def count_copies(rows: Sequence[Row], limit: float) -> Copies:
    """Count exact and near-copies among the first rows."""
    import numpy as np

    texts = [user_text(row) for row in rows[:COMPARED]]
    affixes = find_affixes(texts)
    bare = [affixes.cut(text) for text in texts]
    index = TextIndex(bare)
    near = 0
    for place, text in enumerate(index.texts):
        found = index.similarities(text)[:place]
        near += any(
            is_copy(float(found[other]), text, index.texts[other], limit) for other in np.flatnonzero(found > limit)
        )
    return Copies(len(texts), len(bare) - len(index.texts), near, affixes)


def count_languages(rows: Sequence[Row]) -> list[tuple[str, int]] | None:
    """Count languages of the users' texts; None if no library for it is installed."""
    if find_spec(LANGUAGES) is None:
        return None
    from importlib import import_module

    library = import_module(LANGUAGES)
    return Counter(library.classify(user_text(row))[0] for row in rows[:COMPARED]).most_common(5)


def detectable(items: int) -> float:
    """Smallest margin that an equally good model passes with `POWER` on so many test items.

    1.0 if there are too few.
    """
    return minimum_detectable(items, FLIPS, ALPHA, POWER) if items > 1 else 1.0


@dataclass(frozen=True)
class Cost:
    """Estimate of asking a teacher once for every training row, in tokens and money."""

    requests: int
    tokens_in: float
    tokens_out: float
    money: float


def teacher_cost(sample: Sample, lengths: Lengths, requests: int, prices: tuple[float, float]) -> Cost:
    """Estimate a teacher's cost.

    requests: one for each training row.  prices: per million tokens in and out.
    Words count as four thirds of a token.  Missing answers count at the task's length limit.
    """
    per_unit = 1.0 if lengths.unit == "tokens" else 4 / 3
    mean_in = sum(lengths.prompt) / max(1, len(lengths.prompt)) * per_unit
    tasks = list(sample.reader.tasks.values())
    limit = max((task.answer_tokens for task in tasks), default=0)
    mean_out = sum(lengths.answer) / len(lengths.answer) * per_unit if lengths.answer else float(limit)
    tokens_in, tokens_out = requests * mean_in, requests * mean_out
    return Cost(requests, tokens_in, tokens_out, (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6)
