"""Tokens, cost and acceptance of the teacher's answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.shared.engines.sample_store import Sample
from tasks.shared.formats.rows import Row
from tasks.traces.budget import MILLION, Prices
from tasks.traces.filter import ACCEPTED

Judged = Mapping[str, Sequence[Sample]]
"""The judged samples of each prompt sent, by row id."""


def paid(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that were paid: equal prompts share an answer, refusals cost nothing."""
    return list({sample.digest: sample for sample in samples if sample.digest}.values())


def usage(samples: Sequence[Sample], prices: Prices, complete: bool = True) -> dict[str, Any]:
    """Tokens, requests and cost of the samples.

    They do not depend on how often the run was interrupted.  A sample without reported tokens counts under `without_usage`.
    complete: False if the budget ended before all prompts were asked.
    """
    samples = paid(samples)
    prompt, answer = (
        sum(sample.prompt_tokens for sample in samples),
        sum(sample.completion_tokens for sample in samples),
    )
    return {
        "complete": complete,
        "requests": len(samples),
        "without_usage": sum(not sample.prompt_tokens for sample in samples),
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "cost": round((prompt * prices.input + answer * prices.output) / MILLION, 6),
    }


def effort(samples: Sequence[Sample], fresh: Sequence[Sample], seconds: float) -> dict[str, float]:
    """Retries, seconds and speed of the answers: metrics only, as they differ from run to run.

    fresh: the samples that this run requested, in `seconds`; the others were kept by earlier runs.
    """
    samples = paid(samples)
    requested = {sample.digest for sample in fresh}
    return {
        "retries": sum(sample.attempts - 1 for sample in samples),
        "reused": sum(sample.digest not in requested for sample in samples),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(sample.completion_tokens for sample in fresh) / seconds, 1) if seconds else 0.0,
    }


def is_accepted(tried: Sequence[Sample]) -> bool:
    """Return True if one of a prompt's samples was accepted."""
    return any(sample.rejection == ACCEPTED for sample in tried)


def card(rows: Sequence[Row], kept: Sequence[Row], judged: Judged, deciders: Mapping[str, str]) -> dict[str, Any]:
    """Counts of the traces, for card.json.

    rows: the corpus.  kept: the rows written.  deciders: what decided about each row's samples, by row id.
    `acceptance` is the fraction of the prompts sent with an accepted answer, in total and per kind of row.
    """
    sent: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    deciding: Counter[str] = Counter()
    for row in rows:
        tried = judged.get(row.id, ())
        kind = row.tags.get("kind", row.task)
        sent[kind] += bool(tried)
        accepted[kind] += is_accepted(tried)
        deciding[deciders.get(row.id, "")] += is_accepted(tried)
        dropped.update(sample.rejection for sample in tried if sample.rejection != ACCEPTED)
    rates = {kind: round(accepted[kind] / count, 4) for kind, count in sorted(sent.items()) if count}
    total = round(accepted.total() / sent.total(), 4) if sent.total() else 0.0
    return {
        "rows": len(kept),
        "teacher": sum(row.origin == "teacher" for row in kept),
        "gold": sum(row.origin == "gold" for row in kept),
        "with_reasoning": sum(bool(row.reasoning) for row in kept),
        "accepted_with_hint": sum(
            sample.hinted and sample.rejection == ACCEPTED for tried in judged.values() for sample in tried
        ),
        "accepted_by": {name: count for name, count in sorted(deciding.items()) if count},
        "prompts_asked": sent.total(),
        "prompts_without_accepted_answer": sent.total() - accepted.total(),
        "rows_left_out": len(rows) - len(kept),
        "acceptance": {"all": total, **rates},
        "samples_dropped": dict(dropped.most_common()),
        "parameters_not_taken": sorted(
            {name for tried in judged.values() for sample in tried for name in sample.dropped}
        ),
    }
