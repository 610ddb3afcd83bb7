"""Perplexity of every model on task answers or on a user's own text, by a sliding window; bits per byte, so that vocabularies compare."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.eval_rows import read_test_rows, tag_rows
from tasks.evaluate.likelihood.documents import answers_of
from tasks.evaluate.likelihood.logits import expanded_notes, in_transformers, weighted_mean
from tasks.evaluate.likelihood.sliding import Loss, Plan, Reading, score_documents
from tasks.evaluate.models_under_test.isolated_runs import ask_each, make_sheet
from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, list_models
from tasks.evaluate.verdict.intervals import by_group, score_bounds
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import read_rows, spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.model.loading import Dtype
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun, Upstream
from tasks.shared.text.files import Document, read_texts

LARGEST = 700.0
"""Nats a token beyond which exp overflows."""
Readings = Mapping[str, Reading]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Perplexity:
    """Likelihood of texts under each model (see tasks/evaluate/likelihood/sliding.py).

    Scored are the test split's answers, each given its prompt, or, where `text` names one, a text of the user's.
    An item is an answer or a piece of text; its value is the bits that the model needs for it, over its bytes in UTF-8.
    """

    text: str = ""
    """A .txt, .md, .tokens or .jsonl file (key "text" of every line), or a folder of them, UTF-8; empty: the test split's answers."""
    piece_bytes: Annotated[int, Field(ge=0)] = 4096
    """Length of the pieces that a text is cut into after lines, bytes; each is scored by itself.  0 leaves texts whole."""
    context: Annotated[int, Field(ge=2)] = 512
    """Tokens that the model reads in one pass."""
    stride: Annotated[int, Field(ge=1)] = 256
    """Tokens by which the window moves on; each token has at least context - stride before it, as far as there are any."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Answers or pieces to score, spread evenly over all; 0 takes all."""
    dtype: Dtype = "float32"
    """What the model computes in; bfloat16 takes half the memory, and its rounding shows in the third digit."""
    prefix: Annotated[str, Field(pattern=r"^[a-z0-9_]*$")] = ""
    """Put before the names of measure and figures, for a recipe with two such steps: "wiki_" gives wiki_bits_per_byte."""

    ports: ClassVar[Mapping[str, Port]] = {**MODEL_PORTS, "data": Port((Kind.CORPUS,), optional=True)}
    produces: ClassVar[Kind] = Kind.SCORES
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "compressed-tensors", "gguf", "scipy", "numpy")  # fmt: skip

    def __post_init__(self) -> None:
        """Raises ConfigError for a stride that would leave tokens out."""
        if self.stride > self.context:
            got = f"{self.stride}, more than the context of {self.context}"
            raise ConfigError("stride", got, "at most the context", f"stride: {self.context // 2}")

    def sources(self) -> tuple[Path, ...]:
        """The user's text."""
        return (user_path(self.text),) if self.text else ()

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Nothing to score."""
        if not self.text and not inputs.get("data"):
            yield nothing_to_score(where)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Score and write scores.json and items.jsonl.

        Raises ConfigError if there is nothing to score, DataError for a text or test split that cannot be read or is empty,
        ModelError if the baseline fails.
        """
        documents = spread(self._documents(inputs, run.step), self.limit)
        subjects = in_transformers(list_models(inputs))
        texts, prompts = [document.text for document in documents], [document.prompt for document in documents]
        plan = Plan(texts, prompts, self.context, self.stride, self.dtype)
        readings = ask_each(subjects, {subject.name: plan for subject in subjects}, score_documents, Reading, run)
        sound = {name: reading for name, reading in readings.items() if not isinstance(reading, Failure)}
        kept = scorable(documents, sound)
        name, scored = f"{self.prefix}bits_per_byte", user_path(self.text).name if self.text else "the answers"
        measure = Measure(title=f"bits per byte of {scored}", unit="bits per byte", better="lower", binary=False)
        notes = [
            *self._notes(len(kept), len(documents)),
            *expanded_notes(subjects),
            *reading_notes(sound, subjects[0].name),
        ]
        sheet = make_sheet(subjects, readings, {name: measure}, run, self.libraries, notes)
        figures = {model: self._figures(documents, reading, kept, run.seed) for model, reading in sound.items()}
        models = {
            model: about.model_copy(update={"figures": figures.get(model, {})}) for model, about in sheet.models.items()
        }
        items = [
            self._item(name, documents[index], {model: found.losses[index] for model, found in sound.items()})
            for index in kept
        ]
        write_scores(out, sheet.model_copy(update={"models": models}), items)
        return flat_metrics(items, figures, self.prefix)

    def _documents(self, inputs: Inputs, step: str) -> list[Document]:
        if self.text:
            return read_texts(user_path(self.text), self.piece_bytes)
        corpus = inputs.get("data")
        if corpus is None:
            raise nothing_to_score(f"steps.{step}")
        rows = read_test_rows(corpus.path)
        return answers_of(rows, tag_rows(rows, read_rows(corpus.path / "train.jsonl")))

    def _item(self, measure: str, document: Document, losses: Mapping[str, Loss]) -> ItemScore:
        return ItemScore(
            measure=measure, id=document.id, cluster=document.cluster, tags=document.tags, weight=document.bytes, question=document.question,
            wanted=document.text if document.prompt else "",
            values={model: loss.nats / math.log(2) / (document.bytes - loss.skipped) for model, loss in losses.items()},
        )  # fmt: skip

    def _figures(
        self, documents: Sequence[Document], reading: Reading, kept: Sequence[int], seed: int
    ) -> dict[str, Figure]:
        losses, scored = [reading.losses[index] for index in kept], [documents[index] for index in kept]
        tokens = sum(loss.tokens for loss in losses)
        size = sum(document.bytes - loss.skipped for document, loss in zip(scored, losses, strict=True))
        nats = sum(loss.nats for loss in losses)
        low, high = perplexity_bounds(scored, losses, seed)
        return {
            f"{self.prefix}perplexity": Figure(value=perplexity(nats, tokens), low=low, high=high, bounds="95 % interval", better="lower"),
            f"{self.prefix}perplexity_per_byte": Figure(value=perplexity(nats, size), better="lower"),
            f"{self.prefix}tokens_scored": Figure(value=tokens, unit="tokens"),
        }  # fmt: skip

    def _notes(self, kept: int, found: int) -> list[str]:
        pieces = f"pieces of at most {self.piece_bytes} bytes" if self.piece_bytes else "whole texts"
        what = (
            f"{kept} {pieces} of {user_path(self.text).name}"
            if self.text
            else f"{kept} answers of the test split, each given its prompt"
        )
        notes = [f"Perplexity over {what}; {self.context} tokens read in one pass, moved on by {self.stride}."]
        if found > kept:
            notes.append(
                f"{found - kept} texts left out, of which a model has no token to score: a single one, with nothing before it."
            )
        return notes


def nothing_to_score(where: str) -> ConfigError:
    """The error for a step with neither a text nor a corpus."""
    wanted = "a text, or a corpus whose test answers are scored"
    return ConfigError(
        where, "nothing to take perplexity over", wanted, f"{where}.text=path, or {where}.inputs.data=<step>"
    )


def scorable(documents: Sequence[Document], readings: Readings) -> list[int]:
    """Indices of the documents of which every model scored something.  Raises DataError if there is none."""
    kept = [
        index for index in range(len(documents)) if all(reading.losses[index].tokens for reading in readings.values())
    ]
    if not kept:
        raise DataError("perplexity", f"{len(documents)} texts of a single token each", "longer texts")
    return kept


def perplexity(nats: float, count: int) -> float:
    """Of the mean loss, its exponential."""
    return math.exp(min(nats / count, LARGEST))


def perplexity_bounds(
    documents: Sequence[Document], losses: Sequence[Loss], seed: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % bounds of the perplexity per token, phrasing groups (or pieces of text) resampled; none for a single one."""
    means, weights = by_group(
        [loss.nats / loss.tokens for loss in losses],
        [float(loss.tokens) for loss in losses],
        [document.cluster or document.id for document in documents],
    )
    if len(means) < 2:
        return None, None
    found = score_bounds(means, weights, binary=False, seed=seed)
    return perplexity(found.low, 1), perplexity(found.high, 1)


def reading_notes(readings: Readings, baseline: str) -> list[str]:
    """What differs between the models in how they were scored."""
    others = [name for name, found in readings.items() if found.tokens_digest != readings[baseline].tokens_digest]
    skipping = [name for name, found in readings.items() if any(loss.skipped for loss in found.losses)]
    notes = []
    if others:
        notes.append(
            f"{', '.join(others)}: other tokens than {baseline}'s: perplexity per token does not compare, bits per byte does."
        )
    if skipping:
        notes.append(
            f"{', '.join(skipping)}: the tokenizer puts nothing before a text, so its first token is not scored and its bytes are not counted."
        )
    notes += [
        f"{name}: every window begins with {found.opening}, as its tokenizer does."
        for name, found in readings.items()
        if found.opening
    ]
    notes += [
        f"{name}: {found.cut} prompts are longer than the context and lost their beginning."
        for name, found in readings.items()
        if found.cut
    ]
    return notes


def flat_metrics(items: Sequence[ItemScore], figures: Mapping[str, Mapping[str, Figure]], prefix: str) -> Metrics:
    """Bits per byte and perplexity of every model."""
    weights = [item.weight for item in items]
    metrics: Metrics = {"items": len(items)}
    for model, found in figures.items():
        metrics[f"{model}.{prefix}bits_per_byte"] = weighted_mean([item.values[model] for item in items], weights)
        metrics[f"{model}.{prefix}perplexity"] = found[f"{prefix}perplexity"].value
    return metrics
