"""Forecasts: adapters, frozen and sharded weights, GPUs, packed weights, dropped layers, and machines that are too small."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.planning import estimate, gpus, session
from flows.planning.config import Runtime
from flows.planning.plan import build_plan
from flows.planning.sizes import size_of
from tasks.shared.errors import MachineError
from tasks.shared.forecast import Dimensions, Size
from tasks.shared.gguf.types import bits
from tests.tiny_llama import build_model, save_tiny

LLAMA_8B = Size(
    parameters=8.03e9,
    bytes=16.06e9,
    outer=2 * 128256 * 4096,
    shape=Dimensions(layers=32, width=4096, feed_forward=14336, heads=32, query=4096, value=1024, vocabulary=128256),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(save_tiny(tmp_path / "model"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model source counts as one of 8 billion weights."""
    monkeypatch.setattr(estimate, "size_of", lambda _: LLAMA_8B)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (estimate, session):
        monkeypatch.setattr(module, "may_use_gpu", lambda device: device != "cpu")
    monkeypatch.setattr(session, "gpus", lambda: ["0", "1", "2", "3"])


def forecast(model: Path, target: str, settings: dict[str, Any] | None = None, **runtime: Any) -> estimate.Estimate:
    """The forecast of one step on a model, with rows of the built-in corpus."""
    inputs = {"model": "models.big"}
    inputs |= {"data": "corpus"} if ".distill." in target else {"calibration": "corpus"}
    corpus = {"_target_": "tasks.curate.support.Support"}
    step = {"_target_": target, "inputs": inputs, **(settings or {})}
    steps = {"corpus": corpus, "step": step}
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    place = Runtime(root=str(model.parent), **{"device": "cpu", "threads": 2, **runtime})
    return estimate.estimate_plan(plan, place)["step"]


SFT, DEPTH, RTN = "tasks.distill.sft.SFT", "tasks.prune.depth.Depth", "tasks.quantize.rtn.RTN"


@pytest.mark.usefixtures("large")
def test_adapters_need_no_gradients_of_the_weights(model: Path) -> None:
    whole = forecast(model, SFT, {"batch_size": 1}).memory_bytes
    adapted = forecast(model, SFT, {"batch_size": 1, "lora": {"rank": 16}}).memory_bytes
    some = forecast(model, SFT, {"batch_size": 1, "lora": {"rank": 16, "targets": ["q_proj"]}}).memory_bytes
    assert 128e9 < whole < 136e9 and 37e9 < adapted < 40e9 and some < adapted


@pytest.mark.usefixtures("large")
def test_frozen_layers_have_neither_gradients_nor_activations_nor_a_backward_pass(model: Path) -> None:
    whole, upper = forecast(model, SFT), forecast(model, SFT, {"frozen_layers": 16})
    saved = 12 * (LLAMA_8B.outer + 16 * LLAMA_8B.layer)
    assert whole.memory_bytes - upper.memory_bytes > saved and upper.memory_bytes > 4 * LLAMA_8B.parameters
    assert upper.seconds - 15 == pytest.approx(
        (whole.seconds - 15) * 2 / 3
    )  # half of a backward pass, which costs two forward


@pytest.mark.usefixtures("large", "four_gpus")
def test_sharded_weights_are_shared_by_the_gpus_and_not_held_by_the_host(model: Path) -> None:
    settings = {"batch_size": 4}
    alone = forecast(model, SFT, settings, device="auto")
    sharded = forecast(model, SFT, settings, device="auto", processes=0, sharding="fsdp")
    assert alone.gpu_bytes > 128e9 and 32e9 < alone.memory_bytes < 34e9, "weights are on the GPU but for loading"
    assert 32e9 < sharded.gpu_bytes < 40e9
    assert forecast(model, SFT, settings).gpu_bytes == 0


@pytest.mark.usefixtures("large", "four_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_seconds_count_every_gpu(model: Path, device: str) -> None:
    def work(processes: int) -> float:
        return forecast(model, SFT, device=device, processes=processes).seconds - 15

    assert work(4) == pytest.approx(work(1) / 4) == pytest.approx(work(0))
    assert work(1) < 0.1 * (forecast(model, SFT).seconds - 15)


@pytest.mark.usefixtures("large")
def test_eight_bits_take_twice_the_bytes_of_four(model: Path) -> None:
    four, eight = (forecast(model, RTN, {"bits": bits, "symmetric": True}).disk_bytes for bits in (4, 8))
    inner = LLAMA_8B.parameters - LLAMA_8B.outer
    assert eight - four == pytest.approx(inner * 4 / 8)
    assert eight == pytest.approx(inner * (8 + 16 / 128) / 8 + 2 * LLAMA_8B.outer, rel=0.01)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("target", "settings", "scheme"),
    [
        ("prune.depth.Depth", {"ratio": 0.25}, "q4_0"),
        ("quantize.rtn.RTN", {"group_size": 32}, "q4_1"),
        ("quantize.rtn.RTN", {"group_size": 32, "symmetric": True}, "q4_0"),
        ("quantize.rtn.RTN", {"bits": 8}, "q8_0"),
        ("quantize.gptq_levels.GptqLevels", {}, "iq4_nl"),
        ("distill.sft.SFT", {"qat": {"grid": "q2_0"}}, "q2_0"),
    ],
)
def test_a_gguf_file_is_as_large_as_the_type_that_copies_its_source(
    model: Path, target: str, settings: dict[str, Any], scheme: str
) -> None:
    data = {"data": "corpus"} if "distill" in target else {"calibration": "corpus"}
    source = {"_target_": f"tasks.{target}", "inputs": {"model": "models.big", **data}, **settings}
    export = {"_target_": "tasks.export.gguf.Gguf", "inputs": {"model": "source", "calibration": "corpus"}}
    steps = {"corpus": {"_target_": "tasks.curate.support.Support"}, "source": source, "file": export}
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    estimates = estimate.estimate_plan(plan, Runtime(root=str(model.parent), device="cpu", threads=2))
    layers = LLAMA_8B.parameters - LLAMA_8B.outer
    layers *= 24 / 32 if "depth" in target else 1
    wanted = (layers * bits(scheme) + LLAMA_8B.outer * bits("q8_0")) / 8
    assert estimates["file"].disk_bytes == pytest.approx(wanted, rel=0.01)


@pytest.mark.usefixtures("large")
def test_named_layers_decide_and_not_the_ratio(model: Path) -> None:
    named = forecast(model, DEPTH, {"layers": [1, 2], "ratio": 0.5}).disk_bytes
    assert named == pytest.approx(2 * (LLAMA_8B.parameters - 2 * LLAMA_8B.layer), rel=0.01)
    assert forecast(model, DEPTH, {"ratio": 0.5}).disk_bytes < named


@pytest.mark.usefixtures("large")
def test_a_refusal_for_memory_names_what_saves_some_and_the_way_round(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "corpus": {"_target_": "tasks.curate.support.Support"},
        "tuned": {"_target_": SFT, "inputs": {"model": "models.big", "data": "corpus"}},
    }
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64e9})())
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1e15})())
    with pytest.raises(MachineError) as refused:
        estimate.check_machine(plan, Runtime(root=str(model.parent), device="cpu"))
    for words in ("step tuned", "64.0 GB of memory", "steps.tuned.lora.rank=16", "runtime.check_memory=false"):
        assert words in str(refused.value)
    estimate.check_machine(plan, Runtime(root=str(model.parent), device="cpu", check_memory=False))


@pytest.mark.usefixtures("large", "four_gpus")
def test_a_gpu_that_is_too_small_is_refused_and_an_unknown_one_is_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "corpus": {"_target_": "tasks.curate.support.Support"},
        "tuned": {"_target_": SFT, "inputs": {"model": "models.big", "data": "corpus"}},
    }
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64e9})())
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1e15})())
    monkeypatch.setattr(estimate, "gpu_memory", lambda: 80e9)
    with pytest.raises(MachineError, match=r"(?s)a GPU of this machine has 80.0 GB.*sharding=fsdp"):
        estimate.check_machine(plan, Runtime(root=str(model.parent)))
    monkeypatch.setattr(estimate, "gpu_memory", lambda: 0.0)
    estimate.check_machine(plan, Runtime(root=str(model.parent)))


def test_the_memory_of_the_smallest_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "0, GPU-a, 81559\n1, GPU-b, 40960\n2, GPU-c, [N/A]\n"
    monkeypatch.setattr(gpus.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": listed})())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpus.gpu_memory() == 40960 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert gpus.gpu_memory() == 81559 * 2**20

    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(gpus.subprocess, "run", absent)
    assert gpus.gpu_memory() == 0


def test_steps_that_need_no_accelerator_compute_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "pick_device", lambda _: "cuda")
    steps = {
        name: {"_target_": target, "inputs": {"model": "models.big", **more}}
        for name, target, more in (
            ("file", "tasks.export.gguf.Gguf", {}),
            ("small", "tasks.prune.vocabulary.Vocabulary", {"data": ["corpus"]}),
            ("slim", DEPTH, {"calibration": "corpus"}),
        )
    } | {"corpus": {"_target_": "tasks.curate.support.Support"}}
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    found = session.Session(plan, Runtime(root=str(model.parent)))
    devices = {step.name: found.device(step) for step in plan.steps}
    assert devices == {"corpus": "cpu", "file": "cpu", "small": "cpu", "slim": "cuda"}


def test_sizes_come_from_headers_and_configuration(model: Path) -> None:
    built = build_model()
    size, config = size_of(model), built.config
    assert size.parameters == built.num_parameters() and size.shape.layers == config.num_hidden_layers
    assert size.outer == sum(
        weight.numel() for name, weight in built.named_parameters() if "embed" in name or "head" in name
    )
    assert size.layer == pytest.approx(size.shape.layer_parameters, rel=0.01), "all but the norms"
    assert size.with_layers(2).parameters == pytest.approx(size.outer + 2 * size.layer)


def test_a_configuration_without_sizes_is_guessed(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "unheard_of"}')
    size = size_of(model)
    assert size.shape.layers > 0 and size.shape.width > 0 and 0 < size.outer < size.parameters


def test_rows_are_those_of_the_step_s_own_corpus(model: Path, tmp_path: Path) -> None:
    for split, count in (("train", 40), ("calibration", 1), ("test", 7)):
        row = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "yes"}]}\n'
        (tmp_path / f"{split}.jsonl").write_text("".join(row % f"{split} {index}" for index in range(count)))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "calibration", "test")}
    steps: dict[str, Any] = {
        "mine": {"_target_": "tasks.curate.jsonl.Jsonl", **files},
        "theirs": {"_target_": "tasks.curate.support.Support", "train_size": 4000},
    }
    for name in ("mine", "theirs"):
        steps[f"on_{name}"] = {"_target_": SFT, "inputs": {"model": "models.big", "data": name}}
    plan = build_plan({"name": "trial", "seed": 0, "models": {"big": {"path": str(model)}}, "steps": steps})
    found = estimate.estimate_plan(plan, Runtime(root=str(tmp_path / "root"), device="cpu"))
    longer = found["theirs"].rows.tokens / found["mine"].rows.tokens
    assert longer > 2
    assert found["on_theirs"].seconds - 15 == pytest.approx(100 * longer * (found["on_mine"].seconds - 15))


def test_a_core_is_as_fast_as_its_arithmetic() -> None:
    intel, amd = (
        "vendor_id : {}\nflags : avx512f{}\n".format(vendor, "{}") for vendor in ("GenuineIntel", "AuthenticAMD")
    )
    flops_per_core = estimate.flops_per_core
    amx = flops_per_core(intel.format(" avx512_bf16 amx_bf16"))
    assert (
        flops_per_core("flags : avx2\n")
        < flops_per_core(intel.format(""))
        == flops_per_core(intel.format(" avx512_bf16"))
    )
    assert flops_per_core(intel.format("")) < flops_per_core(amd.format(" avx512_bf16")) == amx
