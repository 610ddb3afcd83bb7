"""Energy counters: sums, wrap-around, and missing figures."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tasks.evaluate.timing.energy import Counters, open_meter
from tasks.shared.errors import ConfigError

ZONES = {
    "intel-rapl:0": ("package-0", 1_000_000),
    "intel-rapl:0:0": ("core", 400_000),
    "intel-rapl:0:1": ("dram", 200_000),
    "intel-rapl:1": ("package-1", 2_000_000),
    "intel-rapl:2": ("psys", 9_000_000),
    "intel-rapl-mmio:0": ("package-0", 1_000_000),
}


def write_counters(folder: Path, added: int = 0) -> Path:
    for zone, (name, value) in ZONES.items():
        (folder / zone).mkdir(parents=True, exist_ok=True)
        content = {"name": name, "energy_uj": value + added, "max_energy_range_uj": 9_999_999}
        for file, text in content.items():
            (folder / zone / file).write_text(f"{text}\n", "ascii")
    return folder


def test_packages_and_memory_are_summed_and_nothing_twice(tmp_path: Path) -> None:
    meter = open_meter("counters", "cpu", write_counters(tmp_path))
    assert isinstance(meter, Counters)
    assert {zone.name for zone in meter.zones} == {"intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"}
    meter.start()
    write_counters(tmp_path, added=500_000)
    assert meter.stop() == pytest.approx(3 * 0.5), "joules"


def test_a_counter_that_runs_over_starts_at_zero(tmp_path: Path) -> None:
    meter = open_meter("counters", "cpu", write_counters(tmp_path))
    assert meter is not None
    meter.start()
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500\n", "ascii")
    assert meter.stop() == pytest.approx((10_000_000 - 2_000_000 + 500) * 1e-6)


def test_without_readable_counters_there_is_no_meter(tmp_path: Path) -> None:
    assert open_meter("counters", "cpu", tmp_path / "nowhere") is None
    folder = write_counters(tmp_path)
    assert open_meter("off", "cpu", folder) is None
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        (folder / zone / "energy_uj").unlink()
    assert open_meter("counters", "cpu", folder) is None, "memory alone is not the machine"


class FakeNVML(ModuleType):
    class NVMLError(Exception): ...

    millijoules = 5_000
    asked: Any = None

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle == "gpu 7":
            raise self.NVMLError
        self.asked = handle
        return self.millijoules


@pytest.mark.parametrize(("visible", "handle"), [("1", "gpu 1"), ("GPU-ab12,3", "GPU-ab12"), (None, "gpu 0")])
def test_with_a_gpu_its_own_counter_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, handle: str
) -> None:
    nvml = FakeNVML("pynvml")
    nvml.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", visible)
    meter = open_meter("counters", "cuda", write_counters(tmp_path))
    assert meter is not None
    meter.start()
    nvml.millijoules += 2_500
    assert meter.stop() == pytest.approx(2.5) and nvml.asked == handle
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "7")
    assert open_meter("counters", "cuda", tmp_path) is None, (
        "without the GPU's counter the sum would leave out the most"
    )


def test_codecarbon_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ConfigError, match="codecarbon is not installed"):
        open_meter("codecarbon", "cpu")


def test_codecarbon_s_kilowatt_hours_become_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracker:
        def __init__(self, **settings: Any) -> None:
            assert settings["save_to_file"] is False

        def start_task(self) -> None: ...

        def stop_task(self) -> Any:
            return SimpleNamespace(energy_consumed=2e-6)

    module = ModuleType("codecarbon")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    module.OfflineEmissionsTracker = Tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    meter = open_meter("codecarbon", "cpu")
    assert meter is not None
    meter.start()
    assert meter.stop() == pytest.approx(7.2)
