"""How a training computes, besides what: schedules, precision, recomputed activations, compiled layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.sft import SFT
from tasks.distill.training.arguments import precision_of, schedule_options
from tasks.distill.training.loop import make_trainer, train_model
from tasks.distill.training.objective import Answers
from tasks.shared.errors import MachineError
from tasks.shared.model import head
from tasks.shared.model.encoding import collate, encode
from tasks.shared.model.loading import load_model
from tasks.shared.technique import StepRun
from tests.tiny_llama import build_model, build_tokenizer, chats, empty_run, save_tiny, with_compute
from tests.two_terms import TwoTerms


def test_warmup_stable_decay_stays_at_its_peak_and_comes_down_at_the_end() -> None:
    import torch
    from transformers import get_scheduler

    steps, warmup = 60, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = schedule_options("warmup_stable_decay", steps - warmup)
    schedule = get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=options,
    )
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[5] == pytest.approx(0.5) and rates[10:51] == [1.0] * 41
    assert rates[51] == pytest.approx(1 - 0.1**0.5) and rates[-1] < 0.06 and schedule.get_last_lr() == [0.0]
    assert schedule_options("cosine", 50) == {}


def test_float16_is_for_gpus() -> None:
    with pytest.raises(MachineError, match="precision=auto"):
        precision_of("float16", "cpu")
    assert precision_of("bfloat16", "cpu") == "bfloat16" and precision_of("auto", "cpu") in {"float32", "bfloat16"}


def test_recomputed_activations_and_chunks_of_the_head_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both recompute in the backward pass, one within the other's graph."""
    import torch

    batch = collate(encode(chats(6), build_tokenizer(), 512), 0)
    found: dict[tuple[bool, int], dict[str, Any]] = {}
    for recompute in (False, True):
        for elements in (2**25, 7 * 512):
            monkeypatch.setitem(head.sum_over_chunks.__kwdefaults__, "elements", elements)
            model = build_model().train()
            if recompute:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            sum(TwoTerms().terms(model, batch, None).values()).backward()
            found[recompute, elements] = {name: weight.grad for name, weight in model.named_parameters()}
    for elements in (2**25, 7 * 512):
        for name, gradient in found[False, elements].items():
            assert torch.equal(found[True, elements][name], gradient), "recomputed bit for bit"
            torch.testing.assert_close(gradient, found[False, 2**25][name], rtol=1e-4, atol=1e-7)


def curve(folder: Path, model: Path, run: StepRun, **settings: Any) -> list[list[float]]:
    out = folder / f"out-{len(list(folder.iterdir()))}"
    out.mkdir()
    scratch = out.with_suffix(".scratch")
    fixed = {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3, "precision": "float32", "validation": 0.2}
    train_model(SFT(**fixed | settings), model, chats(21), Answers(), out, replace(run, scratch=scratch))
    lines = (out / "loss.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",") if value] for line in lines]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))


def test_hard_labels_train_as_trls_own_trainer_does(model: Path, tmp_path: Path) -> None:
    """The same batches in the same order: TRL scores every position, we those that count."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = encode(chats(20), build_tokenizer(), 512)
    settings = SFT(epochs=2, batch_size=4, accumulation=2, learning_rate=0.3, precision="float32", validation=0.0)
    ours = make_trainer(
        settings, load_model(model, "float32"), build_tokenizer(), rows, [], Answers(), empty_run(tmp_path)[1]
    )
    steps = {name: ours.args.to_dict()[name] for name in SAME}
    fixed: dict[str, Any] = {
        "output_dir": str(tmp_path / "trl"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    theirs = SFTTrainer(
        load_model(model, "float32"),
        SFTConfig(**steps, **fixed, dataset_kwargs={"skip_prepare_dataset": True}),
        lambda batch: collate(batch, 0),
        Dataset.from_list([dict(row) for row in rows]),
        processing_class=build_tokenizer(),
    )
    ours.args.save_strategy = "no"
    for trainer in (ours, theirs):
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
        trainer.args.optim = "sgd"  # AdamW makes a step of any rounding error where a gradient is nearly 0
        trainer.train()
    assert ours.state.global_step == theirs.state.global_step == 6
    expected = dict(theirs.model.named_parameters())
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


SAME = (
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type",
    "weight_decay", "warmup_steps", "max_length", "remove_unused_columns", "gradient_checkpointing", "optim", "disable_tqdm",
    "dataloader_pin_memory", "seed",
)  # fmt: skip
"""Arguments that both are given."""


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # the compiler's own look at its inputs
def test_compiled_layers_train_the_same(model: Path, tmp_path: Path) -> None:
    run = empty_run(tmp_path)[1]
    plain, rounded = curve(tmp_path, model, run), {"qat": {"grid": "int4_asymmetric", "scales": "learned"}}
    for settings in ({}, {"gradient_checkpointing": True}, {"frozen_layers": 1}, rounded):
        same = settings.keys() <= {"gradient_checkpointing"}
        expected = plain if same else curve(tmp_path, model, run, **settings)
        for line, wanted in zip(
            curve(tmp_path, model, with_compute(run, compile=True), **settings), expected, strict=True
        ):
            assert line == pytest.approx(wanted, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # the compiler's own look at its inputs
def test_a_gpu_trains_as_a_cpu_does_in_every_precision_and_compiled(model: Path, tmp_path: Path) -> None:
    run = empty_run(tmp_path)[1]
    gpu = with_compute(run, device="cuda")
    expected = curve(tmp_path, model, run)
    for near, place, settings in (
        (1e-3, gpu, {"precision": "float32"}),
        (3e-2, gpu, {"precision": "bfloat16"}),
        (3e-2, gpu, {"precision": "float16"}),
        (3e-2, with_compute(gpu, compile=True), {"precision": "bfloat16"}),
    ):
        for line, wanted in zip(curve(tmp_path, model, place, **settings), expected, strict=True):
            assert line == pytest.approx(wanted, rel=near), settings


@pytest.mark.gpu
def test_out_of_memory_on_a_gpu_names_a_batch_that_fits(model: Path, tmp_path: Path) -> None:
    import gc
    import re

    import torch

    run = with_compute(empty_run(tmp_path)[1], device="cuda")
    rows = [row.model_copy(update={"id": f"{row.id}-{index}"}) for index in range(400) for row in chats(256)]
    fixed: dict[str, Any] = {"epochs": 1e-5, "validation": 0.0, "precision": "float32"}
    wide = save_tiny(tmp_path / "wide", build_model(num_hidden_layers=24, hidden_size=512, intermediate_size=2048))
    with pytest.raises(MachineError, match="at 102400 conversations of up to") as caught:
        train_model(SFT(batch_size=102400, **fixed), wide, rows, Answers(), tmp_path, run)
    told = str(caught.value)
    del caught  # its frames hold the batch
    gc.collect()
    found = re.search(r"batch_size=(\d+) steps.step.accumulation=(\d+)", told)
    assert found and int(found[1]) * int(found[2]) == 102400
    torch.cuda.empty_cache()
    fits = SFT(batch_size=int(found[1]), accumulation=1, **fixed)
    assert train_model(fits, wide, rows[: int(found[1])], Answers(), tmp_path, run)["optimizer_steps"] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_several_gpus_train_as_one_does(model: Path, tmp_path: Path, sharding: str) -> None:
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("one GPU")
    gpu = with_compute(empty_run(tmp_path)[1], device="cuda")
    expected = curve(tmp_path, model, gpu)
    for line, wanted in zip(
        curve(tmp_path, model, with_compute(gpu, processes=2, sharding=sharding)), expected, strict=True
    ):
        assert line == pytest.approx(wanted, rel=1e-4)
