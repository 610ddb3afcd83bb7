"""Cost of a plan before anything runs: seconds, bytes and memory of every step.

Times are those of the last run of the same step on this machine, or the technique's own forecast (`Forecasts`).
"""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import psutil

from flows.planning.config import Runtime
from flows.planning.gpus import gpu_memory, may_use_gpu
from flows.planning.session import Session
from flows.planning.sizes import size_of
from flows.planning.steps import Plan, Step
from tasks.shared.cpu import cpu_facts, cpu_flags, is_bfloat16_fast
from tasks.shared.errors import MachineError
from tasks.shared.forecast import Forecast, Forecasts, Rows, Size, Workload, forecast_default, forecast_light
from tasks.shared.model.grids import OnGrid
from tasks.shared.technique import WEIGHTS, Compute

FLOPS_BFLOAT16, FLOPS_AVX512, FLOPS_FLOAT32 = 2.7e11, 1.2e11, 3.7e10
"""Sustained floating point operations a second of one core in a training loop on conversations of 250 tokens, measured on servers: in bfloat16
with AMX or AMD's AVX512-BF16 (assumed for Arm too), in float32 with AVX-512, and in float32 without."""
FLOPS_GPU = 1e14
LIGHT_S = 10.0
"""Seconds assumed for a step that computes little and has no forecast of its own."""
SPARE_BYTES = 500e6


@dataclass(frozen=True)
class Estimate:
    """Forecast of one step.

    memory_bytes: peak memory of the machine.
    gpu_bytes: peak memory of each GPU; 0 on a CPU.
    measured: the seconds are those of an earlier run on this machine.
    savings: overrides that lower the memory, with `{step}` for the step's name.
    rows: of the corpus that the step writes or reads.
    """

    seconds: float
    disk_bytes: float
    memory_bytes: float
    gpu_bytes: float
    measured: bool
    savings: tuple[str, ...] = ()
    rows: Rows = Rows()


def flops_per_core(facts: str | None = None) -> float:
    """Return the operations a second of one core in the arithmetic that it trains in.

    facts: text of /proc/cpuinfo, by default this machine's.
    """
    facts = cpu_facts() if facts is None else facts
    flags = cpu_flags(facts)
    if is_bfloat16_fast(facts):
        return FLOPS_BFLOAT16
    return FLOPS_AVX512 if "avx512f" in flags else FLOPS_FLOAT32


def estimate_plan(plan: Plan, runtime: Runtime) -> dict[str, Estimate]:
    """Return a forecast per step, in plan order."""
    session = Session(plan, runtime)
    sizes: dict[str, Size] = {name: size_of(source.path) for name, source in plan.sources.items()}
    rows: dict[str, Rows] = {}
    found: dict[str, Estimate] = {}
    for step in plan.steps:
        work = _workload(session, step, sizes, rows)
        forecast = _forecast(step, work)
        rows[step.name] = forecast.rows or work.rows
        if step.kind in WEIGHTS and forecast.size:
            grid = step.technique.weight_grid if isinstance(step.technique, OnGrid) else None
            sizes[step.name] = replace(forecast.size, levels=grid.name) if grid else forecast.size
        manifest = session.place(step.name).read_manifest()
        same = manifest is not None and manifest.get("settings") == step.keyed()
        seconds = float(manifest["duration_s"]) if same and manifest else forecast.seconds
        disk = forecast.disk + (forecast.size.bytes if forecast.size else 0)
        found[step.name] = Estimate(
            seconds, disk, forecast.memory, forecast.gpu_memory, same, forecast.savings, rows[step.name]
        )
    return found


def _workload(session: Session, step: Step, sizes: Mapping[str, Size], rows: Mapping[str, Rows]) -> Workload:
    """Return the input of a step's forecast: the sizes of its models, its rows and its compute."""
    runtime = session.runtime
    device = "cuda" if step.accelerated and may_use_gpu(runtime.device) else "cpu"
    processes = session.processes(step, device)
    threads = session.threads(step)
    read = [rows[name] for name in step.needs if name in rows]
    return Workload(
        sizes={port: tuple(sizes[name] for name in names if name in sizes) for port, names in step.inputs.items()},
        rows=Rows(*(max(getattr(one, name) for one in read) for name in ("train", "test", "longest", "tokens")))
        if read
        else Rows(),
        compute=Compute(threads, device, processes, runtime.sharding),
        flops=FLOPS_GPU * processes if device == "cuda" else flops_per_core() * threads,
    )


def _forecast(step: Step, work: Workload) -> Forecast:
    """Return the technique's own forecast, or a default for its device."""
    if isinstance(step.technique, Forecasts):
        return step.technique.forecast(work)
    return forecast_default(work) if step.accelerated or step.kind in WEIGHTS else forecast_light(LIGHT_S)


def check_machine(plan: Plan, runtime: Runtime, done: Collection[str] = ()) -> None:
    """Raise MachineError if the unfinished steps exceed this machine's disk, memory or GPUs.

    done: names of finished steps.
    """
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
    if runtime.check_memory:
        _check_memory("this machine", estimates, lambda item: item.memory_bytes, psutil.virtual_memory().total)
        if any(item.gpu_bytes for item in estimates.values()):
            _check_memory("a GPU of this machine", estimates, lambda item: item.gpu_bytes, gpu_memory())


def _check_memory(place: str, estimates: Mapping[str, Estimate], of: Callable[[Estimate], float], total: float) -> None:
    """Raise MachineError if one step is forecast above the memory of a place.

    of: the forecast for that place.
    total: its bytes; 0 if unknown.
    """
    step = max(estimates, key=lambda name: of(estimates[name]))
    most = of(estimates[step])
    if most > total > 0:
        savings = [text.format(step=step) for text in estimates[step].savings] or ["a smaller model"]
        raise MachineError(
            f"step {step}",
            f"{place} has {total / 1e9:.1f} GB of memory",
            f"about {most / 1e9:.1f} GB by forecast",
            "; or ".join([*savings, "runtime.check_memory=false runs the step anyway"]),
        )
