"""Assignment to splits: whole groups, stable under growth, every label on both sides."""

from collections import Counter

import pytest

from tasks.curate.splitting.assign import Groups, assign
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import SPLITS

SHARES = {"test": 0.2, "calibration": 0.1}
MOST = {"test": 10_000, "calibration": 10_000}


def groups(names: list[tuple[str, str]], seed: int = 0) -> Groups:
    found = Groups(seed)
    for group, label in names:
        found.add(group, label)
    return found


def split(names: list[tuple[str, str]], seed: int = 0, most: dict[str, int] | None = None) -> list[str]:
    return [SPLITS[place] for place in assign(groups(names, seed), SHARES, most or MOST)]


def test_groups_stay_whole_and_shares_are_met() -> None:
    names = [(f"g{number // 2}", "") for number in range(8000)]
    found = split(names)
    assert all(found[place] == found[place + 1] for place in range(0, 8000, 2))
    counts = Counter(found)
    assert counts["test"] == pytest.approx(1600, abs=120) and counts["calibration"] == pytest.approx(800, abs=100)


def test_added_rows_move_none_in_any_order() -> None:
    names = [(f"g{number}", f"l{number % 7}") for number in range(3000)]
    before = dict(zip([name for name, _ in names[:2000]], split(names[:2000]), strict=True))
    after = dict(zip([name for name, _ in names[::-1]], split(names[::-1]), strict=True))
    assert {name: after[name] for name in before} == before
    assert split(names[:2000], seed=1) != list(before.values())


def test_every_label_is_in_train_and_frequent_ones_in_the_test() -> None:
    names = [(f"{label}-{number}", f"l{label}") for label in range(60) for number in range(1 + label % 9)]
    found = list(zip(names, split(names), strict=True))
    trained = {label for (_, label), part in found if part == "train"}
    tested = {label for (_, label), part in found if part == "test"}
    sizes = Counter(label for _, label in names)
    assert trained == set(sizes) and {label for label, size in sizes.items() if size >= 5} <= tested


def test_no_split_is_empty_and_limits_hold() -> None:
    for count in range(3, 12):
        assert set(split([(f"x{number}", "") for number in range(count)])) == set(SPLITS)
    names = [(f"g{number}", "") for number in range(1000)]
    found = Counter(split(names, most={"test": 20, "calibration": 5}))
    assert (found["test"], found["calibration"]) == (20, 5)
    with pytest.raises(DataError, match="2 groups of rows"):
        split([("a", ""), ("b", ""), ("a", "")])
