"""Contract of a technique: frozen settings, a `Spec`, and a call that writes an artifact."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from tasks.shared.errors import StillroomError, TechniqueError


class Kind(StrEnum):
    """Kind of an artifact, which flows along an edge of the graph."""

    ROWS = "rows"
    """Conversations that are not split yet: rows.jsonl, tasks.json, card.json."""
    CORPUS = "corpus"
    """Conversations split into train, calibration and test (`tasks/shared/formats/rows.py`)."""
    TRACES = "traces"
    """Conversations with the answers to train on."""
    LOGITS = "logits"
    """A teacher's next-token distributions on these answers (`tasks/shared/formats/soft_targets.py`)."""
    MODEL = "model"
    """Weights that transformers can load: a folder with safetensors, or a GGUF file."""
    ENGINE = "engine"
    """A file for one serving engine, such as a llama.cpp GGUF."""
    SCORES = "scores"
    """Values of one or more measures, per item and model (`tasks/shared/formats/scores.py`)."""
    VERDICT = "verdict"
    """Measures of every candidate against the baseline, and the decision."""
    REPORT = "report"
    """Pages for readers."""


EngineFiles = Literal["gguf", "onnx", "openvino"]
"""Form of the weights of an artifact of kind `engine`."""
Weights = Literal["same", "dense", "packed", "bitsandbytes", "sparse", "factored"]
"""Storage format of a model's weights.  packed: integers with scales.  bitsandbytes: what only that library unpacks.  factored: products
of smaller matrices."""
WEIGHTS = (Kind.MODEL, Kind.ENGINE)
"""Kinds that hold a model's weights."""
DATA = (Kind.ROWS, Kind.CORPUS, Kind.TRACES)
"""Kinds that hold conversations."""


@dataclass(frozen=True)
class Port:
    """A named input of a technique.

    kinds: accepted kinds; an input that the recipe leaves out takes the first of them that the recipe has.
    many: True for a list of artifacts.
    optional: True if it may be empty.
    wire: where the plan looks for an input that the recipe leaves out.  "recipe": the only artifact that fits; for a list, every
    step that fits.  "inputs": the same, among everything that the step's other inputs are made from.  "reader": the input of the
    same name of the step that reads this one.  "": "recipe" for a required single input, nowhere otherwise.
    """

    kinds: tuple[Kind, ...]
    many: bool = False
    optional: bool = False
    wire: Literal["", "recipe", "inputs", "reader"] = ""


@dataclass(frozen=True)
class Artifact:
    """An input as a technique receives it.

    name: name of the step or model in the recipe.  path: output folder of a step, or file or folder of a model source.
    digest: digest of the content; empty if it was not computed (unit tests).
    """

    name: str
    kind: Kind
    path: Path
    digest: str = ""


@dataclass(frozen=True)
class Inputs:
    """The artifacts of one step by port name."""

    ports: Mapping[str, tuple[Artifact, ...]]

    def one(self, port: str) -> Artifact:
        """Return the single artifact of a port.  Raises TechniqueError if it has none or several."""
        found = self.ports.get(port, ())
        if len(found) != 1:
            raise TechniqueError(f"inputs.{port}", f"{len(found)} artifacts", "exactly one")
        return found[0]

    def get(self, port: str) -> Artifact | None:
        """Return the artifact of an optional port, or None if the recipe leaves it out."""
        return self.one(port) if self.ports.get(port) else None

    def many(self, port: str) -> tuple[Artifact, ...]:
        """Return all artifacts of a port, in the recipe's order."""
        return tuple(self.ports.get(port, ()))


@dataclass(frozen=True)
class Compute:
    """Share of the machine that a step uses.  It does not change the result, so it is in no key.

    threads: CPU threads.
    device: "cpu" or "cuda".
    processes: processes that share the work of a step whose `Spec.distributed` is set.
    sharding: placement of the weights: "none" (every process has all) or "fsdp" (every process has a part).
    compile: compile the decoder layers for training with torch.compile.
    checkpoint_s: seconds between checkpoints, for techniques that save their state: the most work that a kill may cost.
    """

    threads: int = 2
    device: str = "cpu"
    processes: int = 1
    sharding: str = "none"
    compile: bool = False
    checkpoint_s: float = 600.0


@dataclass(frozen=True)
class StepRun:
    """Context of a running step, besides settings and inputs.

    step: name in the recipe.
    seed: the recipe's seed or the step's own; part of the key.
    scratch: folder for resumable work; survives a kill and is the same for the same key.
    prediction_cache: folder shared by all runs with the same code and library versions; partial results are filed under the digest
    of everything that they were made from.  None: use scratch.
    compute: threads, device and processes.
    """

    step: str
    seed: int
    scratch: Path
    prediction_cache: Path | None = None
    compute: Compute = Compute()


Metrics = dict[str, float | int | str]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A table that a technique writes and `dvc plots diff` draws.

    file: CSV file in the output folder.
    title: short name of the curve.
    x, y: columns.
    template: a DVC template, or one below .dvc/plots; DVC's own templates draw a blank (a step without validation) as 0.
    """

    file: str
    title: str
    x: str
    y: tuple[str, ...]
    x_label: str
    y_label: str
    template: str = "curve"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Declaration of a technique: everything that is known about it besides its settings.

    summary: one line for the tables of README.md and docs/techniques.md.
    ports: inputs by name.
    produces: kind of the artifact.
    libraries: packages whose versions are in the key.
    extra: the extra of pyproject.toml that installs those of them that are not always there; empty if all are.
    unkeyed: dotted names of settings that cannot change the artifact; they are in no key.
    retries: attempts after a failure, for work that depends on a service outside this machine.
    exclusive: True if the step measures time, so that no other step may run at the same time.
    distributed: True if the step can share its work among `Compute.processes`.
    device: "accelerator" for steps that compute on a GPU if there is one, "cpu" for all others.
    accepts: weights that the port `model` takes: "dense" refuses all other ones, "packed" all but dense and packed ones.
    gives: weights of the model that the step writes; "same" as its port `model`; None if it writes no model.
    files: form of the weights of an artifact of kind `engine`; None for any other.
    plots: tables that the step writes for `dvc plots`.
    paper: source of the method; empty if there is none.
    caveat: gain that a reader may expect and that the step does not give, for the plan; empty if there is none.
    """

    summary: str
    ports: Mapping[str, Port]
    produces: Kind
    libraries: tuple[str, ...]
    extra: str = ""
    unkeyed: frozenset[str] = frozenset()
    retries: int = 0
    exclusive: bool = False
    distributed: bool = False
    device: Literal["cpu", "accelerator"] = "cpu"
    accepts: Literal["any", "packed", "dense"] = "any"
    gives: Weights | None = None
    files: EngineFiles | None = None
    plots: tuple[Plot, ...] = ()
    paper: str = ""
    caveat: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError if `gives` or `files` contradicts `produces`."""
        if (self.produces in WEIGHTS) != (self.gives is not None):
            raise ValueError(f"produces={self.produces} and gives={self.gives}: only models and engines have weights")
        if (self.produces is Kind.ENGINE) != (self.files is not None):
            raise ValueError(
                f"produces={self.produces} and files={self.files}: engines, and only they, have files of a form"
            )


@runtime_checkable
class Technique(Protocol):
    """A frozen pydantic dataclass of settings with a `Spec`; calling it runs a step."""

    spec: ClassVar[Spec]

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Read `inputs`, write the artifact to the empty folder `out`, return metrics for tables."""
        ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A technique whose settings name files of the user."""

    def sources(self) -> tuple[Path, ...]:
        """Return these files and folders; they must exist at plan time, and the key covers them."""
        ...


@runtime_checkable
class TimesMachine(Protocol):
    """A technique whose artifact may depend on how fast the machine is."""

    @property
    def timed(self) -> bool:
        """True if it does with these settings: it runs alone, and the key names the machine."""
        ...


@dataclass(frozen=True)
class Upstream:
    """A step as later steps see it at plan time."""

    technique: Technique
    inputs: Mapping[str, tuple[str, ...]]


@runtime_checkable
class ChecksPlan(Protocol):
    """A technique that finds, from the recipe alone, reasons why it would fail."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield every problem.

        where: place of the step in the recipe.
        inputs: names by port.
        upstream: all steps built so far, by name.
        """
        ...


@dataclass(frozen=True)
class Refusal:
    """Reason why a technique does not take a model.

    reason: what is unsupported.  instead: what to use.
    """

    reason: str
    instead: str


@runtime_checkable
class ChecksFamily(Protocol):
    """A technique that does not take every family of models."""

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why the technique refuses a model at its port `model`, or None.

        config: the model's transformers configuration; for a GGUF file, what its header tells of it.
        """
        ...


@runtime_checkable
class ChecksWidths(Protocol):
    """A technique whose groups or blocks must divide the rows of a model's matrices."""

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Raise TechniqueError, with the setting as its place, for a width that does not fit.

        widths: input sizes of the matrices of the model at the port `model`, by name; empty if they are unknown.
        """
        ...


@runtime_checkable
class NotesModel(Protocol):
    """A technique that tells before the run what it will do to a model otherwise than asked."""

    def model_notes(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield lines for the plan.

        config: the transformers configuration of the model at the port `model`.
        """
        ...


@runtime_checkable
class ChangesConfig(Protocol):
    """A technique whose model has another configuration than its port `model`."""

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration that the step's model will have, as far as settings decide it."""
        ...
