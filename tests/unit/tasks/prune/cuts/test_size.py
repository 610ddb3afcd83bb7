"""Parameters after a cut: those of the model that is really made, in every family."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.prune.budget import Budget
from tasks.prune.cuts.size import Cut, Parameters
from tasks.prune.selection.copying import build_student
from tasks.prune.selection.picks import choose, leading
from tasks.prune.selection.shape import shape_of
from tests.families import FAMILIES

UNITS: Any = ("layers", "neurons", "groups", "queries")


@pytest.mark.parametrize("varied", [False, True], ids=["ordinary", "variant"])
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"gpt2"}))
def test_the_count_is_that_of_the_model_that_is_made(name: str, varied: bool) -> None:
    family = FAMILIES[name]
    model = family.build(**(family.variant if varied else {}))
    config, before = model.config.to_dict(), shape_of(model.config)
    parameters = Parameters.of(model, before)
    assert parameters.total == model.num_parameters()
    changes: dict[str, Any] = {
        "neurons": {"intermediate": 80},
        "groups": {"heads": before.group, "kv_heads": 1},
        "queries": {"heads": before.kv_heads * max(1, before.group // 2)},
    }
    for unit, change in changes.items():
        sizes = change if Budget(units=(unit,)).unsupported(config) is None else {}
        cut = Cut((0,), replace(before, **sizes))
        picks = choose(leading(before), before, cut.shape)
        small, _ = build_student(model, cut.result, picks, cut.kept, cut.kept)
        assert parameters.after(cut) == small.num_parameters() < parameters.total, unit


def test_a_cut_names_what_goes() -> None:
    before = shape_of(FAMILIES["llama"].build().config)
    cut = Cut((1,), replace(before, intermediate=64))
    assert cut.kept == [0] and cut.result.layers == 1
    assert cut.kinds(before) == ("layers", "neurons")
    assert Cut((), replace(before, heads=2)).kinds(before) == ("heads",) and Cut((), before).kinds(before) == ()
