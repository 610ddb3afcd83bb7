"""One model through all of the harness's tasks: loaded once, every sample kept."""

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
from tasks.evaluate.benchmark.samples import Answered, count_cut, numbers_in, read_samples
from tasks.evaluate.benchmark.tasks import Origin
from tasks.evaluate.models_under_test.harness import harness_model, quiet_harness
from tasks.evaluate.models_under_test.isolated_runs import Workspace
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest
from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.model.generation import check_logits
from tasks.shared.model.loading import CHATML, Dtype, has_cpu_bfloat16, load_model, load_tokenizer
from tasks.shared.progress import track

SEED = 1234
"""The harness's own, of examples shown and of sampled answers."""


@checked(frozen=True)
class TaskPlan:
    """One task.  content: digest of what decides its items."""

    name: str
    origin: Origin
    content: str


@checked(frozen=True)
class HarnessPlan:
    """What a model is asked.  The last three say where things are on this machine, and are no part of what is asked."""

    tasks: tuple[TaskPlan, ...]
    limit: int
    num_fewshot: int | None
    batch_size: int
    dtype: Literal["auto", "float32", "bfloat16"]
    apply_chat_template: bool
    tags: tuple[str, ...]
    data: Annotated[str, Field(exclude=True)] = ""
    include: Annotated[str, Field(exclude=True)] = ""
    answered: Annotated[str, Field(exclude=True)] = ""
    """Folder of the answers that are kept request by request."""


@dataclass(frozen=True)
class TaskReading:
    """One task.  better: by metric, whether more is.  of: items it has without the limit.  cut: items that did not fit the model."""

    items: list[Answered]
    better: dict[str, bool]
    num_fewshot: int
    of: int
    cut: int


@dataclass(frozen=True)
class HarnessReading:
    """One model.  template: "its own", "ChatML" or "none".  template_digest and vocabulary: to tell models apart."""

    tasks: dict[str, TaskReading] = field(default_factory=dict)
    dtype: str = ""
    template: str = "none"
    template_digest: str = ""
    vocabulary: str = ""


def ask_tasks(subject: ModelUnderTest, plan: HarnessPlan, workspace: Workspace) -> HarnessReading:
    """All tasks of a plan.  Raises ModelError if the model cannot be loaded, gives no numbers, or a task cannot be put to it."""
    import torch

    torch.set_num_threads(workspace.threads)
    fast: Dtype = "bfloat16" if workspace.device != "cpu" or has_cpu_bfloat16() else "float32"
    dtype = fast if plan.dtype == "auto" else plan.dtype
    model = load_model(subject.weights, dtype, workspace.device)
    tokenizer = load_tokenizer(subject.weights, chat=plan.apply_chat_template)
    check_logits(model, tokenizer, "The answer is")
    found = {}
    answered = Path(plan.answered) / f"{_asked(subject, plan, workspace, dtype)}.jsonl"
    with harness_model(model, tokenizer, plan.batch_size, answered) as lm:
        for task in track(plan.tasks, "tasks", len(plan.tasks)):
            with quiet_harness():
                found[task.name] = _ask(lm, task, plan)
    template = str(tokenizer.chat_template) if plan.apply_chat_template else ""
    return HarnessReading(
        found, dtype, "none" if not template else "ChatML" if template == CHATML else "its own",
        _digest(template) if template else "", _digest(json.dumps(tokenizer.get_vocab(), sort_keys=True)),
    )  # fmt: skip


def load_tasks(task: TaskPlan, data: str, include: str) -> dict[str, Any]:
    """The harness's task objects by name: one, or those of a group.  Relative paths in a task file are below its folder."""
    from lm_eval.tasks import TaskManager

    if task.origin == "ours":
        return dict(TaskManager(include_defaults=False).load([task_config(task.name, Path(data))])["tasks"])
    if task.origin == "folder":
        with chdir(include), _no_bytecode():
            return dict(TaskManager(include_path=include, include_defaults=False).load([task.name])["tasks"])
    return dict(TaskManager().load([task.name])["tasks"])


def check_loads(task: TaskPlan, data: str, include: str, where: str) -> None:
    """Load a task and drop it.  Raises DataError for a broken file of ours, ConfigError for what the harness or `datasets` refuse."""
    with quiet_harness():
        from datasets.exceptions import DatasetsError

        broken = (DatasetsError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
        try:
            load_tasks(task, data, include)
        except broken as error:
            raise ConfigError(
                where, f"{task.name} cannot be loaded: {type(error).__name__}: {str(error)[:300]}", "a sound task whose data is here",
                "HF_HUB_OFFLINE=0 once fetches what a hub has" if task.origin == "library" else "correct the task file",
            ) from error  # fmt: skip


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python beside a task file is run without leaving a cache there: the folder's content is in the key."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _ask(lm: Any, task: TaskPlan, plan: HarnessPlan) -> TaskReading:
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
    ) as error:  # of its templates and its data
        got = f"{type(error).__name__}: {error}"
        raise ModelError(f"task {task.name}", got, "a task that this model can be asked") from error
    samples: Mapping[str, list[dict[str, Any]]] = (result or {}).get("samples") or {}
    items = [
        item for name, one in loaded.items()
        for item in read_samples(one, samples[name], plan.tags, part=name if len(loaded) > 1 else "")
    ]  # fmt: skip
    if broken := [item for item in items if not all(map(math.isfinite, numbers_in(item.sample["resps"])))]:
        got = f"log-likelihoods that are NaN or infinite ({len(broken)} items)"
        raise ModelError(f"task {task.name}", got, "numbers")
    better = {name: bool(good) for one in loaded.values() for name, good in one.higher_is_better().items()}
    whole = sum(len(one.eval_docs) for one in loaded.values())
    return TaskReading(items, better, max(shots), whole, count_cut(lm, items))


def _prepare(task: Any, num_fewshot: int | None) -> int:
    """Examples before each question, by the harness's own rule: a task that says 0 keeps it.  Returns how many there are."""
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


def _asked(subject: ModelUnderTest, plan: HarnessPlan, workspace: Workspace, dtype: str) -> str:
    """Names the file of kept answers: the model and everything but the requests themselves that decides an answer."""
    return _digest(
        json.dumps([subject.content, subject.again, plan.batch_size, workspace.threads, workspace.device, dtype])
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
