"""Judgments of an LLM judge as scores, figures and metrics."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from tasks.evaluate.grading.groups import once_per_group
from tasks.evaluate.grading.preference import Judgment, agreement, first_position_share
from tasks.shared.engines.sample_store import Sample
from tasks.shared.formats.records import Figure
from tasks.shared.formats.scores import ItemScore, Measure
from tasks.shared.technique import Metrics

JUDGED = "judged"
MEASURE = Measure(title="preference of the judge over the baseline", binary=False, against_baseline=True)
REFUSED = "refused"
"""Finish reason of a request that the endpoint refused permanently."""
Judgments = Mapping[str, Mapping[str, Judgment]]
"""By model name, then by item id."""


def make_items(items: Sequence[ItemScore], baseline: str, found: Judgments) -> Iterator[ItemScore]:
    """Yield one item per question, with the compared answers."""
    weights = once_per_group({item.id: item.cluster for item in items})
    for item in items:
        values = {baseline: 0.5} | {name: judged[item.id].value for name, judged in found.items() if item.id in judged}
        yield ItemScore(
            measure=JUDGED, id=item.id, cluster=item.cluster, weight=weights[item.id], tags=item.tags, question=item.question, wanted=item.wanted,
            values=values, answers={name: item.answers[name] for name in values},
        )  # fmt: skip


def figures_of(judgments: Sequence[Judgment]) -> dict[str, Figure]:
    """Return the judge's reliability on one model's answers: agreement and position bias."""
    agree, first = agreement(judgments), first_position_share(judgments)
    figures = {} if agree is None else {"judge_agreement": Figure(value=agree, unit="share", better="higher")}
    if unread := sum("unreadable" in judgment.opinions for judgment in judgments):
        figures["judge_unreadable"] = Figure(value=unread, unit="pairs", better="lower")
    return figures | ({} if first is None else {"judge_prefers_first": Figure(value=first, unit="share")})


def flat_metrics(items: Sequence[ItemScore], found: Judgments, samples: Sequence[Sample]) -> Metrics:
    """Return table figures: preference and agreement by model, number of requests, tokens."""
    figures: Metrics = {"items": len(items), "requests": len(samples)}
    weights = once_per_group({item.id: item.cluster for item in items})
    for name, judged in found.items():
        values, shares = [one.value for one in judged.values()], [weights[key] for key in judged]
        figures |= {f"{name}.{JUDGED}": round(fmean(values, shares), 4)} if values else {}
        agree = agreement(list(judged.values()))
        figures |= {} if agree is None else {f"{name}.agreement": round(agree, 4)}
    if refused := sum(sample.finish_reason == REFUSED for sample in samples):
        figures["refused"] = refused
    figures["prompt_tokens"] = sum(sample.prompt_tokens for sample in samples)
    figures["completion_tokens"] = sum(sample.completion_tokens for sample in samples)
    return figures
