"""Answers to the test split: the right label, the article's fact, refusals, form, loops, and nearness to the gold answer."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.answers import MEASURES, Name, Reply, counts_for, cut_notes, shown, value_of, wanted
from tasks.evaluate.grading.eval_rows import last_question, read_labels, read_test_rows, tag_rows
from tasks.evaluate.models_under_test.answering import Plan, Reading, ask, template_notes
from tasks.evaluate.models_under_test.forecast import ANSWERED_TOKENS, forecast_asking
from tasks.evaluate.models_under_test.isolated_runs import ask_each, make_sheet, other_batch
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    list_models,
    reference_questions,
    tuned_questions,
)
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.articles import read_articles
from tasks.shared.formats.rows import Row, read_rows, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

log = logging.getLogger(__name__)
Replies = Mapping[str, Mapping[str, Reply]]
"""By model, then by row id."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Generation:
    """One greedy answer and one choice of label per test row and model.

    Every model is asked in its own chat template and with its own tokenizer; one without a template is asked in ChatML if it knows
    that markup, which the notes say, and fails otherwise.  A reference is asked without the label line, so `format` skips it.
    Reasoning before an answer (<think> ... </think>) is taken off before anything is graded; the label is chosen after it.
    Facts, refusals and loops are found by rules (tasks/shared/text/chat.py, tasks/shared/text/repetition.py); refusals in English only.
    """

    measures: Annotated[tuple[Name, ...], Field(min_length=1)] = tuple(MEASURES)
    """Which to take: intent, fact, refusal, over_refusal, format, loop, exact (match with the gold answer), rouge_l."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Test rows to use, spread evenly over the split; 0 takes all."""
    reference_limit: Annotated[int, Field(ge=0)] = 0
    """Of these, rows that the reference is asked, which decides nothing; 0 takes all."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Length limit of an answer, tokens; of a model that reasons first (`distill/cot`), its reasoning included."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts generated together in transformers; log-likelihoods take a quarter of it."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Tokens that prompt and answer may take together in llama.cpp."""
    again: Annotated[int, Field(ge=0)] = 0
    """Times to ask the baseline once more, in other batches (llama.cpp: in the other order): the noise of asking."""

    spec: ClassVar[Spec] = Spec(
        summary="One answer and one label per test row: intent, fact, refusal, over-refusal, format, loops, exact match, ROUGE-L",
        ports={
            **MODEL_PORTS,
            "reference": Port((Kind.MODEL,), optional=True, wire="reader"),
            "data": Port((Kind.CORPUS,)),
        },
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "compressed-tensors", "gguf", "lm-eval", "xllamacpp", "numpy", "rouge-score"),
        device="accelerator",
    )  # fmt: skip

    def forecast(self, work: Workload) -> Forecast:
        """One prompt and one answer per test row and model."""
        return forecast_asking(work, work.test_rows(self.limit) * ANSWERED_TOKENS)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Ask every model; writes scores.json and items.jsonl.

        Raises DataError if the test split is empty or leaks into training, ModelError if the baseline cannot be asked.
        """
        subjects = list_models(inputs, self.again, bare_reference=True)
        corpus = inputs.one("data").path
        test = read_test_rows(corpus)
        rows, tags = spread(test, self.limit), tag_rows(test, read_rows(corpus / "train.jsonl"))
        labels = read_labels(corpus, rows)
        plans = {
            subject.name: self._plan(subject, self._rows_for(subject, rows), labels, corpus) for subject in subjects
        }
        readings = ask_each(subjects, plans, ask, Reading, run)
        replies = {
            subject.name: {
                row.id: reply for row, reply in zip(self._rows_for(subject, rows), reading.replies, strict=True)
            }
            for subject in subjects
            if not isinstance(reading := readings[subject.name], Failure)
        }
        items = list(self._items(rows, tags, replies, labels))
        taken = {item.measure for item in items}
        measures: dict[str, Measure] = {name: measure for name, measure in MEASURES.items() if name in self.measures}
        notes = [*self._notes(subjects, taken), *repeat_notes(subjects, plans), *template_notes(subjects)]
        notes += cut_notes({name: list(told.values()) for name, told in replies.items()}, self.max_new_tokens)
        write_scores(out, make_sheet(subjects, readings, measures, run, self.spec.libraries, notes), items)
        return {"items": len(rows), **mean_values(items, subjects)}

    def _rows_for(self, subject: ModelUnderTest, rows: Sequence[Row]) -> list[Row]:
        return spread(rows, self.reference_limit if subject.role == "reference" else 0)

    def _plan(self, subject: ModelUnderTest, rows: Sequence[Row], labels: Sequence[str], corpus: Path) -> Plan:
        own = subject.role != "reference"
        articles = read_articles(corpus / "articles.jsonl") if subject.sees_article else {}
        questions = tuned_questions(rows) if own else reference_questions(rows, articles, labels)
        return Plan(
            questions, labels if "intent" in self.measures else [], own, self.max_new_tokens if set(self.measures) - {"intent"} else 0,
            other_batch(self.batch_size, subject.again, len(rows)), self.context, backwards=bool(subject.again % 2),
        )  # fmt: skip

    def _items(
        self, rows: Sequence[Row], tags: Mapping[str, dict[str, str]], replies: Replies, labels: Sequence[str]
    ) -> Iterator[ItemScore]:
        for measure in MEASURES:
            for row in rows if measure in self.measures else ():
                if not counts_for(row, measure):
                    continue
                told = {name: found[row.id] for name, found in replies.items() if row.id in found}
                values = {name: value_of(row, reply, measure, labels) for name, reply in told.items()}
                known = {name: value for name, value in values.items() if value is not None}
                yield ItemScore(
                    measure=measure, id=row.id, cluster=row.group, tags=tags[row.id], question=last_question(row), wanted=wanted(row, measure),
                    values=known, answers={name: shown(told[name], measure) for name in known},
                )  # fmt: skip

    def _notes(self, subjects: Sequence[ModelUnderTest], taken: set[str]) -> list[str]:
        notes = [
            f"{name}: no items in the test split." for name in MEASURES if name in self.measures and name not in taken
        ]
        if "intent" in taken and any(subject.engine == "llama.cpp" for subject in subjects):
            notes.append(
                "Intent: log-likelihood of every label in transformers (lm-evaluation-harness); the likeliest label's token in llama.cpp."
            )
        notes += [
            f"{subject.name} is asked {'with' if subject.sees_article else 'without'} the article in the prompt and without the label "
            "protocol; its intent is chosen from a list in the prompt."
            for subject in subjects
            if subject.role == "reference"
        ]
        return notes


def repeat_notes(subjects: Sequence[ModelUnderTest], plans: Mapping[str, Plan]) -> list[str]:
    """How the baseline was asked otherwise the next time."""
    notes = []
    for subject in subjects:
        if subject.again:
            size, before = plans[subject.name].batch_size, plans[subjects[0].name].batch_size
            order = "reverse" if plans[subject.name].backwards else "the same"
            how = (
                f"in batches of {size} instead of {before}" if subject.engine == "transformers" else f"in {order} order"
            )
            notes.append(f"{subject.name}: the baseline, asked {how}; what differs is noise.")
    return notes
