"""Parts of a plan: source models, and steps in order."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from tasks.shared.errors import ConfigError
from tasks.shared.model.sources import ModelSource
from tasks.shared.store.keys import library_versions
from tasks.shared.technique import Kind, ReadsFiles, Technique, TimesMachine


@dataclass(frozen=True)
class Source:
    """A source model: one that the recipe starts from."""

    name: str
    settings: ModelSource
    path: Path
    kind: Kind = Kind.MODEL


@dataclass(frozen=True)
class Step:
    """A planned step: a checked technique, and the names of the inputs at its ports."""

    name: str
    stage: str
    target: str
    technique: Technique
    inputs: Mapping[str, tuple[str, ...]]
    seed: int | None = None
    """Its own seed instead of the recipe's, so that a step can be repeated to measure the effect of chance."""
    wired: tuple[str, ...] = field(default=(), compare=False)
    """Ports that the recipe leaves out and the plan has wired; for display."""
    engine_packages: tuple[str, ...] = ()
    """Optional packages that compute with its input models (bitsandbytes, onnxruntime, openvino)."""

    @property
    def kind(self) -> Kind:
        """Kind of the step's artifact."""
        return self.technique.spec.produces

    @property
    def module(self) -> str:
        """The technique's module."""
        return self.target.rpartition(".")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of all inputs in port order, each once."""
        return tuple(dict.fromkeys(name for names in self.inputs.values() for name in names))

    def settings(self) -> dict[str, Any]:
        """All resolved settings as plain values."""
        assert is_dataclass(self.technique) and not isinstance(self.technique, type)
        return plain(asdict(self.technique))

    def keyed(self) -> dict[str, Any]:
        """Settings that decide the result; they are in the key and in params.yaml."""
        return _without(self.settings(), self._unkeyed)

    def unkeyed(self) -> dict[str, Any]:
        """Settings that cannot change the result: timeouts, network ports, requests at once."""
        return _only(self.settings(), self._unkeyed)

    @property
    def _unkeyed(self) -> frozenset[str]:
        return self.technique.spec.unkeyed

    @property
    def retries(self) -> int:
        """Attempts after the first; above 0 only if the step depends on a service elsewhere."""
        return self.technique.spec.retries

    @property
    def exclusive(self) -> bool:
        """Return True if the step measures time, so that no other step may run at the same time."""
        return self.technique.spec.exclusive or self.timed

    @property
    def timed(self) -> bool:
        """Return True if the step's artifact depends on how fast the machine is."""
        return isinstance(self.technique, TimesMachine) and self.technique.timed

    @property
    def distributed(self) -> bool:
        """Return True if the step can share its work among several processes."""
        return self.technique.spec.distributed

    @property
    def accelerated(self) -> bool:
        """Return True if the step computes on a GPU when there is one."""
        return self.technique.spec.device == "accelerator"

    def files(self) -> tuple[Path, ...]:
        """User files that the settings name; their content is in the key."""
        return tuple(self.technique.sources()) if isinstance(self.technique, ReadsFiles) else ()

    def identity(self, seed: int) -> dict[str, Any]:
        """Return the step's part of the key: technique, settings, seed and library versions."""
        return {
            "technique": self.target,
            "settings": self.keyed(),
            "seed": seed,
            "versions": self.versions(),
        }

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that decide the result, by package."""
        return library_versions({*self.technique.spec.libraries, *self.engine_packages})


@dataclass(frozen=True)
class Plan:
    """A recipe that is ready to run: source models, and steps ordered with inputs first.

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
        """Return the step of that name.  Raises ConfigError that lists the known names."""
        for step in self.steps:
            if step.name == name:
                return step
        raise ConfigError(
            f"recipe {self.recipe}", f"no step {name!r}", "one of: " + ", ".join(step.name for step in self.steps)
        )

    def concurrent_with(self, step: Step) -> list[str]:
        """Names of the steps that may run at the same time as this one.

        Excludes exclusive steps, its direct and indirect inputs, and the steps that need it.
        """
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
    """Convert tuples to lists and enums to strings, so that JSON and YAML round-trip the value."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _without(settings: Mapping[str, Any], names: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings without those whose dotted name is listed."""
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in names
    }


def _only(settings: Mapping[str, Any], names: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings whose dotted name is listed."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if f"{prefix}{key}" in names:
            found[key] = value
        elif isinstance(value, Mapping) and (inner := _only(value, names, f"{prefix}{key}.")):
            found[key] = inner
    return found


def technique_name(step: Step) -> str:
    """Stage and technique as Hydra names them, such as prune/depth."""
    return "/".join(step.module.split(".")[1:])
