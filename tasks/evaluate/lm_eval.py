"""EleutherAI's lm-evaluation-harness: any of its tasks by name, task files of the user's own, and eight benchmarks on local files.

Models are compared item by item, so every sample is kept.  Offline: a task whose data only a hub has is refused when the recipe
is planned, unless it was fetched before or HF_HUB_OFFLINE=0 lets it be.
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
from tasks.evaluate.benchmark.run import HarnessPlan, HarnessReading, TaskPlan, TaskReading, ask_tasks, check_loads
from tasks.evaluate.benchmark.tasks import Chosen, TaskPlaces
from tasks.evaluate.models_under_test.isolated_runs import ask_each, make_sheet, other_batch
from tasks.evaluate.models_under_test.means import mean_values
from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, ModelUnderTest, list_models
from tasks.shared.errors import ConfigError, DataError, ErrorList, TechniqueError
from tasks.shared.formats.records import Better, Figure
from tasks.shared.formats.scores import ItemScore, Measure, Sheet, write_scores
from tasks.shared.isolation import preload
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun, Upstream

Readings = Mapping[str, HarnessReading]
CLUSTER = "cluster"
"""The tag of items that belong together, such as translations of one question."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LmEval:
    """Each model is loaded once, in transformers, and put through all tasks.  One measure per task: "<task>.<metric>"."""

    tasks: tuple[str, ...] = ()
    """Names: of ours (docs in tasks/evaluate/benchmark/benchmarks.py), of `include`, or of the harness's library; groups are one measure."""
    include: str = ""
    """Folder with task files of your own (*.yaml); paths in them are relative to it.  Empty for none."""
    include_code: bool = False
    """Whether these files may run Python code that lies beside them (!function)."""
    data: str = ""
    """Folder with the files that our benchmarks read, one folder for each data set, as their makers publish them."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Items per task (of a group: per task of it); 0 for all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; null leaves it to the task.  A task that says 0 keeps it."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Requests that share a forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What models compute in; auto: bfloat16 on accelerators and on processors that have it, else float32."""
    apply_chat_template: bool = False
    """Put each prompt as a user's turn in the model's own chat format."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """By task: the metric that is its measure ("exact_match,strict-match" for a filter's); otherwise the first in its metric_list."""
    tags: tuple[str, ...] = ("kind", "language", "group", "category", "subject", "cluster")
    """Fields of the items that slices are made by, where they hold a word or a number; items of one `cluster` belong together (wordings of
    one question).  Ours bring their own."""
    again: Annotated[int, Field(ge=0, le=3)] = 0
    """How often the baseline is asked again, each time in half the batch: what that changes is noise."""

    ports: ClassVar[Mapping[str, Port]] = {**MODEL_PORTS}
    produces: ClassVar[Kind] = Kind.SCORES
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "tokenizers",
        "compressed-tensors",
        "lm-eval",
        "datasets",
        "gguf",
    )
    unkeyed: ClassVar[frozenset[str]] = frozenset({"data", "include"})
    """Where files are; their content is in the key."""

    def sources(self) -> tuple[Path, ...]:
        """The chosen tasks' files that are there; what is missing is told by `plan_problems`."""
        return self._places.sources(self.tasks)

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Unknown tasks, missing files, data that only a hub has, code in a folder: all of it before anything runs."""
        if not self.tasks:
            wanted = f"at least one: {', '.join(BENCHMARKS)}, a task of {where}.include, or one of lm-eval's"
            yield ConfigError(f"{where}.tasks", "none", wanted, f"{where}.tasks=[{next(iter(BENCHMARKS))}]")
        if twice := sorted({name for name in self.tasks if self.tasks.count(name) > 1}):
            yield ConfigError(f"{where}.tasks", f"{', '.join(twice)} twice", "every task once")
        if strange := sorted(self.metrics.keys() - set(self.tasks)):
            yield ConfigError(
                f"{where}.metrics", f"no task {', '.join(strange)} here", ", ".join(self.tasks) or "a task"
            )
        yield from self._places.problems(self.tasks, self.include_code, where)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write scores.json, items.jsonl, and samples/<task>.<model>.jsonl with all that the harness logs.

        Raises ConfigError for a task that cannot be asked here, DataError for files that are not a benchmark's, TechniqueError
        for a metric without a value per item, ModelError if the baseline fails.
        """
        plan = self._plan(run)
        subjects = [replace(subject, engine="transformers") for subject in list_models(inputs, again=self.again)]
        plans = {
            subject.name: replace(plan, batch_size=other_batch(self.batch_size, subject.again)) for subject in subjects
        }
        preload("lm_eval.models.huggingface", "lm_eval.evaluator")
        found = ask_each(subjects, plans, ask_tasks, HarnessReading, run)
        readings = {name: reading for name, reading in found.items() if isinstance(reading, HarnessReading)}
        items, measures, chosen = [], {}, {}
        for task in self.tasks:
            name, chosen[task], measure = self._measure(task, readings[subjects[0].name].tasks[task])
            of_task = list(score_items(name, chosen[task], task, readings))
            values = [value for item in of_task for value in item.values.values()]
            binary = all(value in (0.0, 1.0) for value in values)
            unit = measure.unit if all(0.0 <= value <= 1.0 for value in values) else name.rpartition(".")[2]
            measures[name] = measure.model_copy(update={"binary": binary, "unit": unit})
            items += of_task
        sheet = make_sheet(subjects, found, measures, run, self.libraries, list(self._notes(subjects, readings)))
        write_scores(out, with_figures(sheet, readings, chosen), items)
        write_samples(out / "samples", readings)
        return {"items": len(items), **mean_values(items, subjects)}

    @property
    def _places(self) -> TaskPlaces:
        return TaskPlaces(self.data, self.include)

    def _plan(self, run: StepRun) -> HarnessPlan:
        """What every model is asked.  Reads all tasks once, so that what is wrong with their data is no model's failure."""
        where = f"steps.{run.step}"
        if problems := list(self.plan_problems(where, {}, {})):
            raise ErrorList(problems)
        chosen = [task for task in self._places.find(self.tasks, where) if isinstance(task, Chosen)]
        plans = tuple(TaskPlan(task.name, task.origin, self._places.content(task)) for task in chosen)
        data, include = (str(user_path(path)) if path else "" for path in (self.data, self.include))
        for task in plans:
            check_loads(task, data, include, f"{where}.tasks")
        return HarnessPlan(
            tasks=plans, limit=self.limit, num_fewshot=self.num_fewshot, batch_size=self.batch_size, dtype=self.dtype,
            apply_chat_template=self.apply_chat_template, tags=self.tags, data=data, include=include,
            answered=str((run.prediction_cache or run.scratch) / "answered"),
        )  # fmt: skip

    def _measure(self, task: str, reading: TaskReading) -> tuple[str, str, Measure]:
        """The measure's name, the metric that it is made of, and what it is."""
        ours = BENCHMARKS.get(task)
        numeric = list(dict.fromkeys(metric for item in reading.items for metric in item.values))
        listed = [metric for metric in reading.better if metric in numeric] or numeric
        metric = self.metrics.get(task) or (ours.metric if ours else next(iter(listed), ""))
        if not metric or any(metric not in item.values for item in reading.items):
            raise TechniqueError(
                f"task {task}", f"metric {metric or 'none'} has no value for each item", ", ".join(numeric) or "a task scored item by item",
                f"metrics: {{{task}: {numeric[0]}}}" if numeric else "for perplexity of texts there is /evaluate: perplexity",
            )  # fmt: skip
        if ours and metric == ours.metric:
            return f"{task}.{ours.suffix or metric}", metric, ours.measure
        return f"{task}.{metric}", metric, Measure(title=f"{task}, {metric}", better=better_of(metric, reading))

    def _notes(self, subjects: Sequence[ModelUnderTest], readings: Readings) -> Iterator[str]:
        baseline = readings[subjects[0].name]
        for task, found in baseline.tasks.items():
            yield f"{task}: {len(found.items)} of {found.of} items, {found.num_fewshot} examples before each question."
        yield f"lm-evaluation-harness, batches of {self.batch_size}, {baseline.dtype}."
        files = [subject.name for subject in subjects if subject.is_gguf and not subject.broken]
        if files:
            yield f"{', '.join(files)}: GGUF weights, dequantized and run in transformers; llama.cpp's server gives no log-likelihoods of a prompt."
        if len({reading.vocabulary for reading in readings.values()}) > 1:
            yield "The models' vocabularies differ: a choice is scored as each one's own tokens."
        if self.apply_chat_template:
            templates = "; ".join(f"{name} {reading.template}" for name, reading in readings.items())
            differ = " They differ." if len({reading.template_digest for reading in readings.values()}) > 1 else ""
            yield f"Prompts are put in a chat template: {templates}.{differ}"
        for name, reading in readings.items():
            for task, found in reading.tasks.items():
                if found.cut:
                    yield f"{name}: {found.cut} items of {task} are longer than it takes, and lose their beginning."


def score_items(measure: str, metric: str, task: str, readings: Readings) -> Iterator[ItemScore]:
    """A task's items with the value of every model.  Raises DataError if two models were asked different items."""
    by_model = {name: {item.id: item for item in reading.tasks[task].items} for name, reading in readings.items()}
    first = next(iter(by_model.values()))
    prints = {model: {key: item.fingerprint for key, item in items.items()} for model, items in by_model.items()}
    if strange := [model for model, found in prints.items() if found != next(iter(prints.values()))]:
        got = f"{', '.join(strange)} was asked other items than the rest"
        raise DataError(f"task {task}", got, "the same items", "its data changed: delete artifacts/.predictions/lmeval")
    for key, item in first.items():
        asked = {model: items[key] for model, items in by_model.items()}
        yield ItemScore(
            measure=measure, id=key, cluster=item.tags.get(CLUSTER, ""), question=item.question, wanted=item.wanted,
            tags={name: value for name, value in item.tags.items() if name != CLUSTER},
            values={model: one.values[metric] for model, one in asked.items()},
            answers={model: one.answers.get(metric, one.answers.get("", "")) for model, one in asked.items()},
        )  # fmt: skip


def with_figures(sheet: Sheet, readings: Readings, chosen: Mapping[str, str]) -> Sheet:
    """The sheet with the mean of every metric that is no measure as a figure of each model.  chosen: by task, the one that is."""
    models = dict(sheet.models)
    for model, reading in readings.items():
        figures = {}
        for task, found in reading.tasks.items():
            for metric in dict.fromkeys(name for item in found.items for name in item.values if name != chosen[task]):
                value = fmean(item.values[metric] for item in found.items if metric in item.values)
                figures[f"{task}.{metric}"] = Figure(value=value, better=better_of(metric, found))
        models[model] = models[model].model_copy(update={"figures": figures})
    return sheet.model_copy(update={"models": models})


def better_of(metric: str, reading: TaskReading) -> Better:
    """Which way a metric is better by its task's own word; a filter's name after the comma does not count."""
    return "higher" if reading.better.get(metric.partition(",")[0], True) else "lower"


def write_samples(folder: Path, readings: Readings) -> None:
    """All that the harness logs of each item: <task>.<model>.jsonl."""
    folder.mkdir()
    for model, reading in readings.items():
        for task, found in reading.tasks.items():
            name = re.sub(r"[^\w.-]+", "_", f"{task}.{model}")
            lines = (
                json.dumps({"id": item.id, "values": item.values, **item.sample}, ensure_ascii=False) + "\n"
                for item in found.items
            )
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
