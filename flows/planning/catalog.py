"""All techniques of the project, as their options in conf/ name them."""

from dataclasses import dataclass
from typing import Any

import yaml

from flows.planning.config import CONF
from flows.planning.plan import STAGES, find_technique
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Kind, Spec


@dataclass(frozen=True)
class Entry:
    """A technique: its stage and name in Hydra, and its class."""

    stage: str
    name: str
    target: str
    technique: type[Any]

    @property
    def spec(self) -> Spec:
        """The technique's declaration."""
        spec: Spec = self.technique.spec
        return spec


def catalog() -> list[Entry]:
    """Return every technique, by stage in pipeline order, then by name.

    Raises ConfigError for a broken option.
    """
    found = []
    for stage in STAGES:
        for file in sorted((CONF / stage).glob("*.yaml")):
            target = str(yaml.safe_load(file.read_text("utf-8")).get("_target_", ""))
            found.append(Entry(stage, file.stem, target, find_technique(f"conf/{stage}/{file.name}", target)))
    return found


def first_that_produces(kind: Kind) -> Entry:
    """Return the first technique that produces this kind.

    Raises ConfigError if there is none.
    """
    for entry in catalog():
        if entry.spec.produces is kind:
            return entry
    raise ConfigError("conf", f"no technique produces a {kind}", "at least one", "add one (CONTRIBUTING.md)")
