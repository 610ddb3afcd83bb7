"""Conversion to 16 bits: every tensor has the type, a GGUF file becomes a folder, and what the type cannot hold is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.quantize.cast import Cast
from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.technique import Inputs
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_weight_is_the_nearest_of_the_type(trained: Inputs, tmp_path: Path, dtype: str) -> None:
    out, run = empty_run(tmp_path)
    metrics = Cast(dtype=dtype)(trained, out, run)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained.one("model").path, out))
    assert all(torch.equal(after[name], weight.to(getattr(torch, dtype))) for name, weight in before.items())
    assert 0 < float(metrics["kl_to_source"]) < {"bfloat16": 1e-3, "float16": 1e-4}[dtype]


def test_a_gguf_file_becomes_a_folder(tmp_path: Path) -> None:
    write_gguf(save_tiny(tmp_path / "source", build_model(num_hidden_layers=1)), tmp_path / "model.gguf", "f16")
    out, run = empty_run(tmp_path)
    Cast(dtype="float16")(inputs_of(tmp_path / "model.gguf"), out, run)
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.float16}


def test_weights_beyond_the_range_are_refused(tmp_path: Path) -> None:
    model = build_model(num_hidden_layers=1)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match=r"float16 ends at 65504, below weights of model.norm.weight"):
        Cast(dtype="float16")(inputs_of(save_tiny(tmp_path / "source", model)), out, run)
    assert not list(out.iterdir())


CHANGES = {
    "dtype": Change("float16"),
    "check_rows": Change(1),  # only the figures know it, and the next one
    "max_tokens": Change(16),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    model = save_tiny(folder / "model", build_model(num_hidden_layers=1))
    yield Case(folder, inputs_of(model, write_corpus(folder / "corpus")), {"check_rows": 2, "max_tokens": 32})
