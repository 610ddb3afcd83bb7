"""The ONNX export: its graph, its integers, its engine and its gate.

What needs the extra `onnx` is skipped without it; settings, plan and refusals are tested everywhere.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export import onnx as export
from tasks.export import parity
from tasks.export.graph_gate import check_text
from tasks.export.integer_blocks import keep_integers, pack_nibbles, unpack_nibbles
from tasks.export.onnx import Onnx
from tasks.export.onnx_tracing import rename
from tasks.quantize.rtn import RTN
from tasks.shared import extras
from tasks.shared.engines.onnx_engine import ONNXRUNTIME
from tasks.shared.engines.protocol import Opening
from tasks.shared.errors import ConfigError, ModelError, ParityError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Compute
from tests.graph_exports import LOOSE, WHOLE, check_engine, problems, recipe
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, trained_model, write_corpus

TARGET = "tasks.export.onnx.Onnx"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every optional package seems to be there."""
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)


def test_a_missing_extra_is_one_error_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: not package.startswith("onnx"))
    (found,) = problems(recipe(save_tiny(tmp_path), TARGET))
    assert found.startswith("steps.graph: onnx, onnxscript, onnxruntime are not installed")
    assert "the extra `onnx`" in found and "--editable '.[onnx]'" in found
    with pytest.raises(ConfigError, match="onnxruntime is not installed"), ONNXRUNTIME.open(tmp_path, Opening(1)):
        pass


def test_the_plan_knows_which_engine_reads_a_graph(tmp_path: Path, installed: None) -> None:
    config = recipe(save_tiny(tmp_path), TARGET)
    assert not problems(config)
    config["steps"]["answers"]["_target_"] = "tasks.evaluate.perplexity.Perplexity"
    (found,) = problems(config)
    assert "graph, whose weights are onnx: no engine runs them" in found and "onnxruntime lacks distribution" in found


def test_groups_that_no_kernel_has_or_no_row_fills_are_refused(tmp_path: Path, installed: None) -> None:
    with pytest.raises(TechniqueError, match="power of two from 16"):
        Onnx(group_size=48)
    (found,) = problems(recipe(save_tiny(tmp_path), TARGET, group_size=128))
    assert "steps.graph.group_size" in found and "hidden_size (in=64)" in found
    assert not problems(recipe(tmp_path, TARGET, group_size=128, **WHOLE))


def test_experts_are_refused_as_integers_only() -> None:
    mixture = {"model_type": "mixtral", "num_local_experts": 4}
    refused = Onnx().refuses(mixture)
    assert refused is not None and "one tensor" in refused.reason
    assert Onnx(scheme="float32").refuses(mixture) is None and Onnx().refuses({"model_type": "llama"}) is None


@pytest.mark.parametrize("centered", [True, False])
def test_integers_of_a_calibrated_source_are_found_again(centered: bool) -> None:
    """Decoded, they are the source's weights to the bit; a block off the grid stays as it was rounded."""
    random = np.random.default_rng(0)
    steps = random.integers(0, 16, (6, 32))
    steps[1] = random.integers(12, 16, 32)  # all above the zero point
    steps[2] = random.integers(0, 8, 32) * 2  # with a zero point between two of its levels
    zeros = np.full(6, 8) if centered else np.array([3, 2, 9, 15, 0, 7])
    scales = np.array([2.0**-5, 0.75, 1.375, 0.0625, 3.0, 2.0**-9], np.float32)
    weights = (steps - zeros[:, None]).astype(np.float32) * scales[:, None]
    weights[5] = random.normal(size=32)
    levels, found, centers = np.full((6, 16), 255, np.uint8), np.full(6, -1, np.float32), np.zeros((3, 2), np.uint8)
    keep_integers(weights, levels, found, None if centered else centers)
    center = zeros if centered else centers.reshape(-1).astype(int)
    decoded = (unpack_nibbles(levels).astype(int) - center[:, None]) * found[:, None]
    assert np.array_equal(decoded[:5].astype(np.float32), weights[:5])
    assert found[5] == -1 and (levels[5] == 255).all()


def test_odd_rows_of_nibbles_end_with_zero() -> None:
    packed = pack_nibbles(np.array([[1, 15, 7]]))
    assert packed.tolist() == [[0xF1, 0x07]] and unpack_nibbles(packed).tolist() == [[1, 15, 7, 0]]


def test_a_recipe_cannot_start_from_a_graph(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match="no safetensors, but model.onnx"):
        load_model(tmp_path)


@pytest.mark.parametrize(("names", "odd"), [((), "no cache"), (("keys", "states"), "1.states")])
def test_a_cache_of_anything_but_keys_and_values_is_refused(names: tuple[str, ...], odd: str) -> None:
    given = [SimpleNamespace(name=f"input.past_key_values.layers.1.{name}") for name in names]
    made = [SimpleNamespace(name=f"output.past_key_values.layers.1.{name}") for name in names]
    graph = SimpleNamespace(
        inputs=[SimpleNamespace(name="input_ids"), *given], outputs=[SimpleNamespace(name="logits"), *made]
    )
    with pytest.raises(TechniqueError, match=odd):
        rename(graph)
    names = ("keys", "values")
    given = [SimpleNamespace(name=f"input.past_key_values.layers.12.{name}") for name in names]
    made = [SimpleNamespace(name=f"output.past_key_values.layers.12.{name}") for name in names]
    rename(SimpleNamespace(inputs=given, outputs=[SimpleNamespace(name="logits"), *made]))
    assert [value.name for value in (*given, *made)] == [
        "past_key_values.12.key", "past_key_values.12.value", "present.12.key", "present.12.value",
    ]  # fmt: skip


def onnx_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `onnx` is not installed")


@contextmanager
def traced_once() -> Iterator[None]:
    """Trace each model once: the exporter takes most of the time."""
    from tasks.export import onnx_tracing

    known: dict[int, Any] = {}
    trace = onnx_tracing.trace

    def remembered(model: Any) -> Any:
        key = hash(tuple(float(weight.double().sum()) for weight in model.state_dict().values()))
        if key not in known:
            known[key] = trace(model)
        return copy.deepcopy(known[key])

    onnx_tracing.trace = remembered
    try:
        yield
    finally:
        onnx_tracing.trace = trace


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained model, traced once for all tests."""
    onnx_packages()
    with traced_once():
        yield save_tiny(tmp_path_factory.mktemp("tiny") / "model", trained_model())


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """The model in float32."""
    out, run = empty_run(source.parent, "whole")
    metrics = Onnx(**WHOLE, **LOOSE)(inputs_of(source, write_corpus(source.parent / "corpus")), out, run)
    assert metrics["top1_agreement"] == metrics["same_text"] == 1 and float(metrics["kl_to_source"]) < 1e-8
    return out


def constants(file: Path) -> dict[str, Any]:
    """A graph's constants by name."""
    import onnx
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def dequantized(file: Path) -> dict[str, Any]:
    """Matrices of a graph, decoded by the format's definition and not by ONNX Runtime."""
    tensors, found = constants(file), {}
    for name, scales in tensors.items():
        if not name.endswith(".scales"):
            continue
        stem, bits = name.removesuffix(".scales"), int(name.removesuffix(".scales")[-1])
        levels, zeros = tensors[f"{stem}.levels"], tensors.get(f"{stem}.zeros")
        if bits == 4:
            levels = unpack_nibbles(levels.reshape(-1, levels.shape[-1])).reshape(*levels.shape[:2], -1)
            zeros = None if zeros is None else unpack_nibbles(zeros)[:, : scales.shape[1]]
        centers = np.full(scales.shape, 1 << (bits - 1)) if zeros is None else zeros.astype(int)
        values = (levels.astype(int) - centers[..., None]) * scales[..., None]
        found[stem] = torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))
    return found


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 0.2), ({"symmetric": True, "embedding": "int4"}, 0.2), ({"scheme": "int8", "group_size": 0}, 0.01), ({"activations": "int8"}, 0.2)],
    ids=["int4", "symmetric", "int8", "int8 activations"],
)  # fmt: skip
def test_a_graph_of_integers_computes_with_the_weights_that_they_decode_to(
    source: Path, tmp_path: Path, settings: dict[str, Any], limit: float
) -> None:
    """Known answer: transformers with the decoded weights gives the graph's distribution."""
    out, run = empty_run(tmp_path)
    technique = Onnx(**settings, **LOOSE)
    metrics = technique(inputs_of(source), out, run)
    decoded, model = dequantized(out / "model.onnx"), load_model(source)
    assert metrics["integer_matrices"] == len(decoded) == 7 * 4 + 1, (
        "seven of every layer, and embedding and head as one"
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            weight = parameter.detach()
            alike = [value for value in decoded.values() if value.shape == weight.shape]
            errors = [float((value - weight).norm() / weight.norm()) for value in alike]
            assert 0 < min(errors) < limit, name
            parameter.data = alike[errors.index(min(errors))]
    ids = [3, 40, 41, 42, 7, 99, 100, 5]
    with ONNXRUNTIME.open(out, Opening(1)) as session:
        ours = torch.from_numpy(session.graph.log_probabilities(ids)).float()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.3 if settings.get("activations") else 2e-3)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    size = technique.forecast(work).size
    stored = sum(array.nbytes for array in constants(out / "model.onnx").values())
    assert size is not None and size.bytes == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bit_integers_go_over_as_they_are(source: Path, tmp_path: Path, symmetric: bool) -> None:
    packed, run = empty_run(tmp_path, "int4")
    RTN(group_size=64, symmetric=symmetric)(inputs_of(source), packed, run)
    out, run = empty_run(tmp_path)
    metrics = Onnx(embedding="float32", **LOOSE)(inputs_of(packed), out, run)
    assert float(metrics["kl_to_source"]) < 1e-8 and metrics["same_text"] == 1
    decoded, model = dequantized(out / "model.onnx"), load_model(packed)
    for place in ("mlp.down_proj", "self_attn.v_proj"):
        wanted = model.get_submodule(f"model.layers.1.{place}").weight.detach()
        assert any(value.shape == wanted.shape and torch.equal(value, wanted) for value in decoded.values()), place


def test_the_engine_answers_as_transformers_does(whole: Path, source: Path) -> None:
    check_engine(ONNXRUNTIME, "ONNX Runtime", whole, source)


def test_a_folder_says_what_it_holds_without_onnx(whole: Path, source: Path) -> None:
    written = json.loads((whole / "parity.json").read_text("utf-8"))
    assert written["positions"] == len(written["per_position"]) and written["same_text"] == 1
    assert parameter_count(whole) == parameter_count(source)
    assert weight_bytes(whole) == sum((whole / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    texts = [file.read_bytes() for file in whole.iterdir() if file.suffix != ".data"]
    assert not any(b"/site-packages/" in text or str(source).encode() in text for text in texts), (
        "a path of this machine"
    )


def test_what_fails_the_gate_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model(save_tiny(tmp_path / "other"))
    write = Onnx.write
    monkeypatch.setattr(export.Onnx, "write", lambda self, model, *rest: write(self, other, *rest))
    out, run = empty_run(tmp_path)
    with pytest.raises(ParityError, match=r"at .*% of \d+ positions, mean KL"):
        Onnx(**WHOLE, prompts=2, tokens=4)(inputs_of(source), out, run)
    assert list(out.iterdir()) == []


def test_floor_of_the_text() -> None:
    check_text(0.5, 0.5, "a graph")
    with pytest.raises(ParityError, match=r"greedy text in 49\.0% of conversations"):
        check_text(0.49, 0.5, "a graph")


def test_a_damaged_folder_is_one_message(whole: Path, tmp_path: Path) -> None:
    for name, content in (("model.onnx", b"no graph"), ("model.onnx.data", b"")):
        folder = tmp_path / name
        folder.mkdir()
        for file in whole.iterdir():
            (folder / file.name).write_bytes(content if file.name == name else file.read_bytes())
        with pytest.raises(ModelError, match="ONNX Runtime cannot load it"), ONNXRUNTIME.open(folder, Opening(1)):
            pass


def test_prompts_of_the_gate_come_from_the_corpus_or_are_built_in(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tiny(tmp_path / "model"))
    texts, answers = parity.asked_texts(tokenizer, None, 3)
    assert len(texts) == 3 and not answers and parity.CONVERSATIONS[0] in texts[0]
    texts, answers = parity.asked_texts(tokenizer, write_corpus(tmp_path / "corpus"), 5)
    assert len(texts) == len(answers) == 5


CHANGES = {
    "scheme": Change("int8"),
    "embedding": Change("int4"),
    "group_size": Change(64),
    "symmetric": Change(True),
    "activations": Change("int8"),
    "prompts": Change(3),
    "tokens": Change(3),
    "top": Change(8),
    "min_top1": Change(0.01),
    "max_kl": Change(98.0),
    "min_same_text": Change(1.0, {"scheme": "float32", "embedding": "float32"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    model = save_tiny(folder / "model", build_model(num_hidden_layers=1))
    settings = {"prompts": 2, "tokens": 2, "min_top1": 0.0, "max_kl": 99.0}
    with traced_once():
        yield Case(folder, inputs_of(model, write_corpus(folder / "corpus", rows=4)), settings)
