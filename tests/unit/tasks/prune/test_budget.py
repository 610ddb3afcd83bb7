"""A budget: kept to the parameter and the byte, filled by the cuts that cost least, and measured once."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning.plan import build_plan
from flows.planning.sizes import size_of
from tasks.prune.budget import Budget
from tasks.prune.cuts.divergence import Meter
from tasks.prune.depth import UNKNOWN
from tasks.shared.errors import ConfigError, ErrorList, TechniqueError
from tasks.shared.forecast import Rows, Workload
from tasks.shared.model.loading import load_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.technique import Artifact, Compute, Inputs, Kind
from tests.families import FAMILIES
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, inputs_of, save_tiny, write_corpus

IDS = torch.arange(3, 40)[None]
SHORT: dict[str, Any] = {"calibration_rows": 4, "max_tokens": 32}


def run(folder: Path, source: Path, **settings: Any) -> tuple[Path, Any]:
    out, step = empty_run(folder, f"step{len(list(folder.iterdir()))}")
    return out, Budget(**SHORT | settings)(inputs_of(source, write_corpus(folder / "corpus")), out, step)


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def rounded(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def silence(model: Any, layer: int = -1, neurons: int = 0) -> Any:
    """Let a layer add nothing, and as many neurons of each other layer, other ones each time."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for index, part in enumerate(model.model.layers):
            part.mlp.up_proj.weight[torch.randperm(128, generator=draws)[:neurons]] = 0
            if index == layer:
                part.self_attn.o_proj.weight.zero_()
                part.mlp.down_proj.weight.zero_()
    return rounded(model)


def repeating() -> Any:
    """Three layers; the last two add the same large bias each, so that one of them can be spared and not both."""
    model = build_model(num_hidden_layers=3, mlp_bias=True)
    with torch.no_grad():
        for layer, seed in zip(model.model.layers, (1, 0, 0), strict=True):
            layer.mlp.down_proj.bias.copy_(3 * torch.randn(64, generator=torch.Generator().manual_seed(seed)))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.3},
        {"parameters": 140_000},
        {"bytes": 260_000},
        {"ratio": 0.15, "units": ("layers",)},
        {"ratio": 0.15, "units": ("neurons",), "multiple": 32},
        {"ratio": 0.1, "units": ("groups", "queries"), "levels": (0.5,)},
    ],
)
def test_the_budget_is_kept_and_the_counts_are_those_of_the_files(tmp_path: Path, settings: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    source = save_tiny(tmp_path / "source")
    out, metrics = run(tmp_path, source, **settings)
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    total = parameter_count(source)
    limit = settings.get("parameters") or round((1 - settings.get("ratio", 0)) * total)
    assert (
        metrics["parameters"] == model.num_parameters() == parameter_count(out) < total == metrics["parameters_before"]
    )
    assert metrics["parameters"] <= metrics["budget_parameters"] <= limit
    assert metrics["size_bytes"] == weight_bytes(out) <= settings.get("bytes", 1e9)
    (chosen,) = (line for line in lines_of(out / "candidates.csv") if line["chosen"] == "1")
    config = model.config
    assert [int(chosen[name]) for name in ("layers", "neurons", "heads", "kv_heads", "parameters")] == [
        config.num_hidden_layers, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads, metrics["parameters"],
    ]  # fmt: skip
    assert float(chosen["kl"]) == pytest.approx(metrics["kl_calibration"], rel=1e-4)
    measured = [float(line["kl"]) for line in lines_of(out / "candidates.csv") if line["kl"]]
    assert float(chosen["kl"]) == min(measured) and metrics["kl_calibration"] > 0
    kept = [layer["layer"] for layer in json.loads((out / "selection.json").read_text("utf-8"))["layers"]]
    assert len(kept) == metrics["layers"] and set(kept) | set(map(int, metrics["dropped"].split())) == set(range(4))


def test_a_budget_in_bytes_is_nearly_used(tmp_path: Path) -> None:
    out, metrics = run(tmp_path, save_tiny(tmp_path / "source"), bytes=300_000, units=("neurons",))
    one_neuron = 2 * 4 * 3 * 64
    assert 300_000 - 8_000 - one_neuron < weight_bytes(out) <= 300_000, "128 bytes a tensor are left for the header"
    assert metrics["size_bytes"] > 2 * metrics["parameters"]


def test_what_does_nothing_goes_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    """A layer, half of the neurons, and both, each under a budget that asks for it."""
    for name, ratio, planted, wanted in (
        ("layer", 0.2, {"layer": 1}, (3, 128)),
        ("neurons", 0.2, {"neurons": 64}, (4, None)),
        ("both", 0.4, {"layer": 2, "neurons": 64}, (3, None)),
    ):
        model = silence(build_model(), **planted)
        (tmp_path / name).mkdir()
        out, metrics = run(tmp_path / name, save_tiny(tmp_path / name / "source", model), ratio=ratio)
        small = load_model(out)
        assert metrics["layers"] == wanted[0] and metrics["dropped"] == str(planted.get("layer", "")), name
        assert metrics["neurons"] == wanted[1] or 64 <= metrics["neurons"] < 128, name
        assert metrics["kl_calibration"] == pytest.approx(0.0, abs=1e-6), name
        with torch.no_grad():
            torch.testing.assert_close(small(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_the_result_is_nearer_than_by_layers_or_neurons_alone(tmp_path: Path) -> None:
    """One layer costs nothing, and so do a quarter of the neurons; neither alone is enough."""
    source = save_tiny(tmp_path / "source", silence(build_model(), layer=3, neurons=32))
    _, metrics = run(tmp_path, source, ratio=0.3)
    assert (metrics["layers"], metrics["heads"]) == (3, 4) and 96 <= metrics["neurons"] < 128
    assert metrics["kl_calibration"] < 1e-6 < 0.01 < min(metrics["kl_layers"], 1.0)


def test_layers_that_do_the_same_do_not_both_go(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", repeating())
    settings: dict[str, Any] = {"ratio": 0.5, "units": ("layers",), "levels": (0.75,)}
    _, metrics = run(tmp_path, source, **settings)
    assert metrics["dropped"] in ("0 1", "0 2")
    _, alone = run(tmp_path, source, shortlist=1, **settings)
    assert alone["dropped"] == "1 2" and alone["kl_calibration"] > 2 * metrics["kl_calibration"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Forward passes that measure divergence, as they are made."""
    passes: list[int] = []
    real = Meter._states
    monkeypatch.setattr(Meter, "_states", lambda self: (passes.append(1), real(self))[1])
    return passes


def test_sensitivities_are_measured_once_for_all_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, source, corpus = counted(monkeypatch), save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    cache = tmp_path / "cache"

    def made(name: str, digest: str = "d", **settings: Any) -> tuple[Any, int]:
        before = len(passes)
        ports = {
            "model": (Artifact("model", Kind.MODEL, source, digest),),
            "calibration": (Artifact("corpus", Kind.CORPUS, corpus),),
        }
        out, step = empty_run(tmp_path, name)
        metrics = Budget(**SHORT | settings)(Inputs(ports), out, replace(step, prediction_cache=cache))
        return metrics, len(passes) - before

    first, fresh = made("first", ratio=0.3)
    again, none = made("again", ratio=0.3)
    assert fresh > 10 and none == 0 and again == first
    _, some = made("other", ratio=0.25)
    assert 0 < some < fresh / 3, "most of another budget's measurements are the same"
    _, all_of_them = made("another", digest="e", ratio=0.3)
    assert all_of_them == fresh
    assert made("unnamed", digest="", ratio=0.3)[1] == fresh, "a model that nothing tells from others shares nothing"


def test_a_killed_run_goes_on_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, corpus = save_tiny(tmp_path / "source"), write_corpus(tmp_path / "corpus")
    out, step = empty_run(tmp_path)
    real, asked = Meter._measure, []

    def measure(self: Meter, *arguments: Any) -> float:
        asked.append(1)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Meter, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        Budget(**SHORT)(inputs_of(source, corpus), out, step)
    assert not list(out.iterdir())
    Budget(**SHORT)(inputs_of(source, corpus), out, step)
    whole, (_, fresh) = len(asked), empty_run(tmp_path, "whole")
    asked.clear()
    asked.extend([1] * 5)
    Budget(**SHORT)(inputs_of(source, corpus), empty_run(tmp_path, "out")[0], fresh)
    assert len(asked) - 5 == whole - 1, "only the measurement that was cut short is made again"


def test_a_budget_that_the_model_fits_removes_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes, source = counted(monkeypatch), save_tiny(tmp_path / "source")
    out, metrics = run(tmp_path, source, parameters=10**6)
    assert metrics["parameters"] == metrics["parameters_before"] == metrics["budget_parameters"]
    assert "nothing goes" in caplog.text and not passes and metrics["kl_calibration"] == 0
    before, after = rounded(load_model(source)).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() | after.keys())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.7}, r"(?s)ratio: 54,240 of 180,800 .*2 of 4 layers, 64 of 128 neurons, 2 of 4 heads.*ratio=0\.6"),
        ({"parameters": 60_000}, r"(?s)parameters: 60,000 .*wanted: 6\d,\d+ parameters or more.*fix: parameters=6\d+"),
        ({"bytes": 125_000}, r"(?s)bytes: .*fix: bytes=1\d+"),
        ({"ratio": 0.5, "units": ("groups",)}, "4 of 4 layers, 128 of 128 neurons, 2 of 4 heads"),
    ],
)
def test_a_budget_below_the_smallest_cut_is_refused_before_anything_is_measured(
    tmp_path: Path, settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, source = counted(monkeypatch), save_tiny(tmp_path / "source")
    monkeypatch.setattr("tasks.prune.budget.SLACK", 9.0)  # what the plan refuses does not get here
    with pytest.raises(TechniqueError, match=words) as caught:
        run(tmp_path, source, **settings)
    assert not passes
    fix = caught.value.fix.split(",")[0].split("=")
    if "units" not in settings:
        _, metrics = run(tmp_path, source, **{fix[0]: json.loads(fix[1])})
        assert metrics["layers"] == 2, "what the message proposes is possible"


def test_the_plan_refuses_a_budget_far_below_the_smallest_cut() -> None:
    config = build_model().config.to_dict()
    refusal = Budget(ratio=0.95).refuses(config)
    assert refusal is not None and "ratio=0.95 leaves about" in refusal.reason and "levels" in refusal.instead
    assert Budget(ratio=0.5).refuses(config) is None and Budget(parameters=100).refuses(config) is not None
    assert Budget(bytes=100).refuses(config) is not None and Budget(bytes=10**9).refuses(config) is None


@pytest.mark.parametrize("other", ["bytes", "milliseconds"])
def test_two_budgets_are_refused(tmp_path: Path, other: str) -> None:
    step = {"_target_": "tasks.prune.budget.Budget", "parameters": 10, other: 10, "inputs": {"model": "m"}}
    recipe = {
        "name": "t", "seed": 0, "models": {"m": {"path": str(save_tiny(tmp_path / "m"))}},
        "steps": {"corpus": {"_target_": "tasks.curate.support.Support"}, "slim": step},
    }  # fmt: skip
    with pytest.raises((ErrorList, ConfigError), match=f"parameters and {other} are given: set one of them"):
        build_plan(recipe)


def timed_as(monkeypatch: pytest.MonkeyPatch, layer: float, weight: float) -> None:
    """Let a token take 1 ms, a time for every layer, and one for every thousand weights within them."""

    def time(model: Any) -> float:
        inner = sum(weight.numel() for part in model.model.layers for weight in part.parameters())
        return 1.0 + layer * len(model.model.layers) + weight * inner / 1000

    monkeypatch.setattr("tasks.prune.cuts.latency.token_milliseconds", time)


def test_a_budget_in_milliseconds_is_kept_by_what_takes_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every layer takes the same time whatever its width, layers go; where weights take it, neurons, which cost nothing here."""
    source = save_tiny(tmp_path / "source", silence(build_model(), neurons=64))
    timed_as(monkeypatch, layer=1.0, weight=0.0)
    out, metrics = run(tmp_path, source, milliseconds=4.5)
    assert (metrics["layers"], metrics["neurons"], metrics["heads"]) == (3, 128, 4)
    assert (metrics["milliseconds_before"], metrics["milliseconds"]) == (5.0, 4.0)
    assert metrics["milliseconds_fitted"] == pytest.approx(4.0)
    assert {line["milliseconds"] for line in lines_of(out / "candidates.csv") if line["chosen"] == "1"} == {"4"}
    timed_as(monkeypatch, layer=0.0, weight=0.1)
    _, other = run(tmp_path, source, milliseconds=0.8 * (1 + 0.1 * 147.7))
    assert (other["layers"], other["heads"]) == (4, 4) and 64 <= other["neurons"] < 128
    assert other["milliseconds"] <= 0.8 * (1 + 0.1 * 147.7) and other["kl_calibration"] < 1e-6
    assert load_model(out).num_parameters() == metrics["parameters"] and "budget_parameters" not in metrics


def test_a_time_that_no_cut_reaches_is_refused_and_one_that_is_missed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes, source = counted(monkeypatch), save_tiny(tmp_path / "source")
    timed_as(monkeypatch, layer=1.0, weight=0.0)
    with pytest.raises(
        TechniqueError, match=r"(?s)milliseconds: 2 of 5 milliseconds per token.*leaves 3.*fix: milliseconds=3\.0"
    ):
        run(tmp_path, source, milliseconds=2)
    assert not passes
    monkeypatch.setattr("tasks.prune.budget.in_turn", lambda models: [6.0, 5.5])
    run(tmp_path, source, milliseconds=4.5)
    assert "a token takes 5.5 ms, and the budget is 4.5" in caplog.text and "milliseconds=3.27" in caplog.text


def test_tokens_are_timed_and_a_slow_budget_takes_nothing(tmp_path: Path) -> None:
    """The clock itself: no figure of it is tested, since machines are busy."""
    _, metrics = run(tmp_path, save_tiny(tmp_path / "source"), milliseconds=1e6)
    assert metrics["parameters"] == metrics["parameters_before"]
    assert min(metrics[name] for name in ("milliseconds", "milliseconds_before", "milliseconds_fitted")) > 0


@pytest.mark.parametrize(
    ("name", "words", "fix"),
    [
        ("phi3", "share one projection", "units=[layers, neurons]"),
        ("gpt_neox", "share one projection", "units=[layers, neurons]"),
        ("olmo2", "norms of queries and keys", "units=[layers, neurons]"),
        ("mixtral", "each expert", "units=[layers, groups]"),
        ("gpt2", "Conv1D", "prune/depth"),
    ],
)
def test_units_that_a_family_cannot_lose_are_refused_and_the_others_named(name: str, words: str, fix: str) -> None:
    config = FAMILIES[name].build().config.to_dict()
    refusal = Budget().refuses(config)
    assert refusal is not None and words in refusal.reason and refusal.instead == fix
    if fix.startswith("units"):
        units: Any = tuple(fix.removeprefix("units=[").removesuffix("]").split(", "))
        assert Budget(units=units).refuses(config) is None


def test_the_plan_takes_every_unit_to_be_cut() -> None:
    """So that a later step which a cut of heads or neurons would make impossible is refused before anything runs."""
    from tasks.export.gguf import Gguf

    config = FAMILIES["qwen2"].build().config.to_dict()
    refusal = Gguf().refuses(Budget(ratio=0.1).changed_config(config))
    assert refusal is not None and "do not add up to the hidden size" in refusal.reason
    assert Gguf().refuses(Budget(ratio=0.1, units=("layers", "neurons")).changed_config(config)) is None
    planned = Budget(multiple=32).changed_config(build_model().config.to_dict())
    assert planned["intermediate_size"] == 96 and planned["num_hidden_layers"] == 4
    mixed = {**config, "layer_types": ["sliding_attention", "full_attention"]}
    assert Budget().changed_config(mixed)["layer_types"] == [UNKNOWN] * 2
    assert Budget(units=("neurons",)).changed_config(mixed)["layer_types"] == mixed["layer_types"]


def test_the_forecast_is_of_a_model_of_the_budget(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    _, metrics = run(tmp_path, source, ratio=0.3)
    work = Workload({"model": (size_of(source),)}, Rows(), Compute(), 1e11)
    made = Budget(ratio=0.3).forecast(work).size
    assert made is not None and made.parameters == pytest.approx(metrics["parameters"], rel=0.02)
    assert made.shape.layers == 2, "by layers alone"
    longer = Budget(ratio=0.3, shortlist=4, checks=9, criterion="taylor").forecast(work)
    assert longer.seconds > Budget(ratio=0.3).forecast(work).seconds > Budget(ratio=0.3, units=("neurons",)).forecast(work).seconds  # fmt: skip


CHANGES = {
    "ratio": Change(0.4),
    "parameters": Change(80_000),
    "bytes": Change(200_000),
    "milliseconds": Change(1e6),  # takes nothing
    "units": Change(("layers",)),
    "levels": Change((0.25, 0.5)),
    "multiple": Change(32),
    "shortlist": Change(1, {"ratio": 0.5, "units": ("layers",), "levels": (0.75,)}),
    "checks": Change(9),
    "criterion": Change("random"),
    "calibration_rows": Change(1),
    "max_tokens": Change(8),
    "batch_size": Change(1, {"criterion": "taylor"}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    source = save_tiny(folder / "model", repeating())
    settings = {"ratio": 0.25, "checks": 1, "calibration_rows": 2, "max_tokens": 24}
    yield Case(folder, inputs_of(source, write_corpus(folder / "corpus", rows=6)), settings)
