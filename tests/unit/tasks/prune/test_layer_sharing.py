"""Layer sharing: copies in the file, the record beside it, honest sizes, and refusals."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.prune.layer_sharing import LayerSharing
from tasks.prune.magnitude import Magnitude
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks
from tasks.shared.model.shared_layers import read_shared
from tasks.shared.technique import Compute
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus


def written(tmp_path: Path, **settings: Any) -> tuple[Path, Any]:
    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    return out, LayerSharing(**{"calibration_rows": 8, "batch_size": 4} | settings)(inputs_of(source, corpus), out, run)


def test_plain_transformers_loads_the_copies(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out, metrics = written(tmp_path, groups=((1, 2),))
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    source = load_model(tmp_path / "source")
    for place, taken in enumerate((0, 1, 1, 3)):
        for name, weight in decoder_layers(model)[place].named_parameters():
            assert torch.equal(weight, decoder_layers(source)[taken].get_parameter(name).bfloat16().float())
    assert metrics["layers"] == 4 and metrics["distinct_layers"] == 3 and metrics["shared"] == "1+2"
    shared = read_shared(out)
    assert shared is not None and shared.groups == ((1, 2),)


def test_sizes_say_what_is_saved_and_what_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    out, metrics = written(tmp_path, count=1, size=3, protect_first=0)
    layer = sum(weight.numel() for weight in decoder_layers(load_model(out))[0].parameters())
    assert metrics["distinct_parameters"] == metrics["parameters"] - 2 * layer
    assert int(metrics["size_bytes"]) > 2 * int(metrics["parameters"]), "the copies are in the file"
    saved = int(metrics["archive_bytes"]) - int(metrics["distinct_archive_bytes"])
    assert 2 * layer < saved < 2 * 2 * layer, "bfloat16, which zlib makes a little smaller"
    assert "as large as before" in caplog.text and "Training holds the copies together" in caplog.text


def test_the_table_has_the_scores_and_the_groups(tmp_path: Path) -> None:
    out, metrics = written(tmp_path, count=1)
    with (out / "sharing.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["layer"] for line in lines] == ["0", "1", "2", "3"]
    assert [bool(line["score"]) for line in lines] == [True, True, True, False]
    assert "+".join(line["layer"] for line in lines if line["group"] == "1") == metrics["shared"] == "1+2"


@pytest.mark.parametrize(
    ("settings", "words", "fix"),
    [
        ({"count": 2}, "2 runs of 2 layers, but the protected ends leave 2 of 4", "count=1, or"),
        ({"size": 3, "count": 1}, "1 runs of 3 layers", "fewer layers per run"),
        ({"groups": ((2, 4),)}, "no layer 4", ""),
        ({"groups": ((0, 1), (1, 2))}, "listed twice", ""),
        ({"groups": ((0,),)}, "fewer than two layers", ""),
    ],
)
def test_the_plan_refuses_what_the_layers_do_not_give(settings: dict[str, Any], words: str, fix: str) -> None:
    refusal = LayerSharing(**settings).refuses({"num_hidden_layers": 4, "model_type": "llama"})
    assert refusal is not None and words in refusal.reason and refusal.instead.startswith(fix)
    with pytest.raises(TechniqueError, match=words):
        LayerSharing(**settings).free(4)


def test_other_models_are_taken_or_refused() -> None:
    assert LayerSharing().refuses({"num_hidden_layers": 6}) is LayerSharing().refuses({}) is None
    assert LayerSharing().refuses({"text_config": {}}) is not None


def test_masks_follow_the_copied_layers(tmp_path: Path) -> None:
    first, run = empty_run(tmp_path, "first")
    Magnitude(sparsity=0.3)(inputs_of(save_tiny(tmp_path / "source")), first, run)
    out, run = empty_run(tmp_path, "second")
    metrics = LayerSharing(groups=((1, 2),))(inputs_of(first), out, run)
    masks, before = read_masks(out), read_masks(first)
    assert masks is not None and before is not None and metrics["masked_sparsity"] == pytest.approx(0.3, abs=1e-3)
    name = "model.layers.{}.mlp.up_proj.weight"
    assert masks.tensors[name.format(2)] == before.tensors[name.format(1)] != before.tensors[name.format(2)]
    out, run = empty_run(tmp_path, "third")
    with pytest.raises(TechniqueError, match="method: mean for a model with masks"):
        LayerSharing(groups=((1, 2),), method="mean")(inputs_of(first), out, run)


def test_the_forecast_has_the_source_s_size(tmp_path: Path) -> None:
    work = Workload({"model": (size_of(save_tiny(tmp_path / "source")),)}, Rows(), Compute(), 1e6)
    by_angle, by_hand = LayerSharing().forecast(work), LayerSharing(groups=((1, 2),)).forecast(work)
    assert by_angle.size == work.size().saved() and by_angle.seconds > by_hand.seconds


CHANGES = {
    "method": Change("mean"),
    "count": Change(2),
    "size": Change(3),
    "criterion": Change("repeat"),
    "groups": Change(((0, 5),)),
    "protect_first": Change(5, {"criterion": "random"}),
    "protect_last": Change(5, {"criterion": "random"}),
    "calibration_rows": Change(4),
    "max_tokens": Change(16),
    "batch_size": Change(1),  # padding moves the last bits of every sum, and with them perhaps a run
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Eight layers, so that there are runs to choose from."""
    source = save_tiny(folder / "model", build_model(num_hidden_layers=8))
    settings = {"count": 1, "calibration_rows": 8, "max_tokens": 64, "batch_size": 8}
    yield Case(folder, inputs_of(source, write_corpus(folder / "corpus")), settings)
