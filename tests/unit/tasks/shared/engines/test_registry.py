"""Engines as data: what each reads and offers, and the document that says so."""

import pytest

from tasks.shared.engines.protocol import CAPABILITIES
from tasks.shared.engines.registry import ENGINES, Needs, capability_table, engines_for, refusal
from tasks.shared.store.keys import PROJECT


@pytest.mark.parametrize(
    ("form", "needs", "names"),
    [
        ("dense", Needs(), ["transformers", "vllm"]),
        ("dense", Needs(as_gguf=True), ["transformers", "llama.cpp", "vllm"]),
        ("gguf", Needs(), ["transformers", "llama.cpp"]),
        ("gguf", Needs(dequantized=False), ["llama.cpp"]),
        ("gguf", Needs(("distribution",)), ["transformers"]),
        ("gguf", Needs(("distribution",), dequantized=False), []),
        ("gguf", Needs(("grammar", "stop")), ["llama.cpp"]),
        ("packed", Needs(("labels",)), ["transformers"]),
        ("onnx", Needs(("labels", "stop"), dequantized=False), ["onnxruntime"]),
        ("onnx", Needs(("distribution",)), []),
        ("openvino", Needs(("labels", "stop"), dequantized=False), ["openvino"]),
        ("packed", Needs(engines=("llama.cpp",), as_gguf=True), []),
    ],
)
def test_needs_decide_the_engines(form: str, needs: Needs, names: list[str]) -> None:
    assert [engine.name for engine in engines_for(form, needs)] == names  # type: ignore[arg-type]


def test_a_refusal_says_what_is_missing() -> None:
    assert refusal(ENGINES["vllm"], "gguf", Needs()) == "vllm does not run gguf weights"
    assert refusal(ENGINES["llama.cpp"], "gguf", Needs(("distribution",))) == "llama.cpp lacks distribution"
    assert refusal(ENGINES["vllm"], "dense", Needs(engines=("llama.cpp",))) == "vllm is not among llama.cpp"


def test_the_document_s_table_is_that_of_the_engines() -> None:
    text = (PROJECT / "docs" / "engines.md").read_text("utf-8")
    assert capability_table() in text
    assert len(CAPABILITIES) == 9 and all(f"`{name}`" in text for name in CAPABILITIES)
