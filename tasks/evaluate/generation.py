"""Graded answers on the test split: intent, fact, refusal, format, loops, ROUGE-L."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.answers import (
    MEASURES,
    MeasureName,
    Reply,
    applies_to,
    expected_text,
    grade_reply,
    reply_text,
    truncation_notes,
)
from tasks.evaluate.grading.eval_rows import last_question, read_labels, read_test_rows, tag_rows
from tasks.evaluate.models_under_test.answering import (
    GenerationPlan,
    Predictions,
    generate_replies,
    label_notes,
    template_notes,
)
from tasks.evaluate.models_under_test.forecast import ANSWERED_TOKENS, forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each, make_summary, repeat_batch_size
from tasks.evaluate.models_under_test.label_choice import LabelMethod
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    list_models,
    reference_prompts,
    tuned_prompts,
)
from tasks.shared.engines.registry import Needs
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
    """One greedy answer and one label choice per test row and model.

    Every model uses its own chat template and tokenizer; one without a template is prompted in ChatML if its vocabulary has that markup
    (the notes say so), and fails otherwise.  A reference is prompted without the label line, so `format` skips it.
    Reasoning before an answer (<think> ... </think>) is removed before grading; the label is chosen after it.
    Facts, refusals and loops are found by rules (tasks/shared/text/answer_format.py, tasks/shared/text/repetition.py); refusals in English only.
    """

    measures: Annotated[tuple[MeasureName, ...], Field(min_length=1)] = tuple(MEASURES)
    """Measures to take: intent, fact, refusal, over_refusal, format, loop, exact (match with the gold answer), rouge_l."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Test rows to use, spread evenly over the split; 0 takes all."""
    reference_limit: Annotated[int, Field(ge=0)] = 0
    """Of these, rows for the reference, which decides nothing; 0 takes all."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Length limit of an answer, tokens; of a model that reasons first (`distill/cot`), its reasoning included."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the model's own end of turn; they are not part of it."""
    label: LabelMethod = "likeliest"
    """Source of the label for `intent`.  likeliest: the label with the highest log-likelihood where the answer would begin, for one more
    pass over the prompts.  written: the label line of the answer; a reference, which writes none, is still scored."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts generated together in transformers; log-likelihoods take a quarter of it."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Tokens that prompt and answer may take together in llama.cpp."""
    again: Annotated[int, Field(ge=0)] = 0
    """Times to evaluate the baseline again, in other batch sizes (llama.cpp: in reverse order), for the noise floor."""

    spec: ClassVar[Spec] = Spec(
        summary="One answer and one label per test row: intent, fact, refusal, over-refusal, format, loops, exact match, ROUGE-L",
        ports={
            **MODEL_PORTS,
            "reference": Port((Kind.MODEL,), optional=True, wire="reader"),
            "data": Port((Kind.CORPUS,)),
        },
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "compressed-tensors", "gguf", "xllamacpp", "numpy", "rouge-score"),
        device="accelerator",
    )  # fmt: skip

    def engine_needs(self) -> Needs:
        """Engines that compute with the weights as stored.

        They must choose labels where `intent` is measured by likelihood.
        """
        chooses = "intent" in self.measures and self.label == "likeliest"
        return Needs((*(("labels",) if chooses else ()), *(("stop",) if self.stop else ())), dequantized=False)

    def forecast(self, work: Workload) -> Forecast:
        """One prompt and one answer per test row and model."""
        return forecast_evaluation(work, work.test_rows(self.limit) * ANSWERED_TOKENS)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Evaluate every model; write scores.json and items.jsonl.

        Raises DataError if the test split is empty or leaks into training, ModelError if the baseline fails.
        """
        models = list_models(inputs, self.again, closed_book_reference=True)
        corpus = inputs.one("data").path
        test = read_test_rows(corpus)
        rows, tags = spread(test, self.limit), tag_rows(test, read_rows(corpus / "train.jsonl"))
        labels = read_labels(corpus, rows)
        plans = {model.name: self._plan(model, self._rows_for(model, rows), labels, corpus) for model in models}
        results = evaluate_each(models, plans, generate_replies, Predictions, run)
        replies = {
            model.name: {row.id: reply for row, reply in zip(self._rows_for(model, rows), result.replies, strict=True)}
            for model in models
            if not isinstance(result := results[model.name], Failure)
        }
        items = list(self._items(rows, tags, replies, labels))
        taken = {item.measure for item in items}
        measures: dict[str, Measure] = {name: measure for name, measure in MEASURES.items() if name in self.measures}
        notes = [*self._notes(models, taken), *repeat_notes(models, plans), *template_notes(models)]
        notes += label_notes({name: found for name, found in results.items() if not isinstance(found, Failure)})
        notes += truncation_notes({name: list(found.values()) for name, found in replies.items()}, self.max_new_tokens)
        write_scores(out, make_summary(models, results, measures, run, self.spec.libraries, notes), items)
        return {"items": len(rows), **mean_values(items, models)}

    def _rows_for(self, model: ModelUnderTest, rows: Sequence[Row]) -> list[Row]:
        return spread(rows, self.reference_limit if model.role == "reference" else 0)

    def _plan(self, model: ModelUnderTest, rows: Sequence[Row], labels: Sequence[str], corpus: Path) -> GenerationPlan:
        tuned = model.role != "reference"
        articles = read_articles(corpus / "articles.jsonl") if model.sees_article else {}
        prompts = tuned_prompts(rows) if tuned else reference_prompts(rows, articles, labels)
        answered = bool(set(self.measures) - {"intent"}) or self.label == "written"
        return GenerationPlan(
            prompts, labels if "intent" in self.measures else [], tuned, self.max_new_tokens if answered else 0,
            repeat_batch_size(self.batch_size, model.repetition, len(rows)), self.context, reversed_order=bool(model.repetition % 2),
            stop=self.stop, choice=self.label if tuned else "likeliest",
        )  # fmt: skip

    def _items(
        self, rows: Sequence[Row], tags: Mapping[str, dict[str, str]], replies: Replies, labels: Sequence[str]
    ) -> Iterator[ItemScore]:
        for measure in MEASURES:
            for row in rows if measure in self.measures else ():
                if not applies_to(row, measure):
                    continue
                own = {name: found[row.id] for name, found in replies.items() if row.id in found}
                values = {name: grade_reply(row, reply, measure, labels) for name, reply in own.items()}
                known = {name: value for name, value in values.items() if value is not None}
                yield ItemScore(
                    measure=measure, id=row.id, cluster=row.group, tags=tags[row.id], question=last_question(row), wanted=expected_text(row, measure),
                    values=known, answers={name: reply_text(own[name], measure) for name in known},
                )  # fmt: skip

    def _notes(self, models: Sequence[ModelUnderTest], taken: set[str]) -> list[str]:
        notes = [
            f"{name}: no items in the test split." for name in MEASURES if name in self.measures and name not in taken
        ]
        if "intent" in taken and any(model.engine == "llama.cpp" for model in models):
            notes.append(
                "Intent: log-likelihood of every label in transformers (lm-evaluation-harness); the most likely label's token in llama.cpp."
            )
        notes += [
            f"{model.name} is prompted {'with' if model.sees_article else 'without'} the article and without the label "
            "protocol; it chooses the intent from a list in the prompt."
            for model in models
            if model.role == "reference"
        ]
        return notes


def repeat_notes(models: Sequence[ModelUnderTest], plans: Mapping[str, GenerationPlan]) -> list[str]:
    """Return notes on how each repetition of the baseline was run differently."""
    notes = []
    for model in models:
        if model.repetition:
            size, before = plans[model.name].batch_size, plans[models[0].name].batch_size
            order = "reverse" if plans[model.name].reversed_order else "the same"
            how = f"in batches of {size} instead of {before}" if model.engine == "transformers" else f"in {order} order"
            notes.append(f"{model.name}: the baseline, evaluated {how}; all differences are noise.")
    return notes
