"""Next-token divergence from the baseline on task text: KL divergence, top-token agreement."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.eval_rows import last_question, read_test_split
from tasks.evaluate.likelihood.documents import answered_rows, count_answers, unanswered_note
from tasks.evaluate.likelihood.logits import dequantized_notes, in_transformers
from tasks.evaluate.likelihood.next_token_divergence import (
    AnswerPlan,
    DivergencePlan,
    Divergences,
    ReferenceAnswers,
    choose_answers,
    measure_divergence,
)
from tasks.evaluate.models_under_test.forecast import forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each, make_summary
from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, ModelUnderTest, Prompt, list_models
from tasks.evaluate.verdict.intervals import weighted_mean
from tasks.shared.engines.registry import Needs
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.rows import Row, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.items import Items, ItemSources
from tasks.shared.model.loading import Dtype
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

MEASURES = {
    "kl": Measure(
        title="KL divergence from the baseline",
        unit="nats per token",
        better="lower",
        binary=False,
        against_baseline=True,
    ),
    "same_top": Measure(title="same top token as the baseline", binary=False, against_baseline=True),
}
ITSELF = {"kl": 0.0, "same_top": 1.0}
"""The baseline's own values, by definition."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Divergence:
    """KL(baseline || model) over the whole vocabulary, in float32, at every answer token.

    The answer's end counts as one more position.  Detects changes that accuracy does not show yet (Dutta et al. 2024, arXiv
    2407.09141).  Each model is loaded together with the baseline, so that no distribution is truncated or stored; this takes the memory
    of both.
    """

    text: Literal["gold", "baseline"] = "gold"
    """Answers to compare on: the test split's, or the baseline's own greedy answers."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Length limit of the baseline's own answers, tokens; 0 takes the largest of the rows' tasks.  Gold answers are used in full."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Test rows to use, spread evenly over the split; 0 takes all."""
    dtype: Dtype = "float32"
    """Data type of the computation; bfloat16 halves the memory, but its rounding alone causes some KL."""

    spec: ClassVar[Spec] = Spec(
        summary="KL divergence and same top token against the baseline, on task text",
        ports={**MODEL_PORTS, "data": Port((Kind.CORPUS,))},
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors", "gguf"),
        device="accelerator",
        paper="Dutta et al. 2024, arXiv 2407.09141",
    )

    def engine_needs(self) -> Needs:
        """Distributions over the whole vocabulary, of the weights, in whatever engine gives them."""
        return Needs(("distribution",))

    def forecast(self, work: Workload) -> Forecast:
        """One pass over the test rows per model, each with the baseline in memory."""
        tokens = 2 * work.test_rows(self.limit) * work.rows.tokens
        return forecast_evaluation(work, tokens, self.dtype, resident=work.size("baseline").parameters)

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return the items by measure: at most one per row, or per answer of the test split."""
        rows = Items(sources.at_most(self.limit), binary=False, exact=False)
        return dict.fromkeys(MEASURES, count_answers(sources, self.limit) if self.text == "gold" else rows)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Compare all models with the baseline; write scores.json and items.jsonl.

        Raises DataError for an empty test split, ModelError if the baseline fails.  A model with another vocabulary gets no values.
        """
        corpus = inputs.one("data").path
        split = read_test_split(corpus)
        fit = answered_rows(split.rows, str(corpus / "test.jsonl")) if self.text == "gold" else split.rows
        rows = spread(fit, self.limit)
        baseline, *others = in_transformers(list_models(inputs))
        length = self.max_new_tokens or max(split.tasks[row.task].answer_tokens for row in rows)
        texts = self._texts(baseline, rows, length, run)
        plan = DivergencePlan([Prompt.of(row) for row in rows], texts.answers, self.dtype, baseline.cache_id, baseline)
        found = evaluate_each(others, {model.name: plan for model in others}, measure_divergence, Divergences, run)
        summary = make_summary(
            [baseline, *others],
            {baseline.name: texts, **found},
            MEASURES,
            run,
            self.spec.libraries,
            [*self._notes([baseline, *others], found), *unanswered_note(len(split.rows), len(fit))],
        )
        sound = {name: result for name, result in found.items() if not isinstance(result, Failure)}
        items = self._items(rows, split.tags, texts, baseline.name, sound)
        write_scores(out, summary, items)
        return flat_metrics(items, [baseline.name, *sound])

    def _texts(self, baseline: ModelUnderTest, rows: Sequence[Row], length: int, run: StepRun) -> ReferenceAnswers:
        gold = [row.answer for row in rows] if self.text == "gold" else []
        plan = AnswerPlan([Prompt.of(row) for row in rows], gold, 0 if gold else length, self.dtype)
        found = evaluate_each([baseline], {baseline.name: plan}, choose_answers, ReferenceAnswers, run)[baseline.name]
        assert not isinstance(found, Failure)  # a failing baseline raises instead
        return found

    def _items(
        self,
        rows: Sequence[Row],
        tags: Mapping[str, dict[str, str]],
        texts: ReferenceAnswers,
        baseline: str,
        results: Mapping[str, Divergences],
    ) -> list[ItemScore]:
        found = []
        for measure, own in ITSELF.items():
            for index, row in enumerate(rows):
                values = {baseline: own} | {
                    name: (result.kl if measure == "kl" else result.same_top)[index] for name, result in results.items()
                }
                found.append(ItemScore(
                    measure=measure, id=row.id, cluster=row.group, tags=tags[row.id], weight=texts.positions[index], question=last_question(row),
                    wanted=row.answer, values=values, answers={} if self.text == "gold" else {baseline: texts.answers[index]},
                ))  # fmt: skip
        return found

    def _notes(self, models: Sequence[ModelUnderTest], results: Mapping[str, Divergences | Failure]) -> list[str]:
        answers = "the test split's" if self.text == "gold" else f"{models[0].name}'s own greedy"
        notes = [
            f"KL and top-token agreement at every token of {answers} answers and at their end, over the whole vocabulary.",
            *dequantized_notes(models),
        ]
        for name, result in results.items():
            if isinstance(result, Failure):
                notes.append(f"{name}: not compared. {result.reason}")
            else:
                notes += [f"{name}: {note}." for note in result.notes]
        return notes


def flat_metrics(items: Sequence[ItemScore], models: Sequence[str]) -> Metrics:
    """Return every model's mean by measure, weighted by positions."""
    metrics: Metrics = {"items": len(items) // len(ITSELF)}
    for measure in ITSELF:
        own = [item for item in items if item.measure == measure]
        for model in models:
            metrics[f"{model}.{measure}"] = weighted_mean(
                [item.values[model] for item in own], [item.weight for item in own]
            )
    return metrics
