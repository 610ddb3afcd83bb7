"""The files of rows that are not split yet: rows, tasks and card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.curate.corpus_files import CARD, count_file, write_json
from tasks.shared.formats.tasks import Task, write_tasks

ROWS_FILE = "rows.jsonl"


def describe_rows(out: Path, tasks: Mapping[str, Task], more: Mapping[str, Any]) -> None:
    """Write tasks.json and card.json beside rows.jsonl."""
    write_tasks(out, tasks)
    write_json(out / CARD, {"counts": count_file(out / ROWS_FILE).summary(), **more})


def read_card(folder: Path) -> dict[str, Any]:
    """Read card.json of rows; the counts are left out, since a later step has other rows."""
    content = json.loads((folder / CARD).read_text("utf-8"))
    return {name: value for name, value in content.items() if name != "counts"}
