"""Energy of the whole machine between two moments, from its hardware counters."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from tasks.shared.errors import ConfigError

Source = Literal["counters", "codecarbon", "off"]
POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI, JOULES_PER_KWH = 1e-6, 1e-3, 3.6e6


class Meter(Protocol):
    """Energy meter of the whole machine, idle hardware included."""

    def start(self) -> None:
        """Start measuring."""
        ...

    def stop(self) -> float:
        """Return joules since start."""
        ...


class Counters:
    """RAPL counters of the processors (packages and memory), and NVML's GPU counter if used."""

    def __init__(self, zones: Mapping[Path, int], gpu: Any = None) -> None:
        self.zones, self.gpu = zones, gpu

    def _read(self) -> tuple[dict[Path, int], int]:
        gpu = 0
        if self.gpu is not None:
            import pynvml

            gpu = pynvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)  # millijoules since the driver was loaded
        return {zone: int((zone / "energy_uj").read_text("ascii")) for zone in self.zones}, gpu

    def start(self) -> None:
        """Read all counters."""
        self.before = self._read()

    def stop(self) -> float:
        """Return joules since start; a counter may have wrapped around once."""
        (before, gpu_before), (after, gpu_after) = self.before, self._read()
        micro = sum((after[zone] - before[zone]) % span for zone, span in self.zones.items())
        return micro * MICRO + (gpu_after - gpu_before) * MILLI


class CodeCarbon:
    """codecarbon's estimate: memory always, and processors without counters, by models."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        # the country matters only for emissions, which are not used
        self.tracker = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, allow_multiple_runs=True, log_level="critical"
        )
        self.start()
        self.stop()  # the first task initializes the hardware

    def start(self) -> None:
        """Start a task."""
        self.tracker.start_task()

    def stop(self) -> float:
        """Return the task's energy, joules."""
        return float(self.tracker.stop_task().energy_consumed) * JOULES_PER_KWH


def check_source(source: Source) -> None:
    """Raise ConfigError for codecarbon if it is not installed."""
    if source == "codecarbon" and find_spec("codecarbon") is None:
        got, fix = "codecarbon is not installed", "pip install codecarbon, or energy: counters"
        raise ConfigError("energy", got, "counters, off, or codecarbon installed", fix)


def open_meter(source: Source, device: str, powercap: Path = POWERCAP) -> Meter | None:
    """Return an energy meter; None if disabled, or if no counters are readable.

    device: "cuda" also needs the GPU's counter; without it there is no figure, since the GPU uses most of the energy.
    Raises ConfigError for codecarbon if it is not installed.
    """
    check_source(source)
    if source == "codecarbon":
        return CodeCarbon()
    zones = _zones(powercap) if source == "counters" else {}
    if not zones or device == "cpu":
        return Counters(zones) if zones else None
    gpu = _gpu()
    return Counters(zones, gpu) if gpu is not None else None


def _zones(powercap: Path) -> dict[Path, int]:
    """Readable, non-overlapping RAPL domains, with the value at which each wraps around.

    Package domains include their cores; psys includes packages.
    """
    found: dict[Path, int] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD processors use this name too
        try:
            name = (zone / "name").read_text("ascii").strip()
            span = int((zone / "max_energy_range_uj").read_text("ascii")) + 1
            int((zone / "energy_uj").read_text("ascii"))  # readable only by root on many machines
        except (OSError, ValueError):
            continue
        if name.startswith(("package", "dram")):
            found[zone] = span
    return found if any((zone / "name").read_text("ascii").startswith("package") for zone in found) else {}


def _gpu() -> Any:
    """NVML handle of the first visible GPU, if its energy counter is readable; else None."""
    if find_spec("pynvml") is None:
        return None
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        pynvml.nvmlInit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(visible))
            if visible.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(visible)
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return handle
