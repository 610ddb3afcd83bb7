"""Tokens, cost and acceptance of the teacher's answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.shared.engines.sample_store import Sample
from tasks.shared.formats.rows import Row
from tasks.traces.filter import ACCEPTED

MILLION = 1_000_000


def usage(samples: Sequence[Sample], price_in: float, price_out: float) -> dict[str, Any]:
    """Tokens, requests and cost of the samples.

    They do not depend on how often the run was interrupted.
    price_in, price_out: per million tokens.  A sample without reported tokens counts under `without_usage`.
    """
    prompt, answer = (
        sum(sample.prompt_tokens for sample in samples),
        sum(sample.completion_tokens for sample in samples),
    )
    return {
        "requests": len(samples),
        "without_usage": sum(not sample.prompt_tokens for sample in samples),
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "cost": round((prompt * price_in + answer * price_out) / MILLION, 6),
    }


def effort(samples: Sequence[Sample], fresh: Sequence[Sample], seconds: float) -> dict[str, float]:
    """Retries, seconds and speed of the answers: metrics only, as they differ from run to run.

    fresh: the samples that this run requested, in `seconds`; the others are from a run that was killed.
    """
    requested = {(sample.row, sample.sample, sample.digest) for sample in fresh}
    return {
        "retries": sum(sample.attempts - 1 for sample in samples),
        "reused": sum((sample.row, sample.sample, sample.digest) not in requested for sample in samples),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(sample.completion_tokens for sample in fresh) / seconds, 1) if seconds else 0.0,
    }


def card(rows: Sequence[Row], kept: Sequence[Row], judged: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Counts of the traces, for card.json.

    rows: the corpus.  kept: the rows written.  judged: the judged samples of each prompt sent, by row id.
    `acceptance` is the fraction of the prompts sent with an accepted answer, in total and per kind of row.
    """
    sent: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for row in rows:
        tried = judged.get(row.id, ())
        sent[row.tags.get("kind", row.task)] += bool(tried)
        accepted[row.tags.get("kind", row.task)] += any(sample.rejection == ACCEPTED for sample in tried)
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
        "prompts_asked": sent.total(),
        "prompts_without_accepted_answer": sent.total() - accepted.total(),
        "rows_left_out": len(rows) - len(kept),
        "acceptance": {"all": total, **rates},
        "samples_dropped": dict(dropped.most_common()),
    }
