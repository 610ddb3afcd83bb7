"""Is a model that may ship worse than the one that ships already?  Both were judged by a verdict; the items they share tell."""

from dataclasses import dataclass
from pathlib import Path

from tasks.evaluate.verdict.comparison import Rules, compare_measure, pair
from tasks.shared.errors import StillroomError
from tasks.shared.formats.rows import parse_lines
from tasks.shared.formats.scores import ITEMS, ItemScore
from tasks.shared.formats.verdict import Gate, MeasureComparison, read_verdict

RESAMPLES = 2000


@dataclass(frozen=True)
class Regression:
    """The new model against the champion, by measure, on the items that both verdicts hold.  note: why there is none."""

    measures: dict[str, MeasureComparison]
    note: str = ""

    @property
    def worse(self) -> list[str]:
        """Measures on which the new model is shown to lose more than the margin."""
        return [name for name, found in self.measures.items() if found.answer == "no"]

    def describe(self) -> str:
        """Every measure in a few words."""
        if self.note:
            return self.note
        shown = (
            f"{name} {found.difference:+.3g} [{found.low:+.3g}, {found.high:+.3g}] on {found.n} items, allowed {found.margin:.3g}"
            for name, found in self.measures.items()
        )
        return "against the champion: " + "; ".join(shown)


def compare_with_champion(verdict: Path, shipped: str, before: Path, champion: str) -> Regression:
    """verdict, before: output folders of the new verdict and of the one that made the champion.  shipped, champion: names there.

    An item is the same if measure, id, question and wanted answer are.  The margins are those of the new verdict.
    """
    try:
        found, old = read_verdict(verdict / "verdict.json"), read_verdict(before / "verdict.json")
        now, then = read_items(verdict), read_items(before)
    except StillroomError as error:
        return Regression({}, f"not compared with the champion: {error.where}: {error.got}")
    if champion not in old.models:
        return Regression({}, f"not compared with the champion: {champion} is not in its verdict")
    measures = {}
    for name, gate in found.gates.items():
        shared = shared_items(name, now, shipped, then, champion)
        if gate.margin is not None and shared and not gate.measure.against_baseline:
            measures[name] = _compare(gate, shared, found.alpha, found.power)
    return Regression(measures, "" if measures else "not compared with the champion: the two verdicts share no item")


def _compare(gate: Gate, shared: list[ItemScore], alpha: float, power: float) -> MeasureComparison:
    return compare_measure(pair(gate.measure, shared, "champion", "new"), gate, Rules(alpha, power, RESAMPLES, seed=0))


def read_items(folder: Path) -> dict[tuple[str, str], ItemScore]:
    """A verdict's items by measure and id."""
    items = parse_lines(folder / ITEMS, lambda text, _: ItemScore.model_validate_json(text))
    return {(item.measure, item.id): item for item in items}


def shared_items(
    measure: str,
    now: dict[tuple[str, str], ItemScore],
    shipped: str,
    then: dict[tuple[str, str], ItemScore],
    champion: str,
) -> list[ItemScore]:
    """Items that both have, with the value of the champion and of the new model."""
    found = []
    for key, item in now.items():
        old = then.get(key)
        if key[0] != measure or old is None or (item.question, item.wanted) != (old.question, old.wanted):
            continue
        if shipped in item.values and champion in old.values:
            values = {"champion": old.values[champion], "new": item.values[shipped]}
            found.append(item.model_copy(update={"values": values, "answers": {}}))
    return found
