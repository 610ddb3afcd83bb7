"""Regression check: a model that may ship against the champion that ships already.

Each has a verdict of its own; they are compared on the items that the two verdicts share.
"""

from dataclasses import dataclass
from pathlib import Path

from tasks.evaluate.verdict.comparison import Rules, compare_measure
from tasks.evaluate.verdict.pairs import pair_items
from tasks.shared.errors import StillroomError
from tasks.shared.formats.rows import parse_lines
from tasks.shared.formats.scores import ITEMS, ItemScore, current_name
from tasks.shared.formats.verdict import Gate, MeasureComparison, read_verdict

RESAMPLES = 2000


@dataclass(frozen=True)
class Regression:
    """The new model against the champion, by measure, on the items they share.

    note: why there is no comparison; empty if there is one.
    """

    measures: dict[str, MeasureComparison]
    note: str = ""

    @property
    def worse(self) -> list[str]:
        """Measures on which the new model's loss beyond the margin is proven."""
        return [name for name, found in self.measures.items() if found.answer == "no"]

    def describe(self) -> str:
        """Return every measure's difference in a few words, or the note."""
        if self.note:
            return self.note
        shown = (
            f"{name} {found.difference:+.3g} [{found.low:+.3g}, {found.high:+.3g}] on {found.n} items, allowed {found.margin:.3g}"
            for name, found in self.measures.items()
        )
        return "against the champion: " + "; ".join(shown)


def compare_with_champion(verdict: Path, shipped: str, before: Path, champion: str) -> Regression:
    """Compare the new model with the champion on the items that both verdicts share.

    verdict, before: output folders of the new verdict and of the champion's.  shipped, champion: the models' names there.
    Items are the same if measure, id, question and expected answer are.  Margins are those of the new verdict.
    """
    try:
        new, old = read_verdict(verdict / "verdict.json"), read_verdict(before / "verdict.json")
        now, then = read_items(verdict), read_items(before)
    except StillroomError as error:
        return Regression({}, f"not compared with the champion: {error.where}: {error.got}")
    if champion not in old.models:
        return Regression({}, f"not compared with the champion: {champion} is not in its verdict")
    measures = {}
    for name, gate in new.gates.items():
        shared = shared_items(name, now, shipped, then, champion)
        if gate.margin is not None and shared and not gate.measure.against_baseline:
            measures[name] = _compare(gate, shared, new.alpha, new.power)
    return Regression(measures, "" if measures else "not compared with the champion: the two verdicts share no item")


def _compare(gate: Gate, shared: list[ItemScore], alpha: float, power: float) -> MeasureComparison:
    return compare_measure(
        pair_items(gate.measure, shared, "champion", "new"), gate, Rules(alpha, power, RESAMPLES, seed=0)
    )


def read_items(folder: Path) -> dict[tuple[str, str], ItemScore]:
    """Return a verdict's items by measure and id."""
    items = parse_lines(folder / ITEMS, lambda text, _: ItemScore.model_validate_json(text))
    return {(current_name(item.measure), item.id): item for item in items}


def shared_items(
    measure: str,
    now: dict[tuple[str, str], ItemScore],
    shipped: str,
    then: dict[tuple[str, str], ItemScore],
    champion: str,
) -> list[ItemScore]:
    """Return items that both verdicts have, with the champion's and the new model's values."""
    found = []
    for key, item in now.items():
        old = then.get(key)
        if key[0] != measure or old is None or (item.question, item.wanted) != (old.question, old.wanted):
            continue
        if shipped in item.values and champion in old.values:
            values = {"champion": old.values[champion], "new": item.values[shipped]}
            found.append(item.model_copy(update={"values": values, "answers": {}}))
    return found
