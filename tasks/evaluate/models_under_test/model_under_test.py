"""Models under test: their weights on disk, their engine, and the prompts they receive."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tasks.shared.engines.engine import EngineName, find_weights
from tasks.shared.errors import ConfigError, ModelError, StillroomError
from tasks.shared.formats.articles import Article, question_of, with_article
from tasks.shared.formats.rows import Row
from tasks.shared.formats.scores import Role
from tasks.shared.formats.tasks import Task
from tasks.shared.model.configuration import BITSANDBYTES, quantization_method
from tasks.shared.model.graph_files import graph_files
from tasks.shared.model.weights import is_gguf, read_gguf
from tasks.shared.paths import sha256_file
from tasks.shared.technique import WEIGHTS, Artifact, Inputs, Kind, Port
from tasks.shared.text.instructions import CLASSIFY, instruction_of

SYSTEM = ("system", "developer")
"""Roles of instructions."""

Messages = list[dict[str, Any]]
"""A conversation in the format of chat templates."""

MODEL_PORTS: Mapping[str, Port] = {
    "baseline": Port(WEIGHTS, wire="reader"),
    "candidates": Port(WEIGHTS, many=True, optional=True, wire="reader"),
    "repeats": Port(WEIGHTS, many=True, optional=True, wire="reader"),
    "reference": Port((Kind.MODEL,), optional=True),
}
"""Input ports of every evaluation technique and of the verdict, so that all of them compare the same models.

repeats: the baseline retrained with other seeds; its distance from the baseline estimates the noise."""
CLOSED_BOOK = " without article"
"""Suffix of the reference's name when it answers closed-book, without the article: the floor that training must beat."""


@dataclass(frozen=True)
class ModelUnderTest:
    """One model to evaluate.

    weights: a folder with safetensors, or a .gguf file.  digest: of the artifact, where known.
    format: weights as stored, such as "bfloat16 safetensors".  repetition: 0 for the first evaluation; the baseline is evaluated
    again as repetition 1, 2, ... to estimate the noise floor.
    """

    name: str
    role: Role
    kind: Literal["model", "engine"]
    weights: Path
    engine: EngineName
    format: str
    digest: str = ""
    repetition: int = 0
    sees_article: bool = False
    """The row's article is in the prompt (reference models only)."""
    failure: str = ""
    """Why the model cannot be evaluated; empty if it can.  An unusable baseline raises instead."""
    in_folder: bool = False
    """`weights` is one file inside the artifact's folder, so `digest`, which covers the folder, is not the digest of the weights."""

    @property
    def closed_book(self) -> bool:
        """True for the reference that is asked without any article."""
        return self.name.endswith(CLOSED_BOOK)

    @property
    def is_gguf(self) -> bool:
        """True for weights in a GGUF file, whatever engine runs them."""
        return is_gguf(self.weights)

    @cached_property
    def cache_id(self) -> str:
        """Identity of the weights in the prediction cache, whatever name they were given.

        The digest of the weights alone: an export is its step's folder in a recipe and may be its file elsewhere, and both share one
        cache entry.  The path where no digest is known.
        """
        if self.digest and self.in_folder:
            return sha256_file(self.weights)
        return self.digest or str(self.weights)


@dataclass(frozen=True)
class Prompt:
    """A conversation up to an answer, which may be empty.

    tools: JSON text of the list of tools that the answer may call; empty for none.
    """

    messages: Messages
    tools: str = ""

    @classmethod
    def of(cls, row: Row) -> "Prompt":
        """Return a row's messages before its final answer, with its tools."""
        return cls(row.prompt, row.tools)


@dataclass(frozen=True)
class RowPrompts:
    """Prompts for one test row: messages before the label, and messages before the answer.

    tools: JSON text of the list of tools that the answer may call; empty for none.
    """

    row: Row
    label_messages: Messages
    answer_messages: Messages
    tools: str = ""


def list_models(inputs: Inputs, repetitions: int = 0, closed_book_reference: bool = False) -> list[ModelUnderTest]:
    """Return the baseline, candidates, repeats and reference, in this order.

    repetitions: times to evaluate the baseline again; these come before the models of the port `repeats`.
    closed_book_reference: evaluate the reference twice, with the article and without.
    A model that cannot be inspected is returned with its `failure`.  Raises ConfigError for a name given twice, ModelError for a
    missing path or an unusable baseline.
    """
    baseline = inspect_model(inputs.one("baseline"), "baseline")
    found = [baseline, *(try_inspect_model(artifact, "candidate") for artifact in inputs.many("candidates"))]
    found += [
        replace(
            baseline,
            name=f"{baseline.name} again {count}" if repetitions > 1 else f"{baseline.name} again",
            role="repeat",
            repetition=count,
        )
        for count in range(1, repetitions + 1)
    ]
    found += [try_inspect_model(artifact, "repeat") for artifact in inputs.many("repeats")]
    if artifact := inputs.get("reference"):
        reference = try_inspect_model(artifact, "reference")
        found += (
            [replace(reference, sees_article=True), replace(reference, name=reference.name + CLOSED_BOOK)]
            if closed_book_reference
            else [reference]
        )
    names = [model.name for model in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("inputs", f"{', '.join(twice)} given more than once", "each model once")
    return found


def try_inspect_model(artifact: Artifact, role: Role) -> ModelUnderTest:
    """Return `inspect_model`'s result, with any error stored as the model's `failure`.

    Raises ModelError if the path does not exist: that is a mistake in the recipe, not a bad model.
    """
    try:
        return inspect_model(artifact, role)
    except Exception as error:  # a truncated file can raise anything in its reader
        if not artifact.path.exists():
            raise
        reason = error.got if isinstance(error, StillroomError) else f"{type(error).__name__}: {error}"
        engine = find_weights(artifact.path).engine
        return ModelUnderTest(
            artifact.name, role, "engine" if artifact.kind is Kind.ENGINE else "model", artifact.path, engine, "unreadable",
            artifact.digest, failure=" ".join(reason.replace(str(artifact.path), artifact.name).split()) or "unreadable",
        )  # fmt: skip


def inspect_model(artifact: Artifact, role: Role) -> ModelUnderTest:
    """Return an artifact's engine and weight format without loading it.

    Raises ModelError if it has no weights or no readable configuration.
    """
    weights = find_weights(artifact.path)
    if weights.fault:
        where = f"{role} {artifact.name} ({artifact.path})"
        raise ModelError(where, weights.fault, "a folder with safetensors or an exported graph, or one .gguf file")
    kind: Literal["model", "engine"] = "engine" if artifact.kind is Kind.ENGINE else "model"
    inside = weights.path != artifact.path
    if weights.engine == "llama.cpp":
        form = f"GGUF {gguf_type(weights.path)}"
    elif (graph := graph_files(weights.path)) is not None:
        form = f"{graph.title} {graph.read_description(weights.path).get('scheme', 'of unknown type')}"
    else:
        form = folder_format(weights.path)
    return ModelUnderTest(
        artifact.name, role, kind, weights.path, weights.engine, form, artifact.digest, in_folder=inside
    )


def gguf_type(file: Path) -> str:
    """Weight type from a GGUF header, such as Q4_0; "of unknown type" if the header has none.

    Raises ModelError if the file is not readable.
    """
    from gguf import LlamaFileType

    try:
        field = read_gguf(file).get_field("general.file_type")
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise ModelError(str(file), f"not a readable GGUF file: {error}", "a complete .gguf file") from error
    if field is None:
        return "of unknown type"
    number = int(field.contents())
    return (
        LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        if number in set(LlamaFileType)
        else f"type {number}"
    )


def folder_format(folder: Path) -> str:
    """Weight format of a Hugging Face folder, such as "bfloat16 safetensors".

    Raises ModelError for an unreadable config.json.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = f"no readable config.json ({type(error).__name__})"
        raise ModelError(str(folder), got, "a Hugging Face model folder", "check the step that made it") from error
    quantization = config.get("quantization_config")
    if quantization and quantization_method(config) == BITSANDBYTES:
        levels = "int8" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "4-bit")
        return f"{levels} bitsandbytes safetensors"
    if quantization:
        groups = [group.get("weights") or {} for group in quantization.get("config_groups", {}).values()]
        bits = sorted({f"{group['type']}{group['num_bits']}" for group in groups if "num_bits" in group})
        return (
            f"{' and '.join(bits) or quantization.get('quant_method', 'quantized')} {quantization.get('format', '')}".strip()
            + " safetensors"
        )
    return f"{config.get('dtype') or config.get('torch_dtype') or 'float32'} safetensors"


def tuned_prompts(rows: Sequence[Row]) -> list[RowPrompts]:
    """Return prompts for models trained on this corpus: label and answer follow the same prompt."""
    return [RowPrompts(row, row.prompt, row.prompt, row.tools) for row in rows]


def reference_prompts(
    rows: Sequence[Row], articles: Mapping[str, Article], tasks: Mapping[str, Task], closed_book: bool = False
) -> list[RowPrompts]:
    """Return prompts for an untrained reference model.

    The task's instruction replaces the row's system turn; without one, the row's own system turn stays, or else the task's type gives a
    general instruction.  The article goes into the last user turn, unless the row has passages of its own there.  A separate prompt with
    the list of labels asks for the label.
    A row whose article is missing from `articles` gets no article.
    closed_book: True to take the row's own passages out as well.
    """
    return [_reference_prompt(row, articles.get(row.evidence), tasks[row.task], closed_book) for row in rows]


def _reference_prompt(row: Row, article: Article | None, task: Task, closed_book: bool) -> RowPrompts:
    system = [turn for turn in row.prompt if turn["role"] in SYSTEM]
    turns = [dict(turn) for turn in row.prompt if turn["role"] not in SYSTEM]
    if task.instruction or not system:
        instruction = instruction_of(task, task.labels)
        system = [{"role": "system", "content": instruction}] if instruction else []
    asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    question = question_of(asked["content"]) if asked else ""
    if asked and closed_book:
        asked["content"] = question
    elif asked and article and asked["content"] == question:
        asked["content"] = with_article(question, article)
    label = [
        {"role": "system", "content": CLASSIFY.format(labels=", ".join(task.labels))},
        {"role": "user", "content": question},
    ]
    return RowPrompts(row, label, [*system, *turns], row.tools)
