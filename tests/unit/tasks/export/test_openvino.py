"""The OpenVINO export: its graph, its integers, its engine and its gate.

What needs the extra `openvino` is skipped without it; settings, plan, integers and refusals are tested everywhere.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flows.planning.sizes import size_of
from flows.running.fork_template import third_party
from tasks.export import openvino as export
from tasks.export.openvino import OpenVino
from tasks.export.openvino_quantizing import Blocks, pack_blocks
from tasks.export.openvino_tracing import rename
from tasks.quantize.rtn import RTN
from tasks.shared import extras
from tasks.shared.engines.openvino_engine import OPENVINO
from tasks.shared.engines.openvino_graph import import_openvino
from tasks.shared.engines.protocol import Opening
from tasks.shared.errors import ConfigError, ModelError, ParityError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Compute
from tests.graph_exports import LOOSE, WHOLE, check_engine, problems, recipe
from tests.optional_packages import missing_extra
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, trained_model, write_corpus

TARGET = "tasks.export.openvino.OpenVino"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every optional package seems to be there."""
    monkeypatch.setattr(extras, "_is_installed", lambda package: True)


def test_a_missing_extra_is_one_error_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_installed", lambda package: package != "openvino")
    (found,) = problems(recipe(save_tiny(tmp_path), TARGET))
    assert found.startswith("steps.graph: openvino is not installed")
    assert "the extra `openvino`" in found and "--editable '.[openvino]'" in found
    with pytest.raises(ConfigError, match="openvino is not installed"), OPENVINO.open(tmp_path, Opening(1)):
        pass


def test_the_plan_knows_which_engine_reads_a_graph(tmp_path: Path, installed: None) -> None:
    config = recipe(save_tiny(tmp_path), TARGET)
    assert not problems(config)
    config["steps"]["answers"]["_target_"] = "tasks.evaluate.perplexity.Perplexity"
    (found,) = problems(config)
    assert "graph, whose weights are openvino: no engine runs them" in found and "openvino lacks distribution" in found


def test_groups_that_no_kernel_has_or_no_row_fills_are_refused(tmp_path: Path, installed: None) -> None:
    with pytest.raises(TechniqueError, match="power of two from 16"):
        OpenVino(group_size=48)
    (found,) = problems(recipe(save_tiny(tmp_path), TARGET, group_size=128))
    assert "steps.graph.group_size" in found and "hidden_size (in=64)" in found
    assert not problems(recipe(tmp_path, TARGET, group_size=128, scheme="float16", embedding="float32"))


def test_experts_are_refused_as_integers_only() -> None:
    mixture = {"model_type": "mixtral", "num_local_experts": 4}
    refused = OpenVino().refuses(mixture)
    assert refused is not None and "one tensor" in refused.reason
    assert OpenVino(scheme="float16").refuses(mixture) is None and OpenVino().refuses({"model_type": "llama"}) is None


def test_a_recipe_cannot_start_from_a_graph(tmp_path: Path) -> None:
    for name in ("config.json", "openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"no safetensors, but openvino_model\.xml"):
        load_model(tmp_path)


def test_a_cache_of_anything_but_keys_and_values_is_refused() -> None:
    graph = SimpleNamespace(inputs=[], outputs=["logits"])
    with pytest.raises(TechniqueError, match="keys and values of every layer"):
        rename(graph, SimpleNamespace(layers=[]))


def decoded(blocks: Blocks, bits: int) -> Any:
    """The matrix that blocks stand for, by their definition."""
    zeros = np.full(blocks.scales.shape, 1 << (bits - 1)) if blocks.zeros is None else blocks.zeros.astype(int)
    values = (blocks.levels.astype(int) - zeros[..., None]) * blocks.scales.astype(np.float64)[..., None]
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_moves_by_more_than_half_a_step(bits: Any, symmetric: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(8, 64)).astype(np.float32)
    weight[1] = np.abs(weight[1])
    weight[2] = 0
    weight[3] = -np.abs(weight[3]) - 1
    blocks = pack_blocks(weight, bits, 32, symmetric)
    assert blocks.levels.max() < 1 << bits and (blocks.zeros is None) == symmetric
    steps = np.repeat(np.abs(blocks.scales.astype(np.float64)), 32, 1)
    # half a step; a zero point is rounded too, and the highest symmetric level is one step below the largest weight's mirror image
    room = 1.01 if symmetric or bits == 4 else 0.75
    assert (np.abs(decoded(blocks, bits) - weight) <= room * steps).all()
    assert (decoded(blocks, bits)[2] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_of_a_calibrated_source_are_kept(symmetric: bool) -> None:
    random = np.random.default_rng(0)
    levels, zeros = random.integers(0, 16, (6, 2, 32)), random.integers(0, 16, (6, 2, 1))
    scales = (2.0 ** random.integers(-9, 3, (6, 2, 1))) * random.choice([1.0, 1.375, 1.75], (6, 2, 1))
    weight = ((levels - (8 if symmetric else zeros)) * scales).reshape(6, 64).astype(np.float32)
    assert np.array_equal(decoded(pack_blocks(weight, 4, 32, symmetric), 4).astype(np.float32), weight)


def test_weights_that_no_scale_holds_are_refused() -> None:
    weight = np.full((1, 32), 1e9, np.float32)
    with pytest.raises(TechniqueError, match="levels apart"):
        pack_blocks(weight, 8, 32, False)
    assert np.abs(decoded(pack_blocks(weight * np.float32(1e-20), 4, 32, False), 4)).max() < 1e-6


@contextmanager
def traced_once() -> Iterator[None]:
    """Trace each model once: the exporter takes most of the time."""
    from tasks.export import openvino_tracing

    known: dict[int, Any] = {}
    trace = openvino_tracing.trace

    def remembered(model: Any) -> Any:
        key = hash(tuple(float(weight.double().sum()) for weight in model.state_dict().values()))
        if key not in known:
            known[key] = trace(model)
        return known[key].clone()

    openvino_tracing.trace = remembered
    try:
        yield
    finally:
        openvino_tracing.trace = trace


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained model, traced once for all tests."""
    if missing := missing_extra(OpenVino):
        pytest.skip(f"the extra `openvino`: {missing}")
    with traced_once():
        yield save_tiny(tmp_path_factory.mktemp("tiny") / "model", trained_model())


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """The model in float32, with a cache in float32."""
    out, run = empty_run(source.parent, "whole")
    technique = OpenVino(cache="float32", **WHOLE, **LOOSE)
    metrics = technique(inputs_of(source, write_corpus(source.parent / "corpus")), out, run)
    assert metrics["top1_agreement"] == metrics["same_text"] == 1 and float(metrics["kl_to_source"]) < 1e-8
    return out


@pytest.mark.parametrize(
    ("settings", "bits", "limit"),
    [
        ({}, (4, 8), 1e-3),
        ({"symmetric": True, "embedding": "int4"}, (4, 4), 1e-3),
        ({"scheme": "int8", "group_size": 0, "cache": "int8"}, (8, 8), 0.2),
        ({"activations": "int8"}, (4, 8), 0.3),
    ],
    ids=["int4", "symmetric", "int8, 8-bit cache", "int8 activations"],
)
def test_a_graph_of_integers_computes_with_the_weights_that_they_decode_to(
    source: Path, tmp_path: Path, settings: dict[str, Any], bits: tuple[Any, Any], limit: float
) -> None:
    """Known answer: transformers with the decoded weights gives the graph's distribution."""
    out, run = empty_run(tmp_path)
    technique = OpenVino(**{"cache": "float32"} | settings, **LOOSE)
    metrics = technique(inputs_of(source), out, run)
    assert metrics["integer_matrices"] == 7 * 4 + 1, "seven of every layer, and embedding and head as one"
    model = load_model(source)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            kind = bits["embed" in name]
            packed = pack_blocks(parameter.detach().numpy(), kind, technique.group_size or 64, technique.symmetric)
            parameter.data = torch.from_numpy(decoded(packed, kind).astype(np.float32))
    ids = [3, 40, 41, 42, 7, 99, 100, 5]
    with OPENVINO.open(out, Opening(1)) as session:
        session.graph.logits(ids[:5])
        ours = torch.from_numpy(session.graph.log_probabilities(ids)).float()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=limit)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    size = technique.forecast(work).size
    assert size is not None and size.bytes == pytest.approx((out / "openvino_model.bin").stat().st_size, rel=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bit_integers_go_over_as_they_are(source: Path, tmp_path: Path, symmetric: bool) -> None:
    packed, run = empty_run(tmp_path, "int4")
    RTN(group_size=64, symmetric=symmetric)(inputs_of(source), packed, run)
    out, run = empty_run(tmp_path)
    metrics = OpenVino(embedding="float32", cache="float32", **LOOSE)(inputs_of(packed), out, run)
    assert float(metrics["kl_to_source"]) < 1e-6 and metrics["same_text"] == 1


def test_the_engine_answers_as_transformers_does(whole: Path, source: Path) -> None:
    check_engine(OPENVINO, "OpenVINO", whole, source)


def test_openvino_alone_decodes_batches_and_reorders_them(whole: Path, source: Path) -> None:
    """Without code of ours, as its servers do: two sequences of different length, whose beams are swapped."""
    compiled = (
        import_openvino().Core().compile_model(whole / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    assert {name for given in compiled.inputs for name in given.names} == {
        "input_ids", "attention_mask", "position_ids", "beam_idx",
    }  # fmt: skip
    request = compiled.create_infer_request()
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def run(start: int, end: int, order: list[int]) -> Any:
        parts = {
            "input_ids": ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        given = {name: np.ascontiguousarray(part.numpy()) for name, part in parts.items()}
        return request.infer(given | {"beam_idx": np.array(order, np.int32)})["logits"].copy()

    with torch.no_grad():
        wanted = load_model(source)(input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy()
    first = run(0, 6, [0, 1])
    assert first.shape == wanted[:, :6].shape, "logits of all tokens"
    np.testing.assert_allclose(first[:, 4:], wanted[:, 4:6], atol=1e-3)
    ids, mask, positions = ids[[1, 0]], mask[[1, 0]], positions[[1, 0]]
    np.testing.assert_allclose(run(6, 9, [1, 0]), wanted[[1, 0], 6:], atol=1e-3)


def test_a_folder_says_what_it_holds_without_openvino(whole: Path, source: Path) -> None:
    written = json.loads((whole / "parity.json").read_text("utf-8"))
    assert written["positions"] == len(written["per_position"]) and written["same_text"] == 1
    assert parameter_count(whole) == parameter_count(source)
    files = ("openvino_model.xml", "openvino_model.bin")
    assert weight_bytes(whole) == sum((whole / name).stat().st_size for name in files)
    texts = [file.read_bytes() for file in whole.iterdir() if file.suffix != ".bin"]
    assert not any(b"/site-packages/" in text or str(source).encode() in text for text in texts), (
        "a path of this machine"
    )
    graph = (whole / "openvino_model.xml").read_text("utf-8")
    assert '<KV_CACHE_PRECISION value="f32"' in graph and '<DYNAMIC_QUANTIZATION_GROUP_SIZE value="0"' in graph


def test_nothing_is_reported_to_openvino_s_makers(whole: Path) -> None:
    with OPENVINO.open(whole, Opening(1)):
        assert sys.modules["openvino_telemetry"] is None


def test_a_run_s_template_process_does_not_import_it() -> None:
    """It would import it before statistics are turned off, and the thread that sends them forbids forks."""
    for module in ("tasks.export.openvino", "tasks.evaluate.generation"):
        named = third_party(module)
        assert "numpy" in named and not [name for name in named if name.startswith("openvino")]


def test_what_fails_the_gate_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model(save_tiny(tmp_path / "other"))
    write = OpenVino.write
    monkeypatch.setattr(export.OpenVino, "write", lambda self, model, *rest: write(self, other, *rest))
    out, run = empty_run(tmp_path)
    with pytest.raises(ParityError, match=r"at .*% of \d+ positions, mean KL"):
        OpenVino(**WHOLE, prompts=2, tokens=4)(inputs_of(source), out, run)
    assert list(out.iterdir()) == []


def test_a_damaged_folder_is_one_message(whole: Path, tmp_path: Path) -> None:
    for name, content in (("openvino_model.xml", b"no graph"), ("openvino_model.bin", b"")):
        folder = tmp_path / name
        folder.mkdir()
        for file in whole.iterdir():
            (folder / file.name).write_bytes(content if file.name == name else file.read_bytes())
        with pytest.raises(ModelError, match="OpenVINO cannot load it"), OPENVINO.open(folder, Opening(1)):
            pass


CHANGES = {
    "scheme": Change("int8"),
    "embedding": Change("int4"),
    "group_size": Change(64),
    "symmetric": Change(True),
    "activations": Change("int8"),
    "cache": Change("int8"),
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
