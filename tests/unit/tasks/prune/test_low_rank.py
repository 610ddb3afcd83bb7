"""Low rank: less error by the inputs than plainly on a trained model, ranks as set, and refusals."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.sizes import size_of
from tasks.prune.low_rank import LowRank
from tasks.prune.magnitude import Magnitude
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Dimensions, Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.masks import read_masks
from tasks.shared.model.prunable import matrices_of, view_of
from tasks.shared.technique import Compute
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, one_layer_inputs, save_tiny, write_corpus
from tests.unit.tasks.prune.test_wanda import calibration_error

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def error_of(**settings: Any) -> float:
    def cut(weights: dict[str, torch.Tensor], products: Mapping[str, torch.Tensor]) -> None:
        LowRank(**settings).cut_layer(weights, products)

    return calibration_error(cut)


@pytest.mark.parametrize("size", [{"ratio": 0.8}, {"ratio": 0.4}, {"rank": 12}])
def test_outputs_of_a_trained_model_change_less_than_plainly(size: dict[str, Any]) -> None:
    assert error_of(**size) < 0.8 * error_of(method="plain", **size)


def test_more_rank_leaves_less_error() -> None:
    errors = [error_of(ratio=ratio) for ratio in (0.2, 0.4, 0.6, 0.9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


def written(tmp_path: Path, **settings: Any) -> tuple[Any, Any, Any, list[dict[str, str]]]:
    """Models before and after, figures and table of a run."""
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=2)), write_corpus(tmp_path / "corpus")
    out, run = empty_run(tmp_path)
    metrics = LowRank(**{"calibration_rows": 8, **settings})(inputs_of(source, corpus), out, run)
    with (out / "ranks.csv").open(encoding="utf-8", newline="") as stream:
        return load_model(source), load_model(out), metrics, list(csv.DictReader(stream))


def rank_in(weight: torch.Tensor) -> int:
    """Rank up to the rounding to bfloat16."""
    values = torch.linalg.svdvals(weight)
    return int((values > 0.02 * values[0]).sum())


def test_every_matrix_has_the_rank_that_its_weights_allow(tmp_path: Path) -> None:
    before, after, metrics, lines = written(tmp_path, ratio=0.4)
    by_name = {line["matrix"]: line for line in lines}
    weights, saved = 0, 0
    for name, part in matrices_of(after).items():
        outputs, inputs = view_of(part).shape
        rank = int(by_name[name]["rank"])
        assert rank == int(0.4 * outputs * inputs / (outputs + inputs)) >= rank_in(view_of(part)) > 1
        weights += outputs * inputs
        saved += outputs * inputs - rank * (outputs + inputs)
    assert 0.38 < 1 - saved / weights <= 0.4
    assert metrics["factored_parameters"] == metrics["parameters"] - saved
    assert metrics["parameters"] == before.num_parameters() == after.num_parameters(), "what is stored is dense"
    assert int(metrics["size_bytes"]) > 2 * int(metrics["parameters"])
    assert (metrics["reduced_matrices"], metrics["whole_matrices"]) == (14, 0)
    assert float(metrics["kl_to_source"]) > 0 and 0 < float(metrics["output_error"]) < 1
    for name, weight in before.named_parameters():
        inside = ".layers." in name and weight.dim() > 1
        assert torch.equal(after.get_parameter(name), weight.bfloat16().float()) != inside, name


def test_a_matrix_stays_whole_where_factors_would_save_nothing(tmp_path: Path) -> None:
    """Rank 25 saves weights for 64 x 64 (up to 31) and larger matrices, and none for keys and values of 32 x 64 (up to 21)."""
    before, after, metrics, lines = written(tmp_path, rank=25)
    whole = {line["matrix"] for line in lines if line["rank"] == "0"}
    assert {name.rpartition(".")[2] for name in whole} == {"k_proj", "v_proj"} and metrics["whole_matrices"] == 4
    for name in whole:
        assert torch.equal(
            after.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight").bfloat16().float()
        )
    assert metrics["rank_min"] == metrics["rank_max"] == 25


def test_by_energy_every_matrix_has_a_rank_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    *_, metrics, lines = written(tmp_path, energy=0.7)
    cut = [line for line in lines if line["rank"] != "0"]
    assert len({line["rank"] for line in cut}) > 2 and all(float(line["energy"]) >= 0.7 for line in cut)
    assert int(metrics["rank_min"]) < int(metrics["rank_max"])
    assert "the file is as large as before" in caplog.text and "computes no faster" in caplog.text


def test_an_energy_that_leaves_all_as_it_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"energy: 0\.99999 leaves every matrix as it is"):
        written(tmp_path, energy=0.99999)


@pytest.mark.parametrize(
    ("settings", "words", "fix"),
    [
        ({"rank": 43}, "rank=43, and two factors of that rank hold as many", "rank=42 or less"),
        ({"ratio": 0.02}, "ratio=0.02 leaves nothing of a matrix of 32 x 64", "ratio=0.047 or more"),
    ],
)
def test_the_plan_refuses_ranks_that_leave_all_or_nothing(settings: dict[str, Any], words: str, fix: str) -> None:
    refusal = LowRank(**settings).refuses(CONFIG)
    assert refusal is not None and words in refusal.reason and refusal.instead == fix
    (name, value), *_ = settings.items()
    milder = float(fix.split("=")[1].split()[0])
    assert LowRank(**{name: type(value)(milder)}).refuses(CONFIG) is None, "the fix works"
    assert LowRank(**settings).refuses({"model_type": "llama"}) is None, "without sizes, the step itself finds out"
    with pytest.raises(TechniqueError, match=words.split("=")[0]):
        LowRank(**settings).reduce(build_model(num_hidden_layers=1), [[3, 4, 5]], 0)


def test_the_plan_refuses_mixtures_and_models_of_several_parts() -> None:
    assert LowRank().refuses(CONFIG | {"num_local_experts": 4}) is not None
    assert LowRank().refuses({"text_config": CONFIG}) is not None
    assert LowRank().refuses(CONFIG) is None


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = build_model(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(TechniqueError, match="down_proj: its weights are not finite"):
        LowRank().reduce(model, [[3, 4, 5]], 0)


def test_zeros_of_masks_are_held(tmp_path: Path) -> None:
    source, corpus = save_tiny(tmp_path / "source", build_model(num_hidden_layers=1)), write_corpus(tmp_path / "corpus")
    first, run = empty_run(tmp_path, "first")
    Magnitude(sparsity=0.3)(inputs_of(source), first, run)
    out, run = empty_run(tmp_path, "second")
    metrics = LowRank(calibration_rows=8)(inputs_of(first, corpus), out, run)
    before, after = load_model(first), load_model(out)
    for name in matrices_of(after):
        assert not after.get_parameter(f"{name}.weight")[before.get_parameter(f"{name}.weight") == 0].any()
    assert read_masks(out) is not None and float(metrics["zeros_refilled"]) > 0.9 and "masked_sparsity" in metrics


def test_the_forecast_has_the_source_s_size(tmp_path: Path) -> None:
    size = size_of(save_tiny(tmp_path / "source"))
    found = LowRank().forecast(Workload({"model": (size,)}, Rows(), Compute(), 1e11))
    assert found.size is not None and found.size.parameters == size.parameters
    assert isinstance(size.shape, Dimensions) and found.seconds > 15


CHANGES = {
    "method": Change("plain"),
    "ratio": Change(0.4),
    "energy": Change(0.5),
    "rank": Change(5),
    "damping": Change(0.5),
    "check_rows": Change(4),
    "max_tokens": Change(16),
    "calibration_rows": Change(4),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """One layer, since all are treated alike."""
    yield Case(folder, one_layer_inputs(folder), {"max_tokens": 48, "calibration_rows": 12})
