"""Vocabulary trimming: drop the tokens that a domain does not use, and their weight rows.

Source: Abdaoui et al. 2020, arXiv 2010.05609.

In a small model, embedding and head are a large part of the weights, but a domain uses only a few thousand tokens.  The trimmed
tokenizer splits the domain's texts exactly as before, and can still encode any other text in more, shorter tokens.
"""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.tokens.merges import RESERVED, always_kept, rounded_up
from tasks.prune.tokens.record import Trial, Trimming, write_trimming
from tasks.prune.tokens.rows import keep_rows, renumber, token_rows
from tasks.prune.tokens.texts import Passage, domain, without_every_tenth
from tasks.prune.tokens.tokenizer import Tokens, numbered, take_apart, trimmed, used_tokens, with_fewer_tokens
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family, has_parts
from tasks.shared.model.masks import carry_masks
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SECONDS = 20.0
"""Seconds to tokenize a domain of a few thousand texts, twice."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Vocabulary:
    """Keep the tokens that `data` needs, bytes and special tokens; drop all other rows.

    Texts are the training and calibration rows of every corpus and of all traces in `data`, as the model reads them.
    """

    size: Annotated[int, Field(ge=0)] = 24576
    """Minimum number of tokens to keep: those that the texts need, then the most frequent ones by merge rank.  0: only the needed ones.
    Words that users write and the texts lack stay whole if they are frequent: with 8,192 tokens a 135M model lost 4 points of its labels
    on unseen wordings, with 24,576 half a point (docs/log/2026-11.md)."""
    multiple: Annotated[int, Field(ge=1)] = 64
    """Round the number of tokens up to a multiple of this with further frequent tokens, since kernels and blocks prefer even sizes."""
    numbers: bool = True
    """Keep all tokens of digits, so that numbers absent from the texts are tokenized as in pre-training."""
    reserved: bool = True
    """Keep the tokenizer's reserved tokens (<unused7>, <|reserved_special_token_3|>); some tokenizers have thousands."""
    articles: bool = True
    """Also read the corpora's articles, which may be in prompts, except those held out for the test."""
    texts: tuple[str, ...] = ()
    """Further texts of the domain: .txt, .md or .jsonl files (key "text" of each line), or folders of them, UTF-8."""

    spec: ClassVar[Spec] = Spec(
        summary="Keeps the tokens and merges that the domain's texts need, plus all bytes; embedding and head shrink",
        ports={"model": Port((Kind.MODEL,)), "data": Port((Kind.CORPUS, Kind.TRACES), many=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        accepts="dense",
        gives="dense",
        paper="Abdaoui et al. 2020, arXiv 2010.05609",
    )

    def sources(self) -> tuple[Path, ...]:
        """Return the user's text files."""
        return tuple(map(user_path, self.texts))

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a model of `size` tokens; with 0 the untrimmed one, since the texts decide."""
        size = work.size()
        kept = min(size.shape.vocabulary, rounded_up(self.size, self.multiple)) if self.size else size.shape.vocabulary
        return forecast_reading(work, SECONDS, size.parameters, size.with_vocabulary(kept))

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models of several parts."""
        if has_parts(config):
            return Refusal("several parts, which share the vocabulary's ids", "a text-only model")
        return None

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the smaller model and vocabulary.json (the old id of every new one) to `out`.

        Raises TechniqueError for a tokenizer that is not byte-pair encoding, or that would split the texts differently.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        with tempfile.TemporaryDirectory(dir=run.scratch) as folder:
            tokenizer = load_tokenizer(source, chat=False)
            tokens = take_apart(tokenizer, str(source))
            passages = domain(tokenizer, [each.path for each in inputs.many("data")], self.sources(), self.articles)
            cuts = used_tokens(tokenizer, texts_of(passages))
            model = load_model(source, device=run.compute.device)
            check_family(self, model.config.to_dict(), str(source))
            rows, before = token_rows(model), model.num_parameters()
            new = numbered(tokens, self.choose(tokens, set().union(*cuts), rows))
            small = trimmed(tokenizer, tokens, new, Path(folder) / "trimmed")
        old_ids = [tokens.ids[token] for token in new]
        shrink(model, old_ids)
        save_model(model, small, out)
        check_cuts(load_tokenizer(out, chat=False), texts_of(passages), cuts)
        trimming = Trimming(
            tokens_before=len(tokens.ids), tokens=len(new), merges_before=len(tokens.merges.pairs), merges=len(tokens.merges.between(new)),
            rows_before=rows, parameters_before=before, parameters=model.num_parameters(), used=len(set().union(*cuts)),
            held_out=self.tried(tokenizer, tokens, passages, rows), old_ids=tuple(old_ids),
        )  # fmt: skip
        write_trimming(out, trimming)
        return figures(trimming) | carry_masks(source, out)

    def choose(self, tokens: Tokens, used: Collection[str], rows: int) -> set[str]:
        """Choose the tokens to keep, only from those with a row in the model."""
        wanted = {token for token in tokens.added if self.reserved or not RESERVED.fullmatch(token)}
        wanted |= set(used) | always_kept(tokens.merges.tokens, tokens.byte_level, self.numbers)
        if tokens.unknown is not None:
            wanted.add(tokens.unknown)
        kept = tokens.merges.closed(wanted)
        kept = tokens.merges.filled(kept, rounded_up(max(self.size, len(kept)), self.multiple))
        return {token for token in kept if tokens.ids.get(token, rows) < rows}

    def tried(
        self, tokenizer: "PreTrainedTokenizerBase", tokens: Tokens, passages: Sequence[Passage], rows: int
    ) -> Trial | None:
        """Measure the trimming on unseen topics: choose tokens without a tenth, count on that tenth."""
        from tokenizers import Tokenizer

        known, unseen = without_every_tenth(passages)
        if not unseen:
            return None
        used = set().union(*used_tokens(tokenizer, texts_of(known)))
        new = numbered(tokens, self.choose(tokens, used, rows))
        small = Tokenizer.from_str(json.dumps(with_fewer_tokens(tokens, new)))
        texts = [passage.spoken for passage in unseen]
        before = used_tokens(tokenizer, texts)
        after = small.encode_batch(texts, add_special_tokens=False)
        total = sum(map(len, before))
        return Trial(
            texts=len(texts),
            tokens_per_text_before=total / len(texts),
            tokens_per_text=sum(map(len, after)) / len(texts),
            kept=sum(token in new for cut in before for token in cut) / total,
        )


def texts_of(passages: Sequence[Passage]) -> list[str]:
    """Return all texts in order.  Raises DataError if there are none."""
    found = [text for passage in passages for text in passage.texts]
    if not found:
        raise DataError("data", "no texts", "at least one conversation from which to choose tokens")
    return found


def shrink(model: "PreTrainedModel", old_ids: Sequence[int]) -> None:
    """Keep these vocabulary rows of a model, in place, and renumber its configurations."""
    new = {old: position for position, old in enumerate(old_ids)}
    keep_rows(model, old_ids)
    renumber(model.config, new)
    if model.generation_config is not None:
        renumber(model.generation_config, new)


def check_cuts(small: "PreTrainedTokenizerBase", texts: Sequence[str], cuts: Sequence[Sequence[str]]) -> None:
    """Raise TechniqueError at the first text that the trimmed tokenizer splits differently."""
    for text, before, after in zip(texts, cuts, used_tokens(small, texts), strict=True):
        if before != after:
            place = next(
                (index for index, pair in enumerate(zip(before, after, strict=False)) if len(set(pair)) > 1), 0
            )
            raise TechniqueError(
                type(small).__name__,
                f"with fewer tokens it splits {text[:60]!r} differently, from token {place} on: {list(after[place : place + 4])}",
                f"{list(before[place : place + 4])}",
                "leave this model's vocabulary as it is, and report the tokenizer",
            )


def figures(trimming: Trimming) -> Metrics:
    """Return metrics for the run's tables."""
    trial = trimming.held_out
    found: Metrics = trimming.model_dump(exclude={"old_ids", "held_out"})
    if trial is not None:
        found |= {
            "unseen_tokens_kept": round(trial.kept, 4),
            "unseen_tokens_per_text_before": round(trial.tokens_per_text_before, 2),
            "unseen_tokens_per_text": round(trial.tokens_per_text, 2),
        }
    return found
