"""The table of models at the end of a run, and the axes of figures."""

import io

import pytest
from rich.console import Console
from verdict_samples import CODE_LENGTH, GATES, a_verdict, frontier, shipping

from flows.console.model_table import layouts, model_table
from flows.orchestration.pages import markdown
from tasks.report.figures.svg import Scale, linear_ticks, log_ticks, place_labels
from tasks.shared.formats.verdict import Verdict
from tasks.shared.store.keys import PROJECT
from tasks.shared.text.numbers import gap


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
    assert "more measures in a wider terminal" in " ".join(" ".join(lines[-2:]).split()), "it says what it leaves out"


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
    lines = shown_lines(frontier(), 80)
    assert max(map(len, lines)) <= 80 and not any("wider terminal" in line for line in lines), "long names wrap instead"
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["tiny"][-4:] == ["10-32", "do", "not", "ship"] and rows["student"][-2:] == ["80-240", "parent"]
    assert not any("items" in line for line in shown_lines(shipping(), 80))


def test_candidates_that_were_asked_fewer_items_show_their_change_on_these() -> None:
    verdict = frontier()
    changes = {name: found.measures["fact"].difference for name, found in verdict.comparisons.items()}
    assert max(changes.values()) > -0.0995 > min(changes.values()), "one of them is written without a decimal"
    narrow, wide = (
        {line.split()[0]: line for line in shown_lines(verdict, width) if line.strip()} for width in (80, 200)
    )
    for name, change in changes.items():
        assert f" {gap(change)} " in wide[name].replace("[", " [") and "%" not in narrow[name]
        short = gap(change) if abs(change) < 0.0995 else f"−{-100 * change:.0f}"
        assert f" {short} " in narrow[name], "rounded, not cut"
    assert "%" in narrow["tuned"]
    assert any("on the items that both" in line for line in shown_lines(verdict, 200))


def test_speed_that_nobody_measured_has_no_column() -> None:
    verdict = shipping()
    silent = {name: model.model_copy(update={"figures": {}}) for name, model in verdict.models.items()}
    for width in (80, 160):
        assert any("faster" in line for line in shown_lines(verdict, width))
        assert not any("faster" in line for line in shown_lines(verdict.model_copy(update={"models": silent}), width))


def test_markdown_has_one_line_per_model() -> None:
    lines = markdown(model_table(frontier())).splitlines()
    head, rows, rest = lines[0], [line for line in lines[2:] if line.startswith("|")], lines[-1]
    assert {"x smaller", "refusal", "items", "verdict"} <= {cell.strip() for cell in head.split("|")}
    assert [row.split("|")[1].strip() for row in rows] == list(frontier().models)
    assert rest.startswith("Against tuned") and lines[-2] == "", "no further row"


def test_every_column_is_explained() -> None:
    page = (PROJECT / "docs" / "compare.md").read_text("utf-8")
    for _, columns in layouts(frontier()):
        for column in columns:
            heading = "tokens/s" if column.heading == "tokens\n/s" else column.heading.replace("\n", " ")
            assert column.measure or f"| `{heading}` |" in page, heading


def shown_lines(verdict: Verdict, width: int) -> list[str]:
    console = Console(file=(stream := io.StringIO()), width=width)
    console.print(model_table(verdict))
    return stream.getvalue().splitlines()
