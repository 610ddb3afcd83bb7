"""Tasks of EleutherAI's lm-evaluation-harness, and eight built-in benchmarks on local files.

Runs any harness task by name, and task files of the user's own.  Every sample is kept, since models are compared item by item.
Offline: a task whose data is only on a hub is refused at plan time, unless it was fetched before or HF_HUB_OFFLINE=0 is set.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.benchmark.benchmarks import BENCHMARKS
from tasks.evaluate.benchmark.run import HarnessPlan, HarnessResult, TaskPlan, TaskResult, check_task_loads, run_tasks
from tasks.evaluate.benchmark.tasks import SelectedTask, TaskSources
from tasks.evaluate.models_under_test.forecast import forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each, make_summary, repeat_batch_size
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, ModelUnderTest, list_models
from tasks.shared.engines.registry import Needs
from tasks.shared.errors import ConfigError, DataError, ErrorList, TechniqueError
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.records import Better, Figure
from tasks.shared.formats.scores import EvaluationSummary, ItemScore, Measure, write_scores
from tasks.shared.isolation import preload
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Spec, StepRun, Upstream

Results = Mapping[str, HarnessResult]
CLUSTER = "cluster"
"""Tag of dependent items, such as translations of one question."""
ITEMS_PER_TASK = 1000
TOKENS_PER_ITEM = 400
"""Tokens of all choices of a typical benchmark item together, for the forecast."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LmEval:
    """Accuracy on harness tasks, in transformers; each model is loaded once for all tasks.

    One measure per task: "<task>.<metric>".
    """

    tasks: tuple[str, ...] = ()
    """Task names: built-in (tasks/evaluate/benchmark/benchmarks.py), from `include`, or from the harness's library; a group is one measure."""
    include: str = ""
    """Folder with your own task files (*.yaml); paths in them are relative to it.  Empty for none."""
    include_code: bool = False
    """Allow these files to run Python code from their folder (!function)."""
    data: str = ""
    """Folder with the built-in benchmarks' files as published, one subfolder per data set."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Items per task (in a group: per member task); 0 for all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Few-shot examples; null for the task's own number.  A task that says 0 keeps it."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Requests that share a forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the computation; auto: bfloat16 on accelerators and on CPUs that support it, else float32."""
    apply_chat_template: bool = False
    """Render each prompt as a user turn in the model's own chat format."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Metric behind each task's measure ("exact_match,strict-match" for a filter's); by default the first in its metric_list."""
    tags: tuple[str, ...] = ("kind", "language", "group", "category", "subject", "cluster")
    """Item fields to slice by, where they hold a word or a number; items of one `cluster` are dependent (wordings of one question).
    Built-in benchmarks have their own tags."""
    again: Annotated[int, Field(ge=0, le=3)] = 0
    """Times to evaluate the baseline again, halving the batch size each time, for the noise floor."""

    spec: ClassVar[Spec] = Spec(
        summary="Any task of lm-evaluation-harness, your own task files, eight benchmarks on local files; keeps every sample",
        ports={**MODEL_PORTS},
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors", "lm-eval", "datasets", "gguf"),
        unkeyed=frozenset({"data", "include"}),
        device="accelerator",
    )  # fmt: skip
    """data and include are unkeyed: they say where files are, and the content of these files is in the key."""

    def sources(self) -> tuple[Path, ...]:
        """Return the chosen tasks' existing files; `plan_problems` reports missing ones."""
        return self._places.sources(self.tasks)

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield unknown tasks, missing files, data only on a hub, and code in a folder."""
        if not self.tasks:
            wanted = f"at least one: {', '.join(BENCHMARKS)}, a task of {where}.include, or one of lm-eval's"
            yield ConfigError(f"{where}.tasks", "none", wanted, f"{where}.tasks=[{next(iter(BENCHMARKS))}]")
        if twice := sorted({name for name in self.tasks if self.tasks.count(name) > 1}):
            yield ConfigError(f"{where}.tasks", f"{', '.join(twice)} twice", "each task once")
        if strange := sorted(self.metrics.keys() - set(self.tasks)):
            yield ConfigError(
                f"{where}.metrics", f"no task {', '.join(strange)} here", ", ".join(self.tasks) or "a task"
            )
        yield from self._places.problems(self.tasks, self.include_code, where)

    def engine_needs(self) -> Needs:
        """Probabilities of the tokens of a given text, which the harness sums over each choice."""
        return Needs(("distribution",))

    def forecast(self, work: Workload) -> Forecast:
        """All items of all tasks, read once per choice."""
        items = len(self.tasks) * (self.limit or ITEMS_PER_TASK)
        return forecast_evaluation(work, items * TOKENS_PER_ITEM)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Run all tasks; write scores.json, items.jsonl, and the harness's log of each item.

        The logs are samples/<task>.<model>.jsonl.
        Raises ConfigError for a task that cannot run here, DataError for damaged benchmark files, TechniqueError for a metric without a
        value per item, ModelError if the baseline fails.
        """
        plan = self._plan(run)
        models = [replace(model, engine="transformers") for model in list_models(inputs, repetitions=self.again)]
        plans = {
            model.name: replace(plan, batch_size=repeat_batch_size(self.batch_size, model.repetition))
            for model in models
        }
        preload("lm_eval.models.huggingface", "lm_eval.evaluator")
        found = evaluate_each(models, plans, run_tasks, HarnessResult, run)
        results = {name: result for name, result in found.items() if isinstance(result, HarnessResult)}
        items, measures, chosen = [], {}, {}
        for task in self.tasks:
            name, chosen[task], measure = self._measure(task, results[models[0].name].tasks[task])
            task_items = list(score_items(name, chosen[task], task, results))
            values = [value for item in task_items for value in item.values.values()]
            binary = all(value in (0.0, 1.0) for value in values)
            unit = measure.unit if all(0.0 <= value <= 1.0 for value in values) else name.rpartition(".")[2]
            measures[name] = measure.model_copy(update={"binary": binary, "unit": unit})
            items += task_items
        summary = make_summary(models, found, measures, run, self.spec.libraries, list(self._notes(models, results)))
        write_scores(out, with_figures(summary, results, chosen), items)
        write_samples(out / "samples", results)
        return {"items": len(items), **mean_values(items, models)}

    @property
    def _places(self) -> TaskSources:
        return TaskSources(self.data, self.include)

    def _plan(self, run: StepRun) -> HarnessPlan:
        """Plan for every model.

        Loads all tasks once, so that an error in their data is not taken for a model's failure.
        """
        where = f"steps.{run.step}"
        if problems := list(self.plan_problems(where, {}, {})):
            raise ErrorList(problems)
        chosen = [task for task in self._places.find(self.tasks, where) if isinstance(task, SelectedTask)]
        plans = tuple(TaskPlan(task.name, task.origin, self._places.content(task)) for task in chosen)
        data, include = (str(user_path(path)) if path else "" for path in (self.data, self.include))
        for task in plans:
            check_task_loads(task, data, include, f"{where}.tasks")
        return HarnessPlan(
            tasks=plans, limit=self.limit, num_fewshot=self.num_fewshot, batch_size=self.batch_size, dtype=self.dtype,
            apply_chat_template=self.apply_chat_template, tags=self.tags, data=data, include=include,
            answer_cache=str((run.prediction_cache or run.scratch) / "answered"),
        )  # fmt: skip

    def _measure(self, task: str, result: TaskResult) -> tuple[str, str, Measure]:
        """Return the measure's name, its metric, and its description."""
        ours = BENCHMARKS.get(task)
        numeric = list(dict.fromkeys(metric for item in result.items for metric in item.values))
        listed = [metric for metric in result.better if metric in numeric] or numeric
        metric = self.metrics.get(task) or (ours.metric if ours else next(iter(listed), ""))
        if not metric or any(metric not in item.values for item in result.items):
            raise TechniqueError(
                f"task {task}", f"metric {metric or 'none'} has no value for each item", ", ".join(numeric) or "a task scored item by item",
                f"metrics: {{{task}: {numeric[0]}}}" if numeric else "for the perplexity of texts, use /evaluate: perplexity",
            )  # fmt: skip
        if ours and metric == ours.metric:
            return f"{task}.{ours.suffix or metric}", metric, ours.measure
        return f"{task}.{metric}", metric, Measure(title=f"{task}, {metric}", better=better_of(metric, result))

    def _notes(self, models: Sequence[ModelUnderTest], results: Results) -> Iterator[str]:
        baseline = results[models[0].name]
        for task, found in baseline.tasks.items():
            yield f"{task}: {len(found.items)} of {found.of} items, {found.num_fewshot}-shot."
        yield f"lm-evaluation-harness, batches of {self.batch_size}, {baseline.dtype}."
        files = [model.name for model in models if model.is_gguf and not model.failure]
        if files:
            yield f"{', '.join(files)}: GGUF weights, dequantized and run in transformers; llama.cpp's server returns no log-likelihoods of a prompt."
        if len({result.vocabulary for result in results.values()}) > 1:
            yield "The models' vocabularies differ: each model scores a choice by its own tokens."
        if self.apply_chat_template:
            templates = "; ".join(f"{name} {result.template}" for name, result in results.items())
            differ = " They differ." if len({result.template_digest for result in results.values()}) > 1 else ""
            yield f"Prompts are rendered in a chat template: {templates}.{differ}"
        for name, result in results.items():
            for task, found in result.tasks.items():
                if found.truncated:
                    yield f"{name}: {found.truncated} items of {task} exceed its context and are truncated at the beginning."


def score_items(measure: str, metric: str, task: str, results: Results) -> Iterator[ItemScore]:
    """Yield a task's items with the values of every model.

    Raises DataError if two models were evaluated on different items.
    """
    by_model = {name: {item.id: item for item in result.tasks[task].items} for name, result in results.items()}
    first = next(iter(by_model.values()))
    prints = {model: {key: item.fingerprint for key, item in items.items()} for model, items in by_model.items()}
    if strange := [model for model, found in prints.items() if found != next(iter(prints.values()))]:
        got = f"{', '.join(strange)} was evaluated on other items than the rest"
        raise DataError(f"task {task}", got, "the same items", "its data changed: delete artifacts/.predictions/lmeval")
    for key, item in first.items():
        found = {model: items[key] for model, items in by_model.items()}
        yield ItemScore(
            measure=measure, id=key, cluster=item.tags.get(CLUSTER, ""), question=item.question, wanted=item.wanted,
            tags={name: value for name, value in item.tags.items() if name != CLUSTER},
            values={model: one.values[metric] for model, one in found.items()},
            answers={model: one.answers.get(metric, one.answers.get("", "")) for model, one in found.items()},
        )  # fmt: skip


def with_figures(summary: EvaluationSummary, results: Results, chosen: Mapping[str, str]) -> EvaluationSummary:
    """Return the summary with the mean of every other metric as a figure of each model.

    chosen: by task, the metric behind its measure.
    """
    models = dict(summary.models)
    for model, result in results.items():
        figures = {}
        for task, found in result.tasks.items():
            for metric in dict.fromkeys(name for item in found.items for name in item.values if name != chosen[task]):
                value = fmean(item.values[metric] for item in found.items if metric in item.values)
                figures[f"{task}.{metric}"] = Figure(value=value, better=better_of(metric, found))
        models[model] = models[model].model_copy(update={"figures": figures})
    return summary.model_copy(update={"models": models})


def better_of(metric: str, result: TaskResult) -> Better:
    """Return a metric's direction as declared by its task.

    A filter's name after a comma is ignored.
    """
    return "higher" if result.better.get(metric.partition(",")[0], True) else "lower"


def write_samples(folder: Path, results: Results) -> None:
    """Write the harness's log of each item to <task>.<model>.jsonl."""
    folder.mkdir()
    for model, result in results.items():
        for task, found in result.tasks.items():
            name = re.sub(r"[^\w.-]+", "_", f"{task}.{model}")
            lines = (
                json.dumps({"id": item.id, "values": item.values, **item.sample}, ensure_ascii=False) + "\n"
                for item in found.items
            )
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
