"""Stored targets: exact at every stored temperature, compact, resumable, found by content."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.logits import topk
from tasks.logits.topk import TopK, count_answer, top_and_tails
from tasks.shared.errors import DataError, ModelError, TechniqueError
from tasks.shared.formats.rows import read_rows, write_rows
from tasks.shared.formats.soft_targets import SoftTargets, bytes_per_position, part_name, row_key
from tasks.shared.model.encoding import encode
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.store.keys import Digests
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, empty_run, overflowing_model, save_tiny
from tests.unit.tasks.distill.test_sft import make_rows

SETTINGS: dict[str, Any] = {"k": 8, "temperatures": (1.0, 4.0)}


def make_inputs(folder: Path, rows: int = 24, **overrides: Any) -> Inputs:
    data = folder / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", make_rows(rows))
    teacher = save_tiny(folder / "teacher", build_model(**overrides))
    return Inputs(
        {"teacher": (Artifact("teacher", Kind.MODEL, teacher),), "data": (Artifact("traces", Kind.TRACES, data),)}
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
def test_tails_make_any_stored_temperature_exact(temperature: float) -> None:
    logits = 3 * torch.randn(7, 60, generator=torch.Generator().manual_seed(0))
    ids, top, tails = top_and_tails(logits, 5, (1.0, temperature))
    whole = torch.log_softmax(logits / temperature, -1)
    masses = torch.cat([top / temperature, tails[:, 1:]], -1)
    found = masses - torch.logsumexp(masses, -1, keepdim=True)
    torch.testing.assert_close(found[:, :5], whole.gather(-1, ids))
    rest = whole.scatter(-1, ids, -torch.inf)
    torch.testing.assert_close(found[:, 5], torch.logsumexp(rest, -1))
    assert (top.diff(dim=-1) <= 0).all(), "most likely first"


def test_k_must_leave_a_rest() -> None:
    with pytest.raises(TechniqueError, match="fewer than the 6"):
        top_and_tails(torch.zeros(1, 6), 6, (1.0,))


def test_every_position_of_every_answer_is_found_and_right(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    metrics = TopK(**SETTINGS, batch_size=5)(inputs, out, run)
    stored = SoftTargets(out)
    source = inputs.one("teacher").path
    model, tokenizer = load_model(source), load_tokenizer(source)
    rows = encode(read_rows(inputs.one("data").path / "train.jsonl"), tokenizer, 512)
    for row in rows:
        key = row_key(row["input_ids"], row["labels"])
        assert key in stored
        ids, logs = stored.read(key, 4.0)
        before = [place - 1 for place, label in enumerate(row["labels"]) if label >= 0]
        with torch.no_grad():
            whole = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0, before] / 4.0, -1)
        assert len(ids) == count_answer(row) == len(whole)
        torch.testing.assert_close(logs[:, :-1], whole.gather(-1, ids), atol=4e-3, rtol=0)
        torch.testing.assert_close(logs.exp().sum(-1), torch.ones(len(ids)))
    assert metrics["positions"] == sum(map(count_answer, rows)) and metrics["rows"] == 24
    for temperature, share in stored.tails.items():
        rest = torch.cat(
            [stored.read(row_key(row["input_ids"], row["labels"]), temperature)[1][:, -1].exp() for row in rows]
        )
        assert share == metrics[f"tail_at_{temperature:g}"] == pytest.approx(float(rest.mean()), abs=1e-4)
    part = load_file(out / part_name(0))
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.values())
    assert size == metrics["positions"] * metrics["bytes_per_position"] == metrics["positions"] * (8 * 4 + 2 * 4)
    assert bytes_per_position(32, 6, 100_000) == 32 * 6 + 24


def test_a_killed_run_goes_on_and_ends_the_same(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "PART_ROWS", 5)
    whole, run = empty_run(tmp_path, "whole")
    TopK(**SETTINGS)(inputs, whole, run)
    out, run = empty_run(tmp_path, "cut")
    genuine, asked = TopK._targets, []

    def targets(self: TopK, *more: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return genuine(self, *more)

    monkeypatch.setattr(TopK, "_targets", targets)
    with pytest.raises(KeyboardInterrupt):
        TopK(**SETTINGS)(inputs, out, run)
    TopK(**SETTINGS)(inputs, out, run)
    assert len(asked) == 3 + 3, "five parts, two of them before the kill"
    digests = [Digests(tmp_path / "none").tree(folder) for folder in (whole, out)]
    assert digests[0] == digests[1]


def test_what_was_not_stored_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    TopK(**SETTINGS)(inputs, out, run)
    stored = SoftTargets(out)
    with pytest.raises(DataError, match="one that was stored: 1, 4"):
        stored.read(next(iter(stored._rows)), 2.0)
    assert row_key([1, 2], [-100, 2]) not in stored
    (out / part_name(0)).write_bytes(b"cut")
    with pytest.raises(DataError, match="no stored targets"):
        SoftTargets(out)


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = overflowing_model()
    made = make_inputs(tmp_path)
    save_tiny(tmp_path / "broken", model)
    ports = {**made.ports, "teacher": (Artifact("teacher", Kind.MODEL, tmp_path / "broken"),)}
    with pytest.raises(ModelError, match="not finite"):
        TopK(**SETTINGS)(Inputs(ports), *empty_run(tmp_path))


def test_a_temperature_is_listed_once() -> None:
    problems = list(TopK(temperatures=(1.0, 1.0)).plan_problems("steps.targets", {}, {}))
    assert len(problems) == 1 and "once" in str(problems[0])


CHANGES = {
    "k": Change(9),
    "temperatures": Change((1.0, 2.0)),
    "max_tokens": Change(16, refused="too long"),
    "too_long": Change("stop", {"max_tokens": 72, "too_long": "drop"}, refused="too long"),
    "turns": Change("last"),
    "batch_size": Change(3),
    "dtype": Change("bfloat16"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, make_inputs(folder, rows=12, num_hidden_layers=2), SETTINGS)
