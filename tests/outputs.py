"""Is an artifact the same?  By bytes; scores and a verdict without what they measure of the machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

CLOCKED = (
    "tokens_per_second", "time_", "end_to_end_s", "load_s", "peak_", "energy_", "speed_ratio", "parent_ratio", "prompt_tokens", "answer_tokens",
)  # fmt: skip
"""How names of figures begin that a clock, a meter or an engine's count gives."""
CIRCUMSTANCES = ("Other programs used", " is slower than ", "Energy: ")
"""In notes that depend on how a run went."""


def without_measured(value: Any) -> Any:
    """A JSON value without what a clock or a meter gave, at any depth."""
    if isinstance(value, dict):
        return {key: without_measured(item) for key, item in value.items() if not key.startswith(CLOCKED)}
    if isinstance(value, list):
        return [
            without_measured(item)
            for item in value
            if not (isinstance(item, str) and any(words in item for words in CIRCUMSTANCES))
        ]
    return value


def fingerprints(out: Path) -> dict[str, str]:
    """Sha256 of every file below a folder, by name; JSON of scores and of a verdict without their times."""
    timed = any((out / name).is_file() for name in ("verdict.json", "scores.json"))
    found = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if timed and file.suffix == ".json":
            content = json.dumps(without_measured(json.loads(content)), sort_keys=True).encode()
        found[file.relative_to(out).as_posix()] = hashlib.sha256(content).hexdigest()
    return found
