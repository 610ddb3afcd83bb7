"""What a technique's unit test gives to tests/contract/test_settings.py: tiny inputs, and another value for every setting.

In tests/unit/tasks/<stage>/test_<technique>.py:
    CHANGES: dict[str, Change]          every setting by its dotted name
    settings_case(folder)               a context manager that yields a `Case`
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from tasks.shared.formats.scores import read_scores
from tasks.shared.paths import sha256_file
from tasks.shared.technique import Compute, Inputs, Metrics, StepRun
from tests.outputs import CIRCUMSTANCES, CLOCKED

Settings = Mapping[str, Any]
"""Values by dotted name."""
Result = dict[str, Any]
"""What a step gave, ready to compare: digests of its files, and its figures."""


@dataclass(frozen=True)
class Change:
    """Another value for one setting, and what has to be set besides so that the value matters.

    value: plain, or a function of the case for what is known only when it runs (a port, a path).
    given: other settings, by dotted name, for the run before and the run after the change.
    refused: pattern of the message with which the changed run is refused: for settings that are a gate, whose effect is
    that there is no artifact.  They are in the key: what would be refused today must not be taken from yesterday.
    inputs: name of other inputs for both runs, among the case's `more`.
    """

    value: Any
    given: Settings = field(default_factory=dict)
    refused: str = ""
    inputs: str = ""


def whole(out: Path, metrics: Metrics) -> Result:
    """Every byte and every figure: for techniques that give the same twice."""
    files = {file.relative_to(out).as_posix(): sha256_file(file) for file in sorted(out.rglob("*")) if file.is_file()}
    return {"files": files, "metrics": json.loads(json.dumps(metrics))}


@dataclass(frozen=True)
class Case:
    """Tiny inputs, the settings to change from, and how to compare two outputs.

    result: reads an output folder and the figures that the call returned; leaves out what differs from run to run.
    stable: the same for a run in another process, in which nothing is replaced; None: `result`.
    alone: other settings for that run.  more: values that changes refer to.
    """

    folder: Path
    inputs: Inputs
    settings: Settings = field(default_factory=dict)
    result: Callable[[Path, Metrics], Result] = whole
    stable: Callable[[Path, Metrics], Result] | None = None
    alone: Settings = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def nested(settings: Settings) -> dict[str, Any]:
    """{"limits.support": 0.5} -> {"limits": {"support": 0.5}}"""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *above, last = name.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def parts_of(technique: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings object and the ones inside it, each with the prefix of its settings' dotted names."""
    yield prefix, technique
    for item in fields(technique):
        value = getattr(technique, item.name)
        if is_dataclass(value):
            yield from parts_of(value, f"{prefix}{item.name}.")


def setting_names(technique: Any) -> set[str]:
    """Dotted names of all settings of a technique."""
    return {
        f"{prefix}{item.name}"
        for prefix, part in parts_of(technique)
        for item in fields(part)
        if not is_dataclass(getattr(part, item.name))
    }


@contextmanager
def watch_settings(technique: Any) -> Iterator[set[str]]:
    """Dotted names of the settings that code reads while the block lasts."""
    read: set[str] = set()
    with ExitStack() as stack:
        for prefix, part in parts_of(technique):
            owner, names = type(part), {item.name for item in fields(part)}

            def record(self: Any, name: str, prefix: str = prefix, names: set[str] = names) -> Any:
                if name in names:
                    read.add(prefix + name)
                return object.__getattribute__(self, name)

            owner.__getattribute__ = record
            stack.callback(delattr, owner, "__getattribute__")
        yield read


def empty_folders(folder: Path) -> tuple[Path, StepRun]:
    """An output folder and a run, one thread: the order of sums is then the same every time."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    return out, StepRun(step="step", seed=0, scratch=scratch, compute=Compute(threads=1))


def untimed_scores(out: Path, metrics: Metrics) -> Result:
    """Scores without what a clock or a meter gave: everything else must be the same twice."""
    scores = read_scores(out)
    summary = scores.summary.model_dump(mode="json")
    for model in summary["models"].values():
        model["figures"] = {name: figure for name, figure in model["figures"].items() if not name.startswith(CLOCKED)}
    summary["notes"] = [note for note in summary["notes"] if not any(words in note for words in CIRCUMSTANCES)]
    flat = {name: value for name, value in metrics.items() if not name.partition(".")[2].startswith(CLOCKED)}
    return {"summary": summary, "items": [item.model_dump(mode="json") for item in scores.items], "metrics": flat}


EFFORT = {"seconds", "tokens_per_second", "retries", "reused"}
"""What answers took: figures of the run, not of the artifact."""


def untimed_traces(out: Path, metrics: Metrics) -> Result:
    """Traces without what the answers took, and without the digests of the requests, which change with any setting."""
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    return {
        "samples": [{name: value for name, value in sample.items() if name != "digest"} for sample in samples],
        "files": {name: (out / name).read_text("utf-8") for name in ("train.jsonl", "usage.json", "card.json")},
        "metrics": {name: value for name, value in metrics.items() if name not in EFFORT},
    }
