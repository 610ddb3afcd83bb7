"""A step as plain data: its event for the server, to be sent now or later.

Figures are read now; small files are read only when the event is sent.
"""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.tracking.interface import StepRecord
from tasks.report.words.result import result_of
from tasks.shared.errors import DataError
from tasks.shared.formats.verdict import Verdict, read_verdict
from tasks.shared.technique import DATA, WEIGHTS, Artifact, Kind

log = logging.getLogger("stillroom")
POINTS = 1000
"""Largest number of points of a curve; a longer one is thinned evenly."""


def step_content(record: StepRecord) -> dict[str, Any]:
    """Content of a step's event."""
    pairs = [(port, artifact) for port, artifacts in record.inputs.items() for artifact in artifacts]
    return {
        "name": record.name,
        "kind": str(record.kind),
        "executed": record.executed,
        "folder": str(record.folder),
        "manifest": dict(record.manifest),
        "prefect": dict(record.prefect),
        "variant": record.variant,
        "curve": read_curve(record.folder / "out" / "loss.csv"),
        "datasets": [_dataset(record, port, item) for port, item in pairs if item.kind in DATA],
        "models": [_model(record, port, item) for port, item in pairs if item.kind in WEIGHTS],
        "verdict": _verdict(record) if record.kind == Kind.VERDICT else None,
    }


def _digest(record: StepRecord, port: str, name: str) -> str:
    """Content digest of an input, from the manifest."""
    return str(record.manifest.get("inputs", {}).get(port, {}).get(name, ""))


def _made_by(artifact: Artifact) -> dict[str, Any]:
    """Manifest of an input that a step made; empty for a source model."""
    try:
        found = json.loads((artifact.path.parent / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dataset(record: StepRecord, port: str, artifact: Artifact) -> dict[str, Any]:
    metrics = _made_by(artifact).get("metrics", {})
    return {
        "name": artifact.name,
        "port": port,
        "digest": _digest(record, port, artifact.name),
        "path": str(artifact.path),
        "profile": profile(metrics),
    }


def profile(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of rows, total and by split, from the metrics of a corpus or of traces."""
    splits = {name: metrics[name] for name in ("train", "calibration", "test") if isinstance(metrics.get(name), int)}
    rows = metrics.get("rows", sum(splits.values()))
    return {"num_rows": rows, **splits} if rows else {}


def _model(record: StepRecord, port: str, artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "port": port,
        "kind": str(artifact.kind),
        "digest": _digest(record, port, artifact.name),
        "path": str(artifact.path),
        "key": str(_made_by(artifact).get("key", "")),
    }


def _verdict(record: StepRecord) -> dict[str, Any] | None:
    try:
        verdict = read_verdict(record.folder / "out" / "verdict.json")
    except DataError as error:
        log.warning("the verdict is not recorded in the model registry: %s", error)
        return None
    result = result_of(verdict)
    return {
        "decision": verdict.decision,
        "shipped": verdict.shipped,
        "result": "\n\n".join([f"**{result.line}**", *result.further]),
        "figures": model_figures(verdict),
    }


def model_figures(verdict: Verdict) -> dict[str, dict[str, float]]:
    """Figures of a verdict by model."""
    found: dict[str, dict[str, float]] = {}
    for name, model in verdict.models.items():
        figures = {measure: score.value for measure, score in model.scores.items()}
        figures["size_bytes"] = float(model.size_bytes)
        if model.perplexity is not None:
            figures["perplexity"] = model.perplexity
        if model.tokens_per_second is not None:
            figures["tokens_per_second"] = model.tokens_per_second.median
        found[name] = figures
    return found


def read_curve(file: Path) -> list[list[Any]]:
    """Read a loss.csv as [name, step, value], at most POINTS by column; skips damaged lines."""
    if not file.is_file():
        return []
    curves: dict[str, list[list[Any]]] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for name, step, value in _cells(csv.DictReader(stream)):
            curves.setdefault(name, []).append([name, step, value])
    return [point for curve in curves.values() for point in thin(curve)]


def _cells(rows: "csv.DictReader[str]") -> Iterator[tuple[str, int, float]]:
    for row in rows:
        for name, text in row.items():
            if name and name.endswith("loss") and text:
                try:
                    yield name, int(row["step"]), float(text)
                except (ValueError, TypeError, KeyError):
                    continue


def thin(curve: Sequence[list[Any]]) -> list[list[Any]]:
    """Return at most POINTS evenly spaced points, including the last one."""
    if len(curve) <= POINTS:
        return list(curve)
    return [curve[round(index * (len(curve) - 1) / (POINTS - 1))] for index in range(POINTS)]


def figures(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Numeric metrics, duration and peak memory of a manifest."""
    found = {
        **manifest.get("metrics", {}),
        "duration_s": manifest.get("duration_s"),
        "peak_memory_bytes": manifest.get("peak_memory_bytes"),
    }
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
