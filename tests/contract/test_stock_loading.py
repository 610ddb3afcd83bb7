"""Pruned models in stock loaders: plain transformers in a process without this project, and llama.cpp."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.export.gguf import Gguf
from tasks.prune.budget import Budget
from tasks.prune.depth import Depth
from tasks.prune.flap import Flap
from tasks.prune.heads import Heads
from tasks.prune.hidden import Hidden
from tasks.prune.layer_sharing import LayerSharing
from tasks.prune.low_rank import LowRank
from tasks.prune.magnitude import Magnitude
from tasks.prune.sparsegpt import SparseGPT
from tasks.prune.vocabulary import Vocabulary
from tasks.prune.wanda import Wanda
from tasks.prune.weight_selection import WeightSelection
from tasks.prune.width import Width
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.optional_packages import needs_extra
from tests.tiny_llama import empty_run, inputs_of, save_tiny, write_corpus

SHORT: dict[str, Any] = {"calibration_rows": 4, "max_tokens": 48}
TECHNIQUES: dict[str, Any] = {
    "budget": Budget(ratio=0.2, multiple=32, **SHORT),
    "depth": Depth(ratio=0.25, **SHORT),
    "flap": Flap(ratio=0.5, units="both", **SHORT),
    "heads": Heads(ratio=0.5, unit="queries", **SHORT),
    "hidden": Hidden(ratio=0.5, **SHORT),
    "layer_sharing": LayerSharing(groups=((1, 2),)),
    "low_rank": LowRank(ratio=0.5, check_rows=2, **SHORT),
    "magnitude": Magnitude(check_rows=2),
    "sparsegpt": SparseGPT(check_rows=2, **SHORT),
    "vocabulary": Vocabulary(size=400),
    "wanda": Wanda(pattern="2:4", check_rows=2, **SHORT),
    "weight_selection": WeightSelection(layers=2, hidden_size=32, intermediate_size=64, heads=2, kv_heads=1, **SHORT),
    "width": Width(ratio=0.5, **SHORT),
}
"""One of every technique that takes a dense model and no other; prune/experts is tested with mixtures."""
SIZES = {
    "budget": "parameters", "depth": "num_hidden_layers", "flap": "intermediate_size", "heads": "num_attention_heads", "hidden": "hidden_size",
    "vocabulary": "vocab_size", "weight_selection": "hidden_size", "width": "intermediate_size",
}  # fmt: skip
"""What each technique that makes the model smaller changes in it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each technique makes of the tiny Llama, by name, and the source."""
    folder = tmp_path_factory.mktemp("made")
    source, corpus = save_tiny(folder / "source"), write_corpus(folder / "corpus")
    found = {"source": source}
    for name, technique in TECHNIQUES.items():
        port = next((port for port in ("calibration", "data") if port in technique.spec.ports), "")
        inputs = Inputs(
            {"model": (Artifact("source", Kind.MODEL, source),), port: (Artifact("corpus", Kind.CORPUS, corpus),)}
        )
        found[name], run = empty_run(folder, name)
        technique(inputs, found[name], run)
    return found


ALONE = """
import sys
OURS = ("tasks", "flows", "tests")
sys.modules.update(dict.fromkeys(OURS))  # None: whoever imports them fails
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

def sizes(model):
    layers, attention, mlp = model.model.layers, model.model.layers[0].self_attn, model.model.layers[0].mlp
    found = {
        "vocab_size": len(model.model.embed_tokens.weight), "hidden_size": model.model.embed_tokens.weight.shape[1],
        "intermediate_size": len(mlp.up_proj.weight), "num_hidden_layers": len(layers),
        "num_attention_heads": len(attention.q_proj.weight) // model.config.head_dim,
        "num_key_value_heads": len(attention.k_proj.weight) // model.config.head_dim,
        "attention_bias": attention.o_proj.bias is not None, "mlp_bias": mlp.down_proj.bias is not None,
    }
    assert all(getattr(model.config, name) == value for name, value in found.items()), (found, model.config)
    return found | {"parameters": model.num_parameters()}

whole = sizes(AutoModelForCausalLM.from_pretrained(sys.argv[1]))
for given in sys.argv[2:]:
    folder, changed = given.split("=")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    found = sizes(model)
    differing = {name for name in whole if found[name] != whole[name]}
    assert (changed in differing and found[changed] < whole[changed]) if changed else not differing, (folder, found)
    stored = load_file(Path(folder) / "model.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in stored.items()), folder
    assert not [name for name in weights.keys() - stored.keys() if name != "lm_head.weight"], folder  # tied to the embedding
    words = AutoTokenizer.from_pretrained(folder)("Can I return it?", return_tensors="pt", add_special_tokens=False)
    written = model.generate(**words, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert written.shape[1] == words["input_ids"].shape[1] + 3 and int(written.max()) < found["vocab_size"], folder
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again")
    assert sizes(again) == found and again.state_dict().keys() == weights.keys(), folder
    assert all(torch.equal(weight, weights[name]) for name, weight in again.state_dict().items()), folder
assert not [name for name, module in sys.modules.items() if module and name.split(".")[0] in OURS]
print("fine", len(sys.argv[2:]))
"""


def test_plain_transformers_loads_generates_and_saves_them_in_a_process_without_this_project(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Isolated (-I) and in another folder; an editable install would still lead to the project's modules, so they are blocked by name."""
    given = [f"{made[name]}={SIZES.get(name, '')}" for name in TECHNIQUES]
    words = [sys.executable, "-I", "-c", ALONE, str(made["source"]), *given]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"fine {len(TECHNIQUES)}\n", done.stderr


@needs_extra(Gguf)
@pytest.mark.parametrize(("scheme", "embedding", "kl"), [("f16", "same", 1e-3), ("q8_0", "q8_0", 1e-2)])
@pytest.mark.parametrize("name", ["budget", "depth", "layer_sharing", "low_rank"])
def test_llama_cpp_opens_them_and_agrees(
    made: dict[str, Path], name: str, scheme: Any, embedding: Any, kl: float, tmp_path: Path
) -> None:
    """Those that no other test exports; the step compares llama.cpp's distributions with those of transformers."""
    out, run = empty_run(tmp_path)
    gate = Gguf(scheme=scheme, embedding=embedding, importance_rows=0, prompts=3, tokens=2, min_top1=0.9, max_kl=kl)
    metrics = gate(inputs_of(made[name]), out, run)
    assert float(metrics["kl_to_source"]) < kl and int(metrics["positions"]) > 1
