"""The end of a run in the console, and how figures and sentences choose their words."""

import io

import pytest
from rich.console import Console
from verdict_samples import a_verdict, measured, shipping

from tasks.report.svg import Scale, linear_ticks, log_ticks, place_labels
from tasks.report.table import decision_line, model_table
from tasks.report.wording import non_inferior


def test_decision_in_words() -> None:
    assert decision_line(a_verdict()) == (
        "Do not ship: the nearest candidate, student, loses 6.1 points of fact accuracy [3.9, 8.3], margin 5."
    )
    line = decision_line(shipping())
    assert line.startswith(
        "Ship: gguf is 4.1x smaller and 2.8x faster than tuned, and every measure is inside its margin"
    )
    assert non_inferior(measured(0.8, -0.04, 0.02)) == "unknown" and non_inferior(measured(0.8, -0.1, 0.02)) == "no"
    assert non_inferior(measured(0.8, 0.0, 0.02)) == "yes"


@pytest.mark.parametrize("width", [60, 80, 120, 160, 220])
def test_table_fits_the_console(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(model_table(a_verdict()))
    lines = console.export_text().rstrip().splitlines()
    assert max(map(len, lines)) <= width
    body = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in a_verdict().models}
    assert set(body) == set(a_verdict().models)
    assert "66.0 MB" in body["gguf"] and "do not ship" in body["gguf"] and "reference" in body["teacher"]
    assert "…" not in "".join(lines)
    if width >= 80:
        assert "4.1x" in body["gguf"] and "2.8x" in body["gguf"]
    if width >= 160:
        assert "[69.0, 79.0]" in body["gguf"] and "91 %" in body["gguf"]


def test_ticks_scales_and_labels() -> None:
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert linear_ticks(-0.79, 0.05)[0] >= -0.79
    assert log_ticks(50e6, 400e6) == [50e6, 100e6, 200e6]
    assert len(log_ticks(100e6, 130e6)) >= 3
    scale = Scale(1, 100, 0, 10, log=True)
    assert scale(10) == pytest.approx(5) and scale(1000) == 10 and scale(0) == 0
    spots = place_labels([(50, 50, "same"), (50, 50, "same")], (0, 0, 200, 200))
    assert abs(spots[0][1] - spots[1][1]) >= 12 or abs(spots[0][0] - spots[1][0]) >= 20
