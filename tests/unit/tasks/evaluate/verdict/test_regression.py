"""A shippable model against the champion, on the items that both verdicts share."""

from pathlib import Path

from tasks.evaluate.paired import Paired
from tasks.evaluate.verdict.regression import compare_with_champion
from tests.score_samples import FACT, flipped, items_of, some_right, verdict_inputs, write_step_scores
from tests.tiny_llama import empty_run


def verdict_of(folder: Path, name: str, values: list[float], questions: str = "question") -> Path:
    """Return a verdict's folder: one candidate, and a baseline with 80 % of 500 facts right."""
    folder.mkdir()
    items = items_of("fact", {"tuned": some_right(500, 0.8), name: values})
    items = [item.model_copy(update={"question": f"{questions} {item.id}"}) for item in items]
    summary = write_step_scores(folder / "answers", {"fact": FACT}, items)
    out, run = empty_run(folder)
    Paired(margins={"fact": 0.05}, resamples=200)(verdict_inputs(folder, [name], summary), out, run)
    return out


def test_a_worse_model_is_told_from_the_champion_though_both_may_ship(tmp_path: Path) -> None:
    better = flipped(some_right(500, 0.8), 0, 60)
    champion = verdict_of(tmp_path / "then", "old", better)
    worse = verdict_of(tmp_path / "now", "new", flipped(better, 70, 5))
    found = compare_with_champion(worse, "new", champion, "old")
    assert found.worse == ["fact"] and found.measures["fact"].n == 500
    assert found.describe().startswith("against the champion: fact -0.13")
    same = compare_with_champion(champion, "old", champion, "old")
    assert not same.worse and same.measures["fact"].flip_rate == 0.0


def test_items_that_changed_are_no_common_ground(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    champion = verdict_of(tmp_path / "then", "old", right)
    other = verdict_of(tmp_path / "now", "new", right, questions="another question")
    assert (
        compare_with_champion(other, "new", champion, "old").note
        == "not compared with the champion: the two verdicts share no item"
    )
    assert "gone is not in its verdict" in compare_with_champion(other, "new", champion, "gone").note
    assert "no such file" in compare_with_champion(other, "new", tmp_path, "old").note
