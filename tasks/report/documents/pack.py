"""Write the evidence pack's cards, logs, and the shipped model with its card."""

import json
import re
from pathlib import Path

from tasks.report.content.report import Report
from tasks.report.documents.bill_of_materials import cyclonedx, list_materials, materials_markdown
from tasks.report.documents.model_card import model_card
from tasks.report.documents.performance import performance_log
from tasks.report.documents.performance_page import performance_markdown
from tasks.shared.store.artifacts import link_or_copy
from tasks.shared.technique import Artifact

PACKED = "model"
CARD = "README.md"


def write_logs(report: Report, out: Path) -> None:
    """Write performance.json and .md, materials.json and .md."""
    log, materials = performance_log(report), list_materials(report)
    texts = {
        "performance.json": log.model_dump_json(indent=1) + "\n",
        "performance.md": performance_markdown(report, log),
        "materials.json": json.dumps(cyclonedx(report, materials), indent=1, ensure_ascii=False) + "\n",
        "materials.md": materials_markdown(report, materials),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


def write_cards(report: Report, out: Path) -> None:
    """Write the card of every candidate but parents; the shipped model's is next to its weights."""
    taken = set[str]()
    for name in report.candidates:
        if report.model(name).role == "parent":
            continue
        shipped = name == report.shipped and report.packed
        folder = out / (PACKED if shipped else f"models/{folder_name(name, taken)}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(model_card(report, report.model(name)), encoding="utf-8")


def folder_name(name: str, taken: set[str]) -> str:
    """Unique folder name for a model.  taken: names used so far; the new one is added."""
    plain = re.sub(r"[^\w-]+", "-", name).strip("-") or "model"
    chosen, count = plain, 1
    while chosen.lower() in taken:
        count += 1
        chosen = f"{plain}-{count}"
    taken.add(chosen.lower())
    return chosen


def pack_model(artifact: Artifact, out: Path) -> int:
    """Link a model's files into out/model, or copy them without hard links; return their bytes.

    The model's own README is left out in favor of the card.
    """
    total = 0
    for file in sorted(file for file in artifact.path.rglob("*") if file.is_file()):
        name = file.relative_to(artifact.path)
        if name.as_posix() == CARD:
            continue
        target = out / PACKED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(str(file.resolve()), str(target))
        total += file.stat().st_size
    return total
