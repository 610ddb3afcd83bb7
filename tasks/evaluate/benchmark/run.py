"""Harness run of one model: loaded once for all tasks, every sample kept."""

import hashlib
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from tasks.evaluate.benchmark.benchmarks import task_config
from tasks.evaluate.benchmark.samples import HarnessItem, count_truncated, log_likelihoods, read_samples
from tasks.evaluate.benchmark.tasks import Origin
from tasks.evaluate.models_under_test.harness import harness_model, quiet_harness
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest
from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.model.bitsandbytes_layers import mixes_rows
from tasks.shared.model.generation import check_logits
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.precision import chosen_dtype
from tasks.shared.model.template_edits import CHATML
from tasks.shared.progress import track

SEED = 1234
"""The harness's default seed, for few-shot examples and sampling."""


@checked(frozen=True)
class TaskPlan:
    """One task.  content: digest of everything that decides its items."""

    name: str
    origin: Origin
    content: str


@checked(frozen=True)
class HarnessPlan:
    """Tasks and settings of one model's run.

    data, include, answer_cache: local paths, excluded from the cache key.
    """

    tasks: tuple[TaskPlan, ...]
    limit: int
    num_fewshot: int | None
    batch_size: int
    dtype: Literal["auto", "float32", "bfloat16"]
    apply_chat_template: bool
    tags: tuple[str, ...]
    data: Annotated[str, Field(exclude=True)] = ""
    include: Annotated[str, Field(exclude=True)] = ""
    answer_cache: Annotated[str, Field(exclude=True)] = ""
    """Folder of the answer cache."""


@dataclass(frozen=True)
class TaskResult:
    """One task's result.

    better: by metric, True if higher is better.  of: items without the limit.  truncated: items longer than the model's context.
    """

    items: list[HarnessItem]
    better: dict[str, bool]
    num_fewshot: int
    of: int
    truncated: int


@dataclass(frozen=True)
class HarnessResult:
    """One model's results.

    template: "its own", "ChatML" or "none".  template_digest, vocabulary: digests that tell models apart.
    """

    tasks: dict[str, TaskResult] = field(default_factory=dict)
    dtype: str = ""
    template: str = "none"
    template_digest: str = ""
    vocabulary: str = ""


def run_tasks(model: ModelUnderTest, plan: HarnessPlan, resources: Resources) -> HarnessResult:
    """Run all tasks of a plan on one model.

    Raises ModelError if the model cannot be loaded, yields NaN, or cannot run a task.
    """
    import torch

    torch.set_num_threads(resources.threads)
    dtype = chosen_dtype(plan.dtype, resources.device)
    loaded = load_model(model.weights, dtype, resources.device)
    tokenizer = load_tokenizer(model.weights, chat=plan.apply_chat_template)
    check_logits(loaded, tokenizer, "The answer is")
    found = {}
    cache_file = Path(plan.answer_cache) / f"{_cache_name(model, plan, resources, dtype)}.jsonl"
    batch_size = 1 if mixes_rows(loaded) else plan.batch_size
    with harness_model(loaded, tokenizer, batch_size, cache_file) as lm:
        for task in track(plan.tasks, "tasks", len(plan.tasks)):
            with quiet_harness():
                found[task.name] = _run_task(lm, task, plan)
    template = str(tokenizer.chat_template) if plan.apply_chat_template else ""
    return HarnessResult(
        found, dtype, "none" if not template else "ChatML" if template == CHATML else "its own",
        _digest(template) if template else "", _digest(json.dumps(tokenizer.get_vocab(), sort_keys=True)),
    )  # fmt: skip


def load_tasks(task: TaskPlan, data: str, include: str) -> dict[str, Any]:
    """Return the harness's task objects by name: one, or those of a group.

    Relative paths in a task file are relative to its folder.
    """
    from lm_eval.tasks import TaskManager

    if task.origin == "ours":
        return dict(TaskManager(include_defaults=False).load([task_config(task.name, Path(data))])["tasks"])
    if task.origin == "folder":
        with chdir(include), _no_bytecode():
            return dict(TaskManager(include_path=include, include_defaults=False).load([task.name])["tasks"])
    return dict(TaskManager().load([task.name])["tasks"])


def check_task_loads(task: TaskPlan, data: str, include: str, where: str) -> None:
    """Load a task to check it.

    Raises DataError for a damaged benchmark file, ConfigError for anything that the harness or `datasets` refuse.
    """
    with quiet_harness():
        from datasets.exceptions import DatasetsError

        broken = (DatasetsError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
        try:
            load_tasks(task, data, include)
        except broken as error:
            raise ConfigError(
                where, f"{task.name} cannot be loaded: {type(error).__name__}: {str(error)[:300]}", "a valid task with local data",
                "HF_HUB_OFFLINE=0 once fetches what a hub has" if task.origin == "library" else "correct the task file",
            ) from error  # fmt: skip


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Disable bytecode caches of Python next to a task file: the folder's content is in the key."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _run_task(lm: Any, task: TaskPlan, plan: HarnessPlan) -> TaskResult:
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    try:
        loaded = load_tasks(task, plan.data, plan.include)
        shots = [_prepare(one, plan.num_fewshot) for one in loaded.values()]
        result = evaluate(
            lm, {"tasks": loaded}, limit=plan.limit or None, log_samples=True, bootstrap_iters=0,
            apply_chat_template=plan.apply_chat_template, fewshot_as_multiturn=plan.apply_chat_template,
        )  # fmt: skip
    except (
        AssertionError,
        AttributeError,
        IndexError,
        TypeError,
        TemplateError,
    ) as error:  # raised by its templates and data
        got = f"{type(error).__name__}: {error}"
        raise ModelError(f"task {task.name}", got, "a task that this model can run") from error
    samples: Mapping[str, list[dict[str, Any]]] = (result or {}).get("samples") or {}
    items = [
        item for name, one in loaded.items()
        for item in read_samples(one, samples[name], plan.tags, part=name if len(loaded) > 1 else "")
    ]  # fmt: skip
    if broken := [item for item in items if not all(map(math.isfinite, log_likelihoods(item.sample["resps"])))]:
        got = f"log-likelihoods that are NaN or infinite ({len(broken)} items)"
        raise ModelError(f"task {task.name}", got, "finite values")
    better = {name: bool(good) for one in loaded.values() for name, good in one.higher_is_better().items()}
    whole = sum(len(one.eval_docs) for one in loaded.values())
    return TaskResult(items, better, max(shots), whole, count_truncated(lm, items))


def _prepare(task: Any, num_fewshot: int | None) -> int:
    """Set the number of few-shot examples, and return it.

    Follows the harness: a task that says 0 keeps it.
    """
    own = task.config.num_fewshot
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config("num_fewshot", num_fewshot or 0)
    task.set_fewshot_seed(SEED)
    _seed_all()
    return int(task.config.num_fewshot)


def _seed_all() -> None:
    import numpy
    import torch

    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)


def _cache_name(model: ModelUnderTest, plan: HarnessPlan, resources: Resources, dtype: str) -> str:
    """Name of the answer cache: a digest of the model and all settings that decide an answer.

    The requests themselves are the keys within the cache.
    """
    return _digest(
        json.dumps([model.cache_id, model.repetition, plan.batch_size, resources.threads, resources.device, dtype])
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
