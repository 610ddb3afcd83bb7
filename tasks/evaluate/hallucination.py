"""Statements that the article in the prompt does not hold: asked with the article, and with one that lacks the answer."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.answers import Reply, cut_notes, gold_text
from tasks.evaluate.grading.eval_rows import last_question, read_test_rows, tag_rows
from tasks.evaluate.grading.unsupported_claims import FINDINGS, Finding, find_invention
from tasks.evaluate.models_under_test.answering import Plan, Reading, ask, template_notes
from tasks.evaluate.models_under_test.forecast import ANSWERED_TOKENS, forecast_asking
from tasks.evaluate.models_under_test.isolated_runs import ask_each, make_sheet
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    Question,
    list_models,
    reference_questions,
)
from tasks.shared.errors import DataError
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.articles import Article, question_of, read_articles, with_article
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import Row, read_rows, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun
from tasks.shared.text.chat import contains, states_fact

WITH, WITHOUT = "invention", "invention_without_answer"
MEASURES = {
    WITH: Measure(title="answers with hallucination, article given", better="lower"),
    WITHOUT: Measure(title="answers with hallucination, article without the answer", better="lower"),
}
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Case:
    """One row as it is asked: the article in the prompt, and the measure that its answer counts for."""

    row: Row
    article: Article
    measure: str


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Hallucination:
    """Share of answers that state what their prompt does not hold, by rules (tasks/evaluate/grading/unsupported_claims.py).

    Every test row with a fact and an article is asked twice: with its article in the prompt, and with the article less the
    sentences that state the fact, where the right answer declines or stays general.  A row whose article states the fact in other
    words than the accepted ones is asked only with it.

    What such rules see: numbers, addresses, quantities of the asked kind and content words that the prompt lacks.  What they do not
    see: a wrong claim in the article's own words (a dropped "not", a value given to the wrong thing), true knowledge from elsewhere
    (it counts as an invention, but for the fact asked for: `memory_counts`), and a paraphrase in rare words looks like an invention.
    So compare rates of two models on the same rows; do not read one alone as the share of false answers.
    Measured on the built-in test split with the default support: of 800 gold answers held against their article alone none is found
    (25 at 0.6, 119 at 0.8); of as many gold answers of another fact of the same intent 82 % are; of refusals none.
    """

    limit: Annotated[int, Field(ge=0)] = 0
    """Rows to use, spread evenly over those that have a fact and an article; 0 takes all.  Each is asked twice."""
    support: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest fraction of the answer's content words that its prompt must hold; 0 turns it off."""
    memory_counts: bool = False
    """Count the right fact as an invention where the prompt does not hold it: for bots that must answer from the prompt alone."""
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
        return forecast_asking(work, 2 * work.test_rows(self.limit) * ANSWERED_TOKENS)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Ask every model; writes scores.json and items.jsonl.

        Raises DataError if no row has a fact and an article or the test split leaks into training, ModelError if the baseline fails.
        """
        subjects, corpus = list_models(inputs), inputs.one("data").path
        test = read_test_rows(corpus)
        cases = self._cases(test, corpus)
        plans = {subject.name: self._plan(subject, cases) for subject in subjects}
        readings = ask_each(subjects, plans, ask, Reading, run)
        replies = {name: found.replies for name, found in readings.items() if not isinstance(found, Failure)}
        found = {
            name: [self._judge(case, reply) for case, reply in zip(cases, told, strict=True)]
            for name, told in replies.items()
        }
        tags = tag_rows(test, read_rows(corpus / "train.jsonl"))
        items = list(make_items(cases, tags, replies, found))
        notes = [*self._notes(cases), *template_notes(subjects), *cut_notes(replies, self.max_new_tokens)]
        sheet = make_sheet(subjects, readings, MEASURES, run, self.spec.libraries, notes)
        models = {
            name: model.model_copy(update={"figures": count_findings(found[name])}) if name in found else model
            for name, model in sheet.models.items()
        }
        write_scores(out, sheet.model_copy(update={"models": models}), items)
        return {"items": len(items), **mean_values(items, subjects)}

    def _cases(self, test: Sequence[Row], corpus: Path) -> list[Case]:
        articles = read_articles(corpus / "articles.jsonl")
        fit = [row for row in test if row.accept and row.article in articles]
        if not fit:
            got = f"none of {len(test)} rows has a fact (`accept`) and an article"
            raise DataError(str(corpus / "test.jsonl"), got, "at least one", "leave this step out for such a corpus")
        rows = spread(fit, self.limit)
        cases = [Case(row, articles[row.article], WITH) for row in rows]
        return cases + [
            Case(row, cut, WITHOUT) for row in rows if (cut := without_answer(row, articles[row.article])) is not None
        ]

    def _plan(self, subject: ModelUnderTest, cases: Sequence[Case]) -> Plan:
        own = subject.role != "reference"
        questions = [ask_tuned(case) if own else ask_reference(case) for case in cases]
        return Plan(questions, [], own, self.max_new_tokens, self.batch_size, self.context)

    def _judge(self, case: Case, reply: Reply) -> Finding:
        told = case.measure == WITH
        return find_invention(
            reply.text, case.row, prompt_of(case), self.support, answer_given=told, memory_counts=self.memory_counts
        )

    def _notes(self, cases: Sequence[Case]) -> list[str]:
        count = Counter(case.measure for case in cases)
        left = count[WITH] - count[WITHOUT]
        return (
            [
                f"{WITHOUT}: {left} of {count[WITH]} rows left out: the fact also stands elsewhere in the prompt, or in other words."
            ]
            if left
            else []
        )


def without_answer(row: Row, article: Article) -> Article | None:
    """The article less the sentences with an accepted string; None if it had none, or the fact still stands in the prompt."""
    sentences = SENTENCE.split(article.text)
    kept = [text for text in sentences if not any(contains(text, phrase) for group in row.accept for phrase in group)]
    cut = article.model_copy(update={"text": " ".join(kept)})
    rest = "\n".join([cut.title, cut.text, *(question_of(turn["content"]) for turn in row.prompt)])
    return None if len(kept) == len(sentences) or states_fact(rest, row.accept) else cut


def ask_tuned(case: Case) -> Question:
    """The row as our trained models are asked it, with this article in the last turn."""
    *before, last = case.row.prompt
    return Question(
        case.row, [], [*before, {"role": "user", "content": with_article(question_of(last["content"]), case.article)}]
    )


def ask_reference(case: Case) -> Question:
    """The row as an untrained model is asked it, with this article."""
    (asked,) = reference_questions([case.row], {case.row.article: case.article}, [])
    return Question(case.row, [], asked.answer)


def prompt_of(case: Case) -> str:
    """All that the prompt holds: the article and the turns."""
    return "\n".join(
        [case.article.title, case.article.text, *(question_of(turn["content"]) for turn in case.row.prompt)]
    )


def make_items(
    cases: Sequence[Case],
    tags: Mapping[str, dict[str, str]],
    replies: Mapping[str, Sequence[Reply]],
    found: Mapping[str, Sequence[Finding]],
) -> Iterator[ItemScore]:
    """One item per case; an answer with an invention carries it in brackets."""
    for place, case in enumerate(cases):
        findings = {name: told[place] for name, told in found.items()}
        general = "(a refusal, or nothing specific: the article lacks the answer)"
        yield ItemScore(
            measure=case.measure, id=case.row.id, cluster=case.row.group, question=last_question(case.row),
            tags=tags[case.row.id] | {"grounded": "yes", "trained": "no" if case.article.held_out else "yes"},
            wanted=gold_text(case.row) if case.measure == WITH else general,
            values={name: float(finding.invented) for name, finding in findings.items()},
            answers={name: f"{replies[name][place].text} {finding.words()}".strip() for name, finding in findings.items()},
        )  # fmt: skip


def count_findings(findings: Sequence[Finding]) -> dict[str, Figure]:
    """How many answers had each finding first, both askings together."""
    counts = Counter(finding.name for finding in findings)
    return {
        f"findings_{name}": Figure(value=counts[name], unit="answers", better=None if name == "remembered" else "lower")
        for name in FINDINGS
    }
