"""All figures of a report by section of the page."""

from tasks.report.content.report import Report
from tasks.report.figures.drawing import Figure
from tasks.report.figures.forest import forest_figures
from tasks.report.figures.learning import influence_figure, loss_figure
from tasks.report.figures.tradeoff import pareto_figure, speed_figure
from tasks.report.figures.waterfall import quality_waterfall, size_waterfall


def all_figures(report: Report) -> dict[str, list[Figure]]:
    """Draw the figures by section; a section without data has none."""
    deciding = [(name, gate.measure) for name, gate in report.deciding]
    found: dict[str, list[Figure | None]] = {
        "pareto": [pareto_figure(report.models, name, measure) for name, measure in deciding],
        "speed": [speed_figure(report.models)],
        "size_stages": [size_waterfall(report)],
        "quality_stages": [quality_waterfall(report, name, measure) for name, measure in deciding],
        "forest": [*forest_figures(report.comparisons, report.gates)],
        "training": [loss_figure(training, i) for i, training in enumerate(report.training)],
        "pruning": [influence_figure(pruning, i) for i, pruning in enumerate(report.pruning)],
    }
    return {section: [figure for figure in figures if figure is not None] for section, figures in found.items()}
