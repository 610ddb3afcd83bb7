"""Divergence of a cut: that of the model that is really made, measured without touching the one in memory."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.prune.cuts.divergence import Meter
from tasks.prune.cuts.size import Cut
from tasks.prune.selection.activations import BlockAxis
from tasks.prune.selection.copying import build_student
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.shape import Shape, shape_of
from tasks.shared.errors import TechniqueError
from tasks.shared.model.agreement import logits_of, token_agreement
from tests.families import FAMILIES
from tests.tiny_llama import build_model, overflowing_model

READING = Reading([list(range(3, 40)), list(range(60, 90)), list(range(5, 25))], 2, 0)


def scores_of(before: Shape) -> Mapping[BlockAxis, Any]:
    draws = torch.Generator().manual_seed(1)
    return {
        "heads": list(torch.rand(before.layers, before.heads, generator=draws, dtype=torch.float64)),
        "neurons": list(torch.rand(before.layers, before.intermediate, generator=draws, dtype=torch.float64)),
    }


def meter_of(model: Any, folder: Path, made_from: str = "") -> Meter:
    before = shape_of(model.config)
    return Meter(model, READING, before, scores_of(before), folder, made_from)


def cuts_of(before: Shape) -> list[Cut]:
    one_group = replace(before, heads=before.group, kv_heads=1)
    return [
        Cut((0,), before),
        Cut((), replace(before, intermediate=96)),
        Cut((), one_group),
        Cut((1,), replace(one_group, intermediate=64)),
    ]


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3", "granite"])
def test_it_is_that_of_the_model_that_is_really_made(name: str, tmp_path: Path) -> None:
    """Biases, tied heads, wide heads, norms of heads, layers without positions, scaled logits."""
    model = FAMILIES[name].build(**FAMILIES[name].variant | {"num_key_value_heads": 2})
    meter = meter_of(model, tmp_path)
    dense = torch.cat(logits_of(model, READING.ids))
    for cut in cuts_of(meter.before):
        small, _ = build_student(model, cut.result, meter.picks(cut), cut.kept, cut.kept)
        wanted = float(token_agreement(dense, torch.cat(logits_of(small.eval(), READING.ids)))[0].mean())
        assert meter.divergence(cut) == pytest.approx(wanted, rel=1e-3) and wanted > 0
    assert meter.divergence(Cut((), meter.before)) == 0


def test_the_model_is_left_as_it_was_to_the_bit(tmp_path: Path) -> None:
    model = build_model()
    before, logits = copy.deepcopy(model.state_dict()), logits_of(model, READING.ids)
    meter = meter_of(model, tmp_path)
    for cut in cuts_of(meter.before):
        meter.divergence(cut)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(*pair) for pair in zip(logits_of(model, READING.ids), logits, strict=True))


def test_hooks_are_gone_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model()
    meter = meter_of(model, tmp_path)
    monkeypatch.setattr(Meter, "_divergences", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        meter.divergence(cuts_of(meter.before)[-1])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not list(tmp_path.iterdir())


def test_a_measurement_is_made_once_for_the_same_model_text_and_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = build_model(), []
    real = Meter._measure
    monkeypatch.setattr(Meter, "_measure", lambda self, cut, picks: asked.append(cut) or real(self, cut, picks))
    cuts = cuts_of(shape_of(model.config))
    first = meter_of(model, tmp_path, "a")
    found = [first.divergence(cut) for cut in (*cuts, *cuts)]
    assert len(asked) == len(cuts) and found[: len(cuts)] == found[len(cuts) :]
    again = meter_of(model, tmp_path, "a")
    assert [again.divergence(cut) for cut in cuts] == found[: len(cuts)] and len(asked) == len(cuts)
    meter_of(model, tmp_path, "another model").divergence(cuts[0])
    other_text = Meter(model, READING._replace(ids=READING.ids[:2]), first.before, first.scores, tmp_path, "a")
    other_text.divergence(cuts[0])
    flipped = {axis: [-values for values in found] for axis, found in first.scores.items()}
    other_units = Meter(model, READING, first.before, flipped, tmp_path, "a")
    other_units.divergence(cuts[1])
    assert len(asked) == len(cuts) + 3
    other_units.divergence(cuts[0])
    assert len(asked) == len(cuts) + 3, "without a layer, and with all units of the others"
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert meter_of(model, tmp_path, "a").divergence(cuts[0]) == found[0] and len(asked) == len(cuts) + 4


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match="not finite"):
        meter_of(overflowing_model(), tmp_path).divergence(Cut((0,), shape_of(build_model().config)))
