"""Which engine reads a path, and the reason where none does."""

from pathlib import Path

import pytest

from tasks.shared.engines.engine import Weights, find_weights


@pytest.mark.parametrize(
    ("files", "engine", "opened", "fault"),
    [
        (["model.safetensors", "config.json"], "transformers", "", ""),
        (["model.safetensors", "model.gguf"], "transformers", "", ""),
        (["model.gguf", "parity.json"], "llama.cpp", "model.gguf", ""),
        (["a.gguf", "b.gguf"], "llama.cpp", "", "2 GGUF files"),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "llama.cpp", "m-00001-of-00002.gguf", ""),
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "llama.cpp", "", "2 of the 3 parts of a split GGUF"),
        (["a.gguf", "m-00001-of-00001.gguf"], "llama.cpp", "", "2 GGUF files"),
        (["consolidated.safetensors", "model.gguf"], "llama.cpp", "model.gguf", ""),
        (["model.fp16.safetensors"], "transformers", "", "model.fp16.safetensors, none of which transformers loads"),
        (["pytorch_model.bin"], "transformers", "", "pytorch_model.bin, none of which transformers loads"),
        (["model.onnx", "model.onnx.data", "config.json"], "onnxruntime", "", ""),
        (["model.safetensors", "model.onnx"], "transformers", "", ""),
        (["openvino_model.xml", "openvino_model.bin", "config.json"], "openvino", "", ""),
        (["model.gguf", "openvino_model.xml"], "llama.cpp", "model.gguf", ""),
        (["config.json"], "transformers", "", "no *.safetensors, no *.gguf and no exported graph"),
    ],
)
def test_a_folder_is_read_by_what_it_holds(
    tmp_path: Path, files: list[str], engine: str, opened: str, fault: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == Weights(engine, tmp_path / opened, fault)  # type: ignore[arg-type]


def test_a_damaged_index_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "no weight_map" in find_weights(tmp_path).fault


def test_only_gguf_counts_for_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path, llama=True) == Weights("llama.cpp", tmp_path, "no *.gguf")
    (tmp_path / "model.gguf").touch()
    assert find_weights(tmp_path, llama=True) == Weights("llama.cpp", tmp_path / "model.gguf")


def test_a_file_is_for_llama_cpp_and_a_missing_path_for_none(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.touch()
    assert find_weights(file) == Weights("llama.cpp", file)
    assert find_weights(tmp_path / "nowhere").fault == "no such file or folder"
