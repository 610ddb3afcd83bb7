"""What a plan will cost: seconds, bytes and memory of every step, before anything runs.

Times come from the last run of the same step on this machine when there was one, else from arithmetic: 6 floating point
operations per weight and token for training, 2 for reading (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from flows.planning.config import Runtime
from flows.planning.session import Session
from flows.planning.steps import Plan, Step
from tasks.shared.errors import MachineError
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Kind

FLOPS_PER_CORE = 1e11
"""Sustained floating point operations a second of one core in a training loop, measured on a server with AVX512-BF16."""
FLOPS_GPU = 1e14
TOKENS_PER_ROW = 75
ANSWERING_TOKENS = 3
"""What one generated token costs, in tokens read: batches of answers use the processor less well than prompts do."""
ANSWER_TOKENS = 40
LONG_ROW_TOKENS = 180
"""A row of the longest batch."""
ACTIVATION_BYTES = 2.5e6
"""Activations kept for the backward pass, per token, of a 135M model; measured.  Layers x width grow like the root of the weights."""
SPARE_BYTES = 500e6
BYTES = {"float32": 4.0, "bfloat16": 2.0}
"""Of a weight, by `teacher_dtype`."""
PACKED_BITS = {"gptq": 4.25, "rtn": 4.25, "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5, "f16": 16.0}
"""Bits a weight, by quantization technique or GGUF type, scales included."""


@dataclass(frozen=True)
class Estimate:
    """One step's forecast.  measured: the seconds are those of an earlier run here."""

    seconds: float
    disk_bytes: float
    memory_bytes: float
    measured: bool


@dataclass(frozen=True)
class Rows:
    """Conversations to train on and to test with."""

    train: int
    test: int


@dataclass(frozen=True)
class Size:
    """A model's weights: how many, and bytes on disk."""

    parameters: float
    bytes: float


def estimate_plan(plan: Plan, runtime: Runtime) -> dict[str, Estimate]:
    """A forecast per step, in plan order."""
    session = Session(plan, runtime)
    sizes = {
        name: Size(parameter_count(source.path), weight_bytes(source.path)) for name, source in plan.sources.items()
    }
    corpora = [step.settings() for step in plan.steps if step.kind is Kind.CORPUS]
    rows = Rows(*(max((int(c.get(f"{split}_size", 500)) for c in corpora), default=500) for split in ("train", "test")))
    found: dict[str, Estimate] = {}
    for step in plan.steps:
        model, teacher = _models(step, sizes)
        size = _size_after(step, model)
        if step.kind in {Kind.MODEL, Kind.ENGINE}:
            sizes[step.name] = size
        manifest = session.place(step.name).read_manifest()
        same = manifest is not None and manifest.get("settings") == step.keyed()
        seconds = float(manifest["duration_s"]) if same and manifest else _seconds(step, model, teacher, rows, runtime)
        disk = size.bytes if step.kind in {Kind.MODEL, Kind.ENGINE} else 2e6
        found[step.name] = Estimate(seconds, disk, _memory(step, model, teacher, runtime), same)
    return found


def _models(step: Step, sizes: Mapping[str, Size]) -> tuple[Size, Size]:
    """What a step works on, and the teacher that is in memory beside it (none: of no size)."""
    nothing = Size(0, 0)
    named = (*step.inputs.get("model", ()), *step.needs)
    teacher = next(iter(step.inputs.get("teacher", ())), "") if step.stage == "distill" else ""
    return next((sizes[name] for name in named if name in sizes), nothing), sizes.get(teacher, nothing)


def _size_after(step: Step, model: Size) -> Size:
    """Weights after a step: pruning drops a share of the layers, packing changes the bits, training writes bf16.

    Pruning by sizes that only the model can tell (vocabulary, weight selection) counts as if nothing went: the most that it can be.
    """
    settings: Mapping[str, Any] = step.settings()
    packing = str(settings.get("scheme", step.module.rpartition(".")[2]))
    if step.stage == "prune":
        kept = model.parameters * (
            1 - 0.8 * float(settings.get("ratio", 0))
        )  # about 0.8 of a small model sits in its layers
        return Size(kept, 2 * kept)
    if packing in PACKED_BITS:
        return Size(model.parameters, model.parameters * PACKED_BITS[packing] / 8 + 0.1 * model.bytes)
    return Size(model.parameters, 2 * model.parameters)


def _seconds(step: Step, model: Size, teacher: Size, rows: Rows, runtime: Runtime) -> float:
    settings = step.settings()
    gpus = max(1, runtime.processes) if step.scales else 1
    speed = FLOPS_GPU * gpus if runtime.device == "cuda" else FLOPS_PER_CORE * runtime.cores
    token = 2 * model.parameters / speed
    reading = rows.train * TOKENS_PER_ROW * token
    match step.stage:
        case "traces":
            asked = min(int(settings.get("max_prompts") or rows.train), rows.train) * int(settings.get("samples", 1))
            return 10 + asked * 0.5
        case "distill":
            passes = 3 + (
                teacher.parameters / model.parameters if model.parameters else 0
            )  # forward, backward, the teacher's forward
            drawn = float(settings.get("lmbda", 0)) * ANSWERING_TOKENS * ANSWER_TOKENS / TOKENS_PER_ROW
            return 15 + (passes + drawn) * reading * float(settings.get("epochs", 1))
        case "logits":
            return 15 + reading
        case "quantize":
            return 15 + 5e-7 * model.parameters
        case "evaluate" if step.kind is Kind.VERDICT:
            return 10
        case "evaluate":
            row = TOKENS_PER_ROW + ANSWERING_TOKENS * ANSWER_TOKENS
            asked = min(int(settings.get("limit") or rows.test), rows.test)
            return len(step.needs) * (15 + asked * row * token)
        case "export":
            return 15 + 1e-7 * model.parameters
        case _:
            return 5 + 0.1 * reading


def _memory(step: Step, model: Size, teacher: Size, runtime: Runtime) -> float:
    """Resident bytes at the peak: training holds weights, gradients and two moments in float32, a batch's activations, and a teacher's
    weights; each process of it has its own, and its share of the batch.  Reading holds weights twice.
    """
    base = 6e8
    if step.stage == "distill":
        settings = step.settings()
        tokens = LONG_ROW_TOKENS * float(settings.get("batch_size", 16))
        activations = ACTIVATION_BYTES * tokens * (model.parameters / 1.35e8) ** 0.5
        beside = teacher.parameters * BYTES[settings.get("teacher_dtype", "float32")]
        return max(1, runtime.processes) * (base + 16 * model.parameters + beside) + activations
    return base + (8 * model.parameters if step.kind in {Kind.LOGITS, Kind.MODEL, Kind.ENGINE, Kind.SCORES} else 2e8)


def check_machine(plan: Plan, runtime: Runtime, done: Collection[str] = ()) -> None:
    """Raise MachineError when the disk or the memory of this machine cannot hold what is left of the plan.  done: its finished steps."""
    estimates = {name: item for name, item in estimate_plan(plan, runtime).items() if name not in done}
    if not estimates:
        return
    folder = runtime.folder
    wanted = sum(item.disk_bytes for item in estimates.values()) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise MachineError(
            str(folder),
            f"{free / 1e9:.1f} GB free",
            f"about {wanted / 1e9:.1f} GB for this plan",
            "free space, or runtime.root=/big/disk",
        )
    step, most = max(((name, item.memory_bytes) for name, item in estimates.items()), key=lambda pair: pair[1])
    total = psutil.virtual_memory().total
    if most > total:
        raise MachineError(
            f"step {step}",
            f"this machine has {total / 1e9:.1f} GB of memory",
            f"about {most / 1e9:.1f} GB",
            "a smaller model or batch, or a larger machine",
        )
