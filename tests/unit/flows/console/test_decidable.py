"""What the test items can decide, as a person reads it."""

import pytest
from rich.console import Console

from flows.console.decidable import sentence, show_decidable
from tasks.shared.items import Decidable, Items


def test_one_margin_is_a_sentence() -> None:
    one = Decidable("steps.verdict", "label", Items(240, exact=False), 0.05, smallest=0.0417)
    assert sentence(one) == "label: up to 240 test items; enough to decide a margin of 4.2 points (yours: 5 points)"
    few = Decidable("steps.verdict", "label", Items(12), 0.125, smallest=0.339)
    assert sentence(few) == "label: 12 test items; only enough to decide a margin of 33.9 points (yours: 12.5 points)"
    amount = Decidable("steps.verdict", "rouge_l", Items(40, binary=False), 0.05)
    assert sentence(amount) == "rouge_l: 40 test items (your margin: 0.05)"


@pytest.mark.parametrize("width", [80, 160])
def test_several_margins_are_a_table_that_names_the_step_only_if_there_are_two(width: int) -> None:
    found = [
        Decidable("steps.verdict", "call_arguments", Items(240, exact=False), 0.05, smallest=0.0417),
        Decidable("steps.verdict", "value", Items(12), 0.05, smallest=0.339),
        Decidable("steps.verdict", "bits_per_byte", Items(12, binary=False), 0.02, relative=True),
    ]
    console = Console(width=width, record=True)
    show_decidable(console, found)
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines) and not any("verdict" in line for line in lines)
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in lines if line.startswith("\u2502")]
    if width == 160:
        assert rows == [
            ["call_arguments", "up to 240", "5 points", "4.2 points", "enough"],
            ["value", "12", "5 points", "33.9 points", "too few"],
            ["bits_per_byte", "12", "2 % of the baseline", "known after the run", ""],
        ]
    show_decidable(console, [*found, Decidable("steps.second", "value", Items(12), 0.5, smallest=0.339)])
    assert "second" in console.export_text()
