"""The end of a run in the console, and how figures and sentences choose their words."""

import io

import pytest
from rich.console import Console
from verdict_samples import CODE_LENGTH, GATES, a_verdict, compared, in_slice, measured, shipping

from flows.console.model_table import model_table
from tasks.report.figures.svg import Scale, linear_ticks, log_ticks, place_labels
from tasks.report.words.wording import change, decision_line, nearest_candidate, times_faster
from tasks.shared.formats.records import Figure
from tasks.shared.formats.verdict import Comparison, Verdict


def test_decision_in_words() -> None:
    assert decision_line(a_verdict()) == (
        "Do not ship: the nearest candidate, student, loses 6.1 points of fact accuracy [3.9, 8.3], margin 5."
    )
    line = decision_line(shipping())
    assert line.startswith(
        "Ship: gguf is 4.1x smaller and 2.8x faster than tuned, and every measure is inside its margin"
    )


def test_faster_is_only_what_was_timed_in_the_same_engine() -> None:
    models = a_verdict().models
    figures = {name: figure for name, figure in models["gguf"].figures.items() if name != "speed_ratio"}

    def told(**changed: Figure) -> tuple[float | None, str]:
        gguf = models["gguf"].model_copy(update={"figures": figures | changed})
        verdict = shipping().model_copy(update={"models": models | {"gguf": gguf}})
        return times_faster(verdict, "gguf"), decision_line(verdict)

    ratio, line = told()
    assert ratio is None and "gguf is 4.1x smaller than tuned, and" in line, (
        "131 tokens/s against 46, in another engine"
    )
    ratio, line = told(speed_ratio=Figure(value=1.3, low=0.9, high=1.5))
    assert ratio == 1.3 and "at 1.3x its speed, and" in line, "not shown to be faster"
    assert times_faster(shipping(), "tuned") == 1.0


def test_what_is_open_is_not_called_a_loss() -> None:
    gate = GATES["fact"]
    assert change(gate, measured(0.8, -0.04, 0.02)) == (
        "loses 4.0 points of fact accuracy [2.0, 6.0], margin 5: a loss beyond it is not ruled out"
    )
    assert change(gate, measured(0.8, 0.01, 0.08)) == (
        "gains 1.0 points of fact accuracy [\N{MINUS SIGN}7.0, +9.0], margin 5: a loss beyond it is not ruled out"
    )
    open_only = a_verdict(decision="not enough data", comparisons={"gguf": compared(-0.04)})
    assert decision_line(open_only).startswith("Not enough data: gguf loses 4.0 points of fact accuracy")
    both = a_verdict(comparisons={"gguf": compared(-0.055, 0.02), "student": compared(-0.2)})
    assert nearest_candidate(both) == "gguf", "an open question is nearer to shipping than a shown loss"


def test_other_units_slices_and_failures_in_words() -> None:
    longer = measured(1.02, -0.12, 0.03, retention=None, retention_low=None, retention_high=None)
    assert change(CODE_LENGTH, longer) == "is 0.120 bits per byte worse in code length [0.0900, 0.150], margin 0.05"
    harmed = [in_slice("language", "et", "fact", -0.21, n=34), in_slice("kind", "faq", "fact", -0.01)]
    line = decision_line(a_verdict(comparisons={"gguf": compared(0.0, decision="do not ship", slices=harmed)}))
    assert line.endswith(
        "gguf loses 21.0 points of fact accuracy [15.0, 27.0] where language is et (34 items), slice margin 10."
    )
    models = a_verdict().models
    broken = models | {
        "int4": models["int4"].model_copy(update={"scores": {}, "failures": {"speed": "out of memory."}})
    }
    comparison = Comparison(decision="not enough data", measures={})
    assert "int4 could not be measured in speed (out of memory)." in decision_line(
        a_verdict(models=broken, comparisons={"int4": comparison})
    )


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


@pytest.mark.parametrize("width", [60, 80, 110])
def test_many_measures_still_fit(width: int) -> None:
    gates = {f"long_measure_{i}": GATES["fact"] for i in range(9)} | {"code_length": CODE_LENGTH}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(model_table(a_verdict(gates=gates)))
    lines = console.export_text().rstrip().splitlines()
    assert max(map(len, lines)) <= width and any("do not ship" in line for line in lines)
    assert "more measures in a wider terminal" in lines[-1], "it says what it leaves out"


def test_ticks_scales_and_labels() -> None:
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert linear_ticks(-0.79, 0.05)[0] >= -0.79
    assert log_ticks(50e6, 400e6) == [50e6, 100e6, 200e6]
    assert len(log_ticks(100e6, 130e6)) >= 3
    scale = Scale(1, 100, 0, 10, log=True)
    assert scale(10) == pytest.approx(5) and scale(1000) == 10 and scale(0) == 0
    spots = place_labels([(50, 50, "same"), (50, 50, "same")], (0, 0, 200, 200))
    assert abs(spots[0][1] - spots[1][1]) >= 12 or abs(spots[0][0] - spots[1][0]) >= 20


def test_an_adaptive_verdict_shows_items_per_model_in_eighty_columns() -> None:
    verdict = shipping()
    lines = shown_lines(verdict.model_copy(update={"mode": "adaptive"}), 80)
    assert any("items" in line for line in lines) and max(map(len, lines)) <= 80
    assert not any("items" in line for line in shown_lines(verdict, 80))


def shown_lines(verdict: Verdict, width: int) -> list[str]:
    console = Console(file=(stream := io.StringIO()), width=width)
    console.print(model_table(verdict))
    return stream.getvalue().splitlines()
