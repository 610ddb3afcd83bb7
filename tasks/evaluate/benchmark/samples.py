"""Harness samples as items, each with values, answers, tags and the full sample."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluate.benchmark.benchmarks import tag_value

SHOWN = 400
"""Characters of a question or answer kept with its score; the samples have the full text."""


@dataclass(frozen=True)
class HarnessItem:
    """One item of a task.

    values: numeric values by metric.  answers: by metric; "" for all others.  fingerprint: of the item, equal for every model.
    sample: as logged by the harness, with the arguments merged.
    """

    id: str
    question: str
    wanted: str
    values: dict[str, float]
    answers: dict[str, str]
    tags: dict[str, str]
    fingerprint: str
    sample: dict[str, Any]


def read_samples(
    task: Any, samples: Sequence[Mapping[str, Any]], tags: Sequence[str], part: str
) -> Iterator[HarnessItem]:
    """Yield the items of a task.

    A task with several filters has one sample per filter; metrics of all but the first are named "metric,filter".
    part: name of the task within a group; empty for a single task.
    """
    first = samples[0]["filter"] if samples else ""
    values: dict[int, dict[str, float]] = {}
    for sample in samples:
        suffix = "" if sample["filter"] == first else f",{sample['filter']}"
        for metric in sample["metrics"]:
            if isinstance(value := _plain(sample[metric]), int | float):
                values.setdefault(sample["doc_id"], {})[metric + suffix] = float(value)
    for sample in samples:
        if sample["filter"] == first:
            doc, compact = sample["doc"], _compact(sample)
            identity = str(doc["id"] if _is_ours(doc) else sample["doc_id"])
            choices = [str(one) for one in task.doc_to_choice(doc)] if task.config.doc_to_choice is not None else []
            yield HarnessItem(
                id=f"{part}/{identity}" if part else identity, question=_question(doc, compact, choices), wanted=_wanted(compact["target"], choices),
                values=values.get(sample["doc_id"], {}), answers=_answers(compact, choices),
                tags=_tags(doc, tags) | ({"task": tag_value(part)} if part else {}), fingerprint=sample["doc_hash"], sample=compact,
            )  # fmt: skip


def _is_ours(doc: Mapping[str, Any]) -> bool:
    return isinstance(doc.get("tags"), dict)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _compact(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Logged sample as plain JSON, with a prompt shared by several requests stored once."""
    from lm_eval.utils import handle_non_serializable

    compact = {name: value for name, value in sample.items() if name != "arguments"}
    arguments = sample["arguments"]
    contexts = {request[0] for request in arguments}
    if len(contexts) == 1 and all(len(request) == 2 for request in arguments):
        compact |= {"context": arguments[0][0], "continuations": [request[1] for request in arguments]}
    else:
        compact["arguments"] = arguments
    plain: dict[str, Any] = json.loads(json.dumps(compact, default=handle_non_serializable))
    return plain


def _question(doc: Mapping[str, Any], sample: Mapping[str, Any], choices: Sequence[str]) -> str:
    """Question of our own items; else the end of the prompt, or the choices without a prompt."""
    own = next((doc[name] for name in ("question", "prompt", "context") if doc.get(name)), "") if _is_ours(doc) else ""
    context = str(sample.get("context") or "").strip()
    return str(own)[:SHOWN] or context[-SHOWN:] or " / ".join(choices)[:SHOWN]


def _wanted(target: Any, choices: Sequence[str]) -> str:
    targets = target if isinstance(target, list) else [target]
    names = [choices[one] if isinstance(one, int) and one < len(choices) else str(one) for one in targets]
    return " / ".join(names)[:SHOWN]


def _answers(sample: Mapping[str, Any], choices: Sequence[str]) -> dict[str, str]:
    """Model output by metric: its choice, or its text.

    acc_norm compares log-likelihoods per character, all other metrics total log-likelihoods.
    """
    responses = sample["filtered_resps"]
    if not choices:
        response = responses[0]
        is_likelihood = isinstance(response, list) and len(response) == 2
        return {"": str(response)[:SHOWN] if not is_likelihood else "as wanted" if response[1] else "otherwise"}
    scores = [float(response[0]) for response in responses[: len(choices)]]
    by_length = [score / max(1, len(choice)) for score, choice in zip(scores, choices, strict=True)]
    return {name: choices[found.index(max(found))][:SHOWN] for name, found in (("", scores), ("acc_norm", by_length))}


def _tags(doc: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Tags of our own items; else the named fields that hold a word or a number."""
    words = {name: doc[name] for name in names if isinstance(doc.get(name), str | int)}
    found = doc["tags"] if _is_ours(doc) else words
    return {str(name).lower(): tag_value(str(value)) for name, value in found.items() if value is not None}


def log_likelihoods(responses: Any) -> Iterator[float]:
    """Yield the log-likelihoods in a sample's responses."""
    if isinstance(responses, list):
        for response in responses:
            yield from log_likelihoods(response)
    elif isinstance(responses, float):
        yield responses


def count_truncated(lm: Any, items: Sequence[HarnessItem]) -> int:
    """Return how many items were truncated to the model's context.

    A token is at least one byte, so short texts need no tokenization.
    """
    count = 0
    for item in items:
        context = str(item.sample.get("context", ""))
        parts = item.sample.get("continuations") or [""]
        written = int(parts[0].get("max_gen_toks", lm.max_gen_toks)) if isinstance(parts[0], dict) else -1
        room = lm.max_length - written
        longest = context + max((part for part in parts if isinstance(part, str)), key=len, default="")
        count += len(longest.encode()) > room and len(lm.tok_encode(longest)) > room
    return count
