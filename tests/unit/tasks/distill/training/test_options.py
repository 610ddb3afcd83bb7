"""What every technique that supports it may use: weights by source, adapters; and what does not support it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.distill.sft import SFT
from tasks.distill.training import checkpoints
from tasks.distill.training.lora import Lora, adapt, merge
from tasks.distill.training.objective import Answers
from tasks.distill.training.settings import Training
from tasks.distill.training.weights import weigh
from tasks.shared.errors import TechniqueError
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.model.encoding import Encoded, collate, encode
from tasks.shared.model.loading import load_model
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.support_rows import support_row
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny, sentences, with_compute

LORA = Lora(rank=4, alpha=8, dropout=0.1)
SETTINGS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 2, "precision": "float32", "lora": LORA}


def rows_of(count: int = 16) -> list[Row]:
    """Every third one is gold."""
    return [
        support_row(
            id=f"r{index}", kind="faq", intent="returns", group=f"g{index // 2}", source="teacher" if index % 3 else "gold",
            messages=(Message(role="user", content=ask), Message(role="assistant", content=f"returns\n{ask}")),
        )
        for index, ask in enumerate(sentences(count, seed=5))
    ]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    (tmp_path / "traces").mkdir()
    write_rows(tmp_path / "traces" / "train.jsonl", rows_of())
    model = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))
    data = Artifact("traces", Kind.TRACES, tmp_path / "traces")
    return Inputs({"model": (Artifact("teacher", Kind.MODEL, model),), "data": (data,)})


def hard(model: Any, rows: list[Encoded], count: int) -> Any:
    return Answers().terms(model, collate(rows, 0), count)["hard"]


def test_a_row_of_weight_two_is_a_row_that_stands_there_twice() -> None:
    import torch

    rows, model = rows_of(6), build_model()
    encoded = encode(rows, build_tokenizer(), 512)
    assert weigh(encoded, rows, SFT()) == encoded, "no column where nothing is weighed"
    twice = encoded + [one for one, row in zip(encoded, rows, strict=True) if row.origin == "teacher"]
    expected = hard(model, twice, 100)
    torch.testing.assert_close(hard(model, weigh(encoded, rows, SFT(teacher_weight=2.0)), 100), expected)
    torch.testing.assert_close(
        hard(model, weigh(encoded, rows, SFT(gold_weight=0.5)), 50), expected, msg="only the ratio matters"
    )


def test_adapters_begin_as_nothing_and_merge_into_the_same_model() -> None:
    import torch

    ids = torch.randint(3, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = build_model()(ids).logits
    model = adapt(build_model(), replace(LORA, dropout=0.0))
    torch.testing.assert_close(model(ids).logits, expected)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.add_(0.01)
    moved = model(ids).logits
    assert (moved - expected).abs().max() > 1e-3
    merged = merge(model)
    torch.testing.assert_close(merged(ids).logits, moved, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == set(build_model().state_dict())
    assert adapt(merged, Lora()) is merged is merge(merged)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "wq"])
def test_layers_that_cannot_be_adapted_are_named(name: str) -> None:
    with pytest.raises(TechniqueError, match=rf"{name}.*\n.*down_proj"):
        adapt(build_model(tie_word_embeddings=False), Lora(rank=2, targets=(name, "q_proj")))


def test_adapters_train_all_linear_layers_above_the_frozen_ones(inputs: Inputs, tmp_path: Path) -> None:
    before = load_model(inputs.one("model").path, "bfloat16").state_dict()
    out, run = empty_run(tmp_path)
    SFT(**SETTINGS, validation=0, frozen_layers=1, gradient_checkpointing=True)(inputs, out, run)
    after = load_model(out, "bfloat16").state_dict()
    assert set(after) == set(before) and not list(out.glob("adapter*"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if "layers.1." in name and "norm" not in name}


class Stop(Exception):
    pass


def test_adapters_go_on_from_a_checkpoint_to_the_same_model(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**SETTINGS, "validation": 0.3, "packing": True, "max_tokens": 96, "batch_size": 1}
    whole, run = empty_run(tmp_path, "whole")
    SFT(**settings)(inputs, whole, run)
    out, run = empty_run(tmp_path, "cut")
    genuine = checkpoints._mark

    def mark(folder: Path, trainer: Any) -> None:
        genuine(folder, trainer)
        assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
        if trainer.state.epoch > 1:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoints, "_mark", mark)
        SFT(**settings)(inputs, out, with_compute(run, checkpoint_s=0.0))
    SFT(**settings)(inputs, out, run)
    assert Digests(tmp_path / "none").tree(out) == Digests(tmp_path / "none").tree(whole)


def test_a_packed_training_says_how_many_packs(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    settings = {**SETTINGS, "lora": Lora(), "validation": 0, "packing": True, "max_tokens": 96}
    metrics = SFT(**settings, teacher_weight=2.0)(inputs, out, run)
    assert metrics["rows"] == 16 and 1 < int(metrics["packs"]) < 16
    assert metrics["optimizer_steps"] == 2 * -(-int(metrics["packs"]) // 2)


@pytest.mark.parametrize("settings", [{"packing": True}, {"gold_weight": 2.0}, {"lora": {"rank": 2}}])
def test_a_technique_without_an_option_refuses_it(settings: dict[str, Any]) -> None:
    SFT(**settings)
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Training(**settings)
