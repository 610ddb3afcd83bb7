"""Performance-delta log as Markdown."""

from tasks.report.content.report import Report
from tasks.report.content.specification import figure_cell, figure_title
from tasks.report.documents.performance import Change, Modified, PerformanceLog
from tasks.report.words.markdown import Plain, bullets, code, escape, table
from tasks.report.words.result import reason
from tasks.shared.formats.records import Figure
from tasks.shared.text.numbers import amount, byte_size, gap, gap_unit, interval, margin, p_value, smaller


def performance_markdown(report: Report, log: PerformanceLog) -> str:
    """Format the log as Markdown."""
    parts = [
        f"# Performance-delta log: {escape(log.title)}",
        f"**{escape(log.decision.capitalize())}.** {escape(reason(log.statement))}",
        bullets_of(
            {
                "date": log.date or "not stated",
                "baseline": log.baseline.name,
                "shipped": log.shipped or "nothing",
                "seed": str(log.seed),
                "command": code(log.command) or "not stated",
            }
        ),
        "This log states changes and measurements. It is not an assessment of conformity.",
    ]
    for candidate in log.candidates:
        parts += candidate_parts(report, log, candidate)
    parts += ["## Data", *data_parts(log), "## Limits", bullets(log.limits)]
    parts += ["## Evidence", table(["artifact", "digest"], [[name, code(d)] for name, d in log.evidence.items()])]
    terms = {"model": log.licenses.model, "data": log.licenses.data, "teacher": log.licenses.teacher}
    parts += ["## Licenses and terms", bullets_of({name: value or "not stated" for name, value in terms.items()})]
    cores = (
        f"{log.machine.cpu}, {log.machine.cores} cores, {byte_size(log.machine.memory_bytes)}, {log.machine.platform}"
    )
    parts += [
        "## Measured on",
        escape(cores + (f", {log.machine.accelerator}" if log.machine.accelerator else "")) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def bullets_of(pairs: dict[str, str]) -> str:
    """Format names and values as a bullet list."""
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs.items())


def candidate_parts(report: Report, log: PerformanceLog, found: Modified) -> list[str]:
    """Sections of a candidate: its changes and their effects."""
    size = smaller(log.baseline.size_bytes / found.size_bytes if found.size_bytes else None, log.baseline.name)
    harmed = [part for part in found.slices if part.harmed]
    sections = [
        f"## {escape(found.name)}: {'parent, never shipped' if found.role == 'parent' else escape(found.decision)}",
        escape(found.statement),
        bullets(found.reasons) if found.reasons else "",
        f"{byte_size(found.size_bytes)}, {escape(size)}; {escape(found.format)}, run in {escape(found.engine)}"
        + (f", speed measured in {escape(found.speed_engine)}." if found.speed_engine else "."),
        f"Digest {code(found.digest) or 'not known'}.",
        "### Modifications",
        changes_table(found.changes),
        "" if found.traced else "The changes could not be traced back to the baseline: a manifest is missing.",
        f"### Change per measure ({report.intervals})",
        table(
            [
                "measure",
                "items",
                "baseline",
                "candidate",
                "difference",
                "interval",
                "margin",
                "non-inferior",
                "p (Holm)",
            ],
            measure_rows(report, found),
        ),
        f"### Change per slice ({len(harmed)} harmed of {len(found.slices)})",
        table(
            ["slice", "measure", "items", "difference", "interval", "margin", "detectable loss", "harmed"],
            slice_rows(report, found),
        ),
        "### Figures of the whole model",
        table(["figure", "baseline", "candidate"], figure_rows(log, found)),
    ]
    return [section for section in sections if section]


def changes_table(changes: list[Change]) -> str:
    """Table of steps with settings and the digest of each output."""
    rows = []
    for item in changes:
        settings = Plain(", ".join(code(f"{name}={value}") for name, value in item.settings.items()))
        rows.append([item.step, item.technique, settings, code(item.after[:16])])
    return table(["step", "technique", "settings", "digest"], rows)


def measure_rows(report: Report, found: Modified) -> list[list[str]]:
    """Rows of the table by measure; positive differences favor the candidate."""
    rows = []
    for name, result in found.measures.items():
        measure = report.gates[name].measure
        unit = measure.unit
        rows.append(
            [
                measure.title, str(result.n), amount(result.baseline, unit), amount(result.candidate, unit),
                f"{gap(result.difference, unit)} {gap_unit(unit)}", interval(result.low, result.high, unit),
                margin(result.margin, unit), "watched" if result.margin is None else result.answer, p_value(result.p_holm),
            ]
        )  # fmt: skip
    return rows


def slice_rows(report: Report, found: Modified) -> list[list[str]]:
    """Rows of the table by slice and measure, harmed slices first."""
    rows = []
    for part in sorted(found.slices, key=lambda part: not part.harmed):
        measure = report.gates[part.measure].measure
        unit = measure.unit
        rows.append(
            [
                f"{part.dimension}: {part.value}", measure.title, str(part.n), gap(part.difference, unit),
                interval(part.low, part.high, unit), margin(part.margin, unit), gap(part.detectable, unit, signed=False), "yes" if part.harmed else "no",
            ]
        )  # fmt: skip
    return rows


def figure_rows(log: PerformanceLog, found: Modified) -> list[list[str]]:
    """Rows of whole-model figures, such as speed and memory, of baseline and candidate."""
    names = dict.fromkeys([*log.baseline.figures, *found.figures])
    return [
        [
            figure_title(name),
            shown(log.baseline.figures.get(name)),
            shown(found.figures.get(name)),
        ]
        for name in names
    ]


def shown(figure: Figure | None) -> str:
    """Format a figure with its unit and bounds."""
    cell = figure_cell(figure)
    return (cell.value + (f" ({cell.detail})" if cell.detail else "")) or "not measured"


def data_parts(log: PerformanceLog) -> list[str]:
    """Sections about training and test data."""
    counts = [f"{name}: {n} items" for name, n in log.test.items.items()]
    rows = [[item.name, item.role, item.technique, code(item.digest)] for item in log.data]
    return [
        table(["data", "use", "made by", "digest"], rows),
        f"Test items: {escape('; '.join(counts) or 'none')}.",
    ]
