"""The models under test: what they are on disk, in which engine they answer, and in what form they are asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from tasks.shared.engines.engine import Engine, find_weights
from tasks.shared.errors import ConfigError, ModelError, StillroomError
from tasks.shared.formats.articles import Article, question_of, with_article
from tasks.shared.formats.rows import Row
from tasks.shared.formats.scores import Role
from tasks.shared.model.weights import is_gguf, read_gguf
from tasks.shared.paths import sha256_file
from tasks.shared.technique import Artifact, Inputs, Kind, Port

Messages = list[dict[str, str]]

REFERENCE_SYSTEM = (
    "You are the support bot of a shop. Answer the customer's question in one short sentence, with the facts of the article. "
    "If the question is not about the shop, or asks for advice that a shop must not give, say: I can't help with that."
)
REFERENCE_LABELS = "You sort messages to a shop by topic. Answer with one of these topics and nothing else: {labels}."
WEIGHTS = (Kind.MODEL, Kind.ENGINE)
MODEL_PORTS: Mapping[str, Port] = {
    "baseline": Port(WEIGHTS),
    "candidates": Port(WEIGHTS, many=True, optional=True),
    "repeats": Port(WEIGHTS, many=True, optional=True),
    "reference": Port((Kind.MODEL,), optional=True),
}
"""What every measuring technique takes, so that all of them and the verdict speak of the same models.  repeats: the baseline made
again with another seed: how far it lies from the baseline is noise."""
BARE = " without article"
"""Added to the reference's name where it has only what its own weights know: the floor that training must beat."""


@dataclass(frozen=True)
class ModelUnderTest:
    """One model to measure.  weights: a folder with safetensors or a .gguf file.  digest: of the artifact, where it is known.

    again: how often it was asked before (the baseline, for the noise floor).
    """

    name: str
    role: Role
    kind: Literal["model", "engine"]
    weights: Path
    engine: Engine
    format: str
    digest: str = ""
    again: int = 0
    sees_article: bool = False
    """Asked with the row's article in the prompt (a reference only)."""
    broken: str = ""
    """Why nobody needs to ask it: it cannot even be looked at.  Never of a baseline."""
    in_folder: bool = False
    """The weights are one file in the artifact's folder, so the digest, which is the folder's, is not theirs."""

    @property
    def is_gguf(self) -> bool:
        """True for weights in a GGUF file, whatever engine runs them."""
        return is_gguf(self.weights)

    @cached_property
    def content(self) -> str:
        """What its readings are filed under: the digest of the weights alone, by whatever name they were given.

        An export is its step's folder in a recipe, and may be its file elsewhere: it is asked once for both.
        """
        if self.digest and self.in_folder:
            return sha256_file(self.weights)
        return self.digest or str(self.weights)


@dataclass(frozen=True)
class Question:
    """A test row as one model is asked it: messages before the label, and messages before the answer."""

    row: Row
    choice: Messages
    answer: Messages


def list_models(inputs: Inputs, again: int = 0, bare_reference: bool = False) -> list[ModelUnderTest]:
    """Baseline, candidates, repeats (the baseline `again` times, then the models of that port), reference.

    bare_reference: the reference twice, with and without the article.  A model that cannot be looked at is `broken`.
    Raises ConfigError for a name that stands twice, ModelError for a path that is not there and for a broken baseline.
    """
    baseline = open_model(inputs.one("baseline"), "baseline")
    found = [baseline, *(look_at(artifact, "candidate") for artifact in inputs.many("candidates"))]
    found += [
        replace(
            baseline,
            name=f"{baseline.name} again {count}" if again > 1 else f"{baseline.name} again",
            role="repeat",
            again=count,
        )
        for count in range(1, again + 1)
    ]
    found += [look_at(artifact, "repeat") for artifact in inputs.many("repeats")]
    if artifact := inputs.get("reference"):
        reference = look_at(artifact, "reference")
        found += (
            [replace(reference, sees_article=True), replace(reference, name=reference.name + BARE)]
            if bare_reference
            else [reference]
        )
    names = [subject.name for subject in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("inputs", f"{', '.join(twice)} stands twice among the models", "every model once")
    return found


def look_at(artifact: Artifact, role: Role) -> ModelUnderTest:
    """The same as `open_model` for a model that others do not depend on: what is wrong with it is kept as its `broken`.

    Raises ModelError if its path is not there: that is a wrong recipe, not a model gone wrong.
    """
    try:
        return open_model(artifact, role)
    except Exception as error:  # of readers that are given half a file
        if not artifact.path.exists():
            raise
        reason = error.got if isinstance(error, StillroomError) else f"{type(error).__name__}: {error}"
        engine = find_weights(artifact.path, llama=artifact.kind is Kind.ENGINE).engine
        return ModelUnderTest(
            artifact.name, role, "engine" if artifact.kind is Kind.ENGINE else "model", artifact.path, engine, "unreadable",
            artifact.digest, broken=" ".join(reason.replace(str(artifact.path), artifact.name).split()) or "unreadable",
        )  # fmt: skip


def open_model(artifact: Artifact, role: Role) -> ModelUnderTest:
    """Look at an artifact without loading it.  Raises ModelError if it holds no weights, or no configuration that can be read."""
    weights = find_weights(artifact.path, llama=artifact.kind is Kind.ENGINE)
    if weights.fault:
        where = f"{role} {artifact.name} ({artifact.path})"
        raise ModelError(where, weights.fault, "a folder with safetensors, or one .gguf file")
    kind: Literal["model", "engine"] = "engine" if artifact.kind is Kind.ENGINE else "model"
    gguf, inside = weights.engine == "llama.cpp", weights.path != artifact.path
    form = f"GGUF {gguf_type(weights.path)}" if gguf else folder_format(weights.path)
    return ModelUnderTest(
        artifact.name, role, kind, weights.path, weights.engine, form, artifact.digest, in_folder=inside
    )


def gguf_type(file: Path) -> str:
    """The file's weight type by its own header, such as Q4_0; "of unknown type" without that key.  Raises ModelError if unreadable."""
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
    """Words for the weights of a Hugging Face folder, such as "bfloat16 safetensors".  Raises ModelError for a bad config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = f"no config.json that can be read ({type(error).__name__})"
        raise ModelError(str(folder), got, "a Hugging Face model folder", "look at the step that made it") from error
    quantization = config.get("quantization_config")
    if quantization:
        groups = [group.get("weights") or {} for group in quantization.get("config_groups", {}).values()]
        bits = sorted({f"{group['type']}{group['num_bits']}" for group in groups if "num_bits" in group})
        return (
            f"{' and '.join(bits) or quantization.get('quant_method', 'quantized')} {quantization.get('format', '')}".strip()
            + " safetensors"
        )
    return f"{config.get('dtype') or config.get('torch_dtype') or 'float32'} safetensors"


def tuned_questions(rows: Sequence[Row]) -> list[Question]:
    """Rows as our trained models are asked: label and answer follow the same prompt."""
    return [Question(row, row.prompt, row.prompt) for row in rows]


def reference_questions(rows: Sequence[Row], articles: Mapping[str, Article], labels: Sequence[str]) -> list[Question]:
    """Rows as an untrained model is asked: the article in the user turn, no label protocol; for the intent, the list of labels.

    A row without an article among `articles` is asked bare.  Only the last user turn is used for the intent.
    """
    questions = []
    for row in rows:
        turns = [message for message in row.prompt if message["role"] != "system"]
        last = turns[-1]["content"]
        article = articles.get(row.article)
        full = with_article(question_of(last), article) if article else last
        sort = [
            {"role": "system", "content": REFERENCE_LABELS.format(labels=", ".join(labels))},
            {"role": "user", "content": question_of(last)},
        ]
        answer = [{"role": "system", "content": REFERENCE_SYSTEM}, *turns[:-1], {"role": "user", "content": full}]
        questions.append(Question(row, sort, answer))
    return questions
