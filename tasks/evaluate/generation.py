"""Graded answers on the test split, by the answer key of each row and its task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.eval_rows import TestSplit, last_question, read_test_items, read_test_split, sample_items
from tasks.evaluate.grading.measures import (
    FROM_LABELS,
    MEASURES,
    TestItem,
    item_weights,
    items_by_measure,
    known_measures,
    missing_measures,
)
from tasks.evaluate.grading.replies import read_reply
from tasks.evaluate.models_under_test.answering import GenerationPlan, template_notes
from tasks.evaluate.models_under_test.forecast import answered_tokens, forecast_evaluation
from tasks.evaluate.models_under_test.groups import Replies, reply_to_all
from tasks.evaluate.models_under_test.isolated_runs import make_summary, repeat_batch_size
from tasks.evaluate.models_under_test.label_choice import LabelLayout, LabelMethod
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    RowPrompts,
    list_models,
    reference_prompts,
    tuned_prompts,
)
from tasks.evaluate.verdict.asking import ask_in_rounds, kept_scale, order_rows
from tasks.evaluate.verdict.stopping import Rounds, count_slices, heaviest_groups
from tasks.shared.engines.registry import Needs
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.articles import Article, read_articles
from tasks.shared.formats.rows import Row, spread
from tasks.shared.formats.scores import RENAMED, ItemScore, current_name, write_scores
from tasks.shared.items import Items, ItemSources, worth_of
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

Measured = Mapping[str, Sequence[TestItem]]
"""Items by measure."""


@dataclass(frozen=True)
class Request:
    """Request to the models for the rows of a task.

    labels: to choose from; empty for no choice.  layout: place of the label.  length: of an answer, tokens; 0 for none.
    """

    labels: tuple[str, ...]
    layout: LabelLayout
    length: int
    stop: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Generation:
    """One greedy answer per test row and model, graded by each row's own answer key.

    Where rows have labels, also one label choice.
    Every model uses its own chat template and tokenizer; one without a template is prompted in ChatML if its vocabulary has that markup
    (the notes say so), and fails otherwise.  A reference is prompted with the task's instruction and without its layout, so `format`
    skips it.  Reasoning before an answer (<think> ... </think>) is removed before grading; the label is chosen after it.
    The measures are in tasks/evaluate/grading/measures.py, the grades in tasks/shared/grading/.  Refusals are found by the task's
    regular expressions, or by common English phrases.
    """

    measures: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: () if value == "auto" else value), AfterValidator(known_measures)
    ] = ()
    """Measures to take, such as label, fact, refusal, json_exact, value; empty or auto takes those of the types of the corpus' tasks.  A
    measure that no test row can have is an error."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Test rows to use, spread evenly over the split; 0 takes all."""
    reference_limit: Annotated[int, Field(ge=0)] = 0
    """Of these, rows for the reference, which decides nothing; 0 takes all."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Length limit of an answer, tokens; of a model that reasons first (`distill/cot`), its reasoning included.  0 takes the task's."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the model's own end of turn; they are not part of it.  Empty takes the task's."""
    label: LabelMethod = "likeliest"
    """Source of the label.  likeliest: the label with the highest log-likelihood where the answer would begin, for one more pass over the
    prompts, which `reuse` saves where the answer proves the label.  written: as the answer states it; a reference, which writes none, is still scored."""
    reuse: bool = True
    """Read a beginning that prompts share once, drop answers from a batch as they end, and take the likeliest label from the answer's
    own probabilities where these prove it.  Results are equal up to rounding; false computes everything anew."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts generated together in transformers; log-likelihoods take a quarter of it."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Tokens that prompt and answer may take together in llama.cpp."""
    again: Annotated[int, Field(ge=0)] = 0
    """Times to evaluate the baseline again, in other batch sizes (llama.cpp: in reverse order), for the noise floor."""
    rounds: Rounds = Field(default_factory=Rounds)
    """Ask in rounds, for an adaptive verdict."""

    spec: ClassVar[Spec] = Spec(
        summary="One answer per test row, graded by its answer key: labels, facts, refusals, numbers, JSON, tool calls, ROUGE-L, format, loops",
        ports={
            **MODEL_PORTS,
            "reference": Port((Kind.MODEL,), optional=True, wire="reader"),
            "data": Port((Kind.CORPUS,)),
        },
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "compressed-tensors", "gguf", "xllamacpp", "numpy", "rouge-score", "jsonschema"),
        device="accelerator",
    )  # fmt: skip

    def measurable(self) -> frozenset[str]:
        """Return the names of the measures that it can take."""
        return frozenset(self._named or MEASURES)

    def sources(self) -> tuple[Path, ...]:
        """Return the user's earlier scores."""
        return (user_path(self.rounds.after),) if self.rounds.after else ()

    def engine_needs(self) -> Needs:
        """Engines that compute with the weights as stored, and choose labels if a measure needs it."""
        chooses = FROM_LABELS.intersection(self._named) and self.label == "likeliest"
        return Needs((*(("labels",) if chooses else ()), *(("stop",) if self.stop else ())), dequantized=False)

    def forecast(self, work: Workload) -> Forecast:
        """One prompt and one answer per model and row.

        In rounds, the rows are those that an equal candidate takes to pass.
        """
        rows, rounds = self.rounds.likely_rows(work.test_rows(self.limit))
        return forecast_evaluation(work, rows * answered_tokens(work), loads=rounds)

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return the items by measure: counted in the corpus, else at most one per possible row.

        Raises DataError for a measure that no test row can have.
        """
        rows = sources.at_most(self.limit)
        if sources.corpus is None and (sample := sources.all_rows):
            found = self._measured(sample_items(sample), sample.where)
            return {
                name: Items(min(rows, len(own)), MEASURES[name].measure.binary, exact=False, groups=_worth(own, rows))
                for name, own in found.items()
            }
        if sources.corpus is None:
            return {name: Items(rows, MEASURES[name].measure.binary, exact=False) for name in self._named or MEASURES}
        items = read_test_items(sources.corpus, self.limit)
        measured = self._measured(items, str(sources.corpus / "test.jsonl"))
        return {
            name: Items(len(found), MEASURES[name].measure.binary, groups=_worth(found))
            for name, found in measured.items()
        }

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Evaluate every model; write scores.json and items.jsonl.

        Raises DataError if the test split is empty, leaks into training or has no items of a measure; ModelError if the baseline fails.
        """
        models = list_models(inputs, self.again, closed_book_reference=True)
        corpus = inputs.one("data").path
        split = read_test_split(corpus)
        rows = spread(split.rows, self.limit)
        measured = self._measured(split.items(rows), str(corpus / "test.jsonl"))
        file = corpus / "articles.jsonl"
        articles = read_articles(file) if file.is_file() else {}
        asked = self._requests(measured, split)
        weights = {name: item_weights(name, own) for name, own in measured.items()}

        def ask(open_models: Sequence[ModelUnderTest], prompts: Mapping[str, Sequence[RowPrompts]]) -> Replies:
            return reply_to_all(
                open_models,
                prompts,
                lambda row: asked[row.task],
                lambda model, found: self._plan(model, found, asked[found[0].row.task]),
                run,
            )

        def grade(prompts: Mapping[str, Sequence[RowPrompts]], replies: Replies) -> list[ItemScore]:
            return list(self._items(measured, split, weights, prompts, replies))

        measures = {name: MEASURES[name].measure for name in measured}
        asking = None
        if self.rounds.margins:
            rows = order_rows(rows, self.rounds, run.seed)
        prompts = {model.name: self._prompts(model, rows, split, articles) for model in models}
        if self.rounds.margins:
            tags = [(name, split.tags[item.row.id]) for name, own in measured.items() for item in own]
            available = count_slices(tags, self.rounds.slice_tags)
            units = (
                (name, item.row.group or item.row.id, weights[name][item.row.id])
                for name, own in measured.items()
                for item in own
            )
            largest = kept_scale(heaviest_groups(units), self.rounds)
            found = ask_in_rounds(models, rows, prompts, ask, grade, measures, available, largest, self.rounds)
            prompts, replies, asking = found.prompts, found.replies, found.summary(rows, largest)
        else:
            replies = ask(models, prompts)
        items = grade(prompts, replies)
        notes = [*self._notes(models), *repeat_notes(models, replies.plans), *template_notes(models), *replies.notes]
        summary = make_summary(models, replies.found, measures, run, self.spec.libraries, notes)
        summary = summary.model_copy(update={"asking": asking})
        write_scores(out, summary, items)
        return {"items": len(rows), **mean_values(items, models)}

    @property
    def _named(self) -> tuple[str, ...]:
        """Measures to take, by their names of today; empty for those of the corpus' tasks."""
        return tuple(dict.fromkeys(map(current_name, self.measures)))

    def _measured(self, items: Sequence[TestItem], where: str) -> Measured:
        measured = items_by_measure(items, self._named)
        if missing := [name for name in self._named if name not in measured]:
            raise missing_measures(missing, items, where)
        return measured

    def _prompts(
        self, model: ModelUnderTest, rows: Sequence[Row], split: TestSplit, articles: Mapping[str, Article]
    ) -> list[RowPrompts]:
        if model.role != "reference":
            return tuned_prompts(rows)
        chosen = rows[: self.reference_limit or None] if self.rounds.margins else spread(rows, self.reference_limit)
        shown = articles if model.sees_article else {}
        return reference_prompts(chosen, shown, split.tasks, model.closed_book)

    def _requests(self, measured: Measured, split: TestSplit) -> dict[str, Request]:
        """Return what models are asked for, by task."""
        choosing = {item.row.task for name in FROM_LABELS for item in measured.get(name, ())}
        answered = {item.row.task for name, items in measured.items() if name not in FROM_LABELS for item in items}
        found = {}
        for name, task in split.tasks.items():
            chooses = name in choosing and task.layout != "json"
            length = self.max_new_tokens or task.answer_tokens
            written = name in answered or self.label == "written" or not chooses
            found[name] = Request(
                task.labels if chooses else (), "first_line" if task.layout == "first_line" else "alone",
                length if written else 0, self.stop or task.stop,
            )  # fmt: skip
        return found

    def _plan(self, model: ModelUnderTest, prompts: Sequence[RowPrompts], request: Request) -> GenerationPlan:
        tuned = model.role != "reference"
        return GenerationPlan(
            prompts, request.labels, tuned, request.length, repeat_batch_size(self.batch_size, model.repetition, len(prompts)), self.context,
            reversed_order=bool(model.repetition % 2), stop=request.stop, choice=self.label if tuned else "likeliest", layout=request.layout,
            reuse=self.reuse,
        )  # fmt: skip

    def _items(
        self,
        measured: Measured,
        split: TestSplit,
        weights: Mapping[str, Mapping[str, float]],
        prompts: Mapping[str, Sequence[RowPrompts]],
        replies: Replies,
    ) -> Iterator[ItemScore]:
        """Yield the items of rows that were asked, measure by measure, in the order of asking."""
        own = {
            name: {prompt.row.id: reply for prompt, reply in zip(prompts[name], found, strict=True)}
            for name, found in replies.sound.items()
        }
        longest = max(prompts.values(), key=len)
        asked = {prompt.row.id: place for place, prompt in enumerate(longest)}
        for name, items in measured.items():
            entry = MEASURES[name]
            for item in sorted((one for one in items if one.row.id in asked), key=lambda one: asked[one.row.id]):
                known = {model: found[item.row.id] for model, found in own.items() if item.row.id in found}
                graded = {
                    model: read_reply(reply, item.task)
                    for model, reply in known.items()
                    if reply.labeled or name != "format" or item.task.layout == "none"
                }
                yield ItemScore(
                    measure=name, id=item.row.id, cluster=item.row.group, tags=split.tags[item.row.id], weight=weights[name][item.row.id],
                    question=last_question(item.row), wanted=entry.wanted(item),
                    values={model: float(entry.value(item, answer)) for model, answer in graded.items()},
                    answers={model: entry.shown(answer) for model, answer in graded.items()},
                )  # fmt: skip

    def _notes(self, models: Sequence[ModelUnderTest]) -> list[str]:
        renamed = [f"{name}: the measure is now called {RENAMED[name]}." for name in self.measures if name in RENAMED]
        return renamed + [
            f"{model.name} is prompted {'with' if model.sees_article else 'without'} the article and without the layout of the answers; "
            "it chooses a label from a list in the prompt."
            for model in models
            if model.role == "reference"
        ]


def _worth(items: Sequence[TestItem], most: int = 0) -> int | None:
    """Return the number of independent items that these are worth; None without groups.

    most: upper bound; 0 for none.
    """
    worth = worth_of(item.row.group for item in items)
    return min(worth, most) if worth is not None and most else worth


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
