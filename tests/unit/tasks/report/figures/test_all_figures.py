"""What figures and the heat map are made of."""

from pathlib import Path
from typing import Any

import pytest
from verdict_samples import CODE_LENGTH, a_verdict, all_inputs, compared, frontier, in_slice, make, measures, score

from tasks.report.content.report import ModelRow, Report
from tasks.report.content.slice_tables import slice_tables
from tasks.report.content.specification import figure_cell, figure_title
from tasks.report.figures.all_figures import all_figures
from tasks.report.figures.common_items import on_common_items
from tasks.report.figures.svg import leader
from tasks.report.figures.tradeoff import dominated, pareto_figure, speed_figure, spread_apart
from tasks.report.figures.waterfall import quality_waterfall, size_waterfall, stage_rows
from tasks.report.words.diff import word_runs
from tasks.shared.formats.records import Figure as Number
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import Cliff


def report_of(root: Path, **changes: object) -> Report:
    _, data = make(root, all_inputs(root, a_verdict(**changes)))
    return Report.model_validate(data)


def row(
    name: str, size: float, speed: float | None, fact: float, engine: str = "llama.cpp", role: Any = "candidate"
) -> ModelRow:
    """speed: of a baseline that makes 20 tokens a second; None: not timed."""
    figures = {} if speed is None else measures(role, size, speed, fact).figures
    ratio = None if speed is None else speed / 20
    return ModelRow(
        name=name, role=role, digest="", parent="", technique="", decision="ship", sentence="", reasons=[], times_smaller=None,
        times_faster=ratio, lowest_retention=None, measured=measures(role, size, 1, fact, figures=figures, speed_engine=engine),
    )  # fmt: skip


def test_dominated_needs_another_that_is_no_worse_in_all_and_better_in_one() -> None:
    best, slower, larger, equal = (
        row("a", 10, 50, 0.8),
        row("b", 10, 40, 0.8),
        row("c", 11, 60, 0.8),
        row("d", 10, 50, 0.8),
    )
    assert dominated([best, slower, larger], "fact", "higher") == {"b"}
    assert dominated([best, equal], "fact", "higher") == set(), "equals do not dominate each other"
    assert dominated([best, row("e", 12, None, 0.7)], "fact", "higher") == {"e"}, "unmeasured speed does not save it"
    fast, slow = row("h", 10, 50, 0.7), row("i", 10, 90, 0.6, engine="vllm")
    assert dominated([fast, slow], "fact", "higher") == {"i"}, "speeds in two engines neither save nor condemn it"
    based = row("j", 10, 20, 0.8, engine="llama.cpp (f16 GGUF)", role="baseline")
    assert dominated([based, slow], "fact", "higher") == set(), "the baseline was timed in each candidate's engine"
    low, high = row("f", 10, 50, 0.1), row("g", 10, 50, 0.2)
    assert dominated([low, high], "fact", "lower") == {"g"} and dominated([low, high], "fact", "higher") == {"f"}


def test_pareto_tells_in_words_what_it_draws() -> None:
    figure = pareto_figure([row("a", 10, 50, 0.8), row("b", 20, 40, 0.7)], "fact", Measure(title="fact accuracy"))
    assert figure and "b, 20.0 MB, 2.0x the speed of the baseline, 70.0 % [65.0, 75.0], dominated" in figure.svg
    assert figure.svg.count('class="dominated"') == 1 and figure.svg.count('class="candidate"') == 1
    assert pareto_figure([row("a", 10, 50, 0.8)], "absent", Measure(title="absent")) is None


def test_a_cliff_is_drawn_between_its_models_and_told() -> None:
    rows, measure = [row("a", 10, 40, 0.8), row("b", 20, 10, 0.3)], Measure(title="fact accuracy")
    cliff = Cliff(model="b", before="a", times_smaller=8, loss=0.5, expected=0.02)
    figure = pareto_figure(rows, "fact", measure, cliff)
    assert figure is not None and figure.svg.count('class="cliff"') == 1
    assert "b loses 50.0 points, more than twice the 2.0 of the larger models" in figure.caption
    unknown = pareto_figure(rows, "fact", measure, cliff.model_copy(update={"before": "elsewhere"}))
    assert unknown is not None and "cliff" not in unknown.svg


def test_sizes_stay_where_they_are_but_for_equal_ones() -> None:
    """A row of near sizes is no cluster: each would drift from its place."""
    assert spread_apart([10.0, 16.0, 22.0, 28.0], near=2, gap=7) == [10.0, 16.0, 22.0, 28.0]
    assert spread_apart([30.0, 10.0, 10.0, 11.0], near=2, gap=7) == [30.0, 10 + 1 / 3 - 7, 10 + 1 / 3, 10 + 1 / 3 + 7]


def test_a_label_away_from_its_point_is_joined_to_it() -> None:
    assert leader((50, 50), (59, 45, "near")) is None
    joined = leader((50, 50), (80, 110, "far"))
    assert joined is not None and 'x1="50"' in joined and 'x2="80"' in joined and 'y2="99"' in joined


def test_bars_of_several_engines_say_so() -> None:
    rows = [row("a", 10, 50, 0.8), row("b", 10, 40, 0.8, engine="vllm")]
    figure, one = speed_figure(rows), speed_figure(rows[:1])
    assert figure and "compare within one engine only: a in llama.cpp; b in vllm." in figure.caption
    assert one and "only" not in one.caption


def test_stages_are_held_against_the_model_they_were_made_from(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    parents = {found.name: parent.name if parent else None for found, parent in stage_rows(report)}
    assert parents == {"tuned": None, "slim": "tuned", "student": "slim", "int4": "student", "gguf": "int4"}
    sizes, quality = size_waterfall(report), quality_waterfall(report, "fact", Measure(title="fact accuracy"))
    assert (
        sizes
        and "gguf 66.0 MB, 1.8x smaller than int4" in sizes.svg
        and "student 184 MB, same size as slim" in sizes.svg
    )
    assert quality and "student 74.9 % [69.9, 79.9], +72.9 points against slim" in quality.svg


def test_stages_of_a_measure_of_another_unit(tmp_path: Path) -> None:
    models = {
        name: model.model_copy(update={"scores": {"code_length": score(0.9)}})
        for name, model in a_verdict().models.items()
    }
    figure = quality_waterfall(report_of(tmp_path, models=models, flips=[]), "code_length", CODE_LENGTH.measure)
    assert figure and "bits per byte" in figure.svg and "lower is better" in figure.caption


def test_heat_map_holds_every_slice_once(tmp_path: Path) -> None:
    slices = [
        in_slice("language", "et", "fact", -0.21, n=34),
        in_slice("language", "et", "intent", -0.05, n=50),
        in_slice("kind", "faq", "fact", 0.2, n=100),
        in_slice("kind", "edge", "fact", -0.01, n=5),
    ]
    (table,) = slice_tables(report_of(tmp_path, comparisons={"gguf": compared(0.0, slices=slices)}))
    assert table.measures == ["intent", "fact"] and list(table.dimensions) == ["language", "kind"]
    (estonian,) = table.dimensions["language"]
    assert estonian.n == 50 and [cell and cell.state for cell in estonian.cells] == ["plain", "harmed"]
    faq, edge = table.dimensions["kind"]
    assert faq.cells[0] is None and faq.cells[1] and faq.cells[1].tint == 1.0
    assert edge.cells[1] and edge.cells[1].state == "thin" and (table.count("harmed"), table.count("thin")) == (1, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("within 45 days, unused.", "within 30 days."),
        ("", "new"),
        ("same", "same"),
        ("a b c", "x y z"),
        ("x" * 4000, "y"),
    ],
)
def test_word_runs_give_both_texts_back(before: str, after: str) -> None:
    old, new = word_runs(before, after)
    assert ("".join(run.text for run in old), "".join(run.text for run in new)) == (before, after)


@pytest.mark.parametrize(
    ("name", "figure", "title", "value"),
    [
        (
            "speed_ratio",
            Number(value=2.84, unit="x"),
            "decode speed against the baseline in the same engine, one stream",
            "2.8x",
        ),
        (
            "end_to_end_s_batch_4",
            Number(value=0.5, unit="s"),
            "4 answers together end to end, tokenization included",
            "500 ms",
        ),
        ("peak_memory_bytes (vllm)", Number(value=2e9, unit="bytes"), "peak memory, in vllm", "2.00 GB"),
        ("legal_perplexity_per_byte", Number(value=1.5), "legal: perplexity per byte", "1.50"),
        ("findings_number", Number(value=3, unit="answers"), "answers with an invented number", "3 answers"),
        ("judge_agreement", Number(value=0.75, unit="share"), "judge: same choice in both orders", "75.0 %"),
        ("prompt_tokens", Number(value=52, unit="tokens"), "tokens of the timed prompt", "52 tokens"),
        ("squad.exact", Number(value=0.5), "squad.exact", "0.500"),
    ],
)
def test_figures_in_words(name: str, figure: Number, title: str, value: str) -> None:
    assert (figure_title(name), figure_cell(figure).value) == (title, value)


def test_word_runs_mark_what_differs() -> None:
    old, new = word_runs("within 45 days, unused.", "within 30 days.")
    assert [run.text.strip() for run in old if run.changed] == ["45", ", unused"]
    assert [run.text for run in new if run.changed] == ["30"]
    old, _ = word_runs("a b c", "x y z")
    assert len(old) == 1 and old[0].changed, "spaces between changes count to them"


def test_figures_show_scores_on_common_items(tmp_path: Path) -> None:
    """What a figure shows between a candidate and the baseline is what the verdict is about."""
    _, data = make(tmp_path / "adaptive", all_inputs(tmp_path / "adaptive", frontier()))
    report = Report.model_validate(data)
    assert report.mode == "adaptive"
    common, moved = on_common_items(report)
    baseline = common.model(report.baseline).measured.scores["fact"]
    early = [row.result for row in report.comparisons if row.measure == "fact" and row.result.n < baseline.n]
    assert early and "fewer items than tuned" in moved
    for row in report.comparisons:
        if row.measure == "fact" and row.result.n < baseline.n:
            shown = common.model(row.candidate).measured.scores["fact"]
            before = report.model(row.candidate).measured.scores["fact"]
            assert shown.value == pytest.approx(before.value + baseline.value - row.result.baseline)
            assert 0.0 <= shown.low <= shown.value <= shown.high <= 1.0 and shown.n == before.n
    assert common.model("small").measured == report.model("small").measured, "it was asked all items"
    figures = all_figures(report)
    captions = [figure.caption for figure in figures["pareto"] + figures["quality_stages"]]
    assert captions and all(moved in caption for caption in captions)
    assert not any("fewer items" in figure.caption for figure in all_figures(report_of(tmp_path / "fixed"))["pareto"])
