"""Recipes composed by Hydra and returned as plain, checked values; unknown keys are refused."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, ErrorList, StillroomError
from tasks.shared.store.keys import PROJECT

if TYPE_CHECKING:  # every step's process imports this module without Hydra
    from omegaconf import DictConfig

CONF = PROJECT / "conf"
NOT_A_VARIANT = ("recipe=", "runtime.", "runtime=", "tracking", "gate.", "dry_run=")
"""Overrides that do not change any artifact."""
KEYS = ("name", "seed", "models", "steps", "runtime", "tracking", "gate", "dry_run")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Runtime:
    """Settings of a run's execution; none changes a result, so none is in a key."""

    root: str = ""
    """Folder for artifacts/, mlflow.db and mlartifacts/; empty: the project's folder."""
    threads: int = 0
    """CPU threads of a step; 0: all cores, divided among the steps that may run at the same time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto: cuda if torch finds a GPU."""
    orchestrator: Literal["prefect", "none"] = "prefect"
    """prefect: a flow with a task per step; none: a plain loop without Prefect, for tests or when Prefect fails."""
    dvc: bool = True
    """Record each finished step of a tracked recipe in dvc.lock."""
    sync: bool = True
    """Bring params.yaml and dvc.yaml up to the recipe first; false leaves them alone and runs as a variant."""
    parallel: Annotated[int, Field(ge=0)] = 0
    """Largest number of steps that run at once, where the graph has branches; 0: one for every four cores."""
    memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Limit on the combined memory forecast of the steps that run at once; 0: four fifths of this machine's memory."""
    check_memory: bool = True
    """Refuse a step whose forecast exceeds the memory of this machine or its GPUs; false: run it anyway."""
    checkpoint_s: Annotated[float, Field(ge=0)] = 600.0
    """Seconds between the checkpoints of a training step."""
    processes: Annotated[int, Field(ge=0)] = 1
    """Processes that share a training step, each on its own GPU where there are GPUs; 0: one for each GPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """Distribution of the weights over the processes of a training step: none, each has them all (DDP); fsdp, each has a part."""
    compile: bool = False
    """Compile the decoder layers of a training step (torch.compile), which needs a C++ compiler.  On a CPU it gained nothing (135M weights,
    float32, one core: 0 to 4 %)."""
    template: bool = True
    """Fork steps from a process that has already imported the libraries (Linux only); false: each step starts Python and imports them itself."""
    verify: Literal["stat", "content"] = "stat"
    """Check of artifacts: stat trusts an unchanged size, mtime and inode; content reads every file again."""

    @property
    def folder(self) -> Path:
        """The root as an absolute path."""
        return Path(self.root).expanduser().resolve() if self.root else PROJECT

    @property
    def cores(self) -> int:
        """Cores to use."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def steps_at_once(self) -> int:
        """Largest number of steps that run at the same time."""
        return self.parallel or max(1, self.cores // 4)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Tracking:
    """Where runs are recorded."""

    kind: Literal["mlflow", "none"] = "mlflow"
    """mlflow, or nothing at all."""
    uri: str = ""
    """MLflow tracking URI, without credentials; empty: MLFLOW_TRACKING_URI, else a sqlite file under runtime.root."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gate:
    """Effect of the verdict on the exit code."""

    enforce: bool = False
    """Exit with 3 when the verdict is "do not ship", with 4 when it is "not enough data"."""


@dataclass(frozen=True)
class Settings:
    """A composed configuration: the recipe as plain values, and the settings of its run."""

    recipe: Mapping[str, Any]
    runtime: Runtime
    tracking: Tracking
    gate: Gate
    dry_run: bool | Literal["graph"]
    """True: only show the plan.  graph: also print it as mermaid text."""


def read_settings(config: "DictConfig") -> Settings:
    """Return plain, checked settings from Hydra's composed config.

    Raises ErrorList or ConfigError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if OmegaConf.is_missing(config, "name"):
        raise ConfigError(
            "recipe",
            "none given",
            "one of: " + ", ".join(recipe_names()),
            "python -m flows.compress +recipe=support_bot",
        )
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError("recipe", str(error).splitlines()[0], "a value for every ??? and every ${...}") from error
    assert isinstance(plain, dict)
    plain = {str(key): value for key, value in plain.items()}
    problems: list[StillroomError] = list(_unknown_keys(plain))
    built: dict[str, Any] = {}
    for key, cls in (("runtime", Runtime), ("tracking", Tracking), ("gate", Gate)):
        try:
            built[key] = cls(**(plain.get(key) or {}))
        except ValidationError as error:
            problems.extend(
                ConfigError(
                    ".".join([key, *map(str, detail["loc"])]),
                    repr(detail.get("input")),
                    detail["msg"],
                    "known: " + ", ".join(cls.__dataclass_fields__),
                )
                for detail in error.errors()
            )
    if (dry_run := plain["dry_run"]) not in (False, True, "graph"):
        problems.append(ConfigError("dry_run", repr(dry_run), "true, false or graph", "dry_run=true"))
    if problems:
        raise ErrorList(problems)
    recipe = {key: plain[key] for key in ("name", "seed", "models", "steps")}
    return Settings(recipe, built["runtime"], built["tracking"], built["gate"], dry_run)


def check_name(name: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError if a recipe's name differs from its file's.

    Two files with the same name would overwrite each other's artifacts.
    """
    chosen = {item.partition("=")[2] for item in overrides if item.lstrip("+").startswith("recipe=")}
    renamed = any(item.lstrip("+").startswith("name=") for item in overrides)
    if chosen and name not in chosen and not renamed:
        file = next(iter(chosen))
        raise ConfigError("name", f"{name!r} in the file recipe/{file}.yaml", file, f"name: {file}, or rename the file")


def is_variant(overrides: Sequence[str]) -> bool:
    """Return True if command line overrides make the run differ from the recipe as written."""
    return any(not item.lstrip("+~").startswith(NOT_A_VARIANT) for item in overrides)


def _unknown_keys(plain: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield an error for each unknown top-level key; Hydra accepts `+typo=1`."""
    for key in plain:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            yield ConfigError(
                str(key), "no such key", ", ".join(KEYS), f"did you mean {near[0]}?" if near else f"remove +{key}=..."
            )


def recipe_names(conf: Path = CONF) -> list[str]:
    """Names of the recipes in a configuration folder; by default, those of this project."""
    return sorted(file.stem for file in (conf / "recipe").glob("*.yaml"))


def compose_recipe(name: str, overrides: Sequence[str] = ()) -> Settings:
    """Compose a recipe without Hydra's command line.  Raises ConfigError or ErrorList."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return read_settings(compose("config", overrides=[f"+recipe={name}", *overrides]))
    except HydraException as error:
        raise ConfigError(f"recipe {name}", str(error).splitlines()[0], ", ".join(recipe_names())) from error
