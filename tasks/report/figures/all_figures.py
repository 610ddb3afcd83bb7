"""All figures of a report by section of the page."""

from dataclasses import replace

from tasks.report.content.report import Report
from tasks.report.figures.common_items import on_common_items
from tasks.report.figures.drawing import Figure
from tasks.report.figures.forest import forest_figures
from tasks.report.figures.learning import influence_figure, loss_figure
from tasks.report.figures.tradeoff import pareto_figure, speed_figure
from tasks.report.figures.waterfall import quality_waterfall, size_waterfall


def all_figures(report: Report) -> dict[str, list[Figure]]:
    """Draw the figures by section; a section without data has none."""
    deciding = [(name, gate.measure) for name, gate in report.deciding]
    common, moved = on_common_items(report)
    found: dict[str, list[Figure | None]] = {
        "pareto": [
            told(pareto_figure(common.models, name, measure, report.cliffs.get(name)), moved)
            for name, measure in deciding
        ],
        "speed": [speed_figure(report.models)],
        "size_stages": [size_waterfall(report)],
        "quality_stages": [told(quality_waterfall(common, name, measure), moved) for name, measure in deciding],
        "forest": [*forest_figures(report.comparisons, report.gates)],
        "training": [loss_figure(training, i) for i, training in enumerate(report.training)],
        "pruning": [influence_figure(pruning, i) for i, pruning in enumerate(report.pruning)],
    }
    return {section: [figure for figure in figures if figure is not None] for section, figures in found.items()}


def told(figure: Figure | None, more: str) -> Figure | None:
    """Return the figure with a further sentence in its caption."""
    return replace(figure, caption=f"{figure.caption} {more}") if figure and more else figure
