"""Files of the evidence pack besides the page: cards, logs, and the shipped model with its card."""

import json
import re
import shutil
import stat
from pathlib import Path

from tasks.report.card import model_card
from tasks.report.content import Report
from tasks.report.materials import cyclonedx, list_materials, materials_markdown
from tasks.report.performance import performance_log
from tasks.report.performance_page import performance_markdown
from tasks.shared.artifacts import link_or_copy
from tasks.shared.technique import Artifact

PACKED = "model"
CARD = "README.md"


def write_logs(report: Report, out: Path) -> None:
    """performance.json and .md, materials.json and .md."""
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
    """The shipped model's card beside its weights; a card, marked as not cleared to ship, for every other candidate."""
    taken = set[str]()
    for name in report.candidates:
        shipped = name == report.shipped and report.packed
        folder = out / (PACKED if shipped else f"models/{folder_name(name, taken)}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(model_card(report, report.model(name)), encoding="utf-8")


def folder_name(name: str, taken: set[str]) -> str:
    """A model's name as a folder's, each once; taken: names given so far."""
    plain = re.sub(r"[^\w-]+", "-", name).strip("-") or "model"
    chosen, count = plain, 1
    while chosen.lower() in taken:
        count += 1
        chosen = f"{plain}-{count}"
    taken.add(chosen.lower())
    return chosen


def pack_model(artifact: Artifact, out: Path) -> int:
    """The model's files below out/model, without a README of its own; returns their bytes.

    What the store has sealed (no write permission) is linked and takes no room; anything else is copied, for the pack will be
    sealed too, and a user's own file must stay as it is.
    """
    source = artifact.path
    files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
    total = 0
    for file in files:
        name = file.name if source.is_file() else file.relative_to(source).as_posix()
        if name == CARD:
            continue
        target = out / PACKED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        place_file(file, target)
        total += file.stat().st_size
    return total


def place_file(source: Path, target: Path) -> None:
    """A link to a sealed file, a copy of any other."""
    if source.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        shutil.copyfile(source, target)
    else:
        link_or_copy(str(source.resolve()), str(target))
