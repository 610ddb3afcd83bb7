"""The export and its gate: an exact file passes, a strange one is refused and leaves nothing behind."""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.export import gguf as export
from tasks.export import parity
from tasks.export.gguf import Gguf
from tasks.export.gguf_file import TOKEN_BYTES
from tasks.quantize.fp4 import FP4
from tasks.quantize.rtn import RTN
from tasks.shared.engines.engine import find_weights
from tasks.shared.engines.llama_engine import LlamaSession
from tasks.shared.errors import ConfigError, ModelError, ParityError, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.gguf.types import Scheme
from tasks.shared.gguf.writer import plan_tensors, write_gguf
from tasks.shared.model.agreement import truncated_divergence
from tasks.shared.model.gguf_files import gguf_parts
from tasks.shared.model.grids import BLOCK, BLOCKS, Grid, GridName, find_levels, own_grid, round_to_grid
from tasks.shared.model.loading import CHATML, load_model
from tasks.shared.model.saving import save_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.model.weights import read_gguf
from tasks.shared.technique import Compute, Inputs
from tests.families import FAMILIES, save_family, tokenizer
from tests.settings_case import Case, Change
from tests.tiny_llama import (
    SPECIAL,
    build_model,
    build_tokenizer,
    empty_run,
    inputs_of,
    save_tiny,
    sentences,
    write_corpus,
)
from tests.unit.tasks.prune.selection.test_mixtures import build as build_mixture


def test_half_precision_answers_like_its_source(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    metrics = Gguf(scheme="f16", embedding="same", prompts=4, tokens=4, min_top1=0.95, max_kl=0.001)(
        inputs_of(source, corpus), out, run
    )
    assert sorted(path.name for path in out.iterdir()) == ["model.gguf", "parity.json"]
    written = json.loads((out / "parity.json").read_text())
    assert written["positions"] == len(written["per_position"]) == metrics["positions"] > 4
    assert float(metrics["top1_agreement"]) >= 0.95


def test_fewer_bits_are_smaller_and_farther_from_the_source(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    results = {}
    for scheme in ("q8_0", "q4_0"):
        out, run = empty_run(tmp_path, scheme)
        results[scheme] = Gguf(scheme=scheme, prompts=4, tokens=4, min_top1=0.0, max_kl=99.0)(
            inputs_of(source), out, run
        )  # built-in prompts
    assert int(results["q4_0"]["size_bytes"]) < int(results["q8_0"]["size_bytes"])
    assert float(results["q4_0"]["kl_to_source"]) > float(results["q8_0"]["kl_to_source"]) > 0


@pytest.mark.parametrize(("name", "space_first"), [("llama", True), ("gemma2", False), ("phi3", True)])
def test_a_sentence_piece_like_tokenizer_goes_over_without_its_older_file(
    name: str, space_first: bool, tmp_path: Path
) -> None:
    """Transformers no longer writes tokenizer.model; the parity check compares the tokens of every prompt."""
    tokenizer = sentence_piece_like(space_first)
    rows = len(tokenizer) + 3
    save_model(FAMILIES[name].build(vocab_size=rows), tokenizer, tmp_path / "source", "float32")
    assert not (tmp_path / "source" / "tokenizer.model").exists()
    out, run = empty_run(tmp_path)
    metrics = Gguf(scheme="f16", embedding="same", prompts=6, tokens=2, min_top1=0.5, max_kl=1e-4)(
        inputs_of(tmp_path / "source", write_corpus(tmp_path / "corpus")), out, run
    )
    assert int(metrics["positions"]) > 6


def sentence_piece_like(space_first: bool) -> Any:
    """BPE with byte fallback, as in Llama 2 and Phi-3 (a space before the text) or Gemma (none)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    before = [normalizers.Prepend("▁")] if space_first else []
    core.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special, every_byte = ["<unk>", "<s>", *SPECIAL], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + every_byte, show_progress=False)
    core.train_from_iterator([*sentences(400, seed=1), "system user assistant\n"], trainer)
    content = json.loads(core.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token=SPECIAL[2], pad_token=SPECIAL[0], unk_token="<unk>"
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_context_ends_with_a_window_that_llama_cpp_ignores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = save_family(tmp_path / "source", "phi3")
    write_gguf(source, tmp_path / "model.gguf", "f16")
    length = read_gguf(tmp_path / "model.gguf").get_field("phi3.context_length")
    assert length is not None and length.contents() == 2047 < 4096
    assert "context is 2047 tokens" in caplog.text


def test_prompts_longer_than_a_models_positions_are_cut(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", build_model(max_position_embeddings=24))
    corpus = write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    gate: dict[str, Any] = {"prompts": 2, "tokens": 2, "importance_rows": 0, "max_kl": 1e-4}
    metrics = Gguf(scheme="f16", embedding="same", **gate)(inputs_of(source, corpus), out, run)
    assert metrics["positions"] == 4


def test_rotary_base_and_share_of_gpt_neox_go_over(tmp_path: Path) -> None:
    rotary = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    source = save_family(tmp_path / "source", "gpt_neox", rope_parameters=rotary)
    out, run = empty_run(tmp_path)
    Gguf(scheme="f16", embedding="same", prompts=2, tokens=2, max_kl=1e-4)(inputs_of(source), out, run)


def test_what_the_converter_cannot_read_is_one_message(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["BrandNewForCausalLM"]}))
    with pytest.raises(TechniqueError, match="does not know architecture BrandNewForCausalLM"):
        write_gguf(source, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()


def test_the_same_weights_are_the_same_file(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    files = [tmp_path / name / "model.gguf" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        write_gguf(source, file, "q8_0")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_large_model_is_written_in_parts_that_are_one_model(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    whole, run = empty_run(tmp_path, "whole")
    technique = Gguf(
        scheme="q8_0", prompts=2, tokens=2, importance_rows=0, min_top1=0.9, max_kl=0.01, split_bytes=10**9
    )
    one = technique(inputs_of(source), whole, run)
    assert [file.name for file in whole.glob("*.gguf")] == ["model.gguf"]
    out, run = empty_run(tmp_path, "parts")
    figures = replace(technique, split_bytes=60_000)(inputs_of(source), out, run)
    parts = sorted(out.glob("*.gguf"))
    assert len(parts) > 2 and parts[0].name == f"model-00001-of-{len(parts):05d}.gguf" and parts == gguf_parts(parts[0])
    assert all(sum(tensor.n_bytes for tensor in read_gguf(part).tensors) <= 60_000 for part in parts)
    assert figures["tensor_bytes"] == one["tensor_bytes"] and figures["kl_to_source"] == one["kl_to_source"]
    assert figures["size_bytes"] == weight_bytes(out) == sum(part.stat().st_size for part in parts)
    assert parameter_count(out) == parameter_count(whole)
    found = find_weights(out)
    assert (found.engine, found.path, found.fault) == ("llama.cpp", parts[0], "")
    with pytest.raises(ModelError, match="llama-gguf-split --merge"):
        load_model(parts[0])
    assert "not the first part" in find_weights(parts[1]).fault
    parts[1].unlink()
    assert (
        find_weights(out).fault
        == find_weights(parts[0]).fault
        == f"{len(parts) - 1} of the {len(parts)} parts of a split GGUF"
    )


@pytest.mark.parametrize(
    ("asked", "scheme", "bits", "symmetric"),
    [
        ("auto", "q4_0", 4, True),
        ("auto", "q4_1", 4, False),
        ("q4_1", "q4_1", 4, True),
        ("auto", "q8_0", 8, True),
    ],
)
def test_integers_go_over_as_they_are(
    tmp_path: Path, asked: Literal["auto", "q4_1"], scheme: str, bits: Literal[4, 8], symmetric: bool
) -> None:
    """The file's weights are those of the folder; a minimum in half precision may be off by 2**-12 of it."""
    from gguf.quants import dequantize

    packed, run = empty_run(tmp_path, "int4")
    RTN(bits=bits, group_size=32, symmetric=symmetric)(inputs_of(save_tiny(tmp_path / "source")), packed, run)
    out, run = empty_run(tmp_path)
    exported = Gguf(scheme=asked, embedding="f16", prompts=4, tokens=4, min_top1=0.9, max_kl=1e-3)
    figures = exported(inputs_of(packed, write_corpus(tmp_path / "corpus")), out, run)
    assert figures["scheme"] == scheme and figures["copied_matrices"] == 28
    model = load_model(packed)
    file = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in read_gguf(out / "model.gguf").tensors
    }
    for name, place in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        wanted = model.get_submodule(f"model.layers.1.{place}").weight.detach()
        limit = 2.0**-11 * wanted.abs().amax() if scheme == "q4_1" else 0.0
        assert (torch.from_numpy(file[f"blk.1.{name}.weight"].copy()) - wanted).abs().max() <= limit


@pytest.mark.parametrize(
    ("name", "kind", "scheme"),
    [
        ("llama", "mxfp4", "mxfp4"),
        ("llama", "nvfp4", "nvfp4"),
        ("mistral", "nvfp4", "nvfp4"),
        ("qwen3", "nvfp4", "nvfp4"),
        ("olmo2", "nvfp4", "iq4_nl"),  # llama.cpp ignores scales of its matrices
    ],
)
def test_four_bit_floats_go_over_as_they_are(
    tmp_path: Path, name: str, kind: Literal["nvfp4", "mxfp4"], scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights are as small as those of real models, so that nvfp4 without the scale of its matrix is far off."""
    from gguf.quants import dequantize

    packed, run = empty_run(tmp_path, "fp4")
    source = save_family(tmp_path / "source", name, num_hidden_layers=1, initializer_range=0.02)
    technique = FP4(format=kind)
    technique(inputs_of(source), packed, run)
    out, run = empty_run(tmp_path)
    exported = Gguf(embedding="f16", prompts=2, tokens=4, min_top1=0.5, max_kl=1e-3)
    figures = exported(inputs_of(packed), out, run)
    copied = 0 if scheme == "iq4_nl" else 7
    assert figures["scheme"] == scheme and figures["copied_matrices"] == copied
    assert ("0 of 7 matrices of the layers were copied" in caplog.text) == (copied == 0)
    file = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in read_gguf(out / "model.gguf").tensors
    }
    wanted = load_model(packed).get_submodule("model.layers.0.mlp.down_proj").weight.detach()
    found = torch.from_numpy(file["blk.0.ffn_down.weight"] * file.get("blk.0.ffn_down.scale", 1.0))
    assert torch.allclose(found, wanted, rtol=2**-7, atol=0) == (copied > 0)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    size = technique.forecast(work).size
    assert size is not None and export.forecast_type(size.levels) == kind


def test_integers_whose_groups_are_no_blocks_are_rounded_by_importance_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed, run = empty_run(tmp_path, "int4")
    model = build_model(hidden_size=96, intermediate_size=96, num_hidden_layers=1)
    RTN(group_size=48, symmetric=True)(inputs_of(save_tiny(tmp_path / "source", model)), packed, run)
    out, run = empty_run(tmp_path)
    technique = Gguf(embedding="f16", importance_rows=2, prompts=2, tokens=2, min_top1=0.0, max_kl=99.0)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gguf, "importance", lambda self, source: seen.append(source) or {})
        figures = technique(inputs_of(packed, write_corpus(tmp_path / "corpus", 4)), out, run)
    assert figures["scheme"] == "q4_0" and figures["copied_matrices"] == 0 and seen
    assert (
        "0 of 7 matrices of the layers were copied with unchanged levels; 7 were rounded again, to q4_0" in caplog.text
    )


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_matrices_without_the_importance_that_their_type_needs_are_refused(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it llama.cpp aborts, and the process with it; other types are rounded plainly, which is told."""
    sizes = {"hidden_size": 256, "intermediate_size": 256}
    source = save_family(tmp_path / "source", name, num_hidden_layers=1, **sizes)
    inputs = inputs_of(source, write_corpus(tmp_path / "corpus", 4))
    out, run = empty_run(tmp_path)
    technique = Gguf(scheme="iq2_xs", importance_rows=2, prompts=2, tokens=2, min_top1=0.0, max_kl=99.0)
    config = json.loads((source / "config.json").read_text())
    narrow = {"hidden_size": 64, "intermediate_size": 64, "n_embd": 64, "n_inner": None}
    assert technique.refuses(config | narrow) is None, "falls back"
    with pytest.raises(TechniqueError, match=r"iq2_xs is rounded by importance only(.|\n)*scheme=iq2_s"):
        technique(inputs, out, run)
    replace(technique, scheme="iq2_s")(inputs, out, run)
    assert "matrices are rounded without importance" in caplog.text


@pytest.mark.parametrize(
    ("weights", "scheme"),
    [
        ([{"num_bits": 4, "symmetric": False}], "q4_1"),
        ([{"num_bits": 4, "symmetric": True}], "q4_0"),
        ([{"num_bits": 8, "symmetric": True}], "q8_0"),
        ([{"num_bits": 4, "symmetric": True, "type": "float", "group_size": 32}], "mxfp4"),
        ([{"num_bits": 8, "symmetric": True, "type": "float"}], "q8_0"),
    ],
)
def test_auto_takes_the_type_that_copies_the_source(tmp_path: Path, weights: list[dict[str, Any]], scheme: str) -> None:
    groups = {f"group_{index}": {"weights": own} for index, own in enumerate(weights)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"config_groups": groups}}))
    assert export.copying_type(tmp_path) == scheme


@pytest.mark.parametrize(
    ("grid", "scheme"),
    [
        ("q4_0", "q4_0"),
        ("iq4_nl", "iq4_nl"),
        ("int4_symmetric", "q4_0"),
        ("int4_asymmetric", "q4_1"),
        ("q2_0", "q2_0"),
        ("tq2_0", "tq2_0"),
    ],
)
def test_auto_finds_the_grid_of_dense_weights(tmp_path: Path, grid: GridName, scheme: str) -> None:
    model = build_model(intermediate_size=256)
    assert export.copying_type(save_tiny(tmp_path / "dense", model)) == "q4_0"
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                own = own_grid(grid, layer.in_features) if grid in BLOCKS else Grid(grid, BLOCK)
                assert own is not None
                layer.weight.copy_(round_to_grid(layer.weight, own))
    rounded = save_tiny(tmp_path / "rounded", model)
    assert export.copying_type(rounded) == scheme
    types = plan_tensors(rounded, scheme, "q8_0")
    assert export.holds_levels(rounded, types)  # so that no importance is measured
    assert not export.holds_levels(tmp_path / "dense", types)
    assert not export.holds_levels(rounded, plan_tensors(rounded, scheme, "same"))  # the embedding is on no grid


@pytest.mark.parametrize(
    ("grid", "hidden", "types"),
    [("q2_0", 64, {"q2_0"}), ("tq2_0", 256, {"tq2_0"}), ("tq2_0", 64, {"tq2_0", "iq4_nl"})],
)
def test_llama_cpp_computes_with_the_four_levels_of_2_bits(
    tmp_path: Path, grid: GridName, hidden: int, types: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its own rounding uses three of them; a file with the fourth must answer like its source, not merely decode."""
    model = build_model(hidden_size=hidden, intermediate_size=256, num_hidden_layers=2)
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            own = own_grid(grid, layer.in_features)
            assert own is not None
            layer.weight.data = round_to_grid(layer.weight.data, own)
            found = find_levels(layer.weight.data.unflatten(-1, (-1, own.group)), own.name)
            assert found is not None
            assert own.name != grid or set(found[2].unique().tolist()) == {-1.0, 0.0, 1.0, 2.0}
    source = save_tiny(tmp_path / "source", model)
    out, run = empty_run(tmp_path)
    exported = Gguf(
        embedding="f16", prompts=4, tokens=4, min_top1=0.8, max_kl=5e-3
    )  # a wrong level costs a hundred times this
    figures = exported(inputs_of(source, write_corpus(tmp_path / "corpus", 4)), out, run)
    written = json.loads((out / "parity.json").read_text())
    assert figures["scheme"] == grid and set(written["types"]) == types | {"f16"}
    assert ("q2_0 on x86" in caplog.text) == (grid == "q2_0" and platform.machine() in export.X86)


@pytest.mark.parametrize("scheme", ["iq4_nl", "q4_k", "iq2_xxs", "q2_0", "tq2_0"])
def test_types_of_llama_cpp_are_served_and_their_size_is_foretold(tmp_path: Path, scheme: Scheme) -> None:
    """llama.cpp itself reads the file; iq2_xxs is rounded by importance only."""
    model = build_model(hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    inputs = inputs_of(save_tiny(tmp_path / "source", model), write_corpus(tmp_path / "corpus", 4))
    out, run = empty_run(tmp_path)
    technique = Gguf(scheme=scheme, embedding="q6_k", prompts=2, tokens=2, min_top1=0.0, max_kl=99.0)
    metrics = technique(inputs, out, run)
    work = Workload({"model": (size_of(tmp_path / "source"),)}, Rows(), Compute(), 1e11)
    forecast = technique.forecast(work).size
    tensors = read_gguf(out / "model.gguf").tensors
    assert forecast is not None
    tokens = TOKEN_BYTES * 512
    assert forecast.bytes - tokens == pytest.approx(sum(int(tensor.n_bytes) for tensor in tensors), rel=0.01)
    assert metrics["fallback_matrices"] == 0 and metrics["tensor_bytes"] == sum(int(tensor.n_bytes) for tensor in tensors if len(tensor.shape) > 1)  # fmt: skip
    if scheme == "iq2_xxs":
        other, other_run = empty_run(tmp_path, "plain")
        with pytest.raises(ConfigError, match="is rounded by importance only"):
            technique(inputs_of(tmp_path / "source"), other, other_run)


def test_importance_brings_a_file_closer_and_fallbacks_are_told(
    trained: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    divergences = []
    for rows in (0, 16):
        out, run = empty_run(tmp_path, f"rows{rows}")
        technique = Gguf(scheme="iq4_xs", importance_rows=rows, prompts=16, tokens=8, min_top1=0.0, max_kl=99.0)
        divergences.append(technique(trained, out, run)["kl_to_source"])
    assert 0 < float(divergences[1]) < float(divergences[0])
    assert "iq4_xs becomes iq4_nl in 28 of 28 matrices" in caplog.text


def test_zero_points_that_q4_0_rounds_again_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": False}}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": weights}))
    export.warn_of_zero_points(tmp_path, "q4_1")
    assert not caplog.text
    export.warn_of_zero_points(tmp_path, "q4_0")
    assert "scheme=q4_1 takes them over" in caplog.text


def test_biases_of_experts_stay_floats(tmp_path: Path) -> None:
    """They have two axes and are no matrices; llama.cpp aborts on rounded ones."""
    from gguf import GGUFReader

    save_model(build_mixture("gpt_oss"), tokenizer("llama"), tmp_path / "source", dtype="float32")
    out, run = empty_run(tmp_path)
    technique = Gguf(scheme="q8_0", importance_rows=0, prompts=2, tokens=2, min_top1=0.9, max_kl=0.01)
    assert technique(inputs_of(tmp_path / "source"), out, run)["fallback_matrices"] == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(out / "model.gguf").tensors}
    assert {kind for name, kind in types.items() if name.endswith(".bias")} == {"F32"}
    assert types["blk.0.ffn_down_exps.weight"] == "Q8_0"


def test_a_file_that_llama_cpp_does_not_load_is_refused_with_its_reason(tmp_path: Path) -> None:
    save_model(build_mixture("dots1"), tokenizer("llama"), tmp_path / "source", dtype="float32")
    out, run = empty_run(tmp_path)
    with pytest.raises(ParityError, match=r"llama.cpp cannot load it: .*wrong shape(.|\n)*quantize/gptq"):
        Gguf(scheme="f16", embedding="same", importance_rows=0)(inputs_of(tmp_path / "source"), out, run)
    assert not list(out.iterdir())


def test_importance_is_the_mean_squared_input() -> None:
    from tasks.export.importance import input_energy

    model, ids = build_model(), [[3, 4, 5], [6, 7]]
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(
        lambda module, args, output: seen.append(args[0][0])
    )
    energy = input_energy(model, ids)["model.layers.1.mlp.up_proj.weight"]
    handle.remove()
    torch.testing.assert_close(energy, torch.cat(seen).square().mean(0))


def test_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = LlamaSession("http://127.0.0.1:9/v1", 0, 64)
    monkeypatch.setattr(session, "tokens", lambda text: [5, 6, 9])
    with pytest.raises(ParityError, match=r"from token 2 on: \[9\]"):
        parity.check_tokenizer(
            session, lambda text, add_special_tokens: {"input_ids": [5, 6, 7]}, ["abc"], "model.gguf"
        )


def test_floor() -> None:
    same = parity.Position(0, 0, 7, 7, 0.1)
    other = parity.Position(0, 1, 7, 8, 0.5)
    found = parity.summarize([same, same, same, other])
    assert found.top1 == 0.75 and found.divergence == pytest.approx(0.2)
    parity.check_floor(found, 0.75, 0.2001, "x")
    with pytest.raises(ParityError, match=r"75\.0%"):
        parity.check_floor(found, 0.76, 1.0, "x")
    with pytest.raises(ParityError, match=r"0\.200 nats"):
        parity.check_floor(found, 0.0, 0.1, "x")


def test_truncated_divergence_is_zero_for_equals_and_never_above_the_full_one() -> None:
    source, exported = torch.randn(2, 50).softmax(-1)
    top = {int(token): float(exported[token]) for token in exported.topk(10).indices}
    reference = {token: float(source[token]) for token in top}
    full = float((source * (source / exported).log()).sum())
    assert 0 < truncated_divergence(reference, top) <= full + 1e-6
    assert truncated_divergence(reference, reference) == pytest.approx(0.0, abs=1e-9)


def test_a_server_that_does_not_answer_is_a_parity_error() -> None:
    with pytest.raises(ParityError, match="no answer"):
        parity.check_tokenizer(LlamaSession("http://127.0.0.1:9/v1", 0, 64), build_tokenizer(), ["abc"], "model.gguf")


CHANGES = {
    "scheme": Change("q8_0"),
    "embedding": Change("f16"),
    "fallback": Change(False, {"scheme": "q4_k"}, refused="fallback=true"),
    "importance_rows": Change(0),
    "prompts": Change(3),
    "tokens": Change(3),
    "top": Change(8),
    "min_top1": Change(0.01),
    "max_kl": Change(98.0),
    "split_bytes": Change(20_000),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    model = save_tiny(folder / "model", build_model(num_hidden_layers=1))
    settings = {"prompts": 2, "tokens": 2, "importance_rows": 2, "min_top1": 0.0, "max_kl": 99.0}
    yield Case(folder, inputs_of(model, write_corpus(folder / "corpus", rows=4)), settings)
