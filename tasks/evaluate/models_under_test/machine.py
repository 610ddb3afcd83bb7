"""Hardware description for reports."""

import os
import platform

from tasks.shared.cpu import accelerator_name, cpu_name
from tasks.shared.formats.records import Machine


def describe_machine(device: str = "cpu") -> Machine:
    """Return processor, cores, memory, operating system, and the accelerator if one is used."""
    import psutil

    return Machine(
        cpu=cpu_name(), cores=os.cpu_count() or 1, memory_bytes=int(psutil.virtual_memory().total), platform=platform.platform(),
        accelerator="" if device == "cpu" else accelerator_name() or device,
    )  # fmt: skip
