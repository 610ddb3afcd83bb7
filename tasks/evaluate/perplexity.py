"""Perplexity and bits per byte of every model on task answers or on a user's text."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.grading.eval_rows import read_test_split
from tasks.evaluate.likelihood.documents import answer_documents, answered_rows, count_answers, unanswered_note
from tasks.evaluate.likelihood.logits import dequantized_notes, in_transformers
from tasks.evaluate.likelihood.sliding import DocumentLoss, PerplexityPlan, PerplexityResult, score_documents
from tasks.evaluate.models_under_test.forecast import forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each, make_summary
from tasks.evaluate.models_under_test.model_under_test import MODEL_PORTS, Prompt, list_models
from tasks.evaluate.verdict.intervals import score_bounds, weighted_mean
from tasks.evaluate.verdict.pairs import by_group
from tasks.shared.engines.registry import Needs
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import spread
from tasks.shared.formats.scores import ItemScore, Measure, write_scores
from tasks.shared.isolation import Failure
from tasks.shared.items import Items, ItemSources
from tasks.shared.model.loading import Dtype
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream
from tasks.shared.text.files import Document, read_texts

TOKEN_BYTES = 4.0
"""Bytes of text per token, for the forecast."""
LARGEST = 700.0
"""Nats per token beyond which exp overflows."""
Results = Mapping[str, PerplexityResult]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Perplexity:
    """Likelihood of texts under each model, by a sliding window.

    The method is in tasks/evaluate/likelihood/sliding.py.
    Scores the test split's answers, each conditioned on its prompt, or the user's text if `text` is set.
    An item is an answer or a piece of text; its value is bits per byte: its negative log-likelihood in bits over its bytes in UTF-8,
    which compares across vocabularies.
    """

    text: str = ""
    """A .txt, .md, .tokens or .jsonl file (key "text" of each line), or a folder of them, UTF-8; empty: the test split's answers."""
    piece_bytes: Annotated[int, Field(ge=0)] = 4096
    """Length of the pieces that a text is split into at line ends, bytes; each is scored on its own.  0 leaves texts whole."""
    context: Annotated[int, Field(ge=2)] = 512
    """Tokens read in one forward pass."""
    stride: Annotated[int, Field(ge=1)] = 256
    """Tokens by which the window moves; each token has at least context - stride tokens before it, as far as there are any."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Answers or pieces to score, spread evenly over all; 0 takes all."""
    dtype: Dtype = "float32"
    """Data type of the computation; bfloat16 halves the memory, but its rounding shows in the third digit."""
    prefix: Annotated[str, Field(pattern=r"^[a-z0-9_]*$")] = ""
    """Prefix of measure and figure names, for a recipe with two such steps: "wiki_" gives wiki_bits_per_byte."""

    spec: ClassVar[Spec] = Spec(
        summary="Sliding-window perplexity per token, and bits per byte, which compare across vocabularies",
        ports={**MODEL_PORTS, "data": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors", "gguf", "scipy", "numpy"),
        device="accelerator",
    )

    def __post_init__(self) -> None:
        """Raise ConfigError for a stride that would skip tokens."""
        if self.stride > self.context:
            got = f"{self.stride}, more than the context of {self.context}"
            raise ConfigError("stride", got, "at most the context", f"stride: {self.context // 2}")

    def sources(self) -> tuple[Path, ...]:
        """Return the user's text file or folder."""
        return (user_path(self.text),) if self.text else ()

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error if there is nothing to score."""
        if not self.text and not inputs.get("data"):
            yield nothing_to_score(where)

    def engine_needs(self) -> Needs:
        """Probabilities of the tokens of a given text."""
        return Needs(("distribution",))

    def forecast(self, work: Workload) -> Forecast:
        """One pass per model over the test rows, or over the text, whose windows overlap."""
        tokens = float(work.test_rows(self.limit) * work.rows.tokens)
        if self.text:
            path = user_path(self.text)
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            length = sum(file.stat().st_size for file in files)
            length = min(length, self.limit * self.piece_bytes) if self.limit and self.piece_bytes else length
            tokens = length / TOKEN_BYTES * self.context / self.stride
        return forecast_evaluation(work, tokens, self.dtype)

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return the items of its measure: at most one per answer or piece of text."""
        pieces = Items(self.limit or sys.maxsize, binary=False, exact=False)
        return {f"{self.prefix}bits_per_byte": pieces if self.text else count_answers(sources, self.limit)}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Score all models; write scores.json and items.jsonl.

        Raises ConfigError if there is nothing to score, DataError for a text or test split that is empty or unreadable, ModelError if the
        baseline fails.
        """
        found, left_out = self._documents(inputs, run.step)
        documents = spread(found, self.limit)
        models = in_transformers(list_models(inputs))
        texts = [document.text for document in documents]
        prompts = [Prompt(document.prompt, document.tools) for document in documents]
        plan = PerplexityPlan(texts, prompts, self.context, self.stride, self.dtype)
        results = evaluate_each(models, {model.name: plan for model in models}, score_documents, PerplexityResult, run)
        sound = {name: result for name, result in results.items() if not isinstance(result, Failure)}
        included = scorable(documents, sound)
        name, scored = f"{self.prefix}bits_per_byte", user_path(self.text).name if self.text else "the answers"
        measure = Measure(title=f"bits per byte of {scored}", unit="bits per byte", better="lower", binary=False)
        notes = [
            *self._notes(len(included), len(documents)),
            *left_out,
            *dequantized_notes(models),
            *scoring_notes(sound, models[0].name),
        ]
        summary = make_summary(models, results, {name: measure}, run, self.spec.libraries, notes)
        figures = {model: self._figures(documents, result, included, run.seed) for model, result in sound.items()}
        entries = {
            model: entry.model_copy(update={"figures": figures.get(model, {})})
            for model, entry in summary.models.items()
        }
        items = [
            self._item(name, documents[index], {model: found.losses[index] for model, found in sound.items()})
            for index in included
        ]
        write_scores(out, summary.model_copy(update={"models": entries}), items)
        return flat_metrics(items, figures, self.prefix)

    def _documents(self, inputs: Inputs, step: str) -> tuple[list[Document], list[str]]:
        """Return all documents, and a note on rows that are none."""
        if self.text:
            return read_texts(user_path(self.text), self.piece_bytes), []
        corpus = inputs.get("data")
        if corpus is None:
            raise nothing_to_score(f"steps.{step}")
        split = read_test_split(corpus.path)
        rows = answered_rows(split.rows, str(corpus.path / "test.jsonl"))
        return answer_documents(rows, split.tags), unanswered_note(len(split.rows), len(rows))

    def _item(self, measure: str, document: Document, losses: Mapping[str, DocumentLoss]) -> ItemScore:
        return ItemScore(
            measure=measure, id=document.id, cluster=document.cluster, tags=document.tags, weight=document.bytes, question=document.question,
            wanted=document.text if document.prompt else "",
            values={model: loss.nats / math.log(2) / (document.bytes - loss.skipped) for model, loss in losses.items()},
        )  # fmt: skip

    def _figures(
        self, documents: Sequence[Document], result: PerplexityResult, included: Sequence[int], seed: int
    ) -> dict[str, Figure]:
        losses, scored = [result.losses[index] for index in included], [documents[index] for index in included]
        tokens = sum(loss.tokens for loss in losses)
        size = sum(document.bytes - loss.skipped for document, loss in zip(scored, losses, strict=True))
        nats = sum(loss.nats for loss in losses)
        low, high = perplexity_bounds(scored, losses, seed)
        return {
            f"{self.prefix}perplexity": Figure(value=perplexity(nats, tokens), low=low, high=high, bounds="95 % interval", better="lower"),
            f"{self.prefix}perplexity_per_byte": Figure(value=perplexity(nats, size), better="lower"),
            f"{self.prefix}tokens_scored": Figure(value=tokens, unit="tokens"),
        }  # fmt: skip

    def _notes(self, included: int, found: int) -> list[str]:
        pieces = f"pieces of at most {self.piece_bytes} bytes" if self.piece_bytes else "whole texts"
        what = (
            f"{included} {pieces} of {user_path(self.text).name}"
            if self.text
            else f"{included} answers of the test split, each given its prompt"
        )
        notes = [f"Perplexity over {what}; window of {self.context} tokens, stride {self.stride}."]
        if found > included:
            notes.append(
                f"{found - included} texts left out: a single token without context, so a model has nothing to score."
            )
        return notes


def nothing_to_score(where: str) -> ConfigError:
    """Return the error for a step with neither a text nor a corpus."""
    wanted = "a text, or a corpus with test answers"
    return ConfigError(where, "nothing to score", wanted, f"{where}.text=path, or {where}.inputs.data=<step>")


def scorable(documents: Sequence[Document], results: Results) -> list[int]:
    """Return indices of documents that every model scored.  Raises DataError if there is none."""
    included = [
        index for index in range(len(documents)) if all(result.losses[index].tokens for result in results.values())
    ]
    if not included:
        raise DataError("perplexity", f"{len(documents)} texts of a single token each", "longer texts")
    return included


def perplexity(nats: float, count: int) -> float:
    """Return exp of the mean loss.  nats: total loss.  count: tokens or bytes."""
    return math.exp(min(nats / count, LARGEST))


def perplexity_bounds(
    documents: Sequence[Document], losses: Sequence[DocumentLoss], seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Bounds of perplexity per token: a 95 % interval; (None, None) for a single group.

    Resamples phrasing groups, or pieces of text, as in `score_bounds`.
    """
    means, weights = by_group(
        [loss.nats / loss.tokens for loss in losses],
        [float(loss.tokens) for loss in losses],
        [document.cluster or document.id for document in documents],
    )
    if len(means) < 2:
        return None, None
    found = score_bounds(means, weights, binary=False, seed=seed)
    return perplexity(found.low, 1), perplexity(found.high, 1)


def scoring_notes(results: Results, baseline: str) -> list[str]:
    """Return notes on how scoring differs between the models."""
    others = [name for name, found in results.items() if found.tokens_digest != results[baseline].tokens_digest]
    skipping = [name for name, found in results.items() if any(loss.skipped for loss in found.losses)]
    notes = []
    if others:
        notes.append(
            f"{', '.join(others)}: tokenized differently from {baseline}: compare bits per byte, not perplexity per token."
        )
    if skipping:
        notes.append(
            f"{', '.join(skipping)}: the tokenizer adds no beginning-of-sequence token, so the first token is not scored and its bytes are not counted."
        )
    notes += [
        f"{name}: every window begins with {found.bos}, as its tokenizer adds it."
        for name, found in results.items()
        if found.bos
    ]
    notes += [
        f"{name}: {found.truncated} prompts are longer than the context and were truncated at the beginning."
        for name, found in results.items()
        if found.truncated
    ]
    return notes


def flat_metrics(items: Sequence[ItemScore], figures: Mapping[str, Mapping[str, Figure]], prefix: str) -> Metrics:
    """Return bits per byte and perplexity of every model."""
    weights = [item.weight for item in items]
    metrics: Metrics = {"items": len(items)}
    for model, found in figures.items():
        metrics[f"{model}.{prefix}bits_per_byte"] = weighted_mean([item.values[model] for item in items], weights)
        metrics[f"{model}.{prefix}perplexity"] = found[f"{prefix}perplexity"].value
    return metrics
