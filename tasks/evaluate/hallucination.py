"""Hallucination: answers with claims that the prompt does not support, by rules."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.answers import Reply, gold_text, truncation_notes
from tasks.evaluate.grading.eval_rows import last_question, read_test_rows, tag_rows
from tasks.evaluate.grading.unsupported_claims import FINDINGS, Finding, find_unsupported_claim
from tasks.evaluate.models_under_test.answering import GenerationPlan, Predictions, generate_replies, template_notes
from tasks.evaluate.models_under_test.forecast import ANSWERED_TOKENS, forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each, make_summary
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    RowPrompts,
    list_models,
    reference_prompts,
)
from tasks.shared.errors import DataError
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.articles import Article, question_of, read_articles, with_article
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import Row, read_rows, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun
from tasks.shared.text.fact_matching import contains, states_fact

WITH, WITHOUT = "invention", "invention_without_answer"
MEASURES = {
    WITH: Measure(title="answers with hallucination, article given", better="lower"),
    WITHOUT: Measure(title="answers with hallucination, article without the answer", better="lower"),
}
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Case:
    """One prompt: a row with its article, and the measure that its answer counts for."""

    row: Row
    article: Article
    measure: str


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Hallucination:
    """Share of answers with claims that their prompt does not support.

    The rules are in tasks/evaluate/grading/unsupported_claims.py.
    Every test row with a fact and an article is prompted twice: with its article, and with the article minus the sentences that state the
    fact, where the right answer declines or stays general.  A row whose article states the fact in words other than the accepted ones
    is prompted only with it.

    The rules detect numbers, addresses, quantities of the kind that the question asks for, and content words without a source.  They miss a
    wrong claim in the article's own words (a dropped "not", a value given to the wrong thing).  They flag true knowledge from elsewhere
    (except the fact itself: `memory_counts`) and paraphrases in rare words.
    So compare the rates of two models on the same rows; a single rate is not the share of false answers.
    Measured on the built-in test split with the default support: of 800 gold answers checked against their article alone, none is
    flagged (25 at 0.6, 119 at 0.8); of as many gold answers for another fact of the same intent, 82 % are; of refusals, none.
    """

    limit: Annotated[int, Field(ge=0)] = 0
    """Rows to use, spread evenly over those with a fact and an article; 0 takes all.  Each is prompted twice."""
    support: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest share of the answer's content words that must have a source; 0 disables this check."""
    memory_counts: bool = False
    """Count the right fact as hallucination if the prompt lacks it: for bots that must answer from the prompt alone."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Length limit of an answer, tokens; of a model that reasons first, its reasoning included."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts generated together in transformers."""
    context: Annotated[int, Field(ge=64)] = 1536
    """Tokens that prompt and answer may take together in llama.cpp."""

    spec: ClassVar[Spec] = Spec(
        summary="Statements that the article does not support, with the answer in the article and without it",
        ports={**MODEL_PORTS, "data": Port((Kind.CORPUS,))},
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "compressed-tensors", "gguf", "xllamacpp", "numpy"),
        device="accelerator",
    )  # fmt: skip

    def forecast(self, work: Workload) -> Forecast:
        """Two prompts and two answers per test row and model."""
        return forecast_evaluation(work, 2 * work.test_rows(self.limit) * ANSWERED_TOKENS)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Evaluate every model; write scores.json and items.jsonl.

        Raises DataError if no row has a fact and an article, or the test split leaks into training; ModelError if the baseline fails.
        """
        models, corpus = list_models(inputs), inputs.one("data").path
        test = read_test_rows(corpus)
        cases = self._cases(test, corpus)
        plans = {model.name: self._plan(model, cases) for model in models}
        results = evaluate_each(models, plans, generate_replies, Predictions, run)
        replies = {name: found.replies for name, found in results.items() if not isinstance(found, Failure)}
        found = {
            name: [self._grade(case, reply) for case, reply in zip(cases, own, strict=True)]
            for name, own in replies.items()
        }
        tags = tag_rows(test, read_rows(corpus / "train.jsonl"))
        items = list(make_items(cases, tags, replies, found))
        notes = [*self._notes(cases), *template_notes(models), *truncation_notes(replies, self.max_new_tokens)]
        summary = make_summary(models, results, MEASURES, run, self.spec.libraries, notes)
        entries = {
            name: entry.model_copy(update={"figures": count_findings(found[name])}) if name in found else entry
            for name, entry in summary.models.items()
        }
        write_scores(out, summary.model_copy(update={"models": entries}), items)
        return {"items": len(items), **mean_values(items, models)}

    def _cases(self, test: Sequence[Row], corpus: Path) -> list[Case]:
        articles = read_articles(corpus / "articles.jsonl")
        fit = [row for row in test if row.facts and row.evidence in articles]
        if not fit:
            got = f"none of {len(test)} rows has a fact (`accept`) and an article"
            raise DataError(str(corpus / "test.jsonl"), got, "at least one", "leave this step out for such a corpus")
        rows = spread(fit, self.limit)
        cases = [Case(row, articles[row.evidence], WITH) for row in rows]
        return cases + [
            Case(row, cut, WITHOUT) for row in rows if (cut := without_answer(row, articles[row.evidence])) is not None
        ]

    def _plan(self, model: ModelUnderTest, cases: Sequence[Case]) -> GenerationPlan:
        tuned = model.role != "reference"
        prompts = [tuned_prompt(case) if tuned else reference_prompt(case) for case in cases]
        return GenerationPlan(prompts, [], tuned, self.max_new_tokens, self.batch_size, self.context)

    def _grade(self, case: Case, reply: Reply) -> Finding:
        return find_unsupported_claim(
            reply.text,
            case.row,
            prompt_of(case),
            self.support,
            answer_given=case.measure == WITH,
            memory_counts=self.memory_counts,
        )

    def _notes(self, cases: Sequence[Case]) -> list[str]:
        count = Counter(case.measure for case in cases)
        left = count[WITH] - count[WITHOUT]
        return (
            [
                f"{WITHOUT}: {left} of {count[WITH]} rows left out: the fact also appears elsewhere in the prompt, or in other words."
            ]
            if left
            else []
        )


def without_answer(row: Row, article: Article) -> Article | None:
    """Return the article without the sentences that contain an accepted string.

    None if there are none, or if the prompt still states the fact.
    """
    sentences = SENTENCE.split(article.text)
    remaining = [
        text for text in sentences if not any(contains(text, phrase) for group in row.facts for phrase in group)
    ]
    cut = article.model_copy(update={"text": " ".join(remaining)})
    rest = "\n".join([cut.title, cut.text, *(question_of(turn["content"]) for turn in row.prompt)])
    return None if len(remaining) == len(sentences) or states_fact(rest, row.facts) else cut


def tuned_prompt(case: Case) -> RowPrompts:
    """Return the row's prompt for a model trained on this corpus, with this article."""
    *before, last = case.row.prompt
    return RowPrompts(
        case.row, [], [*before, {"role": "user", "content": with_article(question_of(last["content"]), case.article)}]
    )


def reference_prompt(case: Case) -> RowPrompts:
    """Return the row's prompt for an untrained reference, with this article."""
    (prompts,) = reference_prompts([case.row], {case.row.evidence: case.article}, [])
    return RowPrompts(case.row, [], prompts.answer_messages)


def prompt_of(case: Case) -> str:
    """Return the prompt's text: the article and the turns."""
    return "\n".join(
        [case.article.title, case.article.text, *(question_of(turn["content"]) for turn in case.row.prompt)]
    )


def make_items(
    cases: Sequence[Case],
    tags: Mapping[str, dict[str, str]],
    replies: Mapping[str, Sequence[Reply]],
    found: Mapping[str, Sequence[Finding]],
) -> Iterator[ItemScore]:
    """Yield one item per case; an answer with a finding ends with it in brackets."""
    for index, case in enumerate(cases):
        findings = {name: own[index] for name, own in found.items()}
        general = "(a refusal, or nothing specific: the article lacks the answer)"
        yield ItemScore(
            measure=case.measure, id=case.row.id, cluster=case.row.group, question=last_question(case.row),
            tags=tags[case.row.id] | {"grounded": "yes", "trained": "no" if case.article.held_out else "yes"},
            wanted=gold_text(case.row) if case.measure == WITH else general,
            values={name: float(finding.hallucinated) for name, finding in findings.items()},
            answers={name: f"{replies[name][index].text} {finding.words()}".strip() for name, finding in findings.items()},
        )  # fmt: skip


def count_findings(findings: Sequence[Finding]) -> dict[str, Figure]:
    """Return how many answers had each finding first, over both prompts of a row."""
    counts = Counter(finding.name for finding in findings)
    return {
        f"findings_{name}": Figure(value=counts[name], unit="answers", better=None if name == "remembered" else "lower")
        for name in FINDINGS
    }
