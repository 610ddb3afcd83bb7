"""Hardware description for reports."""

import os
import platform
from pathlib import Path

from tasks.shared.formats.records import Machine


def describe_machine(device: str = "cpu") -> Machine:
    """Return processor, cores, memory, operating system, and the accelerator if one is used."""
    import psutil

    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return Machine(
        cpu=names[0] if names else platform.processor() or platform.machine(), cores=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total), platform=platform.platform(), accelerator=_accelerator(device),
    )  # fmt: skip


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _accelerator(device: str) -> str:
    """Name of the accelerator, from the driver; empty for "cpu".

    Not through torch: the step must not open the accelerator that its child process uses.
    """
    if device == "cpu":
        return ""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return names[0] if names else device
