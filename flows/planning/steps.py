"""What a plan is made of: the models it starts from, its steps, and their order."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from tasks.shared.errors import ConfigError
from tasks.shared.model.sources import ModelSource
from tasks.shared.store.keys import library_versions
from tasks.shared.technique import Kind, ReadsFiles, Technique


@dataclass(frozen=True)
class Source:
    """A model that the recipe starts from."""

    name: str
    settings: ModelSource
    path: Path
    kind: Kind = Kind.MODEL


@dataclass(frozen=True)
class Step:
    """One planned step: a technique, built and checked, and the names that its ports read from."""

    name: str
    stage: str
    target: str
    technique: Technique
    inputs: Mapping[str, tuple[str, ...]]
    seed: int | None = None
    """Its own, in place of the recipe's: so that one step can be made twice, to see how much is chance."""
    wired: tuple[str, ...] = field(default=(), compare=False)
    """Ports that the recipe leaves out and the plan wired, to be shown."""

    @property
    def kind(self) -> Kind:
        """What the step produces."""
        return self.technique.spec.produces

    @property
    def module(self) -> str:
        """The technique's module."""
        return self.target.rpartition(".")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """All names this step reads, in port order, each once."""
        return tuple(dict.fromkeys(name for names in self.inputs.values() for name in names))

    def settings(self) -> dict[str, Any]:
        """Every resolved setting, as plain values."""
        assert is_dataclass(self.technique) and not isinstance(self.technique, type)
        return plain(asdict(self.technique))

    def keyed(self) -> dict[str, Any]:
        """The settings that decide what comes out: those that are in the key and in params.yaml's part of the step."""
        return _without(self.settings(), self._unkeyed)

    def unkeyed(self) -> dict[str, Any]:
        """The settings that say how the work goes (time-outs, ports, requests at once) and never change what comes out."""
        return _only(self.settings(), self._unkeyed)

    @property
    def _unkeyed(self) -> frozenset[str]:
        return self.technique.spec.unkeyed

    @property
    def retries(self) -> int:
        """Attempts after the first; above 0 only where the work depends on a service outside this machine."""
        return self.technique.spec.retries

    @property
    def exclusive(self) -> bool:
        """Return True if the step measures time, so that no other step may run at the same time."""
        return self.technique.spec.exclusive

    @property
    def distributed(self) -> bool:
        """Return True if the step can share its work among several processes."""
        return self.technique.spec.distributed

    @property
    def accelerated(self) -> bool:
        """Return True if the step computes on a GPU when there is one."""
        return self.technique.spec.device == "accelerator"

    def files(self) -> tuple[Path, ...]:
        """The user's own files that the settings name; their content is in the key."""
        return tuple(self.technique.sources()) if isinstance(self.technique, ReadsFiles) else ()

    def identity(self, seed: int) -> dict[str, Any]:
        """What the key says of the step besides code and inputs."""
        return {
            "technique": self.target,
            "settings": self.keyed(),
            "seed": seed,
            "versions": library_versions(self.technique.spec.libraries),
        }


@dataclass(frozen=True)
class Plan:
    """A recipe, ready to run: its sources, and its steps in an order in which every input comes first.

    config: the composed recipe that the plan was built from (`name`, `seed`, `models`, `steps`), as plain values.
    """

    config: Mapping[str, Any]
    sources: Mapping[str, Source]
    steps: tuple[Step, ...]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self.config.get("name", ""))

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.config.get("seed", 0))

    def seed_of(self, step: Step) -> int:
        """The seed that a step runs with."""
        return self.seed if step.seed is None else step.seed

    def step(self, name: str) -> Step:
        """The step of that name.  Raises ConfigError with the names there are."""
        for step in self.steps:
            if step.name == name:
                return step
        raise ConfigError(
            f"recipe {self.recipe}", f"no step {name!r}", "one of: " + ", ".join(step.name for step in self.steps)
        )

    def beside(self, step: Step) -> list[str]:
        """Steps that may run at the same time as this one: neither its inputs nor made from it, none exclusive."""
        before: dict[str, set[str]] = {}
        for other in self.steps:
            before[other.name] = {name for need in other.needs for name in (need, *before.get(need, ()))}
        return [
            other.name
            for other in self.steps
            if not other.exclusive
            and other.name not in {step.name, *before[step.name]}
            and step.name not in before[other.name]
        ]


def plain(value: Any) -> Any:
    """Tuples to lists, enums to strings: the form that JSON and YAML give back unchanged."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _without(settings: Mapping[str, Any], names: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings less those whose dotted name is listed."""
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in names
    }


def _only(settings: Mapping[str, Any], names: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings whose dotted name is listed, and nothing else."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if f"{prefix}{key}" in names:
            found[key] = value
        elif isinstance(value, Mapping) and (inner := _only(value, names, f"{prefix}{key}.")):
            found[key] = inner
    return found
