"""Source models are checked in full before anything runs, once for the same content."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.planning import models
from flows.planning.models import check_models
from flows.planning.plan import build_plan
from flows.planning.steps import Plan
from tasks.shared.errors import ErrorList
from tasks.shared.isolation import Failure
from tests.tiny_files import bare_gguf
from tests.tiny_llama import build_model, save_tiny


def planned(path: Path, target: str = "tasks.prune.depth.Depth", more: dict[str, Any] | None = None) -> Plan:
    steps = {
        "corpus": {"_target_": "tasks.curate.support.Support", "train_size": 400},
        "made": {
            "_target_": target,
            "inputs": {"model": "models.mine", "calibration": "corpus"} if more is None else more,
        },
    }
    return build_plan({"name": "trial", "seed": 0, "models": {"mine": {"path": str(path)}}, "steps": steps})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Checks run in this process; the list holds the models that were checked."""
    checked: list[Path] = []

    def call(work: Any, path: Path) -> Any:
        checked.append(path)
        return work(path)

    monkeypatch.setattr(models, "run_isolated", call)
    return checked


def test_a_hole_is_found_in_a_child_process_before_anything_runs(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))
    kept = load_file(folder / "model.safetensors")
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ErrorList, match=r"1 tensor of the model missing.*layers\.1\.mlp\.up_proj"):
        check_models(planned(folder), tmp_path)


def test_a_model_that_cannot_be_used_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ErrorList) as error:
        planned(tmp_path)
    assert len(error.value.errors) == 1 and "inputs" not in str(error.value)


def test_a_sound_model_is_checked_once_until_it_changes(tmp_path: Path, here: list[Path]) -> None:
    folder = save_tiny(tmp_path / "model", build_model(num_hidden_layers=2))
    for _ in range(2):
        check_models(planned(folder), tmp_path)
    assert here == [folder]
    other = Path(shutil.copytree(folder, tmp_path / "moved"))
    check_models(planned(other), tmp_path)
    assert here == [folder], "the same content elsewhere"
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(ErrorList, match="its tokenizer cannot be loaded"):
        check_models(planned(folder), tmp_path)
    with pytest.raises(ErrorList, match="its tokenizer cannot be loaded"):
        check_models(planned(folder), tmp_path)
    assert here == [folder] * 3, "a fault is not remembered"


def test_a_plan_that_is_only_shown_is_checked_in_silence(
    tmp_path: Path, here: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    caplog.set_level("INFO")
    check_models(planned(folder), tmp_path / "shown", quiet=True)
    assert here == [folder] and not caplog.messages
    check_models(planned(folder), tmp_path / "run")
    assert caplog.messages == ["models.mine: comparing its tensors with its configuration"]


def test_the_note_is_in_the_store(tmp_path: Path, here: list[Path]) -> None:
    check_models(planned(save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))), tmp_path / "root")
    assert len(here) == len(list((tmp_path / "root" / "artifacts" / ".checked").iterdir())) == 1
    (tmp_path / "file").touch()
    check_models(planned(tmp_path / "model"), tmp_path / "file")
    assert len(here) == 2, "checked again where no note can be written"


def test_a_gguf_is_compared_only_where_transformers_reads_it(tmp_path: Path, here: list[Path]) -> None:
    file = bare_gguf(tmp_path / "model.gguf")
    measured = {"baseline": "models.mine", "candidates": [], "data": "corpus"}
    check_models(planned(file, "tasks.evaluate.generation.Generation", measured), tmp_path)
    assert here == []
    with pytest.raises(ErrorList, match=r"model\.gguf"):
        check_models(planned(file), tmp_path)
    assert here == [file]


def test_files_that_nothing_loads_are_said(tmp_path: Path, here: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    with caplog.at_level("INFO", logger="stillroom"):
        check_models(planned(folder), tmp_path)
    assert "not loaded and not counted: consolidated.safetensors" in caplog.text


def test_a_check_that_dies_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "run_isolated", lambda *_: Failure("out of memory"))
    with pytest.raises(ErrorList, match="cannot be checked: out of memory"):
        check_models(planned(save_tiny(tmp_path / "model", build_model(num_hidden_layers=1))), tmp_path)
