"""Hallucination: answers with claims that the prompt does not support, by rules."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.eval_rows import TestSplit, last_question, read_test_split
from tasks.evaluate.grading.groups import once_per_group
from tasks.evaluate.grading.replies import Reply, gold_answer, read_reply
from tasks.evaluate.grading.unsupported_claims import FINDINGS, Finding, find_unsupported_claim
from tasks.evaluate.models_under_test.answering import GenerationPlan, template_notes
from tasks.evaluate.models_under_test.forecast import answered_tokens, forecast_evaluation
from tasks.evaluate.models_under_test.groups import reply_to_all
from tasks.evaluate.models_under_test.isolated_runs import make_summary
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    RowPrompts,
    list_models,
    reference_prompts,
)
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.articles import Article, question_of, read_articles, with_article
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import Row, read_rows, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.formats.tasks import Task, read_tasks
from tasks.shared.items import Items, ItemSources, worth_of
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream
from tasks.shared.text.fact_matching import contains, states_fact
from tasks.shared.text.sentences import sentences

WITH, WITHOUT = "invention", "invention_without_answer"
MEASURES = {
    WITH: Measure(title="answers with hallucination, article given", better="lower"),
    WITHOUT: Measure(title="answers with hallucination, article without the answer", better="lower"),
}


@dataclass(frozen=True)
class Case:
    """One prompt: a row with its task and article, and the measure that its answer counts for."""

    row: Row
    task: Task
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
    flagged (25 at 0.6, 119 at 0.8); of as many gold answers for another fact of the same label, 82 % are; of refusals, none.
    """

    limit: Annotated[int, Field(ge=0)] = 0
    """Rows to use, spread evenly over those with a fact and an article; 0 takes all.  Each is prompted twice."""
    support: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest share of the answer's content words that must have a source; 0 disables this check."""
    memory_counts: bool = False
    """Count the right fact as hallucination if the prompt lacks it: for assistants that must answer from the prompt alone."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Length limit of an answer, tokens; of a model that reasons first, its reasoning included.  0 takes the task's."""
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

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error for a corpus that is made without a file of articles."""
        for name in inputs.get("data", ()):
            if name in upstream and getattr(upstream[name].technique, "articles", None) == "":
                fix = f"steps.{name}.articles=FILE with the ids in `evidence` of the rows, or leave {where} out"
                got = f"the corpus {name} has no articles"
                yield ConfigError(where, got, "a corpus whose rows have facts and an article that states them", fix)

    def forecast(self, work: Workload) -> Forecast:
        """Two prompts and two answers per test row and model."""
        return forecast_evaluation(work, 2 * work.test_rows(self.limit) * answered_tokens(work))

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return the items by measure: counted in the corpus, or at most one per row.

        Raises DataError if no row can be one.
        """
        if sources.corpus is None:
            if (sample := sources.all_rows) and not any(row.facts and row.evidence for row in sample.rows):
                raise no_case(len(sample.rows), sample.where)
            return dict.fromkeys(MEASURES, Items(sources.at_most(self.limit), exact=False))
        rows = read_rows(sources.corpus / "test.jsonl")
        cases = self._cases(TestSplit(rows, read_tasks(sources.corpus, {row.task for row in rows}), {}), sources.corpus)
        own = {name: [case.row.group for case in cases if case.measure == name] for name in MEASURES}
        return {name: Items(len(groups), groups=worth_of(groups)) for name, groups in own.items()}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Evaluate every model; write scores.json and items.jsonl.

        Raises DataError if no row has a fact and an article, or the test split leaks into training; ModelError if the baseline fails.
        """
        models, corpus = list_models(inputs), inputs.one("data").path
        split = read_test_split(corpus)
        cases = self._cases(split, corpus)
        prompts = {model.name: [prompt_for(case, model) for case in cases] for model in models}
        results = reply_to_all(
            models, prompts, lambda row: self._limits(split.tasks[row.task]), self._plan_of(split), run
        )
        replies = results.sound
        found = {
            name: [self._grade(case, reply) for case, reply in zip(cases, own, strict=True)]
            for name, own in replies.items()
        }
        items = list(make_items(cases, split.tags, replies, found))
        notes = [*self._notes(cases), *template_notes(models), *results.notes]
        summary = make_summary(models, results.found, MEASURES, run, self.spec.libraries, notes)
        entries = {
            name: entry.model_copy(update={"figures": count_findings(found[name])}) if name in found else entry
            for name, entry in summary.models.items()
        }
        write_scores(out, summary.model_copy(update={"models": entries}), items)
        return {"items": len(items), **mean_values(items, models)}

    def _cases(self, split: TestSplit, corpus: Path) -> list[Case]:
        file = corpus / "articles.jsonl"
        articles = read_articles(file) if file.is_file() else {}
        fit = [row for row in split.rows if row.facts and row.evidence in articles]
        if not fit:
            raise no_case(len(split.rows), str(corpus / "test.jsonl"))
        rows = spread(fit, self.limit)
        cases = [Case(row, split.tasks[row.task], articles[row.evidence], WITH) for row in rows]
        return cases + [
            replace(case, article=cut, measure=WITHOUT)
            for case in cases
            if (cut := without_answer(case.row, case.article)) is not None
        ]

    def _limits(self, task: Task) -> tuple[int, tuple[str, ...]]:
        """Length limit and stop strings of a task's answers."""
        return self.max_new_tokens or task.answer_tokens, task.stop

    def _plan_of(self, split: TestSplit) -> Callable[[ModelUnderTest, Sequence[RowPrompts]], GenerationPlan]:
        def plan(model: ModelUnderTest, prompts: Sequence[RowPrompts]) -> GenerationPlan:
            length, stop = self._limits(split.tasks[prompts[0].row.task])
            tuned = model.role != "reference"
            return GenerationPlan(prompts, [], tuned, length, self.batch_size, self.context, stop=stop)

        return plan

    def _grade(self, case: Case, reply: Reply) -> Finding:
        return find_unsupported_claim(
            read_reply(reply, case.task).text,
            case.row,
            case.task,
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
    stated = sentences(article.text)
    remaining = [text for text in stated if not any(contains(text, phrase) for group in row.facts for phrase in group)]
    cut = article.model_copy(update={"text": " ".join(remaining)})
    rest = "\n".join([cut.title, cut.text, *(question_of(turn["content"]) for turn in row.prompt)])
    return None if len(remaining) == len(stated) or states_fact(rest, row.facts) else cut


def prompt_for(case: Case, model: ModelUnderTest) -> RowPrompts:
    """Return the row's prompt for a model, with this article in its last user turn."""
    row = case.row
    if model.role == "reference":
        bare = tuple(turn.model_copy(update={"content": question_of(turn.content)}) for turn in row.messages)
        (prompts,) = reference_prompts(
            [row.model_copy(update={"messages": bare})], {row.evidence: case.article}, {row.task: case.task}
        )
        return replace(prompts, row=row, label_messages=[])
    turns = [dict(turn) for turn in row.prompt]
    asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    if asked:
        asked["content"] = with_article(question_of(asked["content"]), case.article)
    return RowPrompts(row, [], turns, row.tools)


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
    weights = {
        name: once_per_group({case.row.id: case.row.group for case in cases if case.measure == name})
        for name in MEASURES
    }
    for index, case in enumerate(cases):
        findings = {name: own[index] for name, own in found.items()}
        general = "(a refusal, or nothing specific: the article lacks the answer)"
        yield ItemScore(
            measure=case.measure, id=case.row.id, cluster=case.row.group, weight=weights[case.measure][case.row.id], question=last_question(case.row),
            tags=tags[case.row.id] | {"grounded": "yes", "trained": "no" if case.article.held_out else "yes"},
            wanted=gold_answer(case.row, case.task).text if case.measure == WITH else general,
            values={name: float(finding.hallucinated) for name, finding in findings.items()},
            answers={name: f"{read_reply(replies[name][index], case.task).text} {finding.words()}".strip() for name, finding in findings.items()},
        )  # fmt: skip


def count_findings(findings: Sequence[Finding]) -> dict[str, Figure]:
    """Return how many answers had each finding first, over both prompts of a row."""
    counts = Counter(finding.name for finding in findings)
    return {
        f"findings_{name}": Figure(value=counts[name], unit="answers", better=None if name == "remembered" else "lower")
        for name in FINDINGS
    }


def no_case(rows: int, where: str) -> DataError:
    """Return the error for rows that cannot show a hallucination.  where: their file."""
    got = f"none of {rows} rows has facts in its key and an article as evidence"
    return DataError(where, got, "at least one", "leave this step out for such a corpus")
