"""Is an artifact the same?  By bytes; a verdict without what it measures of the machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

MEASURED = frozenset({"peak_memory_bytes", "time_to_first_token_s", "tokens_per_second"})
"""Keys of a verdict whose values are times and memory: two runs on one machine differ in them."""


def without_measured(value: Any) -> Any:
    """A JSON value without those keys, at any depth."""
    if isinstance(value, dict):
        return {key: without_measured(item) for key, item in value.items() if key not in MEASURED}
    return [without_measured(item) for item in value] if isinstance(value, list) else value


def fingerprints(out: Path) -> dict[str, str]:
    """Sha256 of every file below a folder, by name; JSON of a verdict without its times."""
    timed = (out / "verdict.json").is_file()
    found = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if timed and file.suffix == ".json":
            content = json.dumps(without_measured(json.loads(content)), sort_keys=True).encode()
        found[file.relative_to(out).as_posix()] = hashlib.sha256(content).hexdigest()
    return found
