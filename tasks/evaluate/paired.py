"""Candidates against a baseline on the same test items: ship only what is shown to be no worse than the margin allows."""

import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.answers import grade
from tasks.evaluate.asking import Plan, ask_once
from tasks.evaluate.comparison import (
    Sitting,
    choose_shipped,
    compare,
    list_flips,
    list_items,
    scores_by_kind,
    scores_of,
)
from tasks.evaluate.perplexity import spread_rows
from tasks.evaluate.runtime import Cost, measure_costs, plan_probe
from tasks.evaluate.statistics import minimum_detectable
from tasks.evaluate.subjects import Subject, open_subject, reference_questions, tuned_questions
from tasks.shared.articles import read_articles
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.models import parameter_count, weight_bytes
from tasks.shared.rows import Row, read_rows
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun
from tasks.shared.verdict import MEASURES, Comparison, Machine, ModelMeasures, TestSplit, Verdict

Share = Annotated[float, Field(gt=0, lt=1)]
log = logging.getLogger(__name__)
BARE = " without article"
"""Added to the reference's name where it has only what its own weights know: the floor that training must beat."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Margin:
    """The loss that is still allowed, per measure, as a difference of accuracies (0.05 is five points)."""

    intent: Share = 0.05
    """Right intent label."""
    fact: Share = 0.05
    """Answer states the article's fact."""
    refusal: Share = 0.05
    """Requests that must be refused are refused."""

    def by_measure(self) -> dict[str, float]:
        """The margins by measure."""
        return {"intent": self.intent, "fact": self.fact, "refusal": self.refusal}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Paired:
    """Paired non-inferiority test of every candidate against the baseline (Schuirmann 1987; McNemar 1947 for the flips).

    A candidate ships if, on each measure, the one-sided lower bound of candidate - baseline lies above -margin.
    Of those that ship, the smallest file is chosen.  A measure without items decides nothing, and the notes say so.
    """

    margin: Margin = Field(default_factory=Margin)
    """Allowed loss per measure."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, per measure, of shipping a candidate whose true loss is exactly the margin."""
    resamples: Annotated[int, Field(ge=100)] = 5000
    """Bootstrap resamples of the items."""
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    """For the minimum detectable loss: chance that an equal candidate is shown to be so."""
    discordance: Share = 0.06
    """For the minimum detectable loss: share of items expected to flip between equally good models, half of them each way."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Test rows to use, spread evenly over the split; 0 takes all."""
    reference_limit: Annotated[int, Field(ge=0)] = 0
    """Of these, rows that the reference is asked, which decides nothing; 0 takes all."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Length limit of an answer, tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts generated together in transformers; log-likelihoods take a quarter of it."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Tokens that prompt and answer may take together in llama.cpp."""
    perplexity_rows: Annotated[int, Field(ge=0)] = 64
    """Test rows whose gold answers perplexity is taken over, the same for every model; 0 takes all."""
    speed_tokens: Annotated[int, Field(ge=2)] = 64
    """Length of a timed answer, tokens."""
    speed_repeats: Annotated[int, Field(ge=1)] = 3
    """Timed answers per model, each in a fresh process."""

    ports: ClassVar[Mapping[str, Port]] = {
        "baseline": Port((Kind.MODEL,)),
        "candidates": Port((Kind.MODEL, Kind.ENGINE), many=True),
        "reference": Port((Kind.MODEL,), optional=True),
        "data": Port((Kind.CORPUS,)),
    }
    produces: ClassVar[Kind] = Kind.VERDICT
    alone: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "tokenizers",
        "auto-round",
        "gguf",
        "lm-eval",
        "xllamacpp",
        "scipy",
        "statsmodels",
        "numpy",
        "compressed-tensors",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Measure and compare; writes verdict.json, items.jsonl and metrics.json.

        Raises DataError if the test split leaks into training, ModelError that names a model which fails.
        """
        subjects = list_subjects(inputs)
        corpus = inputs.one("data").path
        rows = spread_rows(read_test_rows(corpus), self.limit)
        sittings = [self._sit(subject, rows, corpus, run) for subject in subjects]
        costs, notes = self._time(subjects, rows, corpus, run)
        verdict = self._judge(sittings, rows, costs, notes, run.seed)
        items = list_items(rows, sittings)
        (out / "items.jsonl").write_text("".join(item.model_dump_json() + "\n" for item in items), encoding="utf-8")
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
        (out / "metrics.json").write_text(json.dumps(nested_metrics(verdict), indent=1), encoding="utf-8")
        return flat_metrics(verdict)

    def _plan(self, subject: Subject, rows: Sequence[Row], corpus: Path) -> Plan:
        labels = read_labels(corpus, rows)
        if subject.role == "reference":
            articles = read_articles(corpus / "articles.jsonl") if subject.sees_article else {}
            questions, gold = reference_questions(rows, articles, labels), []
        else:
            questions, gold = tuned_questions(rows), spread_rows(rows, self.perplexity_rows)
        return Plan(questions, labels, gold, self.max_new_tokens, self.batch_size, self.context)

    def _sit(self, subject: Subject, test: Sequence[Row], corpus: Path, run: StepRun) -> Sitting:
        rows = spread_rows(test, self.reference_limit if subject.role == "reference" else 0)
        log.info("%s %s: %d test rows in %s", subject.role, subject.name, len(rows), subject.engine)
        reading = ask_once(subject, self._plan(subject, rows, corpus), run.scratch, run.threads, run.device)
        replies = {row.id: reply for row, reply in zip(rows, reading.replies, strict=True)}
        return Sitting(subject, rows, replies, grade(rows, reading.replies), reading.perplexity)

    def _time(
        self, subjects: Sequence[Subject], rows: Sequence[Row], corpus: Path, run: StepRun
    ) -> tuple[Mapping[str, Cost], list[str]]:
        typical = sorted(rows, key=lambda row: sum(len(message.content) for message in row.messages[:-1]))[
            len(rows) // 2
        ]
        probes, notes = [], []
        for subject in subjects:
            probe, note = plan_probe(subject, self._plan(subject, [typical], corpus).questions[0].answer, run.scratch)
            probes.append(probe)
            notes += [note] if note else []
        return measure_costs(probes, self.speed_tokens, self.speed_repeats, run.threads, self.context), notes

    def _judge(
        self,
        sittings: Sequence[Sitting],
        rows: Sequence[Row],
        costs: Mapping[str, Cost],
        notes: Sequence[str],
        seed: int,
    ) -> Verdict:
        baseline = next(sitting for sitting in sittings if sitting.subject.role == "baseline")
        candidates = [sitting for sitting in sittings if sitting.subject.role == "candidate"]
        references = [sitting.subject.name for sitting in sittings if sitting.subject.role == "reference"]
        margin = self.margin.by_measure()
        comparisons: dict[str, Comparison] = {
            sitting.subject.name: compare(baseline.marks, sitting.marks, margin, self.alpha, self.resamples, seed)
            for sitting in candidates
        }
        models = {sitting.subject.name: describe(sitting, costs[sitting.subject.name]) for sitting in sittings}
        shipped = choose_shipped(comparisons, {name: models[name].size_bytes for name in comparisons})
        counts = {measure: len(baseline.marks.get(measure, {})) for measure in MEASURES}
        detectable = {
            measure: minimum_detectable(n, self.discordance, self.alpha, self.power)
            for measure, n in counts.items()
            if n
        }
        return Verdict(
            baseline=baseline.subject.name, reference=next(iter(references), None),
            decision="ship" if shipped else "do not ship", shipped=shipped, margin=margin, alpha=self.alpha,
            test=TestSplit(items=len(rows), minimum_detectable=detectable, **counts), models=models, comparisons=comparisons,
            flips=list_flips(rows, baseline, candidates), machine=describe_machine(),
            versions={name: version(name) for name in self.libraries},
            notes=[*power_notes(counts, detectable, margin, self.power), *general_notes([sitting.subject for sitting in sittings]), *notes],
        )  # fmt: skip


def list_subjects(inputs: Inputs) -> list[Subject]:
    """Baseline, candidates, reference with and without the article.  Raises ConfigError for no candidate or a name that stands twice."""
    candidates = inputs.many("candidates")
    if not candidates:
        raise ConfigError("inputs.candidates", "empty", "at least one model to compare with the baseline")
    subjects = [
        open_subject(inputs.one("baseline"), "baseline"),
        *(open_subject(artifact, "candidate") for artifact in candidates),
    ]
    reference = inputs.get("reference")
    if reference:
        bare = open_subject(reference, "reference")
        subjects += [replace(bare, sees_article=True), replace(bare, name=f"{bare.name}{BARE}")]
    names = [subject.name for subject in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            "inputs", f"{', '.join(twice)} stands twice among baseline, candidates and reference", "every model once"
        )
    return subjects


def read_test_rows(corpus: Path) -> list[Row]:
    """The test split.  Raises DataError for an id that stands twice, or a row whose id or phrasing group is in another split."""
    rows = read_rows(corpus / "test.jsonl")
    ids = [row.id for row in rows]
    twice = sorted({key for key in ids if ids.count(key) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError(
            str(corpus / "test.jsonl"), f"{len(twice)} ids stand twice: {', '.join(twice[:5])}", "every id once"
        )
    for split in ("train", "calibration"):
        file = corpus / f"{split}.jsonl"
        if split == "calibration" and not file.is_file():
            continue
        known = {key for row in read_rows(file) for key in (("id", row.id), ("group", row.group))}
        leaks = [row.id for row in rows if ("id", row.id) in known or ("group", row.group) in known]
        if leaks:
            raise DataError(
                str(corpus / "test.jsonl"), f"{len(leaks)} rows share their id or phrasing group with {split}.jsonl: {', '.join(leaks[:5])}",
                "a test split that nothing was trained on", "make the corpus again, split by phrasing group",
            )  # fmt: skip
    return rows


def read_labels(corpus: Path, rows: Sequence[Row]) -> list[str]:
    """The intents to choose from: those of card.json and of the rows, sorted."""
    card = corpus / "card.json"
    listed = json.loads(card.read_text(encoding="utf-8")).get("intents", []) if card.is_file() else []
    return sorted({*map(str, listed), *(row.intent for row in rows)})


def describe(sitting: Sitting, cost: Cost) -> ModelMeasures:
    """One model's part of the verdict."""
    subject = sitting.subject
    return ModelMeasures(
        role=subject.role, kind=subject.kind, format=subject.format, engine=subject.engine,
        parameters=parameter_count(subject.weights), size_bytes=weight_bytes(subject.weights), peak_memory_bytes=cost.peak_bytes,
        time_to_first_token_s=cost.first_token, tokens_per_second=cost.speed, speed_engine=cost.engine,
        perplexity=sitting.perplexity, scores=scores_of(sitting.marks), by_kind=scores_by_kind(sitting.rows, sitting.marks),
    )  # fmt: skip


def describe_machine() -> Machine:
    """The computer at hand."""
    import psutil

    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return Machine(
        cpu=names[0] if names else platform.processor() or platform.machine(), cores=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total), platform=platform.platform(),
    )  # fmt: skip


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def power_notes(
    counts: Mapping[str, int], detectable: Mapping[str, float], margin: Mapping[str, float], power: float
) -> list[str]:
    """Measures that this test split is too small to decide."""
    notes = [f"{measure}: no items in the test split; it decides nothing." for measure, n in counts.items() if not n]
    for measure, smallest in detectable.items():
        if smallest > margin[measure]:
            notes.append(
                f"{measure}: {counts[measure]} items are too few for a margin of {margin[measure]:.3g}; "
                f"an equal candidate would pass with {power:.0%} chance only from a margin of {smallest:.3g}."
            )
    return notes


def general_notes(subjects: Sequence[Subject]) -> list[str]:
    """How measures were taken, where that differs between models."""
    notes = []
    if any(subject.engine == "llama.cpp" for subject in subjects):
        notes.append(
            "Intent: log-likelihood of every label in transformers (lm-evaluation-harness); the likeliest label's token in llama.cpp. "
            "Perplexity in llama.cpp: each gold token forced in turn and its log-probability read."
        )
    notes += [
        f"{subject.name} is asked {'with' if subject.sees_article else 'without'} the article in the prompt and without the label protocol; "
        "its intent is chosen from a list in the prompt."
        for subject in subjects
        if subject.role == "reference"
    ]
    return notes


def nested_metrics(verdict: Verdict) -> dict[str, dict[str, float]]:
    """Figures by model, for metrics.json."""
    found: dict[str, dict[str, float]] = {}
    for name, model in verdict.models.items():
        figures: dict[str, float] = {measure: value.value for measure, value in model.scores.items()}
        figures["size_bytes"] = model.size_bytes
        if model.perplexity is not None:
            figures["perplexity"] = model.perplexity
        if model.tokens_per_second is not None:
            figures["tokens_per_second"] = model.tokens_per_second.median
        found[name] = figures
    return found


def flat_metrics(verdict: Verdict) -> Metrics:
    """Figures for the tables: the decision, and each model's scores, size and speed."""
    flat: Metrics = {"decision": verdict.decision, "shipped": verdict.shipped or "none", "items": verdict.test.items}
    for name, figures in nested_metrics(verdict).items():
        flat |= {f"{name}.{key}": value for key, value in figures.items()}
    return flat
