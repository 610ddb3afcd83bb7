"""Records of a choice within a budget: what was measured, and the candidates."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.prune.cuts.choice import MILLISECONDS, Bound, Choice, Count, Measurement
from tasks.prune.selection.shape import Shape
from tasks.shared.technique import Metrics, Plot

SENSITIVITY_FILE, CANDIDATES_FILE = "sensitivity.csv", "candidates.csv"
KINDS = ("layers", "neurons", "heads")
KL_PLOT = Plot(
    file="divergence.csv",
    title="sensitivity",
    x="removed",
    y=KINDS,
    x_label="share of the parameters that goes",
    y_label="KL to the whole model, nats per token",
)


def write_sensitivity(file: Path, measurements: Sequence[Measurement], count: Count) -> None:
    """Write a line per measurement: kind, level, layers dropped, parameters, divergence."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["kind", "level", "dropped", "parameters", "kl"])
        for kind, level, cut, divergence in measurements:
            writer.writerow([kind, level, " ".join(map(str, cut.dropped)), count(cut), f"{divergence:.6g}"])


def write_curve(file: Path, measurements: Sequence[Measurement], count: Count, total: int) -> None:
    """Write a line per level: share of the parameters that goes, divergence under its kind.

    total: parameters of the whole model.
    """
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([KL_PLOT.x, *KL_PLOT.y])
        points = [(KINDS.index(at.kind), 1 - count(at.cut) / total, at) for at in measurements if at.kind in KINDS]
        for kind, removed, at in sorted(points):
            writer.writerow(
                [f"{removed:.6f}", *(f"{at.divergence:.6g}" if place == kind else "" for place in range(len(KINDS)))]
            )


def table_of(found: Choice, count: Count, bound: Bound) -> list[dict[str, str]]:
    """Return a table's rows, by the names of its columns."""
    timed = bound.unit == MILLISECONDS
    return [
        {
            "chosen": str(int(candidate.cut == found.chosen.cut)),
            "layers": str(len(candidate.cut.kept)),
            "neurons": str(candidate.cut.shape.intermediate),
            "heads": str(candidate.cut.shape.heads),
            "kv_heads": str(candidate.cut.shape.kv_heads),
            "parameters": str(count(candidate.cut)),
            **({"milliseconds": f"{candidate.cost:.6g}"} if timed else {}),
            "kl_sum": f"{candidate.predicted:.6g}",
            "kl": "" if candidate.measured is None else f"{candidate.measured:.6g}",
            "dropped": " ".join(map(str, candidate.cut.dropped)),
        }
        for candidate in found.candidates
    ]


def write_candidates(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the table of candidates."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table in aligned columns, for the log."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = [dict(zip(names, names, strict=True)), *rows]
    return "\n".join("  ".join(line[name].rjust(widths[name]) for name in names).rstrip() for line in lines)


def figures(found: Choice, before: Shape) -> Metrics:
    """Return sizes before and after, and divergences.

    These are the predicted one, the measured one, and those of the best cuts of one kind.
    """
    chosen, after = found.chosen, found.chosen.cut.result
    alone: Metrics = {}
    for candidate in found.candidates:
        kinds = candidate.cut.kinds(before)
        if len(kinds) == 1 and candidate.measured is not None:
            alone.setdefault(f"kl_{kinds[0]}", candidate.measured)
    return {
        "layers_before": before.layers, "layers": after.layers, "dropped": " ".join(map(str, chosen.cut.dropped)),
        "neurons_before": before.intermediate, "neurons": after.intermediate,
        "heads_before": before.heads, "heads": after.heads, "kv_heads": after.kv_heads,
        "kl_sum": chosen.predicted, "kl_calibration": chosen.measured or 0.0, **alone,
    }  # fmt: skip
